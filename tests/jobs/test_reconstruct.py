import io
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from common.images import pil_to_tensor, read_image, to_float
from data.file_list import list_files
from data.transforms import CROPS
from evaluator.float_rfid import FloatRFID
from evaluator.metrics.image_quality import ImageQuality, psnr
from evaluator.outcome import Outcome
from jobs.options.reconstruct import ReconstructOptions
from jobs.reconstruct import reconstruct
from modeling.factory import build_tokenizer
from modeling.pipeline import load_tokenizer, reconstruct_any_size
from tests.conftest import TOKENIZER, write_run
from tests.evaluator.toy import ToyFloat, ToyInception, put_in_place
from tests.parity import fill_module


def run(tokenizer, output, **options):
    reconstruct(ReconstructOptions(tokenizer=str(tokenizer), output=str(output), **options))
    return json.loads((output / "reconstructions.json").read_text())


def test_folder_gives_pairs_tokens_and_psnr(tiny_tokenizer_run, image_folder, tmp_path, capsys):
    folder = image_folder / "blue"
    report = run(tiny_tokenizer_run, tmp_path, input=str(folder), batch_size=2)
    files = sorted(folder.iterdir())
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
    file = sorted((image_folder / "apple").iterdir())[0]
    report = run(tiny_tokenizer_run, tmp_path / "file", input=str(file))
    assert len(report["images"]) == 1
    report = run(tiny_tokenizer_run, tmp_path / "data", max_images=5, batch_size=3, png=False)
    assert [r["image"] for r in report["images"]] == [f"{i * 397 // 5:06d}" for i in range(5)]
    assert load_tokenizer(tiny_tokenizer_run).num_tokens == len(report["images"][4]["tokens"])
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        "reconstructions.json",
        "reconstructions.png",
    ]


