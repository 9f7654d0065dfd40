"""The scripts run from any folder, and answer at once."""

import ast
import subprocess
import sys

from common.config import REPOSITORY

RUN_ALL = """
import runpy, sys
for path in sys.argv[1:]:
    sys.argv = [path, "--help"]
    runpy.run_path(path, run_name="__main__")
    sys.path.pop(0)
"""


def test_every_script_explains_itself_from_another_folder(tmp_path):
    scripts = sorted((REPOSITORY / "scripts").glob("*.py"))
    command = [sys.executable, "-c", RUN_ALL, *map(str, scripts)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for script in scripts:
        usage = ast.get_docstring(ast.parse(script.read_text()))
        assert f"python scripts/{script.name} " in usage and usage in done.stdout
    # show_config.py and plan.py take the options of others.
    assert done.stdout.count("Options (config=FILE reads them from YAML") == len(scripts) - 2


QUICK = """
import runpy, sys
recipes = {"train_titok.py": "titok", "train_rar.py": "rar"}
for path in sys.argv[1:]:
    name = path.rpartition("/")[2]
    own = [f"config=configs/debug/{recipes[name]}.yaml"] if name in recipes else []
    for arguments in (["--help"], [*own, "no_such_option=1"], [*own, "tokenizer.name=tittok", "generator.name=rra"]):
        sys.argv = [path, *arguments]
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            assert str(end).startswith("error: ") and end.code != 0, (path, end)
        assert "torch" not in sys.modules, (path, arguments)
    if "/scripts/" in path:
        sys.path.pop(0)
"""


def test_help_and_misspelt_options_need_no_torch():
    """Its import takes seconds. plan.py and show_config.py pass options on to the programs that they are of."""
    others = ("plan.py", "show_config.py")
    scripts = [str(p) for p in sorted((REPOSITORY / "scripts").glob("*.py")) if p.name not in others]
    entries = [str(REPOSITORY / name) for name in ("train_titok.py", "train_rar.py", "sample_imagenet.py")]
    command = [sys.executable, "-c", QUICK, *entries, *scripts]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
