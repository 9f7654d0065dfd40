"""Two machines on one: namespaces with a name, an address, sockets and mounts of their own, joined by a virtual cable.

with two_machines(folder) as (first, second):
    first.start(["torchrun", "--nnodes", "2", ...], log)

Also stand-ins for the commands of Slurm which start programs on these machines.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.config import REPOSITORY
from storage.files import write_text

TOOLS = ("ip", "unshare", "nsenter", "mount")
# Runs as the first process of a machine: its name, the names of both, and then nothing but staying alive.
BOOT = (
    'echo "$1" > /proc/sys/kernel/hostname && mount --bind "$2" /etc/hosts && ip link set lo up'
    " && echo up && exec cat"
)
SPACES = ["--user", "--preserve-credentials", "--mount", "--uts", "--net"]


@dataclass
class Machine:
    """A machine with the network device eth0; everything it runs sees the files of this one, and its own mounts."""

    name: str
    address: str
    pid: int  # of its first process

    def command(self, arguments: list[str]) -> list[str]:
        """What to run here so that `arguments` run there."""
        return ["nsenter", "--target", str(self.pid), *SPACES, "--wd=" + str(REPOSITORY), "--", *arguments]

    def run(self, *arguments: str) -> None:
        """Run something to its end; raises CalledProcessError."""
        subprocess.run(self.command(list(arguments)), check=True, capture_output=True, timeout=60)

    def start(self, arguments: list[str], log: Path, **environment: str) -> subprocess.Popen:
        """Start a program that writes into the file `log`."""
        with log.open("a") as out:
            env = {**ENVIRONMENT, **environment}
            return subprocess.Popen(self.command(arguments), stdout=out, stderr=out, env=env)

    def processes(self) -> list[int]:
        """Process numbers of everything that runs there, but its first process."""
        own, found = os.readlink(f"/proc/{self.pid}/ns/net"), []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(path / "ns/net") == own and int(path.name) != self.pid:
                    found.append(int(path.name))
            except OSError:  # ended meanwhile, or that of somebody else
                continue
        return found

    def listens(self, port: int) -> bool:
        """Whether a program accepts connections on a port there."""
        return f":{port:04X} 00000000:0000 0A" in Path(f"/proc/{self.pid}/net/tcp").read_text()

    def rank(self, number: int) -> int:
        """The process of a rank that runs there, without its data workers, which are younger."""
        return min(p for p in self.processes() if environment_of(p).get("RANK") == str(number))

    def lose_power(self) -> None:
        """Cut the cable, so that nothing is heard of it any more, and end all that runs there."""
        self.run("ip", "link", "set", "eth0", "down")
        self.clear()

    def clear(self) -> None:
        """Kill all that runs there."""
        while running := self.processes():
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


# One thread per process; GLOO would take the address of the host's name, which is right here and often wrong elsewhere.
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TORCHELASTIC", "MASTER_"))},
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "eth0",
    "PATH": f"{Path(os.sys.executable).parent}:{os.environ['PATH']}",
}


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with."""
    try:
        text = Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return {}
    return dict(entry.partition("=")[::2] for entry in text.split("\0"))


@contextmanager
def two_machines(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines, 10.77.0.1 called first and 10.77.0.2 called second; skips the test where that is not possible."""
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"two machines in network namespaces need the commands {missing}")
    names = folder / "hosts"
    write_text(names, "127.0.0.1 localhost\n10.77.0.1 first\n10.77.0.2 second\n")
    boots: list[subprocess.Popen] = []

    def boot(*prefix: str) -> int:
        command = [*prefix, "--mount", "--uts", "--net", "sh", "-c", BOOT, "sh", name, str(names)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        boots.append(subprocess.Popen(command, **pipes))
        if boots[-1].stdout.readline().strip() != "up":
            boots[-1].wait(timeout=10)
            pytest.skip(
                f"two machines need network namespaces of one's own: {boots[-1].stderr.read().strip()}"
            )
        return boots[-1].pid

    try:
        name = "first"
        first = Machine("first", "10.77.0.1", boot("unshare", "--user", "--map-root-user"))
        name = "second"
        inside = ["nsenter", "--target", str(first.pid), "--user", "--preserve-credentials", "unshare"]
        second = Machine("second", "10.77.0.2", boot(*inside))
        first.run(
            *["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", str(second.pid)]
        )
        for machine in (first, second):
            machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "eth0")
            machine.run("ip", "link", "set", "eth0", "up")
        yield first, second
        for machine in (first, second):
            machine.clear()
    finally:
        for process in boots:
            process.kill()
            process.wait()


def wait_until(happened: Callable[[], bool], what: str, job: subprocess.Popen, seconds: float = 240) -> None:
    """Wait for something that a running program does; fails if it ends before or takes too long."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert job.poll() is None, f"ended with {job.returncode} before {what}"
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.1)


# As Slurm: a task per machine, the highest exit code, and all tasks end soon after one that fails.
SRUN = """
while [ "${1#--}" != "$1" ]; do case "$1" in *=*) shift ;; *) shift 2 ;; esac; done
number=0 code=0 ending=
for machine in $MACHINES; do
    export SLURM_NODEID=$((number++)) SLURM_TASK_OF="$CLUSTER"
    nsenter --target $machine --mount --uts --net --wd="$PWD" -- "$@" &
done
while [ -n "$(jobs -pr)" ]; do
    wait -n || code=$((code > $? ? code : $?))
    if ((code)) && [ -z "$ending" ]; then ending=yes; (sleep 3; kill $(jobs -pr)) 2> /dev/null & fi
done
exit $code
"""


def slurm(folder: Path, machines: tuple[Machine, ...], job: int) -> dict[str, str]:
    """Stand-ins for Slurm's commands in `folder`, which see a running job on `machines`; returns the environment."""
    folder.mkdir(parents=True)
    scripts = {
        "srun": SRUN,
        # To every process of the step, as Slurm does; the batch shell is not among them.
        "scancel": 'echo "scancel $*" >> "$CLUSTER/log"\nfor p in /proc/[0-9]*; do\n'
        'if tr "\\0" "\\n" < $p/environ | grep -qx "SLURM_TASK_OF=$CLUSTER"; then kill -TERM ${p#/proc/}; fi\n'
        "done 2> /dev/null\nexit 0",
        "squeue": "echo RUNNING",
        "scontrol": 'if [ "$1" = show ]; then printf "%s\\n" $NAMES; else echo "scontrol $*" >> "$CLUSTER/log"; fi',
        "sbatch": 'while [ "${1#--}" != "$1" ]; do shift 2; done\nexec bash "$@"',
    }
    for name, text in scripts.items():
        write_text(folder / name, f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {
        **ENVIRONMENT,
        "PATH": f"{folder}:{ENVIRONMENT['PATH']}",
        "CLUSTER": str(folder),
        "MACHINES": " ".join(str(m.pid) for m in machines),
        "NAMES": " ".join(m.name for m in machines),
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "[first-second]",
        "SLURM_JOB_NUM_NODES": str(len(machines)),
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
    }
