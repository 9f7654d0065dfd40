"""The worked examples of docs/house.md, executed from the page in a copy of the repository."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.config import REPOSITORY
from evaluator.inception_network import InceptionV3
from tests.parity import fill_module

PAGE = REPOSITORY / "docs" / "house.md"
KINDS = ["quantizer", "tokenizer", "generator", "metric", "data set"]
# Most files an addition may touch, the new ones among them. A new way of learning brings its task: a file and a line.
MOST_FILES = {"tokenizer": 4}
COPIED = ("common", "storage", "modeling", "data", "evaluator", "training", "compat", "jobs", "scripts")
# Runs the page's commands one after the other in one process, which imports torch once.
RUN = """
import runpy, shlex, sys
from accelerate.state import AcceleratorState, GradientState
for line in sys.stdin:
    program, *sys.argv[1:] = shlex.split(line)
    sys.argv[0] = program
    print("$", line, flush=True)
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
"""


def sections() -> dict[str, str]:
    """{kind: text} of the page's sections "Add a <kind>"."""
    parts = re.split(r"^## Add an? (.+)$", PAGE.read_text(), flags=re.MULTILINE)
    return {
        kind: re.split(r"^## ", text, flags=re.MULTILINE)[0]
        for kind, text in zip(parts[1::2], parts[2::2], strict=False)
    }


def blocks(text: str, language: str) -> list[tuple[str, str]]:
    """(path, content) of a section's blocks whose first line is a comment with a path."""
    return re.findall(rf"```{language}\n# (\S+\.py)\n(.*?)```", text, re.DOTALL)


def insert(file: Path, change: str) -> None:
    """Add the `+` lines of a block where the lines around them are found in the file, once; `@@` skips lines."""
    for hunk in change.split("@@\n"):
        lines = hunk.splitlines()
        before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
        after = "\n".join(line[1:] for line in lines)
        text = file.read_text()
        assert text.count(before) == 1, f"{file} has {text.count(before)} places like\n{before}"
        file.write_text(text.replace(before, after))


@pytest.mark.parametrize("kind", KINDS)
def test_an_addition_touches_few_files(kind):
    text = sections()[kind]
    new, changed = dict(blocks(text, "python")), dict(blocks(text, "diff"))  # at most one block per file
    assert new and changed, "no example"
    assert len({*new, *changed}) <= MOST_FILES.get(kind, 3)
    assert len(changed) <= 2, "more than two existing files change"
    assert all(not (REPOSITORY / path).exists() for path in new)
    assert all(line[0] in " +@" for change in changed.values() for line in change.splitlines())


def test_the_examples_work(tmp_path):
    for name in COPIED:
        for file in (REPOSITORY / name).rglob("*"):
            if file.suffix in (".py", ".txt", ".yaml"):
                copy = tmp_path / file.relative_to(REPOSITORY)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
    for entry in REPOSITORY.glob("*.py"):
        (tmp_path / entry.name).write_bytes(entry.read_bytes())
    commands = []
    for text in sections().values():
        for path, content in blocks(text, "python"):
            (tmp_path / path).write_text(content)
        for path, change in blocks(text, "diff"):
            insert(tmp_path / path, change)
    for text in sections().values():
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
            commands += re.findall(r"^\$ python (.+)$", block.replace("\\\n", ""), re.MULTILINE)
    assert len(commands) >= len(KINDS)
    torch.save(fill_module(InceptionV3()).state_dict(), tmp_path / "inception.pth")
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input="\n".join(commands),
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "runs" / "added" / "result.json").is_file()
