import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

import jobs.reproduce
from common.config import REPOSITORY
from common.images import pil_to_tensor
from data.file_list import list_files
from data.openmoji import OpenMoji
from data.still import still_source
from data.transforms import CROPS
from evaluator.float_rfid import FloatRFID
from evaluator.image_set import ImageSet
from evaluator.metrics.image_quality import ImageQuality
from jobs.evaluate import evaluate
from jobs.options.evaluate import EvaluateOptions
from jobs.options.reproduce import ReproduceOptions
from jobs.published import FAMILIES, OTHER_SIZES, Family
from jobs.reproduce import REFERENCE_URL, reproduce
from modeling.factory import build_tokenizer
from modeling.pipeline import load_tokenizer, reconstruct
from modeling.pretrained.catalog import RELEASES, Release
from modeling.pretrained.text import class_captions, load_text_encoder
from storage.fetching import FetchError
from storage.files import WriteError, save_png
from storage.sample_store import SampleStore
from tests.conftest import TOKENIZER, write_run
from tests.evaluator.toy import ToyFloat, ToyInception, put_in_place, tensor, toy_images, write_folder
from tests.parity import fill_module


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A file that stands for the weights of Inception; everything but the network is real."""
    put_in_place(monkeypatch, "inception", ToyInception())
    (tmp_path / "inception.pth").touch()
    return str(tmp_path / "inception.pth")


@pytest.fixture
def release(monkeypatch):
    """Makes a run folder a released model."""

    def add(folder, kind, **metrics):
        about = {"licence": "none", "tokens": 6, "bits_per_image": 33.5, "parameters": 1}
        made = Release(name="tiny", kind=kind, metrics=metrics, folder=str(folder), **about)
        monkeypatch.setitem(RELEASES, "tiny", made)

    return add


def run(model, output, weights, **options):
    options = {"inception_weights": weights, **options}
    reproduce(ReproduceOptions(model=model, output=str(output), **options))
    return json.loads((output / "result.json").read_text())


def measured(result):
    return {row["metric"]: row["measured"] for row in result["comparison"]}


def test_a_generator_from_samples_to_table(toy, tmp_path, monkeypatch, capsys):
    reference, output = str(tmp_path / "ref.npz"), tmp_path / "out"
    embedded = {"samples": "assets/emoji", "crop": "adm", "image_size": 48}
    evaluate(
        EvaluateOptions(**embedded, make_ref=reference, keep_images=12, reference_set="training"),
    )
    options = {"num_samples": 20, "reference": reference, "batch_size": 8}
    result = run("openmoji-rar", output, toy, **options)
    with np.load(output / "samples" / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (20, 48, 48, 3) and arrays["labels"].tolist() == [*range(10)] * 2
    # The same as the two programs one after the other.
    names = ["gfid", "sfid", "is", "precision_recall"]
    samples, again = str(output / "samples"), tmp_path / "evaluated.json"
    evaluate(EvaluateOptions(samples=samples, reference=reference, metrics=names, output=str(again)))
    expected = json.loads(again.read_text())
    assert result["metrics"] == pytest.approx(expected["metrics"])
    facts = result["protocol"]
    assert facts["reference"] == expected["protocol"]["reference"] and facts["protocol"]["name"] == "adm"
    assert facts["sampler"]["guidance_scale"] == 3.0 and facts["samples"]["labels"]["most_images"] == 2
    assert set(measured(result)) == {"gfid_20", "sfid_20", "is_20", "precision", "recall"}
    assert all(r["published"] is None and r["difference"] is None for r in result["comparison"])
    assert result["may_explain"] == []
    printed = capsys.readouterr()
    line = next(line for line in printed.out.splitlines() if line.startswith("gfid_20"))
    assert line.split() == ["gfid_20", f"{result['metrics']['gfid_20']:.4f}", "-", "-"]
    assert "20 images instead of 50000" in printed.err

    # Samples that are there are not drawn again; a result that is there is shown.
    (output / "result.json").unlink()
    assert run("openmoji-rar", output, toy, **options)["metrics"] == result["metrics"]
    assert "already holds these 20 samples" in capsys.readouterr().out
    monkeypatch.setattr("jobs.reproduce.draw_samples", None)
    assert run("openmoji-rar", output, toy, **{**options, "batch_size": 3})["metrics"] == result["metrics"]
    printed = capsys.readouterr().out
    assert "was finished before" in printed and line in printed
    with pytest.raises(ValueError, match=r"other settings \(settings.num_samples was 20, is now 10\)"):
        run("openmoji-rar", output, toy, **{**options, "num_samples": 10})
    (tmp_path / "damaged").mkdir()
    for content in ("{", "{}", '{"settings": 3, "errors": {"fid": "?"}}'):
        (tmp_path / "damaged" / "result.json").write_text(content)
        with pytest.raises(TypeError):  # measured again, which the missing sampler ends
            run("openmoji-rar", tmp_path / "damaged", toy, **options)
    with pytest.raises(TypeError):
        run("openmoji-rar", output, toy, **options, overwrite=True)


def test_results_are_not_lost(toy, tmp_path, monkeypatch, capsys):
    """A folder that cannot be one is named first; numbers are printed first; a failing metric costs no other one."""
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match=rf"output={tmp_path}/file/out: {tmp_path}/file is a file, not a folder"
    ):
        run("openmoji-titok", tmp_path / "file" / "out", toy)

    def full(path, *_, **__):
        raise WriteError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr("jobs.reproduce.write_json", full)
    options = {"images": str(write_folder(tmp_path / "val", toy_images(3, side=48))), "batch_size": 3}
    with pytest.raises(WriteError, match="result.json cannot be written"):
        run("openmoji-titok", tmp_path / "out", toy, **options)
    assert "psnr" in capsys.readouterr().out
    monkeypatch.undo()
    put_in_place(monkeypatch, "inception", ToyInception())

    def broken(*_, **__):
        raise ValueError("not a covariance")

    with monkeypatch.context() as patch:
        patch.setattr("evaluator.metrics.fid.frechet_distance", broken)
        with pytest.raises(ValueError, match="rfid cannot be computed: not a covariance; .* other metrics"):
            run("openmoji-titok", tmp_path / "out", toy, **options)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["errors"] == {"rfid": "not a covariance"} and result["metrics"]["psnr"] > 0
    assert (
        "rfid_3" in run("openmoji-titok", tmp_path / "out", toy, **options)["metrics"]
    )  # not finished before


def test_stopped_at_any_moment_it_goes_on(toy, release, tiny_generator_run, tmp_path, monkeypatch):
    release(tiny_generator_run, "generator")
    options = {"reference": str(write_folder(tmp_path / "images", toy_images(12))), "num_samples": 9}
    options["batch_size"] = 2
    expected = run("tiny", tmp_path / "whole", toy, **options)
    calls = Counter()

    def stop_at(where, owner, name, number):
        method = getattr(owner, name)

        def call(*arguments, **keywords):
            calls[where] += 1
            if calls[where] == number:
                raise SystemExit(143)
            return method(*arguments, **keywords)

        monkeypatch.setattr(owner, name, call)

    output = tmp_path / "stopped"
    stop_at("drawing", SampleStore, "put", 3)
    stop_at("writing", SampleStore, "finish", 1)
    stop_at("measuring", ImageSet, "update", 2)
    stop_at("result", jobs.reproduce, "write_json", 1)
    for _ in range(4):
        with pytest.raises(SystemExit):
            run("tiny", output, toy, **options)
        assert not (output / "result.json").exists() and not (output / ".lock").exists()
    with pytest.raises(ValueError, match="seed 0 instead of 1"):
        run("tiny", output, toy, **options | {"seed": 1})
    assert run("tiny", output, toy, **options)["metrics"] == expected["metrics"]
    assert calls["drawing"] == 3 + 3 and calls["writing"] == 2  # no sample was drawn twice
    assert min(calls.values()) == 2, calls


def test_a_tokenizer_on_the_images_of_its_run_and_on_files(toy, tmp_path):
    source = OpenMoji(image_size=48, split="validation")
    chosen = (np.arange(20) * len(source) // 20).tolist()  # evenly spaced
    images = source.load_many(chosen, [np.random.default_rng(0)] * 20)
    for number, image in enumerate(images):
        (tmp_path / "val").mkdir(exist_ok=True)
        save_png(tmp_path / "val" / f"{number:03d}.png", image.float() / 255)
    own = run("openmoji-titok", tmp_path / "own", toy, num_samples=20, batch_size=7)
    files = run("openmoji-titok", tmp_path / "files", toy, images=str(tmp_path / "val"))
    assert files["metrics"] == pytest.approx(own["metrics"], rel=1e-5)
    exact = images.float() / 255
    quality = ImageQuality()
    quality.update(exact, reconstruct(load_tokenizer("openmoji-titok"), exact))
    rows = {row["metric"]: row for row in own["comparison"]}
    assert set(rows) == {"rfid_20", "is_20", "psnr", "ssim", "codebook_usage"}
    assert rows["psnr"]["measured"] == pytest.approx(quality.result()["psnr"], rel=1e-5)
    assert rows["ssim"]["measured"] == pytest.approx(quality.result()["ssim"], rel=1e-5)
    assert (rows["psnr"]["published"], rows["rfid_20"]["published"]) == (18.72, None)
    assert rows["psnr"]["difference"] == rows["psnr"]["measured"] - 18.72
    facts = own["protocol"]
    assert facts["crop"] == "shorter_edge 48" and facts["protocol"]["name"] == "tokenizer"
    assert facts["reference"]["image_set"] == "originals" and facts["tokenizer"]["tokens_per_image"] == 32
    assert facts["samples"]["source"] == "openmoji" and facts["pixels_fingerprint"]
    assert files["protocol"]["reference_fingerprint"] == facts["reference_fingerprint"]


def test_captions_name_the_class_of_every_image(
    toy, release, tiny_text_tower, image_folder, tmp_path, monkeypatch
):
    section = {**TOKENIZER, "name": "tatitok", "text_width": 16}
    folder = write_run(tmp_path / "run", {"tokenizer": section}, fill_module(build_tokenizer(section)))
    release(folder, "tokenizer")
    data = {"name": "image_folder", "path": str(image_folder)}
    options = {"text_encoder": str(tiny_text_tower), "batch_size": 3}
    result = run("tiny", tmp_path / "out", toy, data=data, **options)
    source = still_source(data, split="validation", config={}, image_size=16)
    images = source.load_many(range(7), [np.random.default_rng(0)] * 7).float() / 255
    captions = class_captions([source.class_names[label] for label in source.labels])
    assert len(set(captions)) == 2
    text = load_text_encoder(tiny_text_tower).encode(captions)
    quality = ImageQuality()
    quality.update(images, reconstruct(load_tokenizer(folder), images, text=text))
    assert result["metrics"]["psnr"] == pytest.approx(quality.result()["psnr"], rel=1e-5)
    assert result["protocol"]["captions"] == "A photo of a apple."
    # Without a data set, the classes must be those of ImageNet, which two folders are not.
    with pytest.raises(ValueError, match="has 2 classes instead of 1000"):
        run("tiny", tmp_path / "files", toy, images=str(image_folder), **options)
    monkeypatch.setattr("jobs.reproduce.imagenet_classes", lambda: ["apple", "blue"])
    files = run("tiny", tmp_path / "files", toy, images=str(image_folder), **options)
    assert files["metrics"] == pytest.approx(result["metrics"], rel=1e-5)


def test_an_unreadable_image_of_a_data_set_is_an_error(toy, release, tiny_tokenizer_run, tmp_path):
    release(tiny_tokenizer_run, "tokenizer")
    folder = write_folder(tmp_path / "val" / "cat", toy_images(4))
    (folder / "000002.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="000002.png.* cannot be read"):
        run("tiny", tmp_path / "out", toy, data={"name": "image_folder", "path": str(tmp_path / "val")})


def test_a_difference_is_explained(toy, release, tiny_generator_run, tmp_path, capsys):
    release(tiny_generator_run, "generator")
    reference = tmp_path / "ref.npz"
    np.savez(reference, toy_images(30))
    options = {"reference": str(reference), "num_samples": 16}
    fid = run("tiny", tmp_path / "a", toy, **options)["metrics"]["gfid_16"]
    capsys.readouterr()
    release(tiny_generator_run, "generator", gfid=fid + 0.04, precision=0.5)
    result = run("tiny", tmp_path / "b", toy, **options)
    assert result["may_explain"] == [] and "What may explain" not in capsys.readouterr().out
    release(tiny_generator_run, "generator", gfid=fid - 0.06)
    result = run("tiny", tmp_path / "c", toy, **options)
    printed = capsys.readouterr().out
    row = next(line.split() for line in printed.splitlines() if line.startswith("gfid_16"))
    assert row[2:] == [reproduce_cell(fid - 0.06), "+0.0600"]
    reasons = " ".join(result["may_explain"])
    for reason in ("16 images instead of", "not called VIRTUAL", "different numbers of samples", "random"):
        assert reason in reasons and reason in printed


def reproduce_cell(value):
    return f"{value:.4f}" if value < 10 else f"{value:.2f}"


def test_crops_are_those_of_the_publications(
    toy, release, tiny_tokenizer_run, image_folder, tmp_path, monkeypatch
):
    release(tiny_tokenizer_run, "tokenizer")
    data = {"name": "image_folder", "path": str(image_folder)}
    plain = run("tiny", tmp_path / "plain", toy, data=data)
    monkeypatch.setitem(FAMILIES, "tiny", Family(crop="adm"))
    adm = run("tiny", tmp_path / "adm", toy, data=data)
    files = run("tiny", tmp_path / "files", toy, images=str(image_folder))
    assert (plain["protocol"]["crop"], adm["protocol"]["crop"]) == ("shorter_edge 16", "adm 16")
    assert files["metrics"] == pytest.approx(adm["metrics"], rel=1e-5)
    assert adm["metrics"]["psnr"] != plain["metrics"]["psnr"]


@pytest.fixture
def convolutional(release, monkeypatch, tmp_path):
    """A tokenizer of 16 x 16 pixels that is measured as IBQ's are."""
    quantizer = {"name": "vq", "codebook_size": 24, "code_dim": 8}
    section = {"name": "vqgan", "image_size": 16, "base_channels": 32, "multipliers": [1, 1, 1]}
    section |= {"num_blocks": 1, "z_channels": 16, "quantizer": quantizer}
    folder = write_run(tmp_path / "run", {"tokenizer": section}, fill_module(build_tokenizer(section)))
    release(folder, "tokenizer", rfid=1.0, psnr=20.0)
    monkeypatch.setitem(FAMILIES, "tiny", FAMILIES["ibq"])
    monkeypatch.setattr("jobs.reproduce.load_float_inception", lambda *_, **__: ToyFloat())
    return load_tokenizer(folder)


