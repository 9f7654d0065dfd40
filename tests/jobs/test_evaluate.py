import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluator.image_files import open_images
from evaluator.metrics.image_quality import ImageQuality
from evaluator.networks import NETWORKS
from jobs.evaluate import evaluate
from jobs.evaluation_report import PairPictures
from jobs.options.evaluate import EvaluateOptions
from modeling.pipeline import load_tokenizer, reconstruct
from storage.files import WriteError
from tests.evaluator.toy import ToyInception, put_in_place, tensor, toy_images, write_folder, write_tars

REAL, FAKE = toy_images(60, seed=1), toy_images(50, seed=2)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    """Everything but the network is real."""
    put_in_place(monkeypatch, "inception", ToyInception())


@pytest.fixture
def files(tmp_path):
    """Samples and reference in several containers."""
    np.savez(tmp_path / "fake.npz", FAKE, np.arange(50) % 5)
    np.savez(tmp_path / "real.npz", REAL)
    write_folder(tmp_path / "fake", FAKE)
    write_folder(tmp_path / "real", REAL)
    write_tars(tmp_path / "tars", FAKE)
    return tmp_path


def run(folder, samples, **options):
    output = folder / "out" / "result.json"
    evaluate(EvaluateOptions(samples=str(samples), output=str(output), **options))
    return json.loads(output.read_text())


def test_results_carry_their_protocol(files, capsys):
    result = run(files, files / "fake.npz", reference=str(files / "real"), batch_size=16)
    assert set(result["metrics"]) == {"fid_50", "sfid_50", "is_50", "precision", "recall"}
    facts = result["protocol"]
    assert facts["protocol"]["name"] == "adm" and facts["rounding"] == "nearest" and facts["crop"] == "none"
    assert facts["samples"]["count"] == facts["images"] == 50 and facts["samples"]["labels"]["classes"] == 5
    assert facts["reference"]["image_set"] == "images" and facts["reference"]["count"] == 60
    assert facts["extractors"]["inception"] == {"weights_hash": "toy", "approximate": False}
    assert len(facts["pixels_fingerprint"]) == 16
    printed = capsys.readouterr()
    assert "fid_50" in printed.out and "50 images instead of 50000" in printed.err
    assert result["warnings"] and all(note in printed.err for note in result["warnings"])


def test_containers_do_not_matter_and_references_can_be_stored(files):
    expected = run(files, files / "fake.npz", reference=str(files / "real"))["metrics"]
    for samples in (files / "fake", files / "tars" / "{0..1}.tar", files / "tars"):
        assert run(files, samples, reference=str(files / "real.npz"))["metrics"] == expected
    stored = files / "new" / "ref.npz"
    evaluate(
        EvaluateOptions(
            samples=str(files / "real"), make_ref=str(stored), keep_images=60, reference_set="validation"
        ),
    )
    result = run(files, files / "fake", reference=str(stored))
    assert result["metrics"] == pytest.approx(expected, rel=1e-6)
    facts = result["protocol"]["reference"]
    assert facts["image_set"] == "validation" and facts["verified"] and facts["count"] == 60
    assert facts["protocol"]["extractors"]["inception"]["weights_hash"] == "toy"
    assert facts["protocol"]["images"]["source"] == str(files / "real")
    named = run(files, files / "fake", reference=str(stored), metrics=["rfid", "gfid"])["metrics"]
    assert named == pytest.approx({"rfid_50": expected["fid_50"], "gfid_50": expected["fid_50"]}, rel=1e-6)


def test_another_network_or_kind_of_reference_is_refused(files, monkeypatch):
    stored = files / "ref.npz"
    options = {"samples": str(files / "real"), "make_ref": str(stored), "reference_set": "training"}
    evaluate(EvaluateOptions(**options))
    with pytest.raises(ValueError, match="rfid compares .* training images"):
        run(files, files / "fake", reference=str(stored), metrics=["rfid"])
    with pytest.raises(ValueError, match="rfid compares .* another number"):
        run(files, files / "fake", reference=str(files / "real"), metrics=["rfid"])
    put_in_place(monkeypatch, "inception", ToyInception("other"))
    with pytest.raises(ValueError, match="weights toy, the samples are measured with other"):
        run(files, files / "fake", reference=str(stored))


