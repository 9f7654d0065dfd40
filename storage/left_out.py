"""What a reader of files leaves out: how much, why, and the first names of each reason."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.console import printable, warn

SHOWN = 3  # names per reason


@dataclass
class LeftOut:
    """Counts by reason, in the order in which the reasons came up.

    A reason is a constant text that states the rule; names belong into ``names``, or there would be as many reasons as
    files.
    """

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)  # the first SHOWN of each reason

    def add(self, reason: str, name: str | None = None, count: int = 1) -> None:
        """Count one more file, member, row or label, or several without their names."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        names = self.names.setdefault(reason, [])
        if name is not None and len(names) < SHOWN:
            names.append(name)

    def add_error(self, error: str, name: str) -> None:
        """Count a file that cannot be read: names and numbers in the message would make it a reason of its own."""
        self.add(re.sub(r"\d+", "#", re.sub(r"'[^']*'", "...", error)), name)

    def extend(self, other: LeftOut, prefix: str = "") -> None:
        """Count what another reader left out; ``prefix``, such as that of a shard, goes before its names."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            names = self.names.setdefault(reason, [])
            names += [prefix + name for name in other.names[reason][: SHOWN - len(names)]]

    def __bool__(self) -> bool:
        return bool(self.counts)

    def lines(self, source: str) -> list[str]:
        """One line per reason, for people: ``SOURCE: COUNT left out, REASON: NAME, NAME, NAME, ...``."""
        return [
            f"{source}: {count} left out, {self._reason(reason)}" for reason, count in self.counts.items()
        ]

    def explain(self) -> str:
        """All reasons in brackets with a blank before them, for the end of an error; empty if nothing was left out."""
        parts = [f"{count} left out, {self._reason(reason)}" for reason, count in self.counts.items()]
        return f" ({'; '.join(parts)})" if parts else ""

    def warn(self, source: str) -> None:
        """Print the lines as warnings, on the main process."""
        for line in self.lines(source):
            warn(line)

    def _reason(self, reason: str) -> str:
        names = [printable(name) for name in self.names[reason]]
        if not names:
            return reason
        return f"{reason}: {', '.join(names + (['...'] if self.counts[reason] > len(names) else []))}"

    def to_tree(self) -> dict[str, list]:
        """Plain values for a JSON file: ``{reason: [count, names]}``."""
        return {reason: [count, self.names[reason]] for reason, count in self.counts.items()}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Sequence[Any]]) -> LeftOut:
        """The inverse of ``to_tree``."""
        return cls(
            {reason: int(count) for reason, (count, _) in tree.items()},
            {reason: list(names) for reason, (_, names) in tree.items()},
        )
