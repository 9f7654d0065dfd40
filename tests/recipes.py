"""The shipped recipes: which files they are, and what they resolve to.

python -m tests.recipes    writes tests/goldens/recipes.json anew, after a deliberate change of a recipe
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from common.config import REPOSITORY, read_yaml
from common.shares import Share
from storage.files import write_text

CONFIGS = REPOSITORY / "configs"
GOLDEN = REPOSITORY / "tests" / "goldens" / "recipes.json"
# A name that begins with _ says that a file is only a base of others.
BASES = sorted(CONFIGS.rglob("_*.yaml"))
RECIPES = sorted(p for p in CONFIGS.rglob("*.yaml") if p not in BASES)


def name_of(path: Path) -> str:
    """A recipe's path below configs/."""
    return str(path.relative_to(CONFIGS))


def in_steps(tree: Any, max_steps: int) -> Any:
    """A tree with its shares of the run ("5%") as steps."""
    if isinstance(tree, dict):
        return {key: in_steps(value, max_steps) for key, value in tree.items()}
    return Share(tree).of(max_steps) if isinstance(tree, str) and tree.endswith("%") else tree


def digests(path: Path) -> dict[str, str]:
    """What a recipe resolves to for its own number of steps: a short hash per section."""
    tree = read_yaml(path)
    return {
        key: hashlib.sha256(json.dumps(section, sort_keys=True).encode()).hexdigest()[:12]
        for key, section in sorted(in_steps(tree, tree.get("training", {}).get("max_steps", 0)).items())
    }


if __name__ == "__main__":
    rows = [f"{json.dumps(name_of(path))}: {json.dumps(digests(path))}" for path in RECIPES]
    write_text(GOLDEN, "{\n" + ",\n".join(rows) + "\n}\n")