def test_reconstructions_are_compared_with_their_originals(tiny_tokenizer_run, tmp_path):
    folder = write_folder(tmp_path / "val", REAL[:10])
    result = run(tmp_path, folder, tokenizer=str(tiny_tokenizer_run), batch_size=4)
    tokenizer, images = load_tokenizer(tiny_tokenizer_run), tensor(REAL[:10]).float() / 255
    quality = ImageQuality()
    quality.update(images, reconstruct(tokenizer, images))
    expected = quality.result()
    values = result["metrics"]
    assert values["psnr"] == pytest.approx(expected["psnr"], rel=1e-4)
    assert values["ssim"] == pytest.approx(expected["ssim"], rel=1e-4)
    assert {"rfid_10", "is_10", "codebook_usage", "codebook_entropy"} < set(values)
    facts = result["protocol"]
    assert facts["protocol"]["name"] == "tokenizer" and facts["crop"] == "shorter_edge 16"
    assert facts["tokenizer"]["tokens_per_image"] == 6 and facts["tokenizer"]["bits_per_image"] > 6 * 5
    assert facts["reference"]["image_set"] == "originals" and facts["reference_images"] == 10


def test_psnr_and_ssim_of_another_tool(tiny_tokenizer_run, tmp_path):
    folder, metrics = write_folder(tmp_path / "val", REAL[:4]), ["psnr", "ssim"]
    tokenizer, images = load_tokenizer(tiny_tokenizer_run), tensor(REAL[:4]).float() / 255
    quality = ImageQuality(protocol="seed_voken")
    quality.update(images, reconstruct(tokenizer, images))
    for truncate in (False, True):  # of the files that FID sees; this protocol cuts by itself
        options = {"tokenizer": str(tiny_tokenizer_run), "metrics": metrics, "truncate": truncate}
        result = run(tmp_path, folder, quality="seed_voken", **options)
        for name, value in quality.result().items():
            assert name == "images" or result["metrics"][name] == pytest.approx(value, rel=1e-6)
        assert result["protocol"]["image_quality"].startswith("seed_voken")


def test_a_tokenizer_may_be_measured_against_other_images_too(tiny_tokenizer_run, tmp_path):
    folder = write_folder(tmp_path / "val", REAL[:10])
    options = {"tokenizer": str(tiny_tokenizer_run), "reference": str(write_folder(tmp_path / "train", FAKE))}
    result = run(tmp_path, folder, metrics=["fid", "psnr"], reference_set="training", **options)
    assert result["protocol"]["reference_images"] == 50 and {"fid_10", "psnr"} < set(result["metrics"])
    with pytest.raises(ValueError, match="rfid compares"):
        run(tmp_path, folder, metrics=["rfid"], reference_set="training", **options)


def test_precision_is_that_of_the_tokenizer(tiny_tokenizer_run, tmp_path):
    folder = write_folder(tmp_path / "val", REAL[:4])
    options = {"metrics": ["psnr"], "tokenizer": str(tiny_tokenizer_run)}
    exact, half = (run(tmp_path, folder, precision=p, **options) for p in ("float32", "bfloat16"))
    assert half["protocol"]["tokenizer"]["precision"] == "bfloat16"
    assert half["protocol"]["tokenizer"] | {"precision": "?"} == exact["protocol"]["tokenizer"] | {
        "precision": "?"
    }
    assert half["metrics"]["psnr"] == pytest.approx(exact["metrics"]["psnr"], abs=0.1)
    with pytest.raises(ValueError, match="precision=float16 is for a tokenizer; feature_precision is for"):
        run(tmp_path, folder, precision="float16")


