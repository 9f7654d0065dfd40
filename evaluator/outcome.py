"""What a measurement came to: the numbers, and in words why a metric has none."""

import traceback
from collections.abc import Mapping
from typing import NamedTuple

from common.console import warn


class Outcome(NamedTuple):
    """Numbers by their names in results, and errors by the names of metrics; one failure leaves the others alone."""

    values: dict[str, float]
    errors: dict[str, str]

    def complete(self) -> dict[str, float]:
        """The numbers; raises ValueError if a metric has none."""
        if self.errors:
            raise ValueError(failure(self.errors))
        return self.values

    def with_warnings(self) -> dict[str, float]:
        """The numbers; what has none is a warning, because a run that measures itself goes on."""
        if self.errors:
            warn(failure(self.errors))
        return self.values


def failure(errors: Mapping[str, str]) -> str:
    """All errors in one line."""
    return "; ".join(f"{name} cannot be computed: {reason}" for name, reason in errors.items())


def in_words(error: Exception) -> str:
    """The message of an error; one that nobody expects is also printed with its traceback."""
    if isinstance(error, (ValueError, OSError)):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"