def test_fewer_files_are_spread_over_the_classes(tiny_tokenizer_run, image_folder, tmp_path):
    files = [file.name for file in list_files(image_folder)]
    options = {"input": str(image_folder), "max_images": 3, "png": False}
    report = run(tiny_tokenizer_run, tmp_path / "few", **options)
    chosen = [files[i * len(files) // 3].replace(".", "_") for i in range(3)]
    assert [r["image"] for r in report["images"]] == chosen
    assert len({name.split("/")[0] for name in chosen}) > 1


def test_a_metric_that_fails_leaves_the_results(
    tiny_tokenizer_run, image_folder, tmp_path, monkeypatch, capsys
):
    def broken(self):
        return Outcome({"codebook_usage": 0.5}, {"rfid": "not a covariance"})

    monkeypatch.setattr("jobs.reconstruct.ReconstructionMeasurement.outcome", broken)
    with pytest.raises(ValueError, match="rfid cannot be computed: not a covariance"):
        run(tiny_tokenizer_run, tmp_path, input=str(image_folder / "blue"), png=False)
    report = json.loads((tmp_path / "reconstructions.json").read_text())
    assert report["mean"]["psnr"] > 0 and report["mean"]["codebook_usage"] == 0.5
    assert "psnr" in capsys.readouterr().out


def test_the_report_names_a_precision_other_than_float32(tiny_tokenizer_run, image_folder, tmp_path):
    folder = str(image_folder / "blue")
    half = run(tiny_tokenizer_run, tmp_path / "half", input=folder, precision="float16")
    exact = run(tiny_tokenizer_run, tmp_path / "exact", input=folder)
    assert half["precision"] == "float16" and "precision" not in exact
    assert half["mean"]["psnr"] == pytest.approx(exact["mean"]["psnr"], abs=0.05)


def test_unreadable_files_are_skipped_and_named(tiny_tokenizer_run, image_folder, tmp_path, capsys):
    folder = shutil.copytree(image_folder / "blue", tmp_path / "in")
    files = sorted(folder.iterdir())
    files[0].write_bytes(files[0].read_bytes()[:40])
    report = run(tiny_tokenizer_run, tmp_path / "out", input=str(folder))
    assert len(report["images"]) == len(files) - 1 and files[0].name in capsys.readouterr().err
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        run(tiny_tokenizer_run, tmp_path / "out", input=str(files[0]))


def test_odd_names_give_results_of_their_own(tiny_tokenizer_run, image_folder, tmp_path):
    picture = sorted((image_folder / "blue").iterdir())[0].read_bytes()
    (tmp_path / "in" / "a").mkdir(parents=True)
    for name in ("a.b.png", "a_b.png", "a/b.png", "caf\udce9\n.png"):
        (tmp_path / "in" / name).write_bytes(picture)
    (tmp_path / "in" / "a" / "b.txt").write_bytes(b"caf\xe9")
    report = run(tiny_tokenizer_run, tmp_path / "out", input=str(tmp_path / "in"))
    names = [record["image"] for record in report["images"]]
    assert names == ["a_b_png", "a_b_png_2", "caf\udce9\n_png"]  # the caption of the other one is not UTF-8
    assert all((tmp_path / "out" / f"{name}.png").is_file() for name in names)


def test_no_name_in_a_shard_leads_out_of_the_folder(tiny_tokenizer_run, image_folder, tmp_path):
    picture = sorted((image_folder / "blue").iterdir())[0].read_bytes()
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("../../evil.png", f"{tmp_path}/evil.png", "..", "a/../../evil.png"):
            member = tarfile.TarInfo(name)
            member.size = len(picture)
            tar.addfile(member, io.BytesIO(picture))
    report = run(tiny_tokenizer_run, tmp_path / "out" / "here", input=str(tmp_path / "s.tar"))
    written = [path for path in tmp_path.rglob("*evil*") if path.is_file()]
    assert len(report["images"]) == len(written) == 3
    assert all(path.is_relative_to(tmp_path / "out" / "here") for path in written)


def test_wrong_options_are_refused(tiny_tokenizer_run, tiny_generator_run, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(tiny_tokenizer_run, tmp_path, input="nowhere")
    with pytest.raises(ValueError, match="not the folder of a tokenizer"):
        run(tiny_generator_run, tmp_path, input="nowhere")
    with pytest.raises(ValueError, match="at most one of input and data"):
        ReconstructOptions(tokenizer="x", output="y", input="z", data={"name": "openmoji"})


def test_a_tokenizer_that_reads_captions(tiny_text_tower, image_folder, tmp_path, program):
    section = {**TOKENIZER, "name": "tatitok", "text_width": 16}
    folder = write_run(tmp_path / "run", {"tokenizer": section}, fill_module(build_tokenizer(section)))
    image = next(image_folder.rglob("*.png"))
    (tmp_path / "photo.png").write_bytes(image.read_bytes())
    common = [f"tokenizer={folder}", f"text_encoder={tiny_text_tower}", f"input={tmp_path / 'photo.png'}"]

    def quality(*options):
        done = program(reconstruct, ReconstructOptions, *common, *options)
        assert done.code == 0, done.err
        return json.loads((tmp_path / "out" / "reconstructions.json").read_text())["images"][0]["psnr"]

    output = f"output={tmp_path / 'out'}"
    done = program(reconstruct, ReconstructOptions, *common, output)
    assert done.code == 1 and "photo_png has no caption" in done.err
    one = quality(output, "caption=a red square")
    (tmp_path / "photo.txt").write_text("a red square\n")
    assert quality(output) == one
    assert quality(output, "caption=many people at the sea") != one
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


def vqgan_run(folder, image_size, levels=3, **quantizer):
    """Run folder of a VQGAN that reduces both sides to a quarter, or further with more levels."""
    section = {
        "name": "vqgan",
        "image_size": image_size,
        "base_channels": 32,
        "multipliers": [1] * levels,
        "num_blocks": 1,
        "z_channels": 16,
        "quantizer": quantizer or {"name": "vq", "codebook_size": 24, "code_dim": 8},
    }
    return write_run(folder, {"tokenizer": section}, fill_module(build_tokenizer(section)))


def noise(folder, sizes):
    """PNG files of the given heights and widths."""
    folder.mkdir()
    for number, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("side", [128, 256])
def test_original_size_equals_the_ordinary_way_where_nothing_is_padded(side, tmp_path):
    tokenizer, images = vqgan_run(tmp_path / "run", side, levels=5), noise(tmp_path / "in", [(side, side)])
    common = {"input": str(images), "png": False, "batch_size": 1}
    plain = run(tokenizer, tmp_path / "plain", **common)
    own = run(tokenizer, tmp_path / "own", original_size=True, **common)
    assert own["mean"] == plain["mean"]
    for one, other in zip(own["images"], plain["images"], strict=True):
        assert one["psnr"] == other["psnr"] and len(one["tokens"]) == side // 16
        assert sum(one["tokens"], []) == other["tokens"]


def test_images_of_all_sizes_keep_them(tmp_path, monkeypatch):
    put_in_place(monkeypatch, "inception", ToyInception())
    sizes = [(37, 50), (20, 21), (64, 30), (16, 16)]
    tokenizer, images = vqgan_run(tmp_path / "run", 16), noise(tmp_path / "in", sizes)
    report = run(tokenizer, tmp_path / "out", input=str(images), original_size=True, rfid=True)
    assert report["mean"]["images"] == 4 and report["mean"]["rfid_4"] > 0
    loaded = load_tokenizer(tokenizer)
    for record, (height, width), file in zip(report["images"], sizes, sorted(images.iterdir()), strict=True):
        rows = record["tokens"]
        assert (len(rows), len(rows[0])) == (-(-height // 4), -(-width // 4))
        original = to_float(pil_to_tensor(read_image(file)))[None]
        above, left = -height % 4 // 2, -width % 4 // 2
        padded = torch.full((1, 3, 4 * len(rows), 4 * len(rows[0])), 0.5)
        padded[:, :, above : above + height, left : left + width] = original
        back = loaded.decode(loaded.encode(padded).view(1, len(rows), -1))
        again = back[:, :, above : above + height, left : left + width].mul(255).round() / 255
        assert record["psnr"] == pytest.approx(psnr(original, again).item(), abs=2e-3)
        with Image.open(tmp_path / "out" / f"{record['image']}.png") as picture:
            assert picture.height >= height and picture.width >= 2 * width
    assert (tmp_path / "out" / "reconstructions.png").is_file()


def test_trees_and_shards_of_images(tmp_path):
    """As ImageNet comes: folders of classes, or tar shards; files of the same name do not overwrite each other."""
    tokenizer = vqgan_run(tmp_path / "run", 16)
    for name, size in (("a", (20, 24)), ("b", (17, 30))):
        (tmp_path / "val").mkdir(exist_ok=True)
        noise(tmp_path / "val" / name, [size])
    tree = run(tokenizer, tmp_path / "tree", input=str(tmp_path / "val"), original_size=True)
    assert [r["image"] for r in tree["images"]] == ["a/0_png", "b/0_png"]
    assert all((tmp_path / "tree" / f"{name}/0_png.png").is_file() for name in "ab")
    for shard, folder in enumerate("ab"):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            archive.add(tmp_path / "val" / folder / "0.png", "0.png")
    shards = run(tokenizer, tmp_path / "tar", input=f"{tmp_path}/{{0..1}}.tar", original_size=True, png=False)
    assert [r["image"] for r in shards["images"]] == ["0/0_png", "1/0_png"]
    assert shards["mean"] == tree["mean"]
    noise(tmp_path / "thin", [(20, 24), (9, 64)])
    with pytest.raises(ValueError, match="1.png has 9 x 64 pixels: ssim needs sides of at least 11"):
        run(tokenizer, tmp_path / "x", input=str(tmp_path / "thin"), original_size=True)
    with pytest.raises(ValueError, match="0/0.png has 20 x 24 pixels, more than max_pixels=100"):
        run(tokenizer, tmp_path / "x", input=f"{tmp_path}/{{0..1}}.tar", original_size=True, max_pixels=100)


def test_the_resize_of_files_can_be_chosen(tmp_path):
    tokenizer, images = vqgan_run(tmp_path / "run", 16), noise(tmp_path / "in", [(40, 50)])
    original = read_image(images / "0.png")
    for resize in CROPS:
        report = run(tokenizer, tmp_path / resize, input=str(images), resize=resize, png=False)
        crop = to_float(pil_to_tensor(CROPS[resize](original, 16)))[None]
        loaded = load_tokenizer(tokenizer)
        expected = ImageQuality()
        expected.update(crop, loaded.decode(loaded.encode(crop)))
        assert report["mean"]["psnr"] == pytest.approx(expected.result()["psnr"], rel=1e-5), resize
    with pytest.raises(ValueError, match="resize=adm is for input"):
        ReconstructOptions(tokenizer="x", output="y", resize="adm")


def test_rfid_of_another_tool_is_of_floats(tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.reconstruct.load_float_inception", lambda *_, **__: ToyFloat())
    tokenizer, images = (
        vqgan_run(tmp_path / "run", 16),
        noise(tmp_path / "in", [(16, 16), (20, 24), (30, 17)]),
    )
    options = {"input": str(images), "original_size": True, "rfid": True, "png": False}
    report = run(tokenizer, tmp_path / "out", quality="seed_voken", **options)
    expected = FloatRFID(extractor=ToyFloat())
    for file in sorted(images.iterdir()):
        image = to_float(pil_to_tensor(read_image(file)))[None]
        expected.update_pairs(reconstruct_any_size(load_tokenizer(tokenizer), image)[1], image)
    assert report["mean"]["rfid_3"] == pytest.approx(expected.result()["rfid_3"], rel=1e-4)


def test_original_size_is_for_those_that_can(tiny_tokenizer_run, tmp_path):
    images = noise(tmp_path / "in", [(20, 40)])
    with pytest.raises(ValueError, match="TiTok takes 16 x 16 pixels only"):
        run(tiny_tokenizer_run, tmp_path / "out", input=str(images), original_size=True)
    tokenizer = vqgan_run(tmp_path / "run", 16)
    with pytest.raises(ValueError, match="20 x 40 pixels, more than max_pixels=799.* float32"):
        run(tokenizer, tmp_path / "out", input=str(images), original_size=True, max_pixels=799)
    with pytest.raises(ValueError, match="original_size needs input"):
        ReconstructOptions(tokenizer="x", output="y", original_size=True)
    low = noise(tmp_path / "low", [(4, 16)])
    with pytest.raises(ValueError, match="0.png has 4 x 16 pixels: ssim needs sides of at least 11"):
        run(tokenizer, tmp_path / "out", input=str(low), original_size=True)
    # A single row of tokens is no flattened square; latents would look like one.
    image = torch.rand(1, 3, 4, 16)
    tokens, result = reconstruct_any_size(load_tokenizer(tokenizer), image)
    assert tokens.shape == (1, 1, 4) and result.shape == image.shape
    continuous = vqgan_run(tmp_path / "continuous", 16, name="vae", code_dim=4)
    with pytest.raises(ValueError, match="4 x 16 pixels are a single row of latents"):
        reconstruct_any_size(load_tokenizer(continuous), image)


def test_continuous_latents_of_any_size(tmp_path):
    tokenizer = vqgan_run(tmp_path / "run", 16, name="vae", code_dim=4)
    images = noise(tmp_path / "in", [(20, 37), (24, 24)])
    report = run(tokenizer, tmp_path / "out", input=str(images), original_size=True, png=False)
    assert len(report["images"]) == 2 and not (tmp_path / "out" / "latents.npy").exists()
    run(tokenizer, tmp_path / "same", input=str(images), png=False)
    assert np.load(tmp_path / "same" / "latents.npy").shape == (2, 4, 1, 16)


def test_psnr_and_ssim_of_another_tool(tmp_path):
    """SEED-Voken cuts both images to 8 bit and has another window, so its numbers are other ones."""
    tokenizer, images = vqgan_run(tmp_path / "run", 16), noise(tmp_path / "in", [(16, 16)])
    loaded, original = load_tokenizer(tokenizer), to_float(pil_to_tensor(read_image(images / "0.png")))[None]
    result = loaded.decode(loaded.encode(original))
    for protocol in ("rounded", "seed_voken"):
        report = run(tokenizer, tmp_path / protocol, input=str(images), quality=protocol, png=False)
        expected = ImageQuality(protocol=protocol)
        expected.update(original, result)
        for name, value in expected.result().items():
            assert report["mean"][name] == pytest.approx(value, rel=1e-6), name
    with pytest.raises(ValueError, match="seed_vokne"):
        run(tokenizer, tmp_path / "x", input=str(images), quality="seed_vokne")
