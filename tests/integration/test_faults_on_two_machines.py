"""What ends one process of a job on two machines ends the job within a minute, with its own error on top."""

import os
import resource
import signal
import time
from pathlib import Path

import pytest

from tests.cluster import Machine, two_machines, wait_until
from tests.integration.test_two_machines import RAR, losses, reached

pytestmark = pytest.mark.slow

TORCHRUN = ["torchrun", "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d"]


class Job:
    """A training on two machines, one process each, started as docs/training.md says."""

    def __init__(self, folder: Path, machines: tuple[Machine, Machine], tokens: Path, *options: str) -> None:
        self.run, self.machines = folder / "run", machines
        self.logs = [folder / f"{machine.name}.log" for machine in machines]
        own = [f"data.tokens={tokens}", f"experiment.output_dir={self.run}", "training.max_steps=100000"]
        self.program = ["train_rar.py", *RAR, *own, "training.per_gpu_batch_size=4", *options]

    def start(self, launchers: list[list[str]] | None = None) -> None:
        """Start it on both machines, and wait for a few steps."""
        self.begin(launchers)
        wait_until(lambda: reached(self.run, 3), "step 3", self.parts[0])

    def begin(self, launchers: list[list[str]] | None = None) -> None:
        """Start it on both machines."""
        line = [*TORCHRUN, "--rdzv_endpoint", "first:29500"]
        commands = launchers or [line, line]
        starts = zip(self.machines, commands, self.logs, strict=True)
        self.parts = [machine.start([*command, *self.program], log) for machine, command, log in starts]

    def ends(self, seconds: float = 60, among: tuple[int, ...] = (0, 1)) -> list[str]:
        """Wait until the launchers end by an error; what they have written."""
        start = time.monotonic()
        for i in among:
            assert self.parts[i].wait(timeout=200) not in (0, None)
        took = time.monotonic() - start
        texts = [log.read_text() for log in self.logs]
        assert took < seconds, (took, texts)
        for text in texts:
            assert "closed by peer" not in text and "reset by peer" not in text, text
        return texts


@pytest.fixture
def job(tmp_path, tiny_token_file):
    with two_machines(tmp_path) as machines:
        yield Job(tmp_path, machines, tiny_token_file)


def test_a_killed_process(job):
    job.start()
    os.kill(job.machines[1].rank(1), signal.SIGKILL)
    first, second = job.ends()
    assert "error: process 1 on second failed: it ended without an error of its own (killed" in first
    assert "Signal 9 (SIGKILL) received by PID" in second
    assert "Traceback" not in first.partition("error: process 1")[0] and "[rank0]" not in first


def test_a_file_that_one_machine_does_not_have(job, tmp_path):
    (empty := tmp_path / "empty").write_text("")
    tokens = next(a for a in job.program if a.startswith("data.tokens=")).partition("=")[2]
    job.machines[1].run("mount", "--bind", str(empty), tokens)
    job.begin()
    first, second = job.ends(200)
    assert second.count("error: ") >= 1 and tokens in second
    assert f"error: process 1 on second failed: {tokens}" in first, first
    assert not (job.run / "checkpoints").exists()


def test_a_full_disk(job):
    """On the machine of process 0, in the middle of a run; the checkpoint before stays, and the run goes on from it."""
    job.program.append("training.save_every=20")
    job.start()
    wait_until(lambda: (job.run / "checkpoints" / "step-00000020").is_dir(), "a checkpoint", job.parts[0])
    job.machines[0].run("mount", "-t", "tmpfs", "-o", "size=64k", "none", str(job.run / "checkpoints"))
    first, second = job.ends()
    assert (
        first.count("error: cannot save checkpoint") == 1 and "Traceback" not in first.partition("error: ")[0]
    )
    assert "cannot save checkpoint" in second and "No space left on device" in first + second
    saved = [path.name for path in (job.run / "checkpoints").iterdir()]
    assert len([name for name in saved if not name.startswith(".")]) >= 1
    before = max(int(name.removeprefix("step-")) for name in saved if name.startswith("step-"))
    job.machines[0].run("umount", str(job.run / "checkpoints"))
    os.truncate(job.run / "metrics.jsonl", 0)
    job.start()
    assert min(losses(job.run)) == before + 1
    job.parts[1].send_signal(signal.SIGTERM)  # asked on one machine, all stop
    assert [part.wait(timeout=200) for part in job.parts] != [0, 0]
    assert max(losses(job.run)) == max(int(p.name[5:]) for p in (job.run / "checkpoints").iterdir())


def test_a_lack_of_memory(job):
    job.start()
    pid = job.machines[1].rank(1)
    resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))  # nothing more, from now on
    first, second = job.ends()
    assert "error: process 1 on second failed: " in first, first
    assert "alloc" in second or "memory" in second.lower(), second


@pytest.mark.parametrize("lost", [0, 1])
def test_a_machine_without_power(job, lost):
    """No connection is closed: only that nobody answers any more tells the other machine."""
    job.start()
    alive, dead = job.machines[1 - lost], job.machines[lost]
    pid, start = alive.rank(1 - lost), time.monotonic()
    dead.lose_power()
    wait_until(lambda: pid not in alive.processes(), "the end of the other process", job.parts[1 - lost], 90)
    assert time.monotonic() - start < 75
    text = job.logs[1 - lost].read_text()
    assert f"error: process {lost} on {dead.name} failed: no contact any more" in text, text
    if lost == 1:  # else torchrun waits for the rendezvous, which was on the machine without power
        job.ends(among=(0,))


def test_accelerate_on_two_machines(job):
    """The command line of the documentation; stopped on one machine, resumed."""
    line = ["accelerate", "launch", "--multi_gpu", "--num_machines", "2", "--num_processes", "2"]
    line += ["--main_process_ip", "first", "--main_process_port", "29500"]
    lines = [[*line, "--machine_rank", str(i)] for i in range(2)]
    job.start(lines)
    job.parts[1].send_signal(signal.SIGTERM)
    codes = [part.wait(timeout=200) for part in job.parts]
    assert all(codes), codes
    assert "device                   2 x cpu" in job.logs[0].read_text()
    done = max(losses(job.run))
    assert [path.name for path in (job.run / "checkpoints").iterdir()] == [f"step-{done:08d}"]
    os.truncate(job.run / "metrics.jsonl", 0)
    job.program.append(f"training.max_steps={done + 2}")
    job.begin(lines)
    assert [part.wait(timeout=200) for part in job.parts] == [0, 0], job.logs[0].read_text()
    assert list(losses(job.run)) == [done + 1, done + 2]
