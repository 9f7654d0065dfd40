"""Odd image files through training, tokenizing, reconstruction and evaluation: the same pixels, or the same refusal."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from common.images import PixelRules, pil_to_tensor
from data import DATASETS
from data.file_list import list_files
from data.stream import EvalStream
from data.token_memmap import TokenMemmap
from data.transforms import CROPS
from evaluator.image_files import open_images
from jobs.evaluate import evaluate
from jobs.options.evaluate import EvaluateOptions
from jobs.options.pretokenize import PretokenizeOptions
from jobs.options.reconstruct import ReconstructOptions
from jobs.pretokenize import pretokenize
from jobs.reconstruct import reconstruct
from tests.evaluator.toy import ToyInception, put_in_place
from tests.odd_images import turned, write_elongated, write_gray16, write_huge


def everywhere(folder, size, rules=None):
    """Images [N, 3, size, size] of `folder/c`, as training, reconstruction and evaluation get them."""
    rules = rules or PixelRules()
    options = {"alpha": rules.alpha, "orientation": rules.orientation}
    source = DATASETS["image_folder"](path=folder, image_size=size, **options)
    yield EvalStream(source).__getitems__(range(len(source)))["images"]
    files = list_files(folder)
    yield torch.stack([pil_to_tensor(CROPS["shorter_edge"](f.decode(rules).image, size)) for f in files])
    stream = open_images(folder, transform=lambda image: CROPS["shorter_edge"](image, size), rules=rules)
    yield torch.stack(list(stream.images(range(stream.count))))


def test_sixteen_bit_grey_is_the_same_picture_everywhere(tmp_path):
    write_gray16(tmp_path / "in" / "c")
    for images in everywhere(tmp_path / "in", 64):
        assert images.shape == (2, 3, 64, 64)
        assert (images[0].int() - images[1].int()).abs().max() <= 1


def test_very_thin_pictures_are_cropped_everywhere(tmp_path):
    write_elongated(tmp_path / "in" / "c")
    for images in everywhere(tmp_path / "in", 256):
        assert images.shape == (2, 3, 256, 256) and (images == 90).all()


@pytest.mark.parametrize("rules", [PixelRules(), PixelRules("drop", "upright")])
def test_alpha_and_orientation_are_the_same_everywhere(tmp_path, rules):
    (tmp_path / "in" / "c").mkdir(parents=True)
    Image.new("RGBA", (20, 20), (200, 0, 0, 0)).save(tmp_path / "in" / "c" / "a.png")
    (tmp_path / "in" / "c" / "b.jpg").write_bytes(turned(3, "JPEG"))
    first, *others = everywhere(tmp_path / "in", 20, rules)
    assert all(torch.equal(first, other) for other in others)
    assert first[0, :, 0, 0].tolist() == ([200, 0, 0] if rules.alpha == "drop" else [255] * 3)
    assert (first[1, :, 3, 3].max() < 40) == (rules.orientation == "upright"), "the black half is above"


def test_too_many_pixels_end_a_measurement_and_are_skipped_in_training(
    tiny_tokenizer_run, tmp_path, program, monkeypatch, capsys
):
    put_in_place(monkeypatch, "inception", ToyInception())
    folder = tmp_path / "in"
    write_huge(folder / "c")
    shutil.copy(folder / "c" / "huge.png", folder / "c" / "a1_huge.png")  # not only the last one
    output = tmp_path / "out"
    common = [f"tokenizer={tiny_tokenizer_run}", f"output={output}"]
    for main, settings, options in (
        (evaluate, EvaluateOptions, [*common, f"samples={folder}"]),
        (reconstruct, ReconstructOptions, [*common, f"input={folder}"]),
    ):
        done = program(main, settings, *options)
        assert done.code == 1 and "Traceback" not in done.err
        (line,) = [line for line in done.err.splitlines() if "huge.png" in line]
        assert "too many pixels" in line
    assert not list(output.glob("*.png")), "reconstruction knows it before the first image"
    batch = EvalStream(DATASETS["image_folder"](path=folder, image_size=16)).__getitems__(range(5))
    assert len(batch["images"]) == 3 and len(batch["skipped"]) == 2
    assert all("huge.png" in name and "too many pixels" in name for name in batch["skipped"])
    capsys.readouterr()
    data = {"name": "image_folder", "path": str(folder)}
    tokens = {"tokenizer": str(tiny_tokenizer_run), "output": str(tmp_path / "a.tokens"), "data": data}
    pretokenize(PretokenizeOptions(**tokens, num_workers=0, max_skipped=0.5))
    printed = capsys.readouterr()
    assert len(TokenMemmap(path=tmp_path / "a.tokens")) == 3
    assert printed.err.count("huge.png") == 2 and "2 unreadable ones left out" in printed.out


def test_results_say_how_files_became_pixels(tiny_tokenizer_run, tmp_path, capsys):
    folder = tmp_path / "in" / "c"
    folder.mkdir(parents=True)
    Image.new("RGBA", (20, 20), (200, 0, 0, 90)).save(folder / "a.png")
    for number, name in ((1, "b"), (6, "c"), (8, "d")):
        (folder / f"{name}.jpg").write_bytes(turned(number, "JPEG"))
    output, tokenizer = tmp_path / "result.json", str(tiny_tokenizer_run)
    common = {"tokenizer": tokenizer, "output": str(output), "samples": str(folder), "metrics": ["psnr"]}
    values = []
    for options in ({}, {"alpha": "drop", "orientation": "upright"}):
        evaluate(EvaluateOptions(**common, **options))
        result = json.loads(output.read_text())
        facts = {
            "alpha": "white",
            "orientation": "stored",
            "transparent_files": 1,
            "turned_files": 2,
            **options,
        }
        assert {key: result["protocol"]["samples"][key] for key in facts} == facts
        notes = [note for note in result["warnings"] if str(folder) in note]
        assert len(notes) == 2 and all(note in capsys.readouterr().err for note in notes[:1])
        assert f"transparent pixels in 1 files, alpha={facts['alpha']}" in notes[0]
        assert f"EXIF orientation in 2 files, orientation={facts['orientation']}" in notes[1]
        values.append(result["metrics"]["psnr"])
    assert values[0] != values[1]
    for options, orientation in (
        ({}, "upright"),  # a person's photos
        ({"orientation": "stored"}, "stored"),
        ({"quality": "seed_voken"}, "stored"),  # a published protocol
    ):
        reconstruct(
            ReconstructOptions(
                tokenizer=tokenizer, output=str(tmp_path / "out"), input=str(folder), **options
            )
        )
        report = json.loads((tmp_path / "out" / "reconstructions.json").read_text())
        assert (report["alpha"], report["orientation"]) == ("white", orientation)
        assert (report["transparent_files"], report["turned_files"]) == (1, 2)
    assert "2 turned files: orientation=stored" in capsys.readouterr().out
    with pytest.raises(ValueError, match="orientation=upright is for input=...; a data set takes"):
        ReconstructOptions(tokenizer="x", output="y", orientation="upright")


def test_token_files_say_how_files_became_pixels(tiny_tokenizer_run, tmp_path):
    folder = tmp_path / "in" / "c"
    folder.mkdir(parents=True)
    for number in (1, 6):
        (folder / f"{number}.jpg").write_bytes(turned(number, "JPEG"))
    rows = {}
    for orientation in ("stored", "upright"):
        output = tmp_path / f"{orientation}.tokens"
        data = {"name": "image_folder", "path": str(tmp_path / "in"), "orientation": orientation}
        options = PretokenizeOptions(
            tokenizer=str(tiny_tokenizer_run), output=str(output), data=data, num_workers=0
        )
        pretokenize(options)
        tokens = TokenMemmap(path=output)
        assert (tokens.header.alpha, tokens.header.orientation) == ("white", orientation)
        rows[orientation] = [tokens.load(i, np.random.default_rng(0))[0] for i in range(2)]
    assert torch.equal(rows["stored"][0], rows["upright"][0])
    assert not torch.equal(rows["stored"][1], rows["upright"][1])
    data = {"name": "image_folder", "path": str(tmp_path / "in"), "orientation": "upright"}
    again = {"output": str(tmp_path / "stored.tokens"), "data": data, "num_workers": 0}
    with pytest.raises(ValueError, match="holds other tokens .orientation 'stored' instead of 'upright'"):
        pretokenize(PretokenizeOptions(tokenizer=str(tiny_tokenizer_run), **again))
