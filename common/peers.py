"""The processes of a job end together: when one fails or dies, the others say why and end within seconds.

Collectives do not give that. A process that reads, computes or writes on its own notices nothing, a time-out has to be
longer than the longest work, and a machine without power closes no connection. So process 0 holds a TCP connection to
every other process: the kernel closes it however a process ends, and keep-alive packets find machines that are gone.
"""

import atexit
import contextlib
import ipaddress
import json
import math
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

GRACE = 3.0  # seconds until the others end; the launcher sees meanwhile which process failed first
PATIENCE = 5.0  # seconds to wait for the reason of a broken connection
LIMIT = 20.0  # seconds that a failed process may take to end by itself (trackers, threads of libraries)
KEEP_ALIVE = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPALIVE": 10,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 6,
}  # 40 seconds in all
BROKEN = (
    "closed by peer",
    "reset by peer",
    "broken pipe",
    "gloo",
    "nccl",
    "timed out",
)  # RuntimeErrors of collectives


@dataclass(frozen=True)
class Failure:
    """The end of a process that others have to know of."""

    rank: int
    host: str
    error: str  # one line
    silent: bool = False  # the process could not say so itself

    def __str__(self) -> str:
        return f"process {self.rank} on {self.host} failed: {self.error}"


class Peers:
    """The connections of one process: those to all others on process 0, that to process 0 on the others."""

    def __init__(self, rank: int, token: str) -> None:
        self.rank, self.token = rank, token
        self.first: Failure | None = None  # the failure that ends the job
        self.known, self.lock = threading.Event(), threading.RLock()
        self.own = False  # this process ends by itself
        self.left = False  # ... because its work is done
        self.deadline = math.inf  # then it is ended; no timer, since there may be no memory for a new thread
        self.links: dict[socket.socket, tuple[int, str]] = {}  # (rank, host) at the other end
        self.unread: dict[socket.socket, bytes] = {}
        self.selector = selectors.DefaultSelector()
        self.listener: socket.socket | None = None
        # Data workers are forked: with a copy of a connection they would keep it open when this process is killed.
        os.register_at_fork(after_in_child=self._close)

    def listen(self) -> int:
        """Accept connections on a free port, which is returned (process 0)."""
        six = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if six else socket.AF_INET
        self.listener = socket.create_server(("", 0), family=family, dualstack_ipv6=six, backlog=4096)
        self.selector.register(self.listener, selectors.EVENT_READ)
        return self.listener.getsockname()[1]

    def connect(self, host: str, port: int, name: str) -> None:
        """Connect to process 0; `name` is that of its machine. Raises OSError."""
        link = socket.create_connection((host, port), timeout=60)
        self._send(link, {"token": self.token, "rank": self.rank, "host": socket.gethostname()})
        self._add(link, 0, name)

    def start(self) -> None:
        """Watch the connections from now on."""
        threading.Thread(target=self._watch, daemon=True, name="peers").start()

    def fail(self, error: str) -> Failure:
        """Tell all others of an error of this process; returns the first failure of the job, perhaps another one."""
        self.own = True
        failure = Failure(self.rank, socket.gethostname(), error)
        if self.listener:
            self._learn(failure)
        else:
            for link in list(self.links):
                self._send(link, {"failure": asdict(failure)})
            self.known.wait(GRACE)
        return self.first or failure

    def leave(self) -> None:
        """From now on the end of this process is no failure."""
        self.own = self.left = True  # before all are told: those who know hang up
        for link in list(self.links):
            self._send(link, {"end": self.rank})

    # ---- the thread --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while time.monotonic() < self.deadline:
            for key, _ in self.selector.select(timeout=1.0):
                if key.fileobj is self.listener:
                    link, _ = self.listener.accept()
                    self._add(link, -1, "")  # unknown until it has named the token
                else:
                    self._read(key.fileobj)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def _read(self, link: socket.socket) -> None:
        rank, host = self.links[link]
        try:
            received = link.recv(65536)
            reason = "it ended without an error of its own (killed, perhaps for lack of memory?)"
        except OSError as error:
            received, reason = b"", f"no contact any more ({error.strerror}); is the machine down?"
        if not received:
            self._drop(link)
            if rank >= 0 and not self.left:
                self._learn(Failure(rank, host, reason, silent=True))
            return
        *lines, self.unread[link] = (self.unread[link] + received).split(b"\n")
        for line in lines:
            if link in self.links:
                self._take(link, line)

    def _take(self, link: socket.socket, line: bytes) -> None:
        try:
            message = dict(json.loads(line))
        except (ValueError, TypeError):
            message = {}
        if self.links[link][0] < 0:  # anybody may connect to a port
            if message.get("token") != self.token:
                return self._drop(link)
            self.links[link] = message["rank"], message["host"]
            if self.first:
                self._send(link, {"failure": asdict(self.first)})
        elif "failure" in message:
            self._learn(Failure(**message["failure"]))
        elif "end" in message:
            self._drop(link)
        return None

    def _learn(self, failure: Failure) -> None:
        with self.lock:
            if self.first:
                return
            self.first = failure
            if self.listener:
                for link, (rank, _) in list(self.links.items()):
                    if rank >= 0:
                        self._send(link, {"failure": asdict(failure)})
        self.known.set()
        if not self.own:
            self._end(failure)

    def _end(self, failure: Failure) -> None:
        told = (
            failure.host == socket.gethostname() and not failure.silent
        )  # by that process, in the same output
        place = int(os.environ.get("LOCAL_RANK", "0"))
        if not told and place == (
            failure.rank == self.rank - place
        ):  # once per machine: the first that lives
            print(f"error: {failure}; all processes stop", file=sys.stderr, flush=True)
        note_for_launcher(str(failure), GRACE)
        self.deadline = time.monotonic() + GRACE

    # ---- connections -------------------------------------------------------------------------------------------

    def _add(self, link: socket.socket, rank: int, host: str) -> None:
        link.settimeout(10)  # of sending; reading happens when there is something to read
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEP_ALIVE.items():
            if hasattr(socket, name):  # Linux and macOS differ
                link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # the same for data that nobody confirms
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 40_000)
        self.links[link], self.unread[link] = (rank, host), b""
        self.selector.register(link, selectors.EVENT_READ)

    def _send(self, link: socket.socket, message: dict) -> None:
        with contextlib.suppress(OSError):  # the other end is gone, which reading finds
            link.sendall(json.dumps(message).encode() + b"\n")

    def _drop(self, link: socket.socket) -> None:
        self.selector.unregister(link)
        del self.links[link], self.unread[link]
        link.close()

    def _close(self) -> None:
        for link in [*self.links, *([self.listener] if self.listener else [])]:
            link.close()
        self.links, self.listener = {}, None
        self.selector.close()