def test_ibq_is_measured_as_its_authors_did(toy, convolutional, image_folder, tmp_path):
    data = {"name": "image_folder", "path": str(image_folder)}
    result = run("tiny", tmp_path / "own", toy, data=data, batch_size=3)
    files = run("tiny", tmp_path / "files", toy, images=str(image_folder))
    assert files["metrics"] == pytest.approx(result["metrics"], rel=1e-5)
    crops = [CROPS["bilinear_aliased"](file.decode().image, 16) for file in list_files(image_folder)]
    images = torch.stack([pil_to_tensor(crop) for crop in crops]).float() / 255
    back = reconstruct(convolutional, images)
    quality, rfid = ImageQuality(protocol="seed_voken"), FloatRFID(extractor=ToyFloat())
    quality.update(images, back)
    rfid.update_pairs(back, images)
    rows = {row["metric"]: row for row in result["comparison"]}
    assert set(rows) == {"rfid_7", "psnr", "ssim", "codebook_usage"}
    for name, value in {**quality.result(), **rfid.result()}.items():
        assert name == "images" or result["metrics"][name] == pytest.approx(value, rel=1e-4), name
    assert (rows["rfid_7"]["published"], rows["psnr"]["published"]) == (1.0, 20.0)
    facts = result["protocol"]
    assert facts["crop"] == "bilinear_aliased 16" and facts["image_quality"].startswith("seed_voken")
    assert facts["family"]["float_rfid"] and "not stored as 8 bit" in facts["rfid"]
    assert any("another library" in note for note in result["may_explain"])


