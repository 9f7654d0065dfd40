import json
import shutil

import pytest
from PIL import Image

from common.images import list_images
from modeling.factory import build_tokenizer
from modeling.pipeline import load_tokenizer
from scripts import reconstruct
from scripts.reconstruct import ReconstructOptions
from tests.conftest import TOKENIZER, write_run
from tests.parity import fill_module


def run(tokenizer, output, **options):
    reconstruct.main(ReconstructOptions(tokenizer=str(tokenizer), output=str(output), **options), {})
    return json.loads((output / "reconstructions.json").read_text())


def test_folder_gives_pairs_tokens_and_psnr(tiny_tokenizer_run, image_folder, tmp_path, capsys):
    folder = image_folder / "blue"
    report = run(tiny_tokenizer_run, tmp_path, input=str(folder), batch_size=2)
    files = list_images(folder)
    assert [r["image"] for r in report["images"]] == [f.name.replace(".", "_") for f in files]
    assert all(len(r["tokens"]) == 6 and 0 <= min(r["tokens"]) < 48 for r in report["images"])
    psnr = sum(r["psnr"] for r in report["images"]) / len(files)
    assert report["mean"]["psnr"] == pytest.approx(psnr, abs=1e-3)
    assert report["mean"]["images"] == len(files)
    for file in files:
        with Image.open(tmp_path / f"{file.name.replace('.', '_')}.png") as picture:
            assert picture.width > picture.height >= 128  # side by side, enlarged
    assert (tmp_path / "reconstructions.png").is_file()
    assert "psnr" in capsys.readouterr().out


def test_one_file_and_the_data_of_the_run_agree_with_the_tokenizer(
    tiny_tokenizer_run, image_folder, tmp_path
):
    file = list_images(image_folder / "apple")[0]
    report = run(tiny_tokenizer_run, tmp_path / "file", input=str(file))
    assert len(report["images"]) == 1
    report = run(tiny_tokenizer_run, tmp_path / "data", max_images=5, batch_size=3, png=False)
    assert [r["image"] for r in report["images"]] == [f"{i * 397 // 5:06d}" for i in range(5)]
    assert load_tokenizer(tiny_tokenizer_run).num_tokens == len(report["images"][4]["tokens"])
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "reconstructions.json",
        "reconstructions.png",
    ]


def test_unreadable_files_are_skipped_and_named(tiny_tokenizer_run, image_folder, tmp_path, capsys):
    folder = shutil.copytree(image_folder / "blue", tmp_path / "in")
    files = list_images(folder)
    files[0].write_bytes(files[0].read_bytes()[:40])
    report = run(tiny_tokenizer_run, tmp_path / "out", input=str(folder))
    assert len(report["images"]) == len(files) - 1 and files[0].name in capsys.readouterr().err
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        run(tiny_tokenizer_run, tmp_path / "out", input=str(files[0]))


def test_wrong_options_are_refused(tiny_tokenizer_run, tiny_generator_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(tiny_tokenizer_run, tmp_path, input="nowhere")
    with pytest.raises(ValueError, match="not the folder of a tokenizer"):
        run(tiny_generator_run, tmp_path, input="nowhere")
    with pytest.raises(ValueError, match="choose one"):
        ReconstructOptions(tokenizer="x", output="y", input="z", data={"name": "openmoji"})


def test_a_tokenizer_that_reads_captions(tiny_text_tower, image_folder, tmp_path, program):
    section = {**TOKENIZER, "name": "tatitok", "text_width": 16}
    folder = write_run(tmp_path / "run", {"tokenizer": section}, fill_module(build_tokenizer(section)))
    image = next(image_folder.rglob("*.png"))
    (tmp_path / "photo.png").write_bytes(image.read_bytes())
    common = [f"tokenizer={folder}", f"text_encoder={tiny_text_tower}", f"input={tmp_path / 'photo.png'}"]

    def psnr(*options):
        done = program(reconstruct, ReconstructOptions, *common, *options)
        assert done.code == 0, done.err
        return json.loads((tmp_path / "out" / "reconstructions.json").read_text())["images"][0]["psnr"]

    output = f"output={tmp_path / 'out'}"
    done = program(reconstruct, ReconstructOptions, *common, output)
    assert done.code == 1 and "photo_png has no caption" in done.err
    one = psnr(output, "caption=a red square")
    (tmp_path / "photo.txt").write_text("a red square\n")
    assert psnr(output) == one
    assert psnr(output, "caption=many people at the sea") != one
    done = program(
        reconstruct,
        ReconstructOptions,
        *common[:2],
        output,
        "data.name=image_folder",
        f"data.path={image_folder}",
        "split=train",
    )
    assert done.code == 0, done.err