def test_tokenizers_that_read_captions_are_refused(tiny_tokenizer_run, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(tiny_tokenizer_run)
    tokenizer.needs_text = True
    monkeypatch.setattr("jobs.evaluation_run.load_tokenizer", lambda *_, **__: tokenizer)
    with pytest.raises(ValueError, match="decodes with captions"):
        run(tmp_path, write_folder(tmp_path / "val", REAL[:4]), tokenizer=str(tiny_tokenizer_run))


def test_paired_files_need_no_network(files, monkeypatch):
    monkeypatch.setattr("evaluator.networks.NETWORKS", {})
    values = run(files, files / "fake", reference=str(files / "fake.npz"), metrics=["psnr", "ssim"])[
        "metrics"
    ]
    assert values == pytest.approx({"psnr": 60.0, "ssim": 1.0})
    with pytest.raises(ValueError, match="original for each of the 50 samples, the reference holds 60"):
        run(files, files / "fake", reference=str(files / "real"), metrics=["psnr"])
    result = run(files, files / "fake", reference=str(files / "real"), metrics=["psnr"], max_images=20)
    chosen = np.arange(20) * 50 // 20
    quality = ImageQuality()
    quality.update(tensor(REAL[chosen]).float() / 255, tensor(FAKE[chosen]).float() / 255)
    assert result["metrics"]["psnr"] == pytest.approx(quality.result()["psnr"])
    assert result["protocol"]["samples"]["selection"] == {"of": 50, "chosen": "evenly spaced"}


@pytest.fixture
def renamed(tmp_path):
    """The same 12 pictures in three folders: numbered plainly, with leading zeros, with an ending."""
    pictures = np.random.default_rng(0).integers(0, 255, (12, 32, 32, 3), dtype=np.uint8)
    for form in ("a/r_{}.png", "b/r_{:03d}.png", "c/r_{}_rec.png"):
        for number, picture in enumerate(pictures):
            path = tmp_path / form.format(number)
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(picture).save(path)
    return tmp_path


@pytest.mark.parametrize("one, two", ["ab", "ac", "cb"])
def test_pairs_are_found_by_their_names(renamed, one, two):
    result = run(renamed, renamed / one, reference=str(renamed / two), metrics=["psnr", "ssim"], batch_size=5)
    assert result["metrics"] == {"psnr": 60.0, "ssim": 1.0}
    assert result["protocol"]["paired_by"] and result["protocol"]["copies"]["samples"] == 0
    assert not any("order alone" in note for note in result["warnings"])
    few = run(renamed, renamed / one, reference=str(renamed / two), metrics=["psnr"], max_images=5)
    assert few["metrics"] == {"psnr": 60.0} and few["protocol"]["images"] == 5


def test_pairs_without_common_names_are_refused_or_named(renamed):
    (renamed / "b" / "r_005.png").rename(renamed / "b" / "r_012.png")
    options = {"reference": str(renamed / "b"), "metrics": ["psnr"]}
    with pytest.raises(ValueError, match="no original belongs to the sample 'r_5.png' .* is 'r_012.png'"):
        run(renamed, renamed / "a", **options)
    result = run(renamed, renamed / "a", pairs="order", **options)
    assert result["protocol"]["paired_by"] == "order" and result["metrics"]["psnr"] < 60
    assert any("by their order alone" in note for note in result["warnings"])
    np.savez(renamed / "arrays.npz", REAL[:12].repeat(2, 1).repeat(2, 2))
    result = run(renamed, renamed / "a", reference=str(renamed / "arrays.npz"), metrics=["psnr"])
    assert any("by their order alone" in note for note in result["warnings"])
    np.savez(renamed / "more.npz", REAL.repeat(2, 1).repeat(2, 2))
    with pytest.raises(ValueError, match="sets of 12 and 60 images cannot be paired by order"):
        run(renamed, renamed / "a", reference=str(renamed / "more.npz"), metrics=["psnr"], max_images=5)


def test_pairs_also_feed_distances(files):
    values = run(files, files / "fake", reference=str(files / "fake.npz"), metrics=["rfid", "psnr"])[
        "metrics"
    ]
    assert abs(values["rfid_50"]) < 1e-6 and values["psnr"] == 60.0


def test_crops_apply_to_both_sides(tmp_path):
    for name, images in (("a", FAKE), ("b", REAL)):
        folder = tmp_path / name
        folder.mkdir()
        for i, image in enumerate(images[:6]):
            Image.fromarray(image[: 12 + i]).save(folder / f"{i}.jpg")
    with pytest.raises(ValueError, match="choose how to crop"):
        run(tmp_path, tmp_path / "a", reference=str(tmp_path / "b"), metrics=["fid"])
    result = run(
        tmp_path, tmp_path / "a", reference=str(tmp_path / "b"), metrics=["fid"], crop="adm", image_size=8
    )
    assert result["protocol"]["crop"] == "adm 8" and result["protocol"]["samples"]["height"] == 8
    assert sum("JPEG" in note for note in result["warnings"]) == 2


def test_samples_of_the_sampler_bring_their_settings(tmp_path):
    folder = write_folder(tmp_path / "samples", FAKE)
    (folder / "samples.json").write_text(json.dumps({"seed": 5, "guidance_scale": 4.0, "num_tokens": 32}))
    sampler = run(tmp_path, folder)["protocol"]["sampler"]
    assert (sampler["seed"], sampler["guidance_scale"], sampler["tokens_per_image"]) == (5, 4.0, 32)


def never(*_, **__):
    raise AssertionError("images are measured")


@pytest.mark.parametrize("key", ["output", "make_ref"])
def test_an_output_that_cannot_be_written_is_known_before_the_first_image(files, monkeypatch, key):
    monkeypatch.setattr("jobs.evaluate.Run", never)
    (files / "file").write_text("{}")
    with pytest.raises(ValueError, match=rf"{key}={files}/file/r.npz: {files}/file is a file, not a folder"):
        evaluate(EvaluateOptions(samples=str(files / "fake"), **{key: f"{files}/file/r.npz"}))
    (files / "folder.npz").mkdir()
    with pytest.raises(ValueError, match=f"{key}=.*folder.npz is a folder"):
        evaluate(EvaluateOptions(samples=str(files / "fake"), **{key: f"{files}/folder.npz"}))
    with pytest.raises(
        ValueError, match=f"{key}=.*000000.png.* another kind|make_ref=.* must have the suffix"
    ):
        evaluate(EvaluateOptions(samples=str(files / "fake"), **{key: f"{files}/fake/000000.png"}))


def test_numbers_are_on_the_screen_when_the_file_cannot_be_written(files, monkeypatch, capsys):
    def full(path, *_, **__):
        raise WriteError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr("jobs.evaluate.write_json", full)
    with pytest.raises(WriteError, match=r"result.json cannot be written: No space left"):
        run(files, files / "fake", metrics=["is"])
    assert "is_50" in capsys.readouterr().out


def test_the_banner_says_that_an_earlier_result_is_replaced(files, capsys):
    run(files, files / "fake", metrics=["is"])
    assert "replaces" not in capsys.readouterr().out
    run(files, files / "real", metrics=["is"])
    assert re.search(r"^replaces +.*result\.json$", capsys.readouterr().out, re.M)


def test_a_metric_that_fails_costs_no_other_one(files, monkeypatch, capsys):
    def broken(*_, **__):
        raise ValueError("features hold values that are not finite")

    monkeypatch.setattr("evaluator.metrics.kid.squared_mmd", broken)
    with pytest.raises(ValueError, match="kid cannot be computed: features .*; .* holds the other metrics"):
        run(files, files / "fake", reference=str(files / "real"), metrics=["fid", "kid", "is"])
    result = json.loads((files / "out" / "result.json").read_text())
    assert set(result["metrics"]) == {"fid_50", "is_50"}
    assert result["errors"] == {"kid": "features hold values that are not finite"}
    assert "fid_50" in capsys.readouterr().out


def test_too_few_or_too_small_images_are_known_before_the_first_one(files, tmp_path, monkeypatch):
    write_folder(tmp_path / "three", FAKE[:3])
    write_folder(tmp_path / "small", FAKE[:5, :8, :8])
    three = {"samples": tmp_path / "three", "reference": str(files / "real")}
    # Usual metrics are left out, and the result says so.
    result = run(files, **three)
    assert set(result["metrics"]) == {"fid_3", "sfid_3", "is_3"} and "errors" not in result
    assert any("precision_recall needs more than 3 samples" in note for note in result["warnings"])
    monkeypatch.setattr("jobs.evaluation_run.load_networks", never)
    for metrics, protocol, message in [
        (["fid", "precision_recall"], None, "precision_recall needs more than 3 .*, the smaller set has 3"),
        (["is"], "torch-fidelity", "is has 10 splits, and there are 3 samples"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(files, metrics=metrics, protocol=protocol, **three)
    with pytest.raises(ValueError, match="samples have 8 x 8 pixels, their originals 16 x 16"):
        write_folder(tmp_path / "five", FAKE[:5])
        run(files, tmp_path / "small", reference=str(tmp_path / "five"), metrics=["psnr"])
    with pytest.raises(ValueError, match="ssim needs sides of at least 11 pixels, the images have 8"):
        run(files, tmp_path / "small", reference=str(tmp_path / "small"), metrics=["psnr", "ssim"])
    for metric in ("fid", "kid"):
        with pytest.raises(ValueError, match=f"{metric} needs at least 2 samples and 2 reference images"):
            run(files, files / "fake", reference=str(files / "real"), metrics=[metric], max_images=1)


def test_copies_and_equal_sets_are_named(files, capsys):
    np.savez(files / "copies.npz", np.concatenate([FAKE, FAKE[:4], REAL[:2]]))
    result = run(files, files / "copies.npz", reference=str(files / "real"), metrics=["fid"])
    assert result["protocol"]["copies"] == {"samples": 4, "reference": 0, "in_both": 2}
    assert sum("exactly the pixels" in note for note in result["warnings"]) == 2
    capsys.readouterr()
    result = run(files, files / "real", reference=str(files / "real"), metrics=["fid"])
    assert sum("same files" in note for note in result["warnings"]) == 1
    assert "60 of 60 samples have exactly the pixels of a reference image" in capsys.readouterr().err
    evaluate(EvaluateOptions(samples=str(files / "real"), make_ref=str(files / "ref.npz")))
    for samples, named in (("real.npz", 1), ("fake.npz", 0)):
        result = run(files, files / samples, reference=str(files / "ref.npz"), metrics=["fid"])
        assert sum("reference was made of" in note for note in result["warnings"]) == named


def test_the_crop_of_a_reference_is_compared(files):
    stored = files / "ref.npz"
    crop = {"crop": "adm", "image_size": 16}
    evaluate(EvaluateOptions(samples=str(files / "real"), make_ref=str(stored), **crop))
    options = {"reference": str(stored), "metrics": ["fid"], "image_size": 16}
    for name, named in [("adm", 0), ("shorter_edge", 1)]:
        result = run(files, files / "fake", crop=name, **options)
        assert sum("crop of the samples is" in note for note in result["warnings"]) == named


@pytest.mark.parametrize(
    "values, message",
    [
        (
            REAL.astype(np.float32) / 127.5 - 1,
            r"float32 .* first values go from -1 to 0.\d+: values in \[-1, 1\]",
        ),
        (REAL.astype(np.float64), r"float64 .* from 0 to 2\d\d: levels from 0 to 255 are stored by"),
        (REAL / 255, r"from 0 to 0.\d+: values in \[0, 1\] are stored by"),
        (REAL.astype(np.int64), r"int64 .* levels from 0 to 255"),
        (REAL.transpose(0, 3, 1, 2), r"uint8 \[60, 3, 16, 16\] .* array.transpose\(0, 2, 3, 1\)"),
        (REAL[..., [0, 1, 2, 0]], "composite or drop alpha"),
        (REAL[..., 0], "grey images are repeated"),
        (REAL[0], r"one image is array\[None\]"),
    ],
)
def test_arrays_that_are_no_images_are_refused_with_what_they_hold(tmp_path, values, message):
    np.savez(tmp_path / "a.npz", values)
    np.save(tmp_path / "a.npy", values)
    for name in ("a.npz", "a.npy"):
        with pytest.raises(ValueError, match=f"{name} holds {message}|{name} holds .*{message}"):
            run(tmp_path, tmp_path / name, metrics=["is"])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"metrics": ["fid"]}, "fid need a reference"),
        ({"metrics": ["fit"]}, "did you mean"),
        ({"crop": "adm"}, "go together"),
        ({"image_size": 8}, "go together"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"make_ref": "x.npz", "reference": "y.npz"}, "neither a reference nor a tokenizer"),
        ({"make_ref": "x.npz", "metrics": ["is"]}, "is have no statistics"),
        ({"metrics": ["lpips"], "tokenizer": "?"}, "lpips_weights"),
        ({"space_weights": {"clipp": "x"}}, "space_weights.clipp is no space"),
        ({"tokenizer": "?", "reference_set": "training"}, "originals are the reference"),
    ],
)
def test_wrong_options_are_refused(files, tiny_tokenizer_run, options, message):
    if "tokenizer" in options:
        options = {**options, "tokenizer": str(tiny_tokenizer_run)}
    with pytest.raises(ValueError, match=message):
        run(files, files / "fake.npz", **options)