def test_another_size_has_other_tokens_and_figures(toy, convolutional, image_folder, tmp_path, monkeypatch):
    data = {"name": "image_folder", "path": str(image_folder)}
    monkeypatch.setitem(OTHER_SIZES, ("tiny", 24), {"psnr": 21.0})
    result = run("tiny", tmp_path / "24", toy, data=data, image_size=24)
    facts, rows = result["protocol"], {row["metric"]: row["published"] for row in result["comparison"]}
    assert facts["crop"] == "bilinear_aliased 24" and facts["samples"]["height"] == 24
    own = convolutional.num_tokens
    assert (facts["tokenizer"]["tokens_per_image"], own) == (36, 16)
    assert facts["tokenizer"]["bits_per_image"] == pytest.approx(36 / 16 * convolutional.bits_per_image)
    assert rows["psnr"] == 21.0 and rows["rfid_7"] is None
    with pytest.raises(ValueError, match="image_size=18: tiny takes multiples of 4 pixels"):
        run("tiny", tmp_path / "18", toy, data=data, image_size=18)
    with pytest.raises(ValueError, match="feature_precision=float64: rFID of tiny"):
        run("tiny", tmp_path / "64", toy, data=data, feature_precision="float64")


def test_one_size_only(toy, release, tiny_tokenizer_run, image_folder, tmp_path):
    release(tiny_tokenizer_run, "tokenizer")
    with pytest.raises(ValueError, match="image_size=32: tiny takes only 16 pixels"):
        run("tiny", tmp_path / "out", toy, images=str(image_folder), image_size=32)


