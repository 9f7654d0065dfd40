"""Programs whose output goes nowhere: each is a small process, which imports no more than it needs."""

import io
import os
import subprocess
import sys

from common.config import REPOSITORY
from common.console import progress

START = "import os, signal, sys\nfrom common.streams import secure_streams, write_error\nsecure_streams()\n"


def bash(command: str, program: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a shell command in which $PROGRAM is a Python program."""
    command = command.replace("$PROGRAM", '"$PYTHON" -c "$CODE"')
    environment |= {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "CODE": program}
    return subprocess.run(
        ["bash", "-c", command], env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )


def test_a_reader_that_leaves(tmp_path):
    program = START + "for i in range(10000): print(i)\nopen(sys.argv[1], 'w').write('done')"
    done = bash(f"$PROGRAM {tmp_path}/x | head -n 1; exit ${{PIPESTATUS[0]}}", program)
    assert (done.returncode, done.stdout) == (0, "0\n")
    told = "warning: standard output cannot be written (Broken pipe); the program goes on without it\n"
    assert done.stderr == told and (tmp_path / "x").read_text() == "done"
    quiet = program.replace("secure_streams()", "secure_streams(quiet=True)")
    done = bash(f"$PROGRAM {tmp_path}/x | head -n 1; exit ${{PIPESTATUS[0]}}", quiet)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk():
    program = START + "print(1)\nprint(2)\nprint(3, file=sys.stderr)"
    done = bash("$PROGRAM > /dev/full", program)
    text = "warning: standard output cannot be written (No space left on device); the program goes on without it\n"
    assert (done.returncode, done.stderr) == (0, f"{text}3\n")
    assert bash("$PROGRAM > /dev/full 2>&1", program).returncode == 0


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path):
    program = START + (
        "file = open(sys.argv[1], 'wb', buffering=0)\n"
        "print('out'); print('error', file=sys.stderr); write_error('more\\n'); os.write(1, b'C'); os.write(2, b'C')\n"
        "os.system('echo child; echo child >&2')\n"
        "file.write(b'ours')\n"
        "assert file.fileno() > 2 and not sys.stderr.isatty()"
    )
    for closed, seen in (("2>&-", "out\nCchild\n"), (">&-", ""), ("<&- >&- 2>&-", "")):
        done = bash(f"$PROGRAM {tmp_path}/x {closed}", program)
        assert (done.returncode, done.stdout) == (0, seen), done.stderr
        assert (tmp_path / "x").read_bytes() == b"ours"
    # A library that has opened a file before keeps it.
    taken = f"open({str(tmp_path / 'y')!r}, 'wb')"
    early = program.replace("import os, signal, sys\n", f"import os, signal, sys\nfirst = {taken}\n")
    early = early.replace("os.write(1, b'C'); os.write(2, b'C')", "pass").replace("os.system", "str")
    assert bash(f"$PROGRAM {tmp_path}/x 2>&-", early).returncode == 0
    assert (tmp_path / "y").read_bytes() == b""


def test_names_that_the_encoding_does_not_have():
    program = START + "print('gr\\xfcn \\u2588 \\udcff'); print('\\u2588', file=sys.stderr)"
    for environment in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}):
        done = bash("$PROGRAM", program, **environment)
        assert done.returncode == 0 and "\\udcff" in done.stdout and "gr" in done.stdout, done.stderr


def test_a_signal_is_obeyed_although_nobody_hears_of_it():
    program = START + (
        "from common.signals import SignalWatch\n"
        "with SignalWatch():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    signal.pause()"
    )
    broken = "$PROGRAM 2> >(exec true); code=$?; exit $code"
    for command in (broken, "$PROGRAM 2>&-", "$PROGRAM > /dev/full 2>&1"):
        assert bash(command.replace("$PROGRAM", "sleep 0.2; $PROGRAM", 1), program).returncode == 143


def test_a_log_gets_a_few_lines_of_a_bar(monkeypatch):
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    for _ in progress(range(20000), "a day", unit="step"):
        now[0] += 5.0
    assert 50 < log.getvalue().count("\r") < 110


def test_a_terminal_that_goes_away(tmp_path):
    near, far = os.openpty()
    program = START + (
        "assert sys.stdout.isatty(); print(1); sys.stdin.readline()\n"
        "print(2); print(3, file=sys.stderr); open(sys.argv[1], 'w').write('done')"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "x")]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=far, stderr=far) as process:
        os.close(far)
        assert os.read(near, 9) == b"1\r\n"
        os.close(near)
        process.stdin.close()
        assert process.wait(60) == 0 and (tmp_path / "x").read_text() == "done"
