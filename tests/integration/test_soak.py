"""Signals to whole process groups, in short. The long form: `python -m tests.soak`, results in docs/reliability.md."""

import os
import signal
import subprocess
import sys

from common.config import REPOSITORY

PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": REPOSITORY}


def test_a_scheduler_stops_a_run_with_data_workers(tmp_path):
    """SIGTERM to every process of the job, as Slurm sends it: a checkpoint, exit code 143, and no traceback."""
    options = [
        "config=configs/debug/titok.yaml",
        f"experiment.output_dir={tmp_path}",
        "training.num_workers=2",
    ]
    options += ["training.max_steps=100000", "training.save_every=100000", "training.per_gpu_batch_size=2"]
    arguments = [sys.executable, "train_titok.py", *options]
    with subprocess.Popen(arguments, start_new_session=True, **PIPES) as process:
        told = []
        for line in process.stdout:
            told.append(line)
            if line.startswith("step "):
                os.killpg(process.pid, signal.SIGTERM)
                break
        told += process.stdout.readlines()
        code = process.wait(300)
    text = "".join(told)
    assert code == 143 and "Traceback" not in text, text
    assert "SIGTERM received: saving after step" in text and "stopped by signal 15 after step" in text
    assert [*tmp_path.glob("checkpoints/step-*/model.safetensors")]


def test_soak_in_short(tmp_path):
    arguments = [f"output={tmp_path}", "kills=1", "programs=[generator,sampling]"]
    done = subprocess.run([sys.executable, "-m", "tests.soak", *arguments], timeout=600, **PIPES)
    assert done.returncode == 0, done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith(("| generator", "| sampling"))]
    assert len(rows) == 4 and all(row.split("|")[5].strip() == "0" for row in rows), done.stdout
