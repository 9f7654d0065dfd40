"""What of a measurement can be done with the weights that are there, before the first image is read."""

from collections.abc import Mapping, Sequence
from typing import Any

from common.console import warn
from evaluator.metrics import METRICS
from evaluator.networks import missing_networks, network_of

# Measured in place of usual metrics whose networks are missing, under names that nobody takes for theirs.
OWN_METRICS = ("fd_titok_openmoji", "kd_titok_openmoji")


def with_weights(
    metrics: Sequence[str], weights: Mapping[str, Any], *, named: bool
) -> tuple[tuple[str, ...], list[str]]:
    """The metrics whose networks are there, and a note on those that are not.

    Args:
        weights: files by network, as `load_networks` takes them.
        named: the metrics were asked for by name, so that none may be left out.

    Raises:
        FileNotFoundError: weights of a metric that was asked for are missing.
    """
    missing = missing_networks(metrics, weights)
    lacking: dict[str, list[str]] = {}  # metrics by the reason: two networks may share a file
    for metric in metrics:
        if (network := network_of(metric)) in missing:
            lacking.setdefault(missing[network], []).append(metric)
    notes = [f"{', '.join(some)}: {reason}" for reason, some in lacking.items()]
    if len(notes) > 1 and named:
        for note in notes:  # an error is one line
            warn(note)
        some = ", ".join(metric for group in lacking.values() for metric in group)
        raise FileNotFoundError(f"metrics: weights of {some} are missing; the warnings say how to get them")
    if notes and named:
        raise FileNotFoundError(f"metrics: {notes[0]}")
    gone = {metric for group in lacking.values() for metric in group}
    gone |= {metric for metric in metrics if gone & set(METRICS[metric].parts)}
    return tuple(m for m in metrics if m not in gone), [f"left out: {note}" for note in notes]
