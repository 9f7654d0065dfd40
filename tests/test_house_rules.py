"""The structure of the project: who may import whom, and how long a file or function may be."""

import ast
import re
from pathlib import Path

import pytest

from modeling.generators import GENERATORS
from modeling.losses import DISCRIMINATORS
from modeling.quantizers import QUANTIZERS
from modeling.tokenizers import TOKENIZERS

ROOT = Path(__file__).resolve().parents[1]

# Room -> rooms it may import besides itself; the longest matching prefix counts. Arrows point one way.
MAY_IMPORT = {
    "common": [],
    "storage": ["common"],
    "modeling.layers": ["common.choices"],
    "modeling.token_factors": [],
    "modeling.quantizers": ["modeling.layers", "common.distributed", "common.registry"],
    "modeling.tokenizers": [
        "modeling.layers",
        "modeling.quantizers",
        "modeling.token_factors",
        "common.registry",
    ],
    "modeling.generators": ["modeling.layers", "modeling.token_factors", "common.registry"],
    "modeling.sampling": [
        "modeling.generators.base",
        "modeling.token_factors",
        "common.config",
        "common.build",
    ],
    "modeling.losses": ["modeling.layers", "storage.weights", "common.registry", "common.choices"],
    "modeling.factory": ["modeling", "storage", "common"],
    "modeling.arguments": ["modeling.generators.base", "modeling.tokenizers.base"],
    "modeling.pipeline": ["modeling", "storage", "common"],
    "modeling.pretrained": ["compat.models", "modeling", "storage", "common"],
    "data": ["storage", "common"],
    "compat": ["common"],
    "compat.models": ["common"],
    "evaluator": ["storage", "common", "modeling"],
    "training": ["storage", "common", "compat", "modeling", "data", "evaluator"],
    "jobs": ["storage", "common", "compat", "modeling", "data", "evaluator", "training"],
}
FILE_LINES, FUNCTION_LINES, ENTRY_LINES = 350, 60, 60
ENTRIES = [ROOT / name for name in ("train_titok.py", "train_rar.py", "sample_imagenet.py")]
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
# Python puts the folder of a script on its path, not the repository.
SCRIPT_HEAD = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
"""


def modules() -> list[Path]:
    rooms = ["common", "storage", "compat", "modeling", "data", "evaluator", "training", "jobs"]
    return sorted(p for room in rooms for p in (ROOT / room).rglob("*.py"))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and re.fullmatch(r"[a-z_]+(\.[a-z_\d]+)*:\w+", str(node.value)):
            names.add(node.value.split(":")[0])  # of a registry, or the job of a script
    return names


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_point_one_way(path):
    name = dotted(path)
    rooms = [room for room in MAY_IMPORT if within(name, room)]
    if not rooms:
        assert name == "modeling", f"{name} belongs to no room"
        return
    room = max(rooms, key=len)
    ours = (*(room.split(".")[0] for room in MAY_IMPORT), "scripts", "tests")
    for imported in imports(path):
        if imported.split(".")[0] in ours:
            allowed = [room, *MAY_IMPORT[room]]
            reachable = any(within(imported, a) or within(a, imported) for a in allowed)
            assert reachable, f"{name} must not import {imported}"


def test_the_architecture_page_shows_every_room():
    page = (ROOT / "docs" / "house.md").read_text()
    files = {"modeling.factory", "modeling.arguments", "modeling.pipeline"}
    for room in MAY_IMPORT.keys() - {"modeling.token_factors", "compat.models"}:  # parts of rooms
        name = room.replace(".", "/") + (".py" if room in files else "")
        assert f"| `{name}` |" in page, f"docs/house.md has no row for {name}"


def test_no_files_import_each_other():
    """Not by way of others either; imports for types alone count."""
    files = {dotted(path): path for path in [*modules(), *ENTRIES]}
    arrows = {name: {i for i in imports(path) if i in files and i != name} for name, path in files.items()}
    while leaves := {name for name, targets in arrows.items() if not targets}:
        arrows = {name: targets - leaves for name, targets in arrows.items() if name not in leaves}
    assert not arrows, f"circles among {sorted(arrows)}"


@pytest.mark.parametrize("path", [p for p in modules() if within(dotted(p), "training")], ids=dotted)
def test_training_asks_models_and_does_not_guess_them(path):
    """What a model is follows from its contract: no isinstance of its classes, no comparison with its name."""
    tree = ast.parse(path.read_text())
    named = {*TOKENIZERS, *GENERATORS, *QUANTIZERS, *DISCRIMINATORS}
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and within(node.module, "modeling")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            asked = {n.id for n in ast.walk(node.args[1]) if isinstance(n, ast.Name)}
            assert not asked & ours, f"{path.name}:{node.lineno} asks for the class of a model"
        if isinstance(node, ast.Compare):
            values = {n.value for n in ast.walk(node) if isinstance(n, ast.Constant)}
            assert not values & named, f"{path.name}:{node.lineno} compares with the name of a model"


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.name)
def test_files_and_functions_stay_readable(path):
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES, f"{path.name} is too long"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = node.end_lineno - body[0].lineno + 1 if body else 0
            assert length <= FUNCTION_LINES, f"{path.name}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", [*ENTRIES, *SCRIPTS], ids=lambda p: p.name)
def test_entry_scripts_are_thin(path):
    """A script holds its usage and runs the job of its name."""
    assert len(path.read_text().splitlines()) <= ENTRY_LINES
    if path in SCRIPTS:
        ours = {name for name in imports(path) if name.split(".")[0] not in ("sys", "pathlib")}
        allowed = ("common.config", f"jobs.{path.stem}", f"jobs.options.{path.stem}")
        assert all(any(within(name, one) for one in allowed) for name in ours), ours
        assert SCRIPT_HEAD in path.read_text()


@pytest.mark.parametrize("path", [*ENTRIES, *SCRIPTS], ids=lambda p: p.name)
def test_programs_leave_the_original_vocabulary_to_the_settings(path):
    assert not any(within(name, "compat") for name in imports(path))


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_public_functions_are_typed_and_explained(path):
    tree = ast.parse(path.read_text())
    assert not path.read_text().strip() or ast.get_docstring(tree), f"{path} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            assert not untyped, f"{dotted(path)}.{node.name}: {untyped} without type"
    for node in tree.body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        assert not public or ast.get_docstring(node), f"{dotted(path)}.{node.name} has no docstring"


def test_nothing_is_loaded_by_unpickling():
    for path in [*modules(), *ENTRIES, *SCRIPTS]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path}: torch.load without weights_only=True"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.load", "numpy.load"):
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("allow_pickle", "False") == "False", f"{path}: np.load with pickle"
