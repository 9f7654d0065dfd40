"""Own images: from a folder to a report, stopped and resumed; plans for both devices; the table and its page."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sample_imagenet
import train_rar
import train_titok
from common.build import ConfigError
from common.config import REPOSITORY, load_settings, read_yaml, to_tree
from jobs.options.own_images import OwnImagesOptions
from jobs.options.pretokenize import PretokenizeOptions
from jobs.options.sample_images import SampleOptions
from jobs.own_images import own_images
from jobs.own_images_report import find_copies
from jobs.own_images_table import (
    DEVICES,
    FEWEST_STEPS,
    IMAGES,
    expected_psnr,
    for_images,
    markdown,
    steps_for,
)
from jobs.pretokenize import pretokenize
from jobs.recipe_runs import finished
from storage.files import write_yaml
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import TokenizerRun

PROGRAMS = {
    "train_titok.py": (train_titok, TokenizerRun),
    "scripts/pretokenize.py": (pretokenize, PretokenizeOptions),
    "train_rar.py": (train_rar, GeneratorRun),
    "sample_imagenet.py": (sample_imagenet, SampleOptions),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve pictures of two classes, one nested, and a file that is none."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(12):
        place = folder / ("sky" if number % 2 else "sea/deep") / f"{number}.PNG"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(place, "PNG")
    (folder / "sky" / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def launched(monkeypatch, program):
    """Programs run inside the test process, a few steps of each training; the list of what was started."""
    calls = []

    def call(name, arguments, log=None):
        calls.append((name, list(arguments)))
        done = program(*PROGRAMS[name], *arguments)
        assert done.code == 0, done.err

    for module in ("recipe_runs", "own_images", "own_images_plan"):
        monkeypatch.setattr(f"jobs.{module}.launch", call)
    monkeypatch.setattr("jobs.own_images_table.FEWEST_STEPS", 2)
    monkeypatch.setattr("jobs.own_images_plan.TIMED_STEPS", 2)
    monkeypatch.setattr("jobs.own_images_plan.TIMED_EVERY", 1)
    return calls


def options(photos, tmp_path, **changes):
    given = {
        "images": str(photos),
        "output": str(tmp_path / "own"),
        "minutes": 0.001,
        "samples": 6,
        "image_size": 16,
    }
    return OwnImagesOptions(**given | changes)


def test_from_a_folder_to_a_report_stopped_and_resumed(photos, tmp_path, launched, monkeypatch):
    asked, folder = options(photos, tmp_path), tmp_path / "own"

    def stop(*_):
        raise SystemExit(143)

    with monkeypatch.context() as stopped:
        stopped.setattr("jobs.own_images.launch", stop)  # after the tokenizer
        with pytest.raises(SystemExit):
            own_images(asked)
    trained = (folder / "titok" / "model.safetensors").stat().st_mtime_ns
    own_images(asked)
    assert (folder / "titok" / "model.safetensors").stat().st_mtime_ns == trained
    names = [name for name, _ in launched]
    assert names.count("train_titok.py") == 2, "a few steps are measured once, and one tokenizer is trained"
    assert names[2:] == ["scripts/pretokenize.py"] * 2 + ["train_rar.py", "sample_imagenet.py"]
    assert Image.open(folder / "picture.png").size[1] > 100
    report = json.loads((folder / "report.json").read_text())
    assert (
        report["copies"]["samples"] == 6 and report["images"]["train"] + report["images"]["validation"] == 12
    )
    page = (folder / "report.md").read_text()
    assert "picture.png" in page
    for name, arguments in launched[1:]:
        assert f"python {name} {' '.join(arguments)}" in page, "every stage can be repeated by hand"

    del launched[:]
    own_images(asked)
    assert {name for name, _ in launched} == {"scripts/pretokenize.py", "sample_imagenet.py"}, (
        "which find it done"
    )
    with pytest.raises(ValueError, match=r"begun with other options \(settings.seed was 0, is now 1\)"):
        own_images(options(photos, tmp_path, seed=1))


def test_a_plan_for_the_cpu_trains_nothing(photos, tmp_path, launched, capsys):
    own_images(options(photos, tmp_path, plan=True, image_size=None, minutes=30, generator="maskgit"))
    assert [name for name, _ in launched] == ["train_titok.py"] and not (tmp_path / "own" / "titok").exists()
    said = capsys.readouterr().out
    assert "configs/maskgit/images_cpu.yaml" in said and "64 x 64" in said and "measured here" in said
    chosen = load_settings(
        TokenizerRun, ["config=configs/titok/images_cpu.yaml", f"config={tmp_path}/own/titok.yaml"]
    )
    assert chosen.data.train["name"] == "image_list" and chosen.training.keep_best
    assert chosen.training.max_steps <= for_images(11).tokenizer_passes * 11 // 16 + 10
    # A plan binds nobody: other options make another one.
    own_images(options(photos, tmp_path, plan=True, image_size=32, minutes=30))
    assert read_yaml(tmp_path / "own" / "titok.yaml", needed=["tokenizer"])["tokenizer"]["image_size"] == 32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")
def test_a_plan_for_a_gpu_that_is_not_there(photos, tmp_path, launched, capsys):
    own_images(options(photos, tmp_path, plan=True, device="gpu", image_size=None, minutes=60))
    said = capsys.readouterr().out
    assert not launched and "128 x 128" in said and "estimated for gpu=t4" in said
    assert said.count(": fits") == 2, "both trainings fit into 16 GB"
    with pytest.raises(ValueError, match="there is no GPU; plan=true"):
        own_images(options(photos, tmp_path, device="gpu"))


def test_mistakes_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="images .*absent does not exist"):
        own_images(OwnImagesOptions(images=str(tmp_path / "absent"), output=str(tmp_path / "own")))
    assert not (tmp_path / "own").exists()
    for wrong in ({"image_size": 50}, {"validation": 1.0}, {"minutes": 0.0}):
        with pytest.raises((ConfigError, ValueError), match=next(iter(wrong))):
            OwnImagesOptions(images="x", **wrong)


def test_copies_are_counted_by_their_tokens(tmp_path, monkeypatch):
    class Tokens:
        def __len__(self):
            return 2

        def all_crops(self, start, stop):
            return np.array([[[1, 2, 3, 4], [4, 3, 2, 1]], [[5, 5, 5, 5], [6, 6, 6, 6]]], dtype=np.uint16)[
                start:stop
            ]

    monkeypatch.setattr("jobs.own_images_report._CHUNK", 1)
    found = find_copies(np.array([[4, 3, 2, 1], [5, 5, 5, 0], [9, 9, 9, 9]]), Tokens())
    assert (found.samples, found.copies) == (3, 1)
    assert found.nearest == pytest.approx((1 + 0.75 + 0) / 3)
    assert "1 of 3 (33.3%)" in found.text


def test_a_finished_run_is_found_though_the_machine_chose_some_of_its_settings(tmp_path):
    recipe = ["config=configs/titok/images_gpu.yaml", f"experiment.output_dir={tmp_path}"]
    stored = load_settings(
        TokenizerRun,
        [*recipe, "training.per_gpu_batch_size=16", "training.gradient_accumulation_steps=4"]
        + ["training.mixed_precision=fp16", "training.num_workers=3"],
    )
    write_yaml(tmp_path / "config.yaml", to_tree(stored))
    (tmp_path / "model.safetensors").touch()
    assert finished(tmp_path, TokenizerRun, recipe)
    with pytest.raises(ValueError, match="training.max_steps was 100000, is now 5"):
        finished(tmp_path, TokenizerRun, [*recipe, "training.max_steps=5"])


def test_steps_follow_time_and_passes():
    assert steps_for(600, 0.5, images=1000, batch=32, passes=100) == 1200
    assert steps_for(6000, 0.5, images=1000, batch=32, passes=100) == 3120  # 100 passes
    assert steps_for(1, 0.5, images=1000, batch=32, passes=100) == FEWEST_STEPS
    assert expected_psnr(10) is None and "dB" in expected_psnr(10_000)


def test_the_table_covers_all_numbers_and_is_the_one_of_the_page():
    assert [row.up_to for row in IMAGES] == sorted(row.up_to for row in IMAGES[:-1]) + [None]
    for device in DEVICES:
        for kind in ("titok", "rar", "maskgit"):
            assert (REPOSITORY / "configs" / kind / f"{device.recipes}.yaml").is_file()
        assert device.tokenizer_time + device.generator_time < 1
    page = (REPOSITORY / "docs" / "own_images.md").read_text()
    for part in markdown().split("\n\n"):
        assert part.strip() in page
