"""The scripts run from any folder."""

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
