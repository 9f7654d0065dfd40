"""Every form that ImageNet comes in gives the same shards' content; resume, damage, hashes, odd images."""

import json
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from common.config import REPOSITORY
from data.packing.imagenet_labels import count_warnings
from data.webdataset_shards import WebDataset
from jobs.options.prepare_data import PrepareOptions
from jobs.prepare_data import prepare_data
from tests.data import imagenet_standin as imagenet


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def prepare(source: Path | str, output: Path, **options) -> None:
    prepare_data(PrepareOptions(input=str(source), output=str(output), **{"workers": 1, **options}))


def samples(pattern: Path) -> list[dict[str, bytes]]:
    """Samples of shards as another program sees them: members by suffix."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in sorted(pattern.parent.glob(pattern.name)):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                found.setdefault(f"{shard.name}/{key}", {})[ending] = tar.extractfile(member).read()
    return list(found.values())


def contents(found: list[dict[str, bytes]]) -> dict[bytes, int]:
    images = {sample.get("jpg") or sample.get("png"): int(sample["cls"]) for sample in found}
    assert len(images) == len(found)
    return images


def warnings_of(capsys) -> list[str]:
    return [
        line.removeprefix("warning: ") for line in capsys.readouterr().err.splitlines() if "warning" in line
    ]


@pytest.mark.parametrize("layout", imagenet.LAYOUTS, ids=lambda f: f.__name__)
def test_every_form_of_imagenet_gives_the_same_images_and_labels(layout, tmp_path, capsys):
    output = tmp_path / "imagenet"
    prepare(layout(tmp_path / "source"), output, images_per_shard=4)
    assert contents(samples(output / "imagenet-train-*.tar")) == imagenet.expected("train")
    assert contents(samples(output / "imagenet-val-*.tar")) == imagenet.expected("validation")
    assert len(list(output.glob("*.tar"))) == len(list(output.glob("*.tar.index"))) == 4 + 2
    assert not [p for p in output.iterdir() if p.name.endswith(".part") or p.name.endswith(".progress")]
    heard = warnings_of(capsys)
    assert "train: 3 of ImageNet's 1000 classes" in heard
    assert [line for line in heard if "a PNG file named .jpeg" in line and imagenet.PNG_NAMED_JPEG in line]
    assert [line for line in heard if "mode CMYK" in line and imagenet.CMYK in line]

    for split, shards in (("train", "train-{000000..000003}"), ("validation", "val-{000000..000001}")):
        source = WebDataset(path=f"{output}/imagenet-{shards}.tar", image_size=8, num_classes=3)
        assert sorted(source.labels.tolist()) == sorted(imagenet.expected(split).values())
        assert source.load(0, np.random.default_rng(0))[0].shape == (3, 8, 8)
    manifest = json.loads((output / "imagenet-train.json").read_text())
    assert manifest["images"] == 15 and manifest["path"] == "imagenet-train-{000000..000003}.tar"
    assert [c["synset"] for c in manifest["classes"]] == imagenet.SYNSETS
    assert [c["images"] for c in manifest["classes"]] == [5, 5, 5]
    if layout.__name__ not in ("inner_archives", "sorted_validation"):  # which have no list of names
        assert [c["name"] for c in manifest["classes"]] == list(imagenet.NAMES.values())


def test_training_images_are_mixed_and_validation_images_stay_in_order(tmp_path):
    source = imagenet.archives(tmp_path / "source")
    for name, options in {"a": {}, "again": {}, "seed": {"seed": 1}}.items():
        prepare(source, tmp_path / name, images_per_shard=6, **options)

    def order(name, split):
        return [s["cls"] for s in samples(tmp_path / name / f"imagenet-{split}-*.tar")]

    assert order("a", "train") != sorted(order("a", "train")) and order("a", "train") != order(
        "seed", "train"
    )
    labels = [imagenet.SYNSETS.index(synset) for _, synset in imagenet.validation_images().values()]
    assert [int(c) for c in order("a", "val")] == labels
    for shard in (tmp_path / "a").glob("*.tar"):
        assert shard.read_bytes() == (tmp_path / "again" / shard.name).read_bytes()


def test_members_of_a_sample(tmp_path):
    prepare(imagenet.kaggle(tmp_path / "source"), tmp_path / "out", images_per_shard=100)
    found = {json.loads(s["json"])["filename"]: s for s in samples(tmp_path / "out/imagenet-train-*.tar")}
    own = found["n01443537/n01443537_1.JPEG"]
    assert json.loads(own["json"]) == {
        "filename": "n01443537/n01443537_1.JPEG",
        "label": 1,
        "class_name": "goldfish",
        "original_width": 11,
        "original_height": 12,
    }
    assert own["cls"] == b"1" and own["jpg"] == imagenet.train_images()["n01443537/n01443537_1"]
    assert "png" in found[f"n02105855/{imagenet.PNG_NAMED_JPEG}.JPEG"]
    prepare(tmp_path / "source", tmp_path / "plain", images_per_shard=100, json=False)
    assert set(samples(tmp_path / "plain/imagenet-train-*.tar")[0]) == {"jpg", "cls"}


def test_the_names_are_those_of_the_recipes():
    """Full ImageNet has 321 and 50 shards."""
    from jobs.prepare_data import PER_SHARD, SHORT

    for split, images in (("train", 1_281_167), ("validation", 50_000)):
        last = -(-images // PER_SHARD[split]) - 1
        name = f"imagenet/imagenet-{SHORT[split]}-{{000000..{last:06d}}}.tar"
        recipes = [p.read_text() for p in (REPOSITORY / "configs").glob("*/*.yaml")]
        patterns = {m for text in recipes for m in re.findall(rf"imagenet/imagenet-{SHORT[split]}\S+", text)}
        assert patterns == {name}


def test_other_folders_and_their_captions(tmp_path, capsys):
    flat = imagenet.write(
        tmp_path / "flat",
        {
            "a.b.jpg": imagenet.picture(1),
            "a.b.txt": b" a cat\n",
            "c.png": imagenet.picture(2, "PNG"),
            "d.jpg": b"no",
        },
    )
    prepare(flat, tmp_path / "out", images_per_shard=10)
    found = {sample.get("txt"): sample for sample in samples(tmp_path / "out/flat-train-*.tar")}
    assert set(found) == {b"a cat", None} and "cls" not in found[None]
    manifest = json.loads((tmp_path / "out/flat-train.json").read_text())
    assert manifest["damaged_and_left_out"] == {"not a readable image": [f"{flat}/d.jpg"]}
    assert f"train: 1 damaged and left out, not a readable image: {flat}/d.jpg" in warnings_of(capsys)
    source = WebDataset(path=str(tmp_path / "out/flat-train-000000.tar"), image_size=8, num_classes=1)
    assert len(source) == 2

    hidden = ["./x/a/._2.jpg", "__MACOSX/x/a/2.jpg", "x/a/readme.exe"]
    for name, inside in {
        "bare": ["1.jpg", "2.jpg"],
        "folders": ["./x/b/1.jpg", "./x/a/2.jpg", *hidden],
    }.items():
        members = {member: imagenet.picture(i) for i, member in enumerate(inside)}
        (tmp_path / f"{name}.tar").write_bytes(imagenet.packed(members))
        prepare(tmp_path / f"{name}.tar", tmp_path / "out", images_per_shard=10)
        labels = [sample.get("cls") for sample in samples(tmp_path / f"out/{name}-train-*.tar")]
        assert labels == [None, None] if name == "bare" else sorted(labels) == [b"0", b"1"]
    manifest = json.loads((tmp_path / "out/folders-train.json").read_text())
    assert [count for count, _ in manifest["other_files_left_out"].values()] == [2, 1]

    classes = imagenet.write(
        tmp_path / "two",
        {f"{c}/x.jpg": imagenet.picture(i) for i, c in enumerate(["no dog", "ärger", "dog"])},
    )
    prepare(classes, tmp_path / "out", name="mine", images_per_shard=10)
    manifest = json.loads((tmp_path / "out/mine-train.json").read_text())
    assert [c["name"] for c in manifest["classes"]] == ["dog", "no dog", "ärger"] and not manifest["warnings"]
    found = samples(tmp_path / "out/mine-train-*.tar")
    assert {json.loads(s["json"])["filename"]: s["cls"] for s in found} == {
        "dog/x.jpg": b"0",
        "no dog/x.jpg": b"1",
        "ärger/x.jpg": b"2",
    }
    assert len(WebDataset(path=str(tmp_path / "out/mine-train-000000.tar"), image_size=8)) == 3


def test_tiny_imagenet(tmp_path):
    """Validation images lie in one folder that is no class, and a table gives their classes."""
    files = {
        f"train/{n.split('/')[0]}/images/{n.split('/')[1]}.JPEG": c
        for n, c in imagenet.train_images().items()
    }
    lines = ""
    for name, (content, synset) in imagenet.validation_images().items():
        files[f"val/images/{name}.JPEG"] = content
        lines += f"{name}.JPEG\t{synset}\t0\t0\t62\t62\n"
    source = imagenet.write(tmp_path / "source", files | {"val/val_annotations.txt": lines.encode()})
    prepare(source, tmp_path / "out", images_per_shard=100)
    assert contents(samples(tmp_path / "out/imagenet-val-*.tar")) == imagenet.expected("validation")
    assert contents(samples(tmp_path / "out/imagenet-train-*.tar")) == imagenet.expected("train")


# ---- what is wrong ---------------------------------------------------------------------------------------------------


def test_damaged_images_are_named_and_left_out(tmp_path, capsys):
    source = imagenet.flat_validation(tmp_path / "source")
    (source / "train/n01443537/n01443537_0.JPEG").write_bytes(b"")
    (source / "train/n01443537/n01443537_1.JPEG").write_bytes(b"<html>")
    cut = source / "val/ILSVRC2012_val_00000002.JPEG"
    cut.write_bytes(cut.read_bytes()[:-20])
    prepare(source, tmp_path / "out", images_per_shard=6)
    manifest = json.loads((tmp_path / "out/imagenet-train.json").read_text())
    assert manifest["damaged_and_left_out"] == {
        "the file is empty": [f"{source}/train/n01443537/n01443537_0.JPEG"],
        "not a readable image": [f"{source}/train/n01443537/n01443537_1.JPEG"],
    }
    assert [c["images"] for c in manifest["classes"]] == [5, 3, 5] and manifest["images"] == 13
    assert len(samples(tmp_path / "out/imagenet-val-*.tar")) == 6  # headers are whole
    with pytest.raises(
        ValueError, match=r"holds other shards of this name \(imagenet-train.pixels was False"
    ):
        prepare(source, tmp_path / "out", images_per_shard=6, check="pixels")
    prepare(source, tmp_path / "out", images_per_shard=6, check="pixels", overwrite=True)
    assert len(samples(tmp_path / "out/imagenet-val-*.tar")) == 5
    assert any("1 damaged and left out" in line and str(cut) in line for line in warnings_of(capsys))


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        (
            ["ILSVRC2012_devkit_t12.tar.gz"],
            "validation images have no labels; put one of LOC_synset_mapping.txt",
        ),
        (["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"], "no image"),
    ],
)
def test_what_is_missing_is_named(tmp_path, remove, message):
    source = imagenet.archives(tmp_path / "source")
    for name in remove:
        (source / name).unlink()
    with pytest.raises(ValueError, match=message):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_validation_images_without_labels_beside_training_images_with_them(tmp_path):
    source = imagenet.kaggle(tmp_path / "source")
    for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        (source / name).unlink()
    with pytest.raises(
        ValueError, match=r"CLS-LOC/val have no labels, the other images have; put one of LOC_"
    ):
        prepare(source, tmp_path / "out")


def test_wrong_annotations(tmp_path):
    source = imagenet.flat_validation(tmp_path / "source")
    kit = source / "ILSVRC2012_devkit_t12/data"
    (kit / imagenet.TRUTH).write_bytes(b"1\n2\n77\n")
    with pytest.raises(ValueError, match="'77' is no id of a class in meta.mat"):
        prepare(source, tmp_path / "out")
    good = (kit / "meta.mat").read_bytes()
    for wrong in ("", 1.5):  # an id that is a text, or no whole number
        (kit / "meta.mat").write_bytes(imagenet.meta(first_id=wrong))
        with pytest.raises(ValueError, match="meta.mat cannot be read: an ILSVRC2012_ID is no whole number"):
            prepare(source, tmp_path / "out")
    (kit / "meta.mat").write_bytes(good)
    (kit / imagenet.TRUTH).write_bytes(imagenet.ground_truth()[:4])
    (kit / "meta.mat").rename(tmp_path / "meta.mat")
    with pytest.raises(ValueError, match="holds ids of the devkit; meta.mat"):
        prepare(source, tmp_path / "out")
    prepare(source, tmp_path / "out", annotations=str(tmp_path / "meta.mat"))
    manifest = json.loads((tmp_path / "out/imagenet-val.json").read_text())
    assert manifest["images"] == 2 and manifest["other_files_left_out"]["not in the list of labels"][0] == 4
    (tmp_path / "x.txt").write_bytes(b"n01440764 tench\n\xff")
    with pytest.raises(ValueError, match="x.txt is no text at byte 16"):
        prepare(source, tmp_path / "out", annotations=str(tmp_path / "x.txt"))
    (tmp_path / "x.txt").write_text("a b\nc d\n")
    with pytest.raises(ValueError, match="x.txt is not understood; expected one of"):
        prepare(source, tmp_path / "out", annotations=str(tmp_path / "x.txt"))
    with pytest.raises(FileNotFoundError, match="annotations=none does not exist"):
        prepare(source, tmp_path / "out", annotations="none")


def test_a_split_that_is_there_twice(tmp_path):
    source = imagenet.archives(tmp_path / "source")
    (source / "train").mkdir()
    with pytest.raises(
        ValueError, match=r"holds the train images twice: .*img_train.tar.*; choose one: train="
    ):
        prepare(source, tmp_path / "out")
    prepare(source, tmp_path / "out", train=str(source / "ILSVRC2012_img_train.tar"))
    assert [p.name for p in (tmp_path / "out").glob("*.json")] == ["imagenet-train.json"]


def test_cut_archives_are_refused_before_work(tmp_path):
    source = imagenet.archives(tmp_path / "source")
    content = (source / "ILSVRC2012_img_train.tar").read_bytes()
    (source / "ILSVRC2012_img_train.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="img_train.tar is cut short"):
        prepare(source, tmp_path / "out")
    (source / "ILSVRC2012_img_train.tar").write_bytes(content)
    (source / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"x")
    with pytest.raises(ValueError, match="devkit_t12.tar.gz is damaged or no archive"):
        prepare(source, tmp_path / "out")


def test_classes_that_are_not_in_the_list(tmp_path):
    source = imagenet.kaggle(tmp_path / "source")
    (source / "ILSVRC/Data/CLS-LOC/train/n01443537").rename(source / "ILSVRC/Data/CLS-LOC/train/n99999999")
    with pytest.raises(
        ValueError, match="1 of 3 classes are not among those of .*LOC_val_.*, such as 'n99999999'"
    ):
        prepare(source, tmp_path / "out")


def test_too_little_room(tmp_path, monkeypatch):
    monkeypatch.setattr("storage.files.free_bytes", lambda _: 1000)
    with pytest.raises(ValueError, match="output=.*free, but the shards needs"):
        prepare(imagenet.archives(tmp_path / "source"), tmp_path / "out")


def test_numbers_that_differ_from_imagenets_are_told():
    full = {f"n{i:08d}": 1281 for i in range(1000)}
    full["n00000000"] = 1281 + 167
    assert count_warnings("train", full) == ["1 classes do not have 732 to 1300 images: n00000000 (1448)"]
    assert count_warnings("validation", {f"n{i:08d}": 50 for i in range(1000)}) == []
    assert count_warnings("validation", {f"n{i:08d}": 50 - (i == 7) for i in range(1000)}) == [
        "49,999 images, but ImageNet has 50,000 (-1)",
        "1 classes do not have 50 images: n00000007 (49)",
    ]


# ---- stops -----------------------------------------------------------------------------------------------------------


def test_finished_shards_are_kept_and_verified(tmp_path, capsys):
    source, output = imagenet.archives(tmp_path / "source"), tmp_path / "out"
    prepare(source, output, images_per_shard=4)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in output.glob("*.tar")}
    prepare(source, output, images_per_shard=4)
    assert "imagenet-train.json describes are there; nothing to do" in capsys.readouterr().out
    damaged, gone = output / "imagenet-train-000001.tar", output / "imagenet-train-000002.tar"
    content = bytearray(damaged.read_bytes())
    content[700] ^= 1
    damaged.write_bytes(content)
    gone.unlink()
    prepare(source, output, images_per_shard=4, verify=True)
    heard = warnings_of(capsys)
    assert f"{damaged} is not what was written (another SHA-256); it is made anew" in heard
    for name, (content, written) in before.items():
        assert (output / name).read_bytes() == content
        assert ((output / name).stat().st_mtime_ns == written) == (output / name not in (damaged, gone))
    manifest = json.loads((output / "imagenet-train.json").read_text())
    assert [c["synset"] for c in manifest["classes"]] == imagenet.SYNSETS
    with pytest.raises(ValueError, match=r"imagenet-train.seed was 0, is now 1"):
        prepare(source, output, images_per_shard=4, seed=1)
    (output / "imagenet-val.json").write_text("{")
    with pytest.raises(ValueError, match=r"imagenet-val.json cannot be read"):
        prepare(source, output, images_per_shard=4)


# Workers run this file too. They wait in the middle of a shard as soon as so many are finished.
BLOCKING = """
import sys, time
from pathlib import Path
sys.path.insert(0, {repository!r})
import common.workers
import data.packing.pack_shards as packing
from common.config import run_script
from jobs.options.prepare_data import PrepareOptions
from jobs.prepare_data import prepare_data
look = packing._look
def waiting(image, pixels):
    stop = common.workers._stop  # None in the first process, which only tries how fast it is
    while stop and len(list(Path({notes!r}).glob("0*.json"))) >= {finished} and not stop.is_set():
        Path({sign!r}).touch()
        time.sleep(0.05)
    return look(image, pixels)
