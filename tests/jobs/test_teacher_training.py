"""A teacher that learns the labels of the images at hand."""

import json

import pytest
import torch

from data import DATASETS
from jobs.teacher_training import classification_accuracy, train_teacher, write_teacher
from modeling.pretrained.teachers import load_teacher

pytest.importorskip("timm")
NAME = "test_vit.r160_in1k"
SECTION = {"name": "openmoji", "image_size": 32, "categories": ["Flags", "Smileys & Emotion"]}


def images(split):
    return DATASETS["openmoji"](**{k: v for k, v in SECTION.items() if k != "name"}, split=split)


def test_it_learns_to_tell_flags_from_smileys():
    held_out = images("validation")
    before, after = (
        classification_accuracy(
            train_teacher(NAME, images("train"), input_size=32, steps=steps, batch_size=16),
            held_out,
            input_size=32,
        )
        for steps in (1, 60)
    )
    assert after > 0.9 > before


def test_the_file_is_always_the_same_and_loads_as_a_teacher(tmp_path):
    data = {split: {**SECTION, "split": split} for split in ("train", "validation")}
    for folder in "ab":
        torch.manual_seed(ord(folder))
        write_teacher(tmp_path / folder / "x.safetensors", {"name": NAME}, data, steps=2)
    one, other = (tmp_path / folder / "x.safetensors" for folder in "ab")
    assert one.read_bytes() == other.read_bytes()
    assert json.loads(one.with_suffix(".json").read_text())["steps"] == 2
    teacher = load_teacher(NAME, weights=one, input_size=32)
    assert teacher(torch.rand(2, 3, 32, 32)).shape == (2, 64, 2, 2)


def test_too_many_classes_are_refused(monkeypatch):
    source = images("validation")
    monkeypatch.setattr(source, "class_names", [str(number) for number in range(1001)])
    with pytest.raises(ValueError, match="tells 1000 classes apart, the images have 1001"):
        train_teacher(NAME, source, input_size=32, steps=1)
