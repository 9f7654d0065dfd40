"""Training as on a cluster: two machines, Slurm's signals, other numbers of processes, a process that dies."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

import train_rar
from tests.cluster import slurm, two_machines, wait_until
from training.generator_settings import GeneratorRun

# Without dropout, whose masks belong to a process; a run of any length has the same learning rates. The large epsilon:
# see test_processes.py. Data workers and accumulation are on, as in the recipes.
RAR = [
    "config=configs/debug/rar.yaml",
    *["generator.dropout=0", "generator.attention_dropout=0", "rar.class_label_dropout=0.1"],
    *["schedule.name=constant", "schedule.warmup_steps=1", "optimizer.epsilon=1e-3"],
    *["training.log_every=1", "training.save_every=0", "training.gradient_accumulation_steps=2"],
]


def losses(run: Path) -> dict[int, float]:
    """Training loss of every step."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]
    return {r["step"]: r["total_loss"] for r in records if r["kind"] == "train"}


def reached(run: Path, step: int) -> bool:
    """Whether a run has logged this step."""
    return (run / "metrics.jsonl").exists() and max(losses(run), default=0) >= step


def test_a_cluster_job_is_stopped_and_goes_on_elsewhere(tmp_path, program, tiny_token_file):
    """Slurm stops four processes on two machines; two go on, one is killed; one process finishes: as never stopped."""
    run, log = tmp_path / "run", tmp_path / "log"
    common = [*RAR, f"data.tokens={tiny_token_file}"]
    options = [*common, f"experiment.output_dir={run}", "training.max_steps=100000", "training.num_workers=2"]
    with two_machines(tmp_path) as (first, second):
        # The port that follows from the job's number is taken; the script finds the next one.
        taken = first.start([os.sys.executable, "-m", "http.server", "20077"], tmp_path / "taken")
        wait_until(lambda: first.listens(20077), "listening", taken)
        environment = slurm(tmp_path / "slurm", (first, second), job=77)
        submit = ["sbatch", "--nodes", "2", "scripts/slurm.sh", "train_rar.py", *options]
        job = first.start(
            [*submit, "training.per_gpu_batch_size=2"], log, **environment, SLURM_GPUS_PER_NODE="2"
        )
        wait_until(lambda: reached(run, 3), "step 3", job)
        job.send_signal(signal.SIGTERM)  # to the batch shell, as before the time limit
        assert job.wait(timeout=240) == 143, log.read_text()
        said = (tmp_path / "slurm" / "log").read_text().splitlines()
        assert said == ["scancel --signal=TERM 77", "scontrol requeue 77"]
        (saved,) = (run / "checkpoints").iterdir()
        step = int(saved.name.removeprefix("step-"))
        assert (
            "device                   4 x cpu" in log.read_text() and f"after step {step}" in log.read_text()
        )
        taken.kill()
        taken.wait()

        # Two processes go on, until one of them is killed.
        log = tmp_path / "two.log"
        launch = [
            "torchrun",
            "--nproc_per_node",
            "2",
            "train_rar.py",
            *options,
            "training.per_gpu_batch_size=4",
        ]
        job = first.start(launch, log)
        wait_until(lambda: reached(run, step + 4), "four more steps", job)
        os.kill(first.rank(1), signal.SIGKILL)
        start = time.monotonic()
        assert job.wait(timeout=60) == 1
        assert time.monotonic() - start < 60
        deadline = time.monotonic() + 60
        while first.processes():  # data workers look for their parent every few seconds
            assert time.monotonic() < deadline, "processes are left"
            time.sleep(0.2)
    text = log.read_text()
    assert "error: process 1 on first failed: it ended without an error of its own (killed" in text
    assert "Connection closed by peer" not in text and "[rank0]" not in text
    assert text.index("error: process 1 on first") < text.index("ChildFailedError")
    assert [p.name for p in (run / "checkpoints").iterdir()] == [saved.name]
    on_two = losses(run)

    # One process finishes the run, another one does it without any stop.
    end = f"training.max_steps={step + 4}"
    for folder, workers in ((run, 1), (tmp_path / "whole", 0)):
        arguments = [f"experiment.output_dir={folder}", "training.per_gpu_batch_size=8", end]
        done = program(train_rar, GeneratorRun, *common, *arguments, f"training.num_workers={workers}")
        assert done.code == 0, done.err
    whole, stopped = losses(tmp_path / "whole"), losses(run)
    assert list(whole) == list(stopped) == list(range(1, step + 5))
    for number, loss in whole.items():
        assert stopped[number] == pytest.approx(loss, rel=1e-4), number
        if number > step:
            assert on_two[number] == pytest.approx(loss, rel=1e-4), number