packing._look = waiting
if __name__ == "__main__":
    run_script(prepare_data, PrepareOptions, "")
"""


def test_a_job_that_is_killed_goes_on_to_equal_bytes(tmp_path):
    pictures = {f"{i % 3}/{i}.png": imagenet.picture(i, "PNG") for i in range(30)}
    source, output = imagenet.write(tmp_path / "source", pictures), tmp_path / "out"
    notes, script = output / ".x-train.progress", tmp_path / "blocking.py"
    for finished, number in ((1, signal.SIGKILL), (3, signal.SIGTERM)):
        sign = tmp_path / f"waiting.{finished}"  # a worker waits, so the job has begun
        facts = {"repository": str(REPOSITORY), "notes": str(notes), "finished": finished, "sign": str(sign)}
        script.write_text(BLOCKING.format(**facts))
        words = [f"input={source}", f"output={output}", "workers=2", "name=x", "images_per_shard=2"]
        job = subprocess.Popen([sys.executable, str(script), *words], stderr=subprocess.PIPE, text=True)
        while not sign.exists():
            assert job.poll() is None, job.stderr.read()
            time.sleep(0.05)
        job.send_signal(number)
        error = job.communicate(timeout=120)[1]  # and all its workers have ended, which hold the pipe too
        assert job.returncode == (-9 if number == signal.SIGKILL else 128 + 15), error
    assert (
        "SIGTERM received: ending; what is complete on the disk stays" in error and "Traceback" not in error
    )
    assert not list(output.glob(".x-*.part")) and not (output / "x-train.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert 3 <= len(kept) < 15
    prepare(source, output, name="x", images_per_shard=2)
    prepare(source, tmp_path / "whole", name="x", images_per_shard=2)
    assert sum(kept.get(path.name) == path.stat().st_mtime_ns for path in output.glob("*.tar")) >= 3
    for path in (tmp_path / "whole").glob("x-train*.tar"):
        assert path.read_bytes() == (output / path.name).read_bytes()
    manifests = [json.loads((folder / "x-train.json").read_text()) for folder in (output, tmp_path / "whole")]
    assert manifests[0] == manifests[1] and len(manifests[0]["shards"]) == 15
