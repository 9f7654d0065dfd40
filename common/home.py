"""`~/` in paths: the home folder, as in a shell."""

import os
from typing import Any


def at_home(value: Any) -> Any:
    """`~/x` below the home folder, as a text or anywhere in lists and sections; all else as it is.

    A text that begins so is a path whatever option it belongs to, so that no option can be forgotten. Nothing else is
    changed: `~` alone is null in YAML, and `~name`, `$VARIABLE` and addresses stay as they are.

    Raises:
        ValueError: the home folder is not known.
    """
    if isinstance(value, dict):
        return {key: at_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [at_home(item) for item in value]
    if not isinstance(value, str) or not value.startswith("~/"):
        return value
    path = os.path.expanduser(value)
    if path == value:
        raise ValueError(f"{value}: the home folder is not known; set HOME, or write the whole path")
    return path
