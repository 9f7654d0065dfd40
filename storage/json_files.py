"""JSON that may be damaged or hostile, read with the errors of a damaged file whatever is wrong with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def parse_json(content: bytes | str) -> Any:
    """A JSON text; raises ValueError, a short line, for all that is none.

    `json.loads` has errors of its own for sections in sections (RecursionError), for bytes that are no text, and, by a
    message of several lines, for whole numbers of thousands of digits.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("not JSON: too many levels") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not JSON: no text at byte {error.start}") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


def read_json(path: str | Path, **types: Any) -> dict[str, Any]:
    """The keys and values in a JSON file.

    Args:
        **types: keys that must be there, with the type of their value or a tuple of types.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds something else; the message names the file.
    """
    try:
        found = parse_json(Path(path).read_bytes())
        if not isinstance(found, Mapping):
            raise ValueError(f"it must hold keys and values, found {type(found).__name__}")
        for key, kind in types.items():
            if not isinstance(found.get(key), kind) or isinstance(found[key], bool):
                shown = repr(found[key])[:40] if key in found else "missing"
                raise ValueError(f"{key} is {shown}")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return dict(found)


def try_json(path: str | Path, **types: Any) -> dict[str, Any]:
    """As `read_json`; empty for a file that is missing or damaged, and can be made anew."""
    try:
        return read_json(path, **types)
    except (OSError, ValueError):
        return {}
