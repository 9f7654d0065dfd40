"""A first stop signal is announced at once and ends or does not end the program; a second one ends it at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from common import signals
from common.config import REPOSITORY
from common.signals import SignalWatch

# A call in C that runs no signal handlers, as a collective or a compilation does not.
LONG = "import hashlib; print('in', flush=True); hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"
HEAD = """
import os, signal, sys, time
from common import signals
from common.signals import SignalWatch
class Notes(SignalWatch):
    ends = False
    def plan(self): return 'saving'
    def kept(self): return 'step 7 stays'
for number in signals.STOP: signal.signal(number, signal.default_int_handler)  # whatever this test inherited
"""


def start(code: str, **environment: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    env = {
        key: value for key, value in env.items() if key not in ("LOCAL_RANK", "RANK") or key in environment
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", HEAD + code], env=env, **pipes)


@pytest.mark.parametrize("number", signals.STOP)
def test_in_the_middle_of_a_long_call_the_first_signal_is_told_and_the_second_ends(number):
    name = signal.Signals(number).name
    with start(f"with Notes():\n    {LONG}") as process:
        assert process.stdout.readline() == "in\n"
        process.send_signal(number)
        told = process.stderr.readline()
        assert told == f"{name} received: saving; a second signal ends at once, step 7 stays\n"
        assert process.poll() is None
        time.sleep(3 * signals.REPEAT)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert process.stderr.read() == f"{name} again: ending at once; step 7 stays\n"


def test_what_launchers_and_wrappers_repeat_is_one_request():
    code = "with Notes():\n    print('in', flush=True)\n    time.sleep({})\nprint('out')"
    with start(code.format(1)) as process:  # `timeout` signals the program, and then its group
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 and process.stdout.read() == "out\n" and process.stderr.read() == ""
    with start(
        f"signals.LAUNCHED_REPEAT = 1.5\n{code.format(2)}", LOCAL_RANK="0"
    ) as process:  # the launcher passes on what Slurm sent to all
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert "a second signal more than 1.5 s later ends at once" in process.stderr.readline()
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 and process.stderr.read() == ""


def test_one_process_of_many_speaks():
    with start("with Notes():\n    os.kill(os.getpid(), 15); time.sleep(0.5)", RANK="1") as process:
        assert process.wait(60) == 0 and process.stderr.read() == ""


def test_a_program_that_has_nothing_to_save_ends_and_cleans_up():
    code = "with SignalWatch():\n    try:\n        print('in', flush=True); time.sleep(100)\n"
    with start(code + "    finally:\n        print('cleaned')") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130 and process.stdout.read() == "cleaned\n"
        assert process.stderr.read() == "SIGINT received: ending; what is complete on the disk stays\n"


def test_a_program_that_cannot_end_is_ended():
    with start(f"signals.GRACE = 0.2\nwith SignalWatch():\n    {LONG}") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143
    code = "signals.GRACE = 0.2\nwith SignalWatch():\n    try: print('in', flush=True); time.sleep(100)\n    finally:"
    with start(f"{code} {LONG}") as process:  # on its way out
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143


def test_errors_after_a_signal_are_one_line_unless_they_are_mistakes():
    code = "with Notes():\n    os.kill(os.getpid(), 15)\n    raise {}('no one\\nis there')"
    with start(code.format("RuntimeError")) as process:
        assert process.wait(60) == 143
        told = process.stderr.read()
        assert "Traceback" not in told
        assert told.endswith("stopped by SIGTERM, in the middle of it RuntimeError: no one is there\n")
    for kind, environment in (("OSError", {}), ("RuntimeError", {"TRACEBACK": "1"})):
        with start(code.format(kind), **environment) as process:
            assert process.wait(60) == 1 and "Traceback" in process.stderr.read()


def test_nohup_is_obeyed():
    code = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\nwith SignalWatch():\n    os.kill(os.getpid(), 1)\nprint('on')"
    with start(code) as process:
        assert process.wait(60) == 0 and process.stdout.read() == "on\n"


def test_handlers_come_back():
    before = [signal.getsignal(number) for number in signals.STOP]
    with SignalWatch() as outer:
        inside = [signal.getsignal(number) for number in signals.STOP]
        with SignalWatch():
            pass
        assert [signal.getsignal(number) for number in signals.STOP] == inside and outer.signal is None
    assert [signal.getsignal(number) for number in signals.STOP] == before


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not say who sends a signal")
def test_a_child_process_obeys_its_parent_only():
    code = """
reader, writer = os.pipe()
with SignalWatch(), signals.held_back():
    child = os.fork()
    if not child:
        os.read(reader, 1)  # signals arrive before the child has prepared for them
        signals.obey_parent()
        time.sleep(100)
print(child, flush=True)
time.sleep(0.5)
os.write(writer, b'.')
sys.stdin.readline()
while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
    os.kill(child, signal.SIGTERM)  # again: one that meets another that is pending is lost
    time.sleep(0.1)
print(os.waitstatus_to_exitcode(ended[1]))
"""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HEAD + code], env=env, **pipes) as process:
        child = int(process.stdout.readline())
        for moment in (0, 1):
            time.sleep(moment)
            for number in signals.STOP:
                os.kill(child, number)
        out, told = process.communicate("\n", timeout=60)
    assert out == "0\n" and told == ""  # the child writes nothing to the descriptor of its parent


def test_what_is_being_started_is_started_before_a_program_ends():
    code = """
import threading
with SignalWatch():
    with signals.held_back():
        signal.pthread_kill(threading.enumerate()[1].ident, 15)  # a thread that does not block it
        deadline = time.monotonic() + 0.2
        while time.monotonic() < deadline: pass
        print('started', flush=True)
    print('not here', flush=True)
"""
    with start(code) as process:
        assert process.wait(60) == 143 and process.stdout.read() == "started\n"


def test_a_signal_that_arrives_in_a_destructor_ends_the_program_after_it():
    code = """
class Thing:
    def __del__(self):
        os.kill(os.getpid(), 15)
        for _ in range(1000): pass
        print('not here')
with SignalWatch():
    thing = Thing()
    del thing
    time.sleep(100)
"""
    with start(code) as process:
        assert process.wait(60) == 143 and process.stdout.read() == ""
        assert process.stderr.read() == "SIGTERM received: ending; what is complete on the disk stays\n"