def test_lpips_if_its_files_are_there(toy, convolutional, image_folder, tmp_path, monkeypatch, program):
    class Distance(torch.nn.Module):
        def forward(self, images, reconstructions):
            return (images - reconstructions).square().mean((1, 2, 3), keepdim=True)

    (tmp_path / "lpips.pth").touch()
    put_in_place(monkeypatch, "lpips", Distance().eval())
    options = {"images": str(image_folder), "lpips_weights": [str(tmp_path / "lpips.pth")]}
    result = run("tiny", tmp_path / "out", toy, **options)
    assert "lpips" in measured(result) and 0 < result["metrics"]["lpips"] < 1
    arguments = ["model=tiny", f"images={image_folder}", f"output={tmp_path}/no", f"inception_weights={toy}"]
    done = program(reproduce, ReproduceOptions, *arguments, "lpips_weights=[nowhere.pth]")
    assert done.code == 1 and "missing: lpips weights nowhere.pth" in done.err


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Nothing is cached and nothing can be downloaded."""

    def refuse(*_, **__):
        raise LocalEntryNotFoundError("offline")

    def unreachable(*_, **__):
        raise FetchError("no route")

    monkeypatch.setattr("modeling.pretrained.downloads.cached_download", refuse)
    monkeypatch.setattr("modeling.pretrained.downloads.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("modeling.pretrained.downloads.fetch", unreachable)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    for name in ("TITOK_WEIGHTS", "INCEPTION_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


def test_all_that_a_generator_lacks_is_said_at_once(offline, program, tmp_path):
    done = program(reproduce, ReproduceOptions, "model=rar-b", f"output={tmp_path}/out")
    assert done.code == 1 and not (tmp_path / "out").exists()
    lines = [line for line in done.err.splitlines() if line.startswith("missing: ")]
    assert [line.split(": ")[1] for line in lines] == [
        "reference", "inception weights", "weights of rar-b", "weights of maskgit-vqgan",
    ]  # fmt: skip
    assert REFERENCE_URL in lines[0] and "reference=FILE" in lines[0]
    assert (
        "6726825d0af5f729cebd5821" in lines[1] and "https://" in lines[1] and "INCEPTION_WEIGHTS" in lines[1]
    )
    assert "rar_b.bin" in lines[2] and "TITOK_WEIGHTS" in lines[2]
    assert "maskgit-vqgan-imagenet-f16-256.bin" in lines[3]
    assert "error: 4 of 4 things that rar-b needs are missing" in done.err


def test_all_that_a_tokenizer_lacks_is_said_at_once(offline, program, tmp_path):
    pytest.importorskip("open_clip")
    (tmp_path / "v0.tar").touch()
    arguments = ["model=tatitok-bl32-vq", f"output={tmp_path}/out"]
    done = program(reproduce, ReproduceOptions, *arguments, f"images={tmp_path}/v{{0..2}}.tar")
    assert done.code == 1 and "4 of 4 things" in done.err
    assert "2 of 3 files" in done.err and "v1.tar; expected the 50,000 validation images" in done.err
    assert "missing: text encoder: " in done.err and "tatitok_bl32_vq.bin" in done.err
    done = program(reproduce, ReproduceOptions, *arguments)
    assert "neither images nor data is given; expected the 50,000" in done.err
    done = program(
        reproduce, ReproduceOptions, *arguments, "data.name=image_folder", f"data.path={tmp_path}/x"
    )
    assert f"missing: validation images: {tmp_path}/x does not exist" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "rar-c"}, "'rar-c' is unknown.*did you mean"),
        ({"model": "rar-b", "images": "x"}, "images is given, but rar-b is a generator"),
        ({"model": "rar-b", "data": {"name": "openmoji"}}, "data is given"),
        ({"model": "rar-b", "image_size": 128}, "image_size is given"),
        ({"model": "titok-l32", "reference": "x"}, "reference is given, but titok-l32 is a tokenizer"),
        ({"model": "titok-l32", "images": "x", "data": {"name": "y"}}, "at most one of images and data"),
        ({"num_samples": 1}, "num_samples=1 must be at least 2"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    options = {"model": "rar-b", **options}
    with pytest.raises(ValueError, match=message):
        run(options.pop("model"), tmp_path, None, **options)


def test_help_lists_the_options(program):
    done = program(reproduce, ReproduceOptions, "--help")
    assert done.code == 0 and "reference=" in done.out


@pytest.mark.slow
def test_two_processes_give_the_same_result(tmp_path):
    """From the command line, with the real network."""
    from tests.evaluator.test_evaluator import golden_network

    torch.save(golden_network().state_dict(), tmp_path / "weights.pth")
    np.savez(tmp_path / "ref.npz", toy_images(16, side=48))
    assert tensor(toy_images(1, side=48)).shape[1:] == (3, 48, 48)
    results = []
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]):
        for model, options in (
            ("openmoji-rar", [f"reference={tmp_path}/ref.npz"]),
            ("openmoji-titok", []),
        ):
            arguments = [f"model={model}", "num_samples=14", "batch_size=4", *options]
            output = tmp_path / f"{len(launcher)}-{model}"
            arguments += [f"output={output}", f"inception_weights={tmp_path}/weights.pth"]
            done = subprocess.run(
                [sys.executable, *launcher, str(REPOSITORY / "scripts/reproduce.py"), *arguments],
                capture_output=True,
                text=True,
                timeout=600,
                env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            results.append(json.loads((output / "result.json").read_text()))
    for one, two in zip(results[:2], results[2:], strict=True):
        assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
        assert any("not the published file" in note for note in one["warnings"])