def test_the_command_line_names_missing_files(program, tmp_path):
    done = program(evaluate, EvaluateOptions, f"samples={tmp_path}/none")
    assert done.code == 1 and "none does not exist" in done.err
    done = program(evaluate, EvaluateOptions, "--help")
    assert done.code == 0 and "make_ref=" in done.out


@pytest.mark.slow
def test_two_processes_give_the_same_json(tmp_path):
    """From the command line, with the real network."""
    from tests.evaluator.test_evaluator import golden_network

    np.savez(tmp_path / "fake.npz", FAKE[:14])
    write_folder(tmp_path / "real", REAL[:16])
    torch.save(golden_network().state_dict(), tmp_path / "weights.pth")
    assert open_images(tmp_path / "fake.npz").count == 14
    results = []
    for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]):
        arguments = [
            f"samples={tmp_path}/fake.npz", f"reference={tmp_path}/real", f"output={tmp_path}/result.json",
            f"inception_weights={tmp_path}/weights.pth", "metrics=[fid,sfid,is,precision_recall]", "batch_size=4",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, *launcher, str(ROOT / "scripts/evaluate.py"), *arguments],
            capture_output=True,
            text=True,
            timeout=600,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        results.append(json.loads((tmp_path / "result.json").read_text()))
    one, two = results
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert two["protocol"] == one["protocol"] and two["warnings"] == one["warnings"]
    assert any("not the published file" in note for note in one["warnings"])


