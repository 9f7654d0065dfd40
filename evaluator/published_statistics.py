"""Published statistics of ImageNet's training images in the feature spaces: one file per space, told by its name.

They come as `.npz` files or as one pickle of all. The arrays are `mu` and `sigma`, or `ref_mu` and `ref_sigma`; some
files also hold those of mean patches (`avg_mu`), which belong to no space here.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evaluator.spaces import SPACES, Space
from storage.pickled_arrays import read_pickled_arrays

PAIRS = (("mu", "sigma"), ("ref_mu", "ref_sigma"))


def space_of_file(name: str) -> Space | None:
    """The space whose published statistics have this file name, with or without `.npz` and folders."""
    stem = Path(name).name.removesuffix(".npz")
    return next((s for s in SPACES.values() if s.published.removesuffix(".npz") == stem), None)


def moment_keys(held: Iterable[str]) -> tuple[str, str]:
    """Names of mean and covariance in a file for one space; `mu` and `sigma` if there are none."""
    held = set(held)
    return next((pair for pair in PAIRS if held.issuperset(pair)), PAIRS[0])


def published_files(folder: Path) -> list[Path]:
    """Files in a folder with the name of published statistics, in the order of the spaces."""
    files = {space.name: folder / space.published for space in SPACES.values()}
    return [file for file in files.values() if file.is_file()]


def read_pickle(path: str | Path) -> dict[str, dict[str, np.ndarray]]:
    """Means and covariances (`mu`, `sigma`) by the names of the spaces, of a pickle of published files.

    Nothing in it is run. Entries that belong to no space are left out.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is damaged, holds code, or no statistics of a space.
    """
    found, content = {}, read_pickled_arrays(path)
    for name, arrays in content.items():
        space = space_of_file(name)
        if space is not None:
            found[space.name] = _moments(path, name, arrays)
    if not found:
        names = ", ".join(list(content)[:5]) or "nothing"
        raise ValueError(f"{path} holds no statistics of a space: {names}")
    return {name: found[name] for name in SPACES if name in found}


def _moments(path: str | Path, name: str, arrays: Any) -> Mapping[str, np.ndarray]:
    keys = moment_keys(arrays) if isinstance(arrays, dict) else PAIRS[0]
    if not (isinstance(arrays, dict) and all(isinstance(arrays.get(key), np.ndarray) for key in keys)):
        raise ValueError(f"{path}: its entry {name!r} holds no arrays mu and sigma")
    return dict(zip(PAIRS[0], (arrays[key] for key in keys), strict=True))
