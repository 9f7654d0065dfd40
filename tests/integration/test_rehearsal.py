"""The entry scripts on four processes, as README.md starts them, give what one process gives."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sample_imagenet
import train_rar
import train_titok
from common.config import REPOSITORY
from jobs.evaluate import evaluate
from jobs.options.evaluate import EvaluateOptions
from jobs.options.pretokenize import PretokenizeOptions
from jobs.options.sample_images import SampleOptions
from jobs.pretokenize import pretokenize
from tests.integration.test_two_machines import losses
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import TokenizerRun

pytestmark = pytest.mark.slow

# As in test_processes.py: without dropout, and with a large epsilon. Steps of any run have the same learning rates.
COMMON = ["optimizer.epsilon=1e-3", "schedule.name=constant", "schedule.warmup_steps=1"]
COMMON += ["training.log_every=1", "training.gradient_accumulation_steps=2", "training.num_workers=2"]
GENERATOR = ["generator.dropout=0", "generator.attention_dropout=0"]
CASES = {
    "titok": (train_titok, TokenizerRun, ["losses.discriminator_start=2"]),
    "rar": (train_rar, GeneratorRun, GENERATOR),
    "rar, sharded": (train_rar, GeneratorRun, [*GENERATOR, "training.sharding=full"]),
}


def launch(count: int, *program: str) -> subprocess.Popen:
    """Start a script on several processes; its output can be read when it has ended."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *program], cwd=REPOSITORY, **pipes)


def finish(job: subprocess.Popen) -> str:
    """The output of a program that has to succeed."""
    out, _ = job.communicate(timeout=900)
    assert job.returncode == 0, out[-3000:]
    return out


def kill_one(job: subprocess.Popen, when: Callable[[], bool]) -> str:
    """SIGKILL for the second process, as soon as something has happened; the output."""
    while not when():
        assert job.poll() is None, job.communicate()[0][-3000:]
        time.sleep(0.02)
    children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    start = time.monotonic()
    out, _ = job.communicate(timeout=120)
    assert job.returncode != 0 and time.monotonic() - start < 60
    return out


@pytest.mark.parametrize("case", CASES)
def test_saved_by_four_resumed_by_two_and_one(tmp_path, program, tiny_token_file, case):
    module, settings, own = CASES[case]
    twin = case.partition(",")[0]
    arguments = [f"config=configs/debug/{twin}.yaml", *COMMON, *own]
    arguments += [f"data.tokens={tiny_token_file}"] if twin == "rar" else []
    run, whole = tmp_path / "run", tmp_path / "whole"

    def options(folder: Path, batch: int, steps: int) -> list[str]:
        return [
            *arguments,
            f"experiment.output_dir={folder}",
            f"training.per_gpu_batch_size={batch}",
            f"training.max_steps={steps}",
        ]

    for count, batch, steps in ((4, 2, 3), (2, 4, 5)):
        out = finish(launch(count, f"{module.__name__}.py", *options(run, batch, steps)))
        assert f"{count} x cpu" in out
    for folder in (run, whole):
        done = program(module, settings, *options(folder, 8, 6))
        assert done.code == 0, done.err
    expected, found = losses(whole), losses(run)
    assert list(expected) == list(found) == [1, 2, 3, 4, 5, 6]
    for step, loss in expected.items():
        assert found[step] == pytest.approx(loss, rel=1e-3), step


def test_tokens_samples_and_measurements(tmp_path, program, tiny_tokenizer_run, tiny_generator_run):
    """Four processes write the bytes that one writes, also if one of them is killed and the job is started again."""
    tokens = [f"tokenizer={tiny_tokenizer_run}", "num_workers=1", "batch_size=4"]
    part = launch(4, "scripts/pretokenize.py", *tokens, f"output={tmp_path}/four.tokens")
    out = kill_one(part, lambda: any(tmp_path.glob("*four.tokens*")))
    assert "error: process 1 on" in out and "Traceback" not in out.partition("error: process 1 on")[0]
    finish(launch(4, "scripts/pretokenize.py", *tokens, f"output={tmp_path}/four.tokens"))
    assert program(pretokenize, PretokenizeOptions, *tokens, f"output={tmp_path}/one.tokens").code == 0
    assert (tmp_path / "four.tokens").read_bytes() == (tmp_path / "one.tokens").read_bytes()

    samples = [f"generator={tiny_generator_run}", "num_samples=600", "png=false", "batch_size=4"]
    part = launch(4, "sample_imagenet.py", *samples, f"output={tmp_path}/four")
    out = kill_one(part, lambda: (tmp_path / "four" / "unfinished.part").is_dir())
    assert "error: process 1 on" in out and not (tmp_path / "four" / "samples.json").exists()
    finish(launch(4, "sample_imagenet.py", *samples, f"output={tmp_path}/four"))
    assert program(sample_imagenet, SampleOptions, *samples, f"output={tmp_path}/one").code == 0
    assert (tmp_path / "four/samples.npz").read_bytes() == (tmp_path / "one/samples.npz").read_bytes()

    measure = [
        f"samples={tmp_path}/one",
        f"tokenizer={tiny_tokenizer_run}",
        "metrics=[psnr,ssim]",
    ]
    finish(launch(4, "scripts/evaluate.py", *measure, f"output={tmp_path}/four.json"))
    assert program(evaluate, EvaluateOptions, *measure, f"output={tmp_path}/one.json").code == 0
    four, one = (json.loads((tmp_path / f"{n}.json").read_text())["metrics"] for n in ("four", "one"))
    assert four.keys() == one.keys() and four
    for name, value in one.items():
        assert four[name] == pytest.approx(value, rel=1e-6), name
