import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import sample_imagenet
from common.config import REPOSITORY
from modeling.pipeline import generate, load_image_model
from sample_imagenet import SampleOptions
from storage.sample_store import SampleStore


def run(generator, output, **options):
    options = {"num_samples": 16, "batch_size": 16, "png": False, **options}
    sample_imagenet.main(SampleOptions(generator=str(generator), output=str(output), **options))


def arrays_of(folder):
    with np.load(folder / "samples.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def one_process(tiny_generator_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    run(tiny_generator_run, folder, png=True)
    return folder


def test_files_are_what_the_pipeline_generates(tiny_generator_run, one_process):
    model = load_image_model(tiny_generator_run)
    labels = torch.arange(16) % 3
    images = generate(model.generator, model.tokenizer, labels, seed=0, **model.sampling)
    found = arrays_of(one_process)
    # Rounded to the nearest of 256 levels, neither cut nor moved.
    difference = torch.from_numpy(found["arr_0"]).permute(0, 3, 1, 2) / 255 - images
    assert difference.abs().max() <= 0.5 / 255 + 1e-5
    assert found["labels"].tolist() == labels.tolist()
    assert len(list(one_process.glob("0*.png"))) == 16 and (one_process / "samples.png").is_file()
    facts = json.loads((one_process / "samples.json").read_text())
    assert facts["guidance_scale"] == 3.0 and facts["seconds_per_image"] > 0


def test_two_processes_with_another_batch_size_give_the_same_samples(
    tiny_generator_run, one_process, tmp_path
):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [
        str(REPOSITORY / "sample_imagenet.py"),
        f"generator={tiny_generator_run}",
        f"output={tmp_path}/out",
    ]
    command += ["num_samples=16", "batch_size=3", "png=true"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, second = arrays_of(one_process), arrays_of(tmp_path / "out")
    assert np.array_equal(first["tokens"], second["tokens"]) and np.array_equal(
        first["labels"], second["labels"]
    )
    # Convolutions and products of another batch size may round differently.
    assert np.abs(first["arr_0"].astype(int) - second["arr_0"]).max() <= 1
    assert result.stdout.count("s per image") == 1 and len(list((tmp_path / "out").glob("0*.png"))) == 16


@pytest.mark.parametrize("batches", [1, 3])
def test_an_interrupted_job_ends_with_the_bytes_of_one_that_was_not(
    tiny_generator_run, one_process, tmp_path, monkeypatch, batches
):
    calls, put = [], SampleStore.put

    def stop(store, indices, images, tokens):
        if len(calls) == batches:
            store.flush()
            raise KeyboardInterrupt
        calls.append(indices)
        put(store, indices, images, tokens)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SampleStore, "put", stop)
        run(tiny_generator_run, tmp_path, png=True, batch_size=4)
    assert len(list(tmp_path.glob("0*.png"))) == 4 * batches
    run(tiny_generator_run, tmp_path, png=True, batch_size=5)
    assert (tmp_path / "samples.npz").read_bytes() == (one_process / "samples.npz").read_bytes()


def test_a_job_killed_after_its_last_sample_writes_the_files(
    tiny_generator_run, one_process, tmp_path, monkeypatch
):
    """As does one of several processes for which no sample is left."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SampleStore, "finish", killed)
        run(tiny_generator_run, tmp_path, png=True, batch_size=4)
    run(tiny_generator_run, tmp_path, png=True, batch_size=4)
    assert (tmp_path / "samples.npz").read_bytes() == (one_process / "samples.npz").read_bytes()


def test_labels_have_the_name_of_adm_too(one_process):
    found = arrays_of(one_process)
    assert list(found) == ["arr_0", "arr_1", "labels", "tokens"] and found["arr_1"].dtype == np.int64
    assert np.array_equal(found["arr_1"], found["labels"])


def test_a_longer_job_begins_with_the_samples_of_a_shorter_one(tiny_generator_run, one_process, tmp_path):
    run(tiny_generator_run, tmp_path, num_samples=19)
    assert np.array_equal(arrays_of(tmp_path)["tokens"][:16], arrays_of(one_process)["tokens"])


def test_chosen_classes_are_balanced_in_every_prefix(tiny_generator_run, tmp_path):
    run(tiny_generator_run, tmp_path, num_samples=5, classes=["Food & Drink", 0], temperature=0.0)
    found = arrays_of(tmp_path)
    assert found["labels"].tolist() == [2, 0, 2, 0, 2]
    assert np.array_equal(found["tokens"][0], found["tokens"][2])  # greedy: the class alone decides


def test_doing_it_again_does_nothing_and_other_settings_are_refused(tiny_generator_run, one_process, capsys):
    run(tiny_generator_run, one_process, png=True, batch_size=2)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(ValueError, match="seed 0 instead of 7"):
        run(tiny_generator_run, one_process, png=True, seed=7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [3]}, r"class 3 is out of range; this generator knows 0\.\.2"),
        ({"classes": "dig"}, "did you mean 'dog'"),
        ({"guidance_scale": -1.0}, "must not be negative"),
        ({"num_samples": 0}, "num_samples=0"),
        (
            {"temperature": [1.0, 1.0]},
            r"temperature=\[1.0, 1.0\] has 2 numbers, but tokens have G=1 sub-tokens",
        ),
        ({"tokenizer": "nowhere"}, "tokenizer nowhere does not exist"),
    ],
)
def test_bad_input_is_one_clear_error_that_leaves_nothing_in_the_way(
    tiny_generator_run, tmp_path, options, message
):
    with pytest.raises((ValueError, OSError), match=message):
        run(tiny_generator_run, tmp_path / "out", **options)
    run(tiny_generator_run, tmp_path / "out", num_samples=1)


def test_precision_is_part_of_what_samples_are(tiny_generator_run, one_process, tmp_path):
    run(tiny_generator_run, tmp_path, precision="bfloat16")
    facts, exact = (json.loads((f / "samples.json").read_text()) for f in (tmp_path, one_process))
    assert facts["precision"] == "bfloat16" and exact["precision"] is None
    assert all(
        facts[key] == exact[key] for key in ("generator", "tokenizer")
    )  # hashes of the weights as stored
    tokens, others = (arrays_of(folder)["tokens"] for folder in (tmp_path, one_process))
    assert (tokens == others).mean() > 0.5
    with pytest.raises(ValueError, match="other settings .precision 'bfloat16' instead of None"):
        run(tiny_generator_run, tmp_path)
    with pytest.raises(ValueError, match="other settings .precision None instead of 'float16'"):
        run(tiny_generator_run, one_process, png=True, precision="float16")
