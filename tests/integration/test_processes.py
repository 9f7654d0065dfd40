"""Two processes and one train alike at the same global batch: weights, codebook, losses, discriminator."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# Without dropout, whose masks belong to a process. Adam divides by the size of a gradient, so parameters whose true
# gradient is zero (key biases) would take full-sized steps of pure rounding noise; a larger epsilon keeps them still.
CASES = {
    "titok": ("train_titok.py", ["losses.discriminator_start=2"]),
    "rar": ("train_rar.py", ["generator.dropout=0", "generator.attention_dropout=0"]),
    "uvit": ("train_rar.py", []),
}
# Few steps: once a token lies between two codes, rounding decides, and runs drift apart.
STEPS = 6
COMMON = [
    "optimizer.epsilon=1e-3",
    f"training.max_steps={STEPS}",
    "training.log_every=1",
    "schedule.warmup_steps=1",
]


def train(launcher, twin, folder, batch, *options):
    script, own = CASES[twin]
    options = [f"config=configs/debug/{twin}.yaml", *own, *options]
    arguments = [*COMMON, *options, f"experiment.output_dir={folder}", f"training.per_gpu_batch_size={batch}"]
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / script), *arguments],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("twin", CASES)
def test_two_processes_equal_one(tmp_path, twin, tiny_token_file):
    options = [] if twin == "titok" else [f"data.tokens={tiny_token_file}"]
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
    assert len(records[0]) == len(records[1]) == STEPS + 1
    for first, second in zip(*records, strict=True):
        if first["kind"] == "evaluate":  # counts codes, where a tie decides
            continue
        for name in first.keys() - {"seconds_per_step", "images_per_second", "data_fraction", "kind"}:
            assert second[name] == pytest.approx(first[name], rel=1e-3, abs=2e-5), (first["step"], name)
