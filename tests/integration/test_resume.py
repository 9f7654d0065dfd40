"""Killed at a random moment and started again, a run ends with the weights of one that was never stopped."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]


def command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / script), *arguments]


def run(script: str, *arguments: str) -> None:
    done = subprocess.run(command(script, *arguments), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def stop_at_random(script: str, *arguments: str, folder: Path, number: signal.Signals) -> int:
    """Start a run and send it a signal some time after its first checkpoint; returns its exit code."""
    process = subprocess.Popen(
        command(script, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(3000):
        if list(folder.glob("checkpoints/step-*")) or process.poll() is not None:
            break
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.4))
    process.send_signal(number)
    return process.wait(timeout=120)


def assert_same_weights(one: Path, two: Path) -> None:
    files = sorted(p.relative_to(one) for p in one.rglob("*.safetensors"))
    assert Path("model.safetensors") in files
    for file in files:
        first, second = load_file(one / file), load_file(two / file)
        assert first.keys() == second.keys()
        for name in first:
            assert torch.equal(first[name], second[name]), f"{file}: {name}"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory, tiny_token_file):
    return tiny_token_file


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_tokenizer_run(tmp_path, number):
    options = ["config=configs/debug/titok.yaml", "training.max_steps=60", "training.save_every=7"]
    options += ["training.keep_checkpoints=1"]
    run("train_titok.py", *options, f"experiment.output_dir={tmp_path / 'whole'}")
    broken = [*options, f"experiment.output_dir={tmp_path / 'broken'}"]
    code = stop_at_random("train_titok.py", *broken, folder=tmp_path / "broken", number=number)
    assert code in (-signal.SIGKILL, 128 + signal.SIGTERM, 0)
    run("train_titok.py", *broken)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    # The discriminator and the averaged weights are among what was compared.
    names = {p.name for p in (tmp_path / "broken").rglob("*.safetensors")}
    assert {"model.safetensors", "discriminator.safetensors", "ema.safetensors", "lecam.safetensors"} <= names
    records = [
        (f / "metrics.jsonl").read_text().count("\n") for f in (tmp_path / "whole", tmp_path / "broken")
    ]
    assert records == [8, 8]


def test_generator_run(tmp_path, tiny_token_file):
    options = ["config=configs/debug/rar.yaml", f"data.tokens={tiny_token_file}", "training.max_steps=60"]
    options += ["training.save_every=7", "training.keep_checkpoints=1"]
    run("train_rar.py", *options, f"experiment.output_dir={tmp_path / 'whole'}")
    broken = [*options, f"experiment.output_dir={tmp_path / 'broken'}"]
    stop_at_random("train_rar.py", *broken, folder=tmp_path / "broken", number=signal.SIGKILL)
    run("train_rar.py", *broken)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
