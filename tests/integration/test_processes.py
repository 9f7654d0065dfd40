"""Two processes and one train alike at the same global batch: weights, codebook, losses, discriminator."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from common.config import read_yaml
from storage.files import write_yaml

ROOT = Path(__file__).resolve().parents[2]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# Script, steps and options. Without dropout, whose masks belong to a process. Adam divides by the size of a gradient,
# so parameters whose true gradient is zero (key biases) would take full-sized steps of pure rounding noise; a larger
# epsilon keeps them still. Few steps: once a token lies between two codes, rounding decides, and runs drift apart. The
# entropy term of LFQ and IBQ hastens that: its temperature of 0.01 multiplies rounding errors by a hundred in every
# step. At 1 it is the same sum over all processes, of less clear choices.
ENTROPY = ["losses.discriminator_start=1", "tokenizer.quantizer.entropy_temperature=1"]
CASES = {
    "titok": ("train_titok.py", 6, ["losses.discriminator_start=2"]),
    "rar": ("train_rar.py", 6, ["generator.dropout=0", "generator.attention_dropout=0"]),
    "uvit": ("train_rar.py", 6, []),
    "magvit2": ("train_titok.py", 4, ENTROPY),
    "ibq": ("train_titok.py", 4, ENTROPY),
    "factorized_ar": ("train_rar.py", 6, ["generator.dropout=0"]),
}
SLOW = ("ibq", "factorized_ar")
# Patch discriminators normalise with the statistics of a process, as published; this one has none.
BLUR = {"name": "blur", "base_channels": 8, "num_stages": 2}
COMMON = ["optimizer.epsilon=1e-3", "training.log_every=1", "schedule.warmup_steps=1"]


def train(launcher, twin, folder, batch, *options):
    script, steps, own = CASES[twin]
    tree = read_yaml(ROOT / f"configs/debug/{twin}.yaml")
    if twin == "ibq":
        tree["discriminator"] = BLUR
    config = folder.parent / "twin.yaml"
    write_yaml(config, tree)
    arguments = [f"config={config}", f"training.max_steps={steps}", *COMMON, *own, *options]
    arguments += [f"experiment.output_dir={folder}", f"training.per_gpu_batch_size={batch}"]
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / script), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("twin", [pytest.param(t, marks=pytest.mark.slow) if t in SLOW else t for t in CASES])
def test_two_processes_equal_one(tmp_path, twin, tiny_token_file):
    options = [f"data.tokens={tiny_token_file}"] if CASES[twin][0] == "train_rar.py" else []
    one = train([], twin, tmp_path / "one", 16, *options)
    two = train(TWO, twin, tmp_path / "two", 8, *options)
    files = sorted(p.relative_to(one) for p in one.rglob("*.safetensors"))
    assert files
    for file in files:
        first, second = load_file(one / file), load_file(two / file)
        for name in first:
            difference = (first[name] - second[name]).abs().max()
            assert difference < 2e-5, f"{file}: {name} differs by {difference:.1e}"
    records = [[json.loads(line) for line in (f / "metrics.jsonl").open()] for f in (one, two)]
    assert len(records[0]) == len(records[1]) == CASES[twin][1] + 1
    for first, second in zip(*records, strict=True):
        if first["kind"] == "evaluate":  # counts codes, where a tie decides
            continue
        for name in first.keys() - {"seconds_per_step", "images_per_second", "data_fraction", "kind"}:
            assert second[name] == pytest.approx(first[name], rel=1e-3, abs=2e-5), (first["step"], name)
