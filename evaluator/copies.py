"""Images that occur twice, among samples or in samples and reference, found by exact fingerprints of their pixels."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np


class Contents(NamedTuple):
    """Every image of a set, over all processes: positions int64 [N], increasing, and fingerprints uint64 [N]."""

    positions: np.ndarray
    prints: np.ndarray
    brightest: int  # level of the brightest channel of all images


def copy_facts(samples: Contents, reference: Contents | None) -> dict[str, Any]:
    """For results: how many samples equal an earlier one, and how many equal an image of the reference.

    `equal_pairs` counts samples that equal the reference image of the same position, if the sets have the same
    positions.
    """
    facts = {"samples": len(samples.prints) - len(np.unique(samples.prints))}
    if reference is None:
        return facts
    facts["reference"] = len(reference.prints) - len(np.unique(reference.prints))
    facts["in_both"] = int(np.isin(samples.prints, reference.prints).sum())
    if np.array_equal(samples.positions, reference.positions):
        facts["equal_pairs"] = int((samples.prints == reference.prints).sum())
    return facts


def copy_warnings(facts: Mapping[str, Any]) -> list[str]:
    """What a reader must know, given `Evaluator.facts` and maybe `reference`, the facts of a reference."""
    copies, count, notes = facts.get("copies", {}), facts["images"], []
    if copies.get("samples"):
        notes.append(f"{copies['samples']} of {count} samples have exactly the pixels of another sample")
    if copies.get("in_both"):
        notes.append(f"{copies['in_both']} of {count} samples have exactly the pixels of a reference image")
    made_of = facts.get("reference", {}).get("protocol", {}).get("pixels_fingerprint")
    if made_of is not None and made_of == facts["pixels_fingerprint"]:
        notes.append("the samples are the images that the reference was made of, in the same order")
    if facts.get("all_black"):
        notes.append(
            "all samples are black (no level above 1 of 255): were images in [0, 1] turned into uint8 without a factor?"
        )
    return notes
