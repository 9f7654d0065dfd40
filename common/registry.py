"""Names of configurations and the classes they stand for, which are imported when they are asked for."""

from collections.abc import Iterator, Mapping
from pkgutil import resolve_name
from typing import Any


class Registry(Mapping[str, Any]):
    """A mapping from names to what `package.module:Class` leads to.

    Listing the names imports nothing: `--help` and a misspelt name need no torch.
    """

    def __init__(self, places: Mapping[str, str], *, base: str | None = None) -> None:
        self._places, self._base = dict(places), base

    def class_named(self, name: str) -> Any:
        """A class by its own name, or the base class: `__getattr__` of the package that holds the registry.

        Raises:
            AttributeError: there is none; `import` then looks for a module of this name.
        """
        for place in (*self._places.values(), self._base or ""):
            if place.endswith(f":{name}"):
                return resolve_name(place)
        raise AttributeError(
            f"no class {name!r}; there are {', '.join(p.split(':')[1] for p in self._places.values())}"
        )

    def __getitem__(self, name: str) -> Any:
        return resolve_name(self._places[name])

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