def test_kept_features_answer_later_questions(files, monkeypatch):
    toy = ToyInception()
    put_in_place(monkeypatch, "inception", toy)
    options = {"reference": str(files / "real"), "features": str(files / "kept")}
    first = run(files, files / "fake", **options)
    assert sum(toy.calls) == 110
    toy.calls.clear()
    again = run(files, files / "fake", **options)
    assert toy.calls == [] and again["metrics"] == first["metrics"] and again["protocol"] == first["protocol"]
    more = run(files, files / "fake", metrics=["mind", "kid", "authenticity"], **options)
    assert toy.calls == [] and {"mind_50", "kid", "authenticity"} <= set(more["metrics"])
    pair = more["protocol"]["details"]["authenticity"]["closest_pairs"][0]
    assert 0 <= pair["sample"] < 50 and 0 <= pair["reference"] < 60
    evaluate(
        EvaluateOptions(
            samples=str(files / "real"), make_ref=str(files / "ref.npz"), features=options["features"]
        )
    )
    assert toy.calls == []
    path = files / "fake" / "000003.png"  # one file is written again, with as many bytes
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))
    run(files, files / "fake", **options)
    assert sum(toy.calls) == 50


def test_kept_features_of_reconstructions(files, monkeypatch):
    toy = ToyInception()
    put_in_place(monkeypatch, "inception", toy)
    options = {"tokenizer": "assets/models/titok_openmoji", "features": str(files / "kept"), "max_images": 4}
    first = run(files, "assets/emoji", metrics=["rfid", "psnr"], **options)
    assert sum(toy.calls) == 8
    again = run(files, "assets/emoji", metrics=["rfid", "kid", "psnr"], **options)
    assert sum(toy.calls) == 8
    assert again["metrics"].items() >= first["metrics"].items()
    run(files, "assets/emoji", metrics=["rfid"], truncate=True, **options)
    assert sum(toy.calls) == 12  # other pixels, the same originals


