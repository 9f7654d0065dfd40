"""scripts/slurm.sh hands arguments through, and brings stopped jobs back; Slurm itself is played by small scripts."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from common.config import REPOSITORY


@pytest.fixture
def stubs(tmp_path: Path) -> dict[str, str]:
    """An environment in which Slurm's commands and torchrun are small scripts that note how they were called."""
    scripts = {
        "srun": 'while [ "${1#--}" != "$1" ]; do case "$1" in *=*) shift ;; *) shift 2 ;; esac; done\n'
        'echo $$ > "$STUBS/step"\nexec "$@"',
        "torchrun": 'echo "torchrun $*" >> "$STUBS/log"\nif [ -n "$FAIL" ]; then exit 7; fi\n'
        "trap 'echo saved >> \"$STUBS/log\"; exit 1' TERM\nfor i in $(seq 600); do sleep 0.1; done",
        "scancel": 'echo "scancel $*" >> "$STUBS/log"\nstep=$(cat "$STUBS/step")\n'
        'kill -TERM "$step" $(cat /proc/$step/task/$step/children)',
        "squeue": "echo $STATE",
        "scontrol": 'if [ "$1" = show ]; then echo first; echo second; else echo "scontrol $*" >> "$STUBS/log"; fi',
    }
    for name, text in scripts.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_PER_NODE": "a100:4"}
    others = {"SLURM_JOB_NODELIST": "node[1-2]", "STATE": "RUNNING", "STUBS": str(tmp_path), "FAIL": ""}
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(REPOSITORY)}
    return {**os.environ, **slurm, **others, **path}


SCRIPT = ["bash", str(REPOSITORY / "scripts" / "slurm.sh")]
TRAIN = ["train_titok.py", "config=configs/debug/titok.yaml", "data.train.path=/a b/{0..3}.tar"]


def test_dry_run_prints_the_command_and_does_nothing(stubs):
    done = subprocess.run([*SCRIPT, *TRAIN], env={**stubs, "DRY_RUN": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (
        "srun --nodes 2 --ntasks-per-node 1 --cpu-bind none --kill-on-bad-exit=1"
        " torchrun --nnodes 2 --nproc_per_node 4 --rdzv_backend c10d"
        " --rdzv_id 77 --rdzv_endpoint first:20077 train_titok.py config=configs/debug/titok.yaml"
        r" data.train.path=/a\ b/\{0..3\}.tar"
    )
    assert not (Path(stubs["STUBS"]) / "log").exists()


def test_without_slurm_a_dry_run_is_of_one_node_with_eight_gpus(stubs):
    env = {k: v for k, v in stubs.items() if not k.startswith("SLURM_")} | {"DRY_RUN": "1"}
    done = subprocess.run([*SCRIPT, *TRAIN], env=env, capture_output=True, text=True, cwd=REPOSITORY)
    assert "--nnodes 1 --nproc_per_node 8" in done.stdout and "--rdzv_endpoint localhost:20000" in done.stdout


def test_a_program_that_does_not_exist_is_an_error(stubs):
    for arguments in ([], ["train_titoc.py"]):
        done = subprocess.run([*SCRIPT, *arguments], env=stubs, capture_output=True, text=True)
        assert done.returncode == 1 and "is no program" in done.stderr


def test_failure_is_passed_on_and_not_repeated(stubs):
    done = subprocess.run([*SCRIPT, *TRAIN], env={**stubs, "FAIL": "1"}, capture_output=True, text=True)
    log = (Path(stubs["STUBS"]) / "log").read_text()
    assert done.returncode == 7, done.stderr
    assert log.startswith("torchrun --nnodes 2") and "data.train.path=/a b/{0..3}.tar" in log
    assert "scontrol" not in log


@pytest.mark.parametrize("to_whom", ["batch shell", "step"])
@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING"])
def test_a_stopped_job_saves_and_comes_back_unless_cancelled(stubs, to_whom, state):
    """Near its time limit the batch shell gets SIGTERM; on preemption all processes of the step may get it instead."""
    log = Path(stubs["STUBS"]) / "log"
    job = subprocess.Popen([*SCRIPT, *TRAIN], env={**stubs, "STATE": state}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)  # its trap is set right after the line that was waited for
    if to_whom == "batch shell":
        job.send_signal(signal.SIGTERM)
    else:
        subprocess.run(["scancel", "by hand"], env=stubs, check=True)
    assert job.wait(timeout=20) == 143
    lines = log.read_text().splitlines()
    assert "saved" in lines
    assert ("scancel --signal=TERM 77" in lines) == (to_whom == "batch shell")
    assert ("scontrol requeue 77" in lines) == (state == "RUNNING")


def test_the_script_is_read_by_bash_without_complaint():
    subprocess.run(["bash", "-n", SCRIPT[1]], check=True)
    asked = [line for line in Path(SCRIPT[1]).read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"#SBATCH --requeue", "#SBATCH --signal=B:TERM@300", "#SBATCH --gpus-per-node=8"} <= set(asked)
