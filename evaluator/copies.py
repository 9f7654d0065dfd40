"""What occurs twice: images, by exact fingerprints of their pixels, and rows of tokens that training has seen."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np


class Contents(NamedTuple):
    """Every image of a set, over all processes: positions int64 [N], increasing, and fingerprints uint64 [N]."""

    positions: np.ndarray
    prints: np.ndarray
    brightest: int  # level of the brightest channel of all images


def token_copies(drawn: np.ndarray, training: Iterable[np.ndarray]) -> dict[str, Any]:
    """How many of drawn rows of tokens [N, L] equal a row of the training tokens, given in blocks [n, L].

    `repeated` counts drawn rows that equal an earlier one; `share` is that of rows that training tokens hold.

    Raises:
        ValueError: rows are not of one length.
    """
    rows, found, seen = [row.tobytes() for row in drawn.astype(np.int64)], set(), 0
    own = set(rows)
    for block in training:
        if block.shape[1:] != drawn.shape[1:]:
            raise ValueError(f"drawn rows have {drawn.shape[1]} tokens, those of training {block.shape[1]}")
        seen += len(block)
        found |= own.intersection(row.tobytes() for row in np.ascontiguousarray(block, dtype=np.int64))
    copies = sum(row in found for row in rows)
    facts = {"rows": len(rows), "training_rows": seen, "copies": copies, "share": copies / max(1, len(rows))}
    return {**facts, "repeated": len(rows) - len(own)}


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
    if tokens := facts.get("token_copies"):
        share = f"{tokens['copies']} of {tokens['rows']} rows of tokens ({100 * tokens['share']:.1f} %)"
        notes.append(f"{share} are rows of the training tokens {tokens['training']}: such samples are copies")
    if facts.get("all_black"):
        notes.append(
            "all samples are black (no level above 1 of 255): were images in [0, 1] turned into uint8 without a factor?"
        )
    return notes