def without_weights(monkeypatch, name="inception"):
    """As on a machine without network: the weights are nowhere, and nothing may be loaded."""

    def find(_):
        raise FileNotFoundError(f"the {name} weights are nowhere: fetch ADDRESS (96 MB, SHA-256 abc)")

    def load(*_, **__):
        raise AssertionError("nothing is loaded without weights")

    network = dataclasses.replace(NETWORKS[name], find=find, load=load)
    monkeypatch.setitem(NETWORKS, name, network)


def test_without_weights_the_usual_metrics_are_those_that_are_possible(
    files, tiny_tokenizer_run, monkeypatch
):
    without_weights(monkeypatch)
    result = run(files, files / "fake", reference=str(files / "real"))
    assert set(result["metrics"]) == {"fd_titok_openmoji_50", "kd_titok_openmoji"}
    notes = " ".join(result["warnings"])
    assert (
        "left out: fid, sfid, is, precision_recall: the inception weights are nowhere: fetch ADDRESS" in notes
    )
    assert "they are no FID" in notes and "errors" not in result
    network = result["protocol"]["extractors"]["titok_openmoji"]
    assert network["recipe"]["model"] == "openmoji-titok" and network["weights_hash"]
    result = run(files, files / "fake", tokenizer=str(tiny_tokenizer_run))
    assert {"psnr", "ssim", "fd_titok_openmoji_50", "codebook_usage"} < set(result["metrics"])
    with pytest.raises(
        FileNotFoundError, match="nothing can be measured; left out: is: .*; or give reference"
    ):
        run(files, files / "fake")


