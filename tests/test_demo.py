"""The notebook: clean in the repository, calls nothing but the front door, and runs from top to bottom."""

import ast
import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from modeling.pipeline import find_classes
from modeling.pretrained.catalog import RELEASES
from modeling.pretrained.release import imagenet_classes

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "demo.ipynb"
MAY_IMPORT = ("torch", "numpy", "matplotlib", "pathlib", "common", "data.file_list", "modeling.pipeline")


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tree(source: str) -> ast.Module:
    """The Python of a cell; lines that begin with % are commands to the notebook."""
    return ast.parse("\n".join(line for line in source.splitlines() if not line.startswith("%")))


def forbidden_imports(source: str) -> list[str]:
    names = []
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." * node.level + (node.module or ""))
    return [n for n in names if not any(n == room or n.startswith(f"{room}.") for room in MAY_IMPORT)]


def shows_a_picture(source: str) -> bool:
    """Whether a cell calls `show` or `plt.show` itself, not inside a function that it defines."""
    statements = [node for node in tree(source).body if not isinstance(node, ast.FunctionDef)]
    calls = [node for top in statements for node in ast.walk(top) if isinstance(node, ast.Call)]
    return any(ast.unparse(call.func) in ("show", "plt.show") for call in calls)


def assigned(notebook: nbformat.NotebookNode, name: str) -> list:
    """All constants that the notebook gives to a name, alone or in a row of names."""
    values = []
    for cell in code_cells(notebook):
        for node in ast.walk(tree(cell.source)):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
                names = [target.id for target in node.targets[0].elts]
                if name in names:
                    values.append(ast.literal_eval(node.value.elts[names.index(name)]))
    return values


def test_nothing_that_was_run_is_stored(notebook):
    assert NOTEBOOK.stat().st_size < 50_000
    for cell in code_cells(notebook):
        assert cell.outputs == [] and cell.execution_count is None
    assert set(json.loads(NOTEBOOK.read_text())["metadata"]) == {"kernelspec", "language_info"}


def test_cells_are_short_and_explained(notebook):
    for before, cell in zip(notebook.cells, notebook.cells[1:], strict=False):
        if cell.cell_type == "markdown":
            assert before.cell_type == "code" and len(cell.source) < 700
        else:
            assert len(cell.source.splitlines()) <= 35


def test_cells_import_the_front_door_only(notebook):
    for cell in code_cells(notebook):
        assert forbidden_imports(cell.source) == []
    assert forbidden_imports("import os\nfrom modeling.sampling import draw\nimport torch.nn") == [
        "os",
        "modeling.sampling",
    ]


def test_models_and_classes_exist(notebook):
    for name, kind in (("TOKENIZER", "tokenizer"), ("RAR", "generator"), ("MASKGIT", "generator")):
        names = assigned(notebook, name)
        assert len(names) == 2
        for found in names:
            assert RELEASES[found].kind == kind
    online, offline = assigned(notebook, "CLASSES")
    assert offline == "all" and len(find_classes(online, imagenet_classes())) == len(online)


@pytest.mark.parametrize(
    "folder", [ROOT, pytest.param(ROOT / "docs", marks=pytest.mark.slow)], ids=["root", "below"]
)
def test_runs_from_top_to_bottom(notebook, folder):
    run = nbformat.from_dict(notebook)
    NotebookClient(
        run, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    pictures = 0
    for cell in code_cells(run):
        images = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert bool(images) == shows_a_picture(cell.source), cell.source
        assert all(len(image.data["image/png"]) > 5000 for image in images), cell.source
        pictures += len(images)
    assert pictures >= 12
