"""What curves say: which value leads, the best step, an early stop, over-fitting in words; and how they are drawn."""

import json

import pytest
from PIL import Image

from common.config import REPOSITORY
from training.curves import _layout, draw_curves, read_curves

STEPS = (100, 200, 300, 400)


def run(folder, *, train, held_out, names=("total_loss", "loss"), best=None, max_steps=None):
    """A run folder with a training and a held-out value at every one of STEPS."""
    folder.mkdir(exist_ok=True)
    lines = []
    for step, one, two in zip(STEPS, train, held_out, strict=False):
        lines.append({"step": step, "kind": "train", names[0]: one, "accuracy": step / 1000})
        lines.append({"step": step, "kind": "evaluate", names[1]: two, "accuracy": 0.1, "images": 9.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if best is not None:
        (folder / "best").mkdir()
        (folder / "best/metrics.json").write_text(json.dumps(best))
    if max_steps is not None:
        (folder / "config.yaml").write_text(f"training: {{max_steps: {max_steps}}}\n")
    return folder


def test_a_model_that_memorises_is_told_so(tmp_path):
    folder = run(tmp_path, train=(3.0, 2.0, 1.0, 0.5), held_out=(2.4, 2.1, 3.0, 3.6))
    curves = read_curves(folder)
    assert curves.best == (200, 2.1) and not curves.kept and curves.stopped is None
    assert curves.over_fitting() == (
        "held-out loss rose from 2.1 at step 200 to 3.6 while the training loss fell from 2 to 0.5: the model"
        " memorises; use training.keep_best=true, more images, more dropout or a smaller model, or fewer steps"
    )
    folder = run(
        tmp_path / "kept",
        train=(3.0, 2.0, 1.0, 0.5),
        held_out=(2.4, 2.1, 3.0, 3.6),
        best={"step": 200, "loss": 2.1, "decided_by": "loss"},
        max_steps=1000,
    )
    curves = read_curves(folder)
    assert (
        curves.kept and curves.stopped == 400 and "memorises; use best/, more images" in curves.over_fitting()
    )


@pytest.mark.parametrize(
    ("train", "held_out", "names"),
    [
        ((3.0, 2.0, 1.0, 0.5), (2.4, 2.2, 2.1, 2.0), ("total_loss", "loss")),  # the last is the best
        ((3.0, 2.0, 1.0, 0.5), (2.4, 2.1, 2.15, 2.2), ("total_loss", "loss")),  # hardly worse
        ((0.5, 0.6, 0.7, 0.8), (2.4, 2.1, 3.0, 3.6), ("total_loss", "loss")),  # both get worse
        ((0.5, 0.4, 0.5, 0.6), (20, 21, 19, 18), ("reconstruction_loss", "psnr")),  # a discriminator begins
        ((3.0,), (2.4,), ("total_loss", "loss")),
        ((3.0, 2.0), (1.0, 2.0), ("total_loss", "new_metric")),
    ],
)
def test_others_are_not(tmp_path, train, held_out, names):
    assert read_curves(run(tmp_path, train=train, held_out=held_out, names=names)).over_fitting() is None


def test_tokenizers_are_told_by_psnr(tmp_path):
    names = ("reconstruction_loss", "psnr")
    folder = run(tmp_path, train=(0.5, 0.4, 0.3, 0.2), held_out=(20, 21, 20, 19.5), names=names)
    text = read_curves(folder).over_fitting()
    assert text.startswith(
        "held-out psnr fell from 21 at step 200 to 19.5 while the training reconstruction loss fell"
    )


def test_the_value_that_decided_leads(tmp_path):
    folder = run(
        tmp_path,
        train=(0.5, 0.4, 0.3, 0.2),
        held_out=(0.4, 0.3, 0.2, 0.3),
        names=("reconstruction_loss", "lpips"),
        best={"step": 200, "lpips": 0.3, "decided_by": "lpips"},
    )
    lines = (folder / "metrics.jsonl").read_text().replace('"lpips"', '"psnr": 20, "lpips"')
    (folder / "metrics.jsonl").write_text(lines)
    curves = read_curves(folder)
    assert curves.lead.held_out == "lpips"
    assert (
        curves.best == (200, 0.3) and curves.kept
    )  # what is kept, though step 300 is better: it did not count


def test_the_shipped_models_are_judged_as_their_records_say():
    shipped = REPOSITORY / "assets" / "models"
    assert read_curves(shipped / "titok_openmoji").over_fitting() is None
    assert "from 4.11 at step 1000 to 7.61" in read_curves(shipped / "rar_openmoji").over_fitting()


def test_panels_fill_the_page_without_overlap():
    for leads in range(4):
        for small in range(12):
            places, free = _layout(leads, small)
            cells = [(r + i, c + j) for r, c in places for i in range(2) for j in range(2)] + free
            assert len(places) == leads and len(free) == small
            assert len(set(cells)) == len(cells) and all(c < 4 for _, c in cells)


def test_curves_are_drawn(tmp_path):
    early = run(
        tmp_path / "early",
        train=(3.0, 2.0, 1.0, 0.5),
        held_out=(2.4, 2.1, 3.0, 3.6),
        best={"step": 200, "loss": 2.1, "decided_by": "loss"},
        max_steps=1000,
    )
    names = ("reconstruction_loss", "psnr")
    tokenizer = run(tmp_path / "tokenizer", train=(9, 0.4, 0.3, 0.2), held_out=(20, 21, 22, 23), names=names)
    assert draw_curves({"tokenizer": tokenizer, "generator": early}, tmp_path / "two.png")
    single = run(tmp_path / "single", train=(3.0,), held_out=(2.4,))
    assert not draw_curves({"single": single, "empty": tmp_path}, tmp_path / "none.png")
    with Image.open(tmp_path / "two.png") as picture:
        assert picture.width > 1500
    assert not (tmp_path / "none.png").exists()