def test_without_weights_a_named_metric_is_refused_before_an_image_is_read(files, monkeypatch, capsys):
    without_weights(monkeypatch)
    monkeypatch.setattr("jobs.evaluate.Run.measure", None)
    options = {"reference": str(files / "real")}
    with pytest.raises(
        FileNotFoundError, match="metrics: kid: the inception weights are nowhere: fetch ADDRESS"
    ):
        run(files, files / "fake", metrics=["kid"], **options)
    without_weights(monkeypatch, "dinov2_dgm")
    with pytest.raises(FileNotFoundError, match="weights of fid, fd_dinov2_dgm are missing"):
        run(files, files / "fake", metrics=["fid", "fd_dinov2_dgm"], **options)
    printed = capsys.readouterr().err
    assert "fid: the inception weights" in printed and "fd_dinov2_dgm: the dinov2_dgm weights" in printed
    with pytest.raises(FileNotFoundError, match="metrics: fid, sfid: the inception weights"):
        evaluate(EvaluateOptions(samples=str(files / "real"), make_ref=str(files / "ref.npz")))


def test_distances_within_classes(files):
    labels = np.arange(60) % 5
    np.savez(files / "real_labels.npz", REAL, labels)
    options = {"metrics": ["fid_per_class"], "features": str(files / "kept")}
    result = run(files, files / "fake.npz", reference=str(files / "real_labels.npz"), **options)
    classes = result["protocol"]["details"]["fid_per_class"]["classes"]
    assert sorted(classes) == ["0", "1", "2", "3", "4"]
    assert result["metrics"]["fid_per_class_50"] == pytest.approx(sum(classes.values()) / 5)
    with pytest.raises(ValueError, match="reference images have no labels"):
        run(files, files / "fake.npz", reference=str(files / "real.npz"), **options)


def test_a_report_says_what_is_better_and_shows_the_worst_pairs(tiny_tokenizer_run, tmp_path, capsys):
    folder, options = write_folder(tmp_path / "val", REAL[:10]), {"tokenizer": str(tiny_tokenizer_run)}
    run(tmp_path, folder, pictures=3, batch_size=4, **options)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if " is better" in line]
    assert len(lines) >= 4 and len({line.index(" is better") - line.index("er is") for line in lines}) == 1
    assert re.search(r"^psnr +[\d.]+ +higher is better +against the originals$", printed, re.MULTILINE)
    assert re.search(
        r"^rfid_10 +[\d.]+ +lower is better +against the originals in inception$", printed, re.MULTILINE
    )
    path = tmp_path / "out" / "result_pictures.png"
    first = path.read_bytes()
    width, height = Image.open(path).size
    assert height == 6 * 98 + 2 and width > 3 * 98  # six rows of images of 96 pixels
    run(tmp_path, folder, pictures=3, batch_size=64, **options)
    assert path.read_bytes() == first
    path.unlink()
    run(tmp_path, folder, pictures=0, **options)
    assert not path.exists()


def test_pictures_hold_the_worst_and_the_best_pair():
    originals = torch.full((9, 3, 8, 8), 100, dtype=torch.uint8)
    results = originals + torch.arange(9, dtype=torch.uint8).view(
        9, 1, 1, 1
    )  # pair 8 is the worst, 0 the best
    pictures = PairPictures(2, 9)
    for part in torch.arange(9).split(2):
        pictures.update(results[part], originals[part], part)
    picture = (pictures.picture() * 255).round()[0]
    columns = [picture.shape[1] - 2 - 98 * (2 - i) + 1 + 48 for i in range(2)]
    middles = [[int(picture[2 + 98 * row + 48, column]) for column in columns] for row in range(6)]
    assert middles[3] == [108, 107] and middles[5] == [100, 101]
    assert middles[0] == middles[2] == middles[4] == [100, 100]


def test_samples_are_shown_too(files):
    run(files, files / "fake", reference=str(files / "real"), pictures=4)
    assert Image.open(files / "out" / "result_pictures.png").size == (4 * 98 + 2, 4 * 98 + 2)