_peers: Peers | None = None


def watch(rank: int, gather: Callable[[Any], list]) -> None:
    """Begin to watch the other processes; `gather` returns the values of all processes. Call it on every process."""
    global _peers
    if _peers is not None:
        return
    if rank == 0:
        peers = Peers(rank, secrets.token_hex(8))
        gather([_own_address(), peers.listen(), socket.gethostname(), peers.token])
    else:
        host, port, name, token = gather(None)[0]
        peers = Peers(rank, token)
        try:
            peers.connect(host, port, name)
        except OSError as error:
            where = f"{host}:{port} on {name}"
            note = "that a process dies is noticed only after the time-out of collectives"
            print(
                f"warning: process {rank} does not reach {where} ({error}): {note}",
                file=sys.stderr,
                flush=True,
            )
            return
    peers.start()
    _peers = peers
    atexit.register(leave)


def leave() -> None:
    """The work is done: from now on the end of this process is no failure."""
    global _peers
    if _peers is not None and not _peers.own:
        _peers.leave()
    _peers = None


def yield_to_cause(error: BaseException) -> None:
    """End this process silently if an error is only what the end of another one looks like in a collective."""
    if _peers is None:
        return
    text, names = str(error).lower(), {kind.__name__ for kind in type(error).__mro__}
    broken = "DistError" in names or ("RuntimeError" in names and any(word in text for word in BROKEN))
    if broken and _peers.known.wait(PATIENCE):
        time.sleep(2 * LIMIT)  # the thread ends the process


def fail(error: str) -> bool:
    """Tell all processes that this one ends by an error, in one line, which also goes to the launcher's summary.

    Returns whether the same error is told by another process of this machine.
    """
    first = _peers.fail(error) if _peers else None
    other = first is not None and first.rank != _peers.rank
    note_for_launcher(str(first) if other else error, GRACE if other else 0.0)
    if _peers:
        _peers.deadline = time.monotonic() + LIMIT
    here = other and (first.host == socket.gethostname() or os.environ.get("LOCAL_RANK", "0") != "0")
    return here and first.error == error


def note_for_launcher(text: str, later: float = 0.0) -> None:
    """Leave a line for torchrun's summary, which calls the oldest note of a machine the root cause.

    `later` is in how many seconds this process ends.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path and not os.path.exists(path):
        details = {"py_callstack": text, "timestamp": str(int(time.time() + later))}
        part = f"{path}.{threading.get_ident()}"  # whole or not at all: another thread may end the process meanwhile
        with open(part, "w") as file:
            json.dump({"message": {"message": text, "extraInfo": details}}, file)
        os.replace(part, path)


def _own_address() -> str:
    """A name or address of this machine that the other ones reach: the one with which it reaches the rendezvous."""
    master, port = os.environ.get("MASTER_ADDR", "localhost"), int(os.environ.get("MASTER_PORT", "0")) or 1
    family, kind, protocol, _, target = socket.getaddrinfo(master, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)  # sends nothing
        address = probe.getsockname()[0]
    return master if ipaddress.ip_address(address.partition("%")[0]).is_loopback else address
