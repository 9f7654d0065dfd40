import csv
import json
import subprocess
import sys

import pytest

from common.config import REPOSITORY
from evaluator.metrics import METRICS
from evaluator.result_names import base_name, direction, is_spread, networks_behind
from jobs.leaderboard import leaderboard
from jobs.options.leaderboard import LeaderboardOptions


def result(metrics, **changes):
    facts = {
        "samples": {"height": 48, "width": 48, "alpha": "white", "orientation": "stored"},
        "images": 500,
        "crop": "none",
        "rounding": "nearest",
        "reference": {"sha256": "ab" * 32, "image_set": "training", "count": 5000},
        "protocol": {"name": "adm", "neighbours": 3},
        "extractors": {"inception": {"weights_hash": "w", "precision": "float32", "approximate": False}},
        "tokenizer": {},
        "sampler": {},
    }
    for key, value in changes.items():
        facts[key] = {**facts[key], **value} if isinstance(facts.get(key), dict) else value
    return {"metrics": metrics, "warnings": [], "protocol": facts}


@pytest.fixture
def board(tmp_path):
    def run(rank=None, **results):
        for name, content in results.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        names = [str(tmp_path / f"{name}.json") for name in results]
        leaderboard(LeaderboardOptions(results=names, output=str(tmp_path / "out"), rank=rank))
        rows = list(csv.DictReader((tmp_path / "out/leaderboard.csv").read_text().splitlines()))
        return (tmp_path / "out/leaderboard.md").read_text(), rows

    return run


def test_like_protocols_are_ordered_whatever_keys_they_have(board, tmp_path):
    page, rows = board(
        worse=result({"fid_500": 30.0, "is_500": 8.0, "is_500_std": 0.5, "news_of_tomorrow": 1}),
        better=result({"fid_500": 20.0, "is_500": 7.0}),
    )
    assert [(row["group"], row["model"]) for row in rows] == [("1", "better"), ("1", "worse")]
    assert rows[1]["news_of_tomorrow"] == "1.0" and rows[0]["news_of_tomorrow"] == ""
    assert "fid_500 ↓" in page and "**20**" in page and "**8 ± 0.5**" in page and "by fid_500" in page
    assert "<b>20</b>" in (tmp_path / "out/leaderboard.html").read_text()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": 50}, "images: 50, there 500"),
        ({"samples": {"height": 64}}, "resolution: 64 x 48 pixels, there 48 x 48 pixels"),
        ({"crop": "adm 48"}, "crop: adm 48, there none"),
        ({"rounding": "truncated"}, "rounding: truncated, there nearest"),
        ({"reference": {"sha256": "cd" * 32}}, "reference: cdcdcd"),
        ({"reference": {"image_set": "validation"}}, "kind of reference: validation, there training"),
        ({"protocol": {"neighbours": 5}}, "protocol neighbours: 5, there 3"),
        ({"extractors": {"inception": {"weights_hash": "v"}}}, "network inception: weights_hash: v, there w"),
        ({"fd_of": "half"}, None),  # said by one of them alone
        ({"extractors": {"dinov2": {"weights_hash": "d"}}}, None),
    ],
)
def test_unlike_protocols_are_not_compared(changes, reason, board):
    page, rows = board(one=result({"fid": 3.0}), two=result({"fid": 2.0}, **changes))
    assert len({row["group"] for row in rows}) == (2 if reason else 1)
    lines = [line for line in page.splitlines() if "Not comparable" in line]
    assert len(lines) == bool(reason) and (not reason or f"group 1: {reason}" in lines[0])


def test_facts_of_single_metrics_are_compared_where_both_have_them(board):
    one, two = ({"kid": 3.0}, {"kid_subset_size": 1000}), ({"kid": 2.0}, {"kid_subset_size": 100})
    page, _ = board(one=result(one[0], **one[1]), two=result(two[0], **two[1]))
    assert "kid_subset_size: 100, there 1000" in page


def test_what_was_found_is_no_protocol(board):
    copies = [
        {"token_copies": {"rows": 500, "copies": count}, "copies": {"samples": count}} for count in (3, 40)
    ]
    _, rows = board(one=result({"fid": 3.0}, **copies[0]), two=result({"fid": 2.0}, **copies[1]))
    assert {row["group"] for row in rows} == {"1"}


def test_a_model_has_no_place_in_a_space_that_it_was_trained_on(board):
    network = {"dinov2": {"weights_hash": "d"}, "titok_openmoji": {"weights_hash": "own"}}
    values = {"fdr_dinov2_500": 1.0, "fd_titok_openmoji_500": 1.0, "psnr": 20.0}
    learnt = {"trained_on": ["vit_base_patch14_dinov2.lvd142m"], "weight_hash": "own"}
    others = {"fdr_dinov2_500": 2.0, "fd_titok_openmoji_500": 3.0, "psnr": 19.0}
    results = {
        "teacher": result(values, extractors=network, tokenizer=learnt),
        "free": result(others, extractors=network, tokenizer={"weight_hash": "x"}),
    }
    page, rows = board(**results)
    assert "by psnr" in page and rows[0]["model"] == "teacher"  # the first metric by which all may be ranked
    assert set(rows[0]["trained_on"].split()) == set(network)
    page, rows = board(rank="fdr_dinov2", **results)
    assert rows[0]["model"] == "free" and "1 †" in page and "**1" not in page
    assert (
        "teacher has no place by fdr_dinov2_500: dinov2: trained with vit_base_patch14_dinov2.lvd142m" in page
    )
    with pytest.raises(
        ValueError, match="rank=lpips orders no row; expected one of fd_titok_openmoji, fdr_dinov2"
    ):
        board(rank="lpips", **results)


def test_comparisons_and_folders_are_read_and_strangers_refused(tmp_path):
    folder, stranger = tmp_path / "runs", tmp_path / "other.json"
    (folder / "deep").mkdir(parents=True)
    rows = [{"name": name, "psnr": psnr, "held_out_images": 9} for name, psnr in (("a|b", 20.0), ("c", 21.0))]
    (folder / "deep/comparison.json").write_text(json.dumps({"settings": {"steps": 5}, "rows": rows}))
    (folder / "metrics.json").write_text('{"loss": 1}')
    leaderboard(LeaderboardOptions(results=[str(folder)], output=str(tmp_path / "out")))
    page = (tmp_path / "out/leaderboard.md").read_text()
    assert page.index("| c |") < page.index("| a\\|b |") and "**21**" in page
    stranger.write_text('{"loss": 1}')
    for paths, message in (
        ([str(stranger)], "other.json is no result: expected metrics and protocol"),
        ([str(tmp_path / "out")], "holds no result file"),
        ([], "results=.. names no file"),
    ):
        with pytest.raises(ValueError, match=message):
            leaderboard(LeaderboardOptions(results=paths, output=str(tmp_path / "out")))
    with pytest.raises(FileNotFoundError):
        leaderboard(LeaderboardOptions(results=["nowhere.json"], output=str(tmp_path / "out")))


def test_every_metric_has_a_direction_and_a_network():
    for name, metric in METRICS.items():
        names = [value for value in metric.result_names(1234) if not is_spread(value)]
        assert any(map(direction, names)) or not names, name
        for value in names:
            assert base_name(value) == base_name(value.replace("_1234", ""))
        assert networks_behind(name) or metric.compares == "pairs", name


def test_help_needs_no_torch():
    code = "import sys; import scripts.leaderboard; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=300)
