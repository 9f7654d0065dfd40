"""The page of `scripts/gpu_check.sh`: what was measured, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {
    "parity": (
        "Parity with float32",
        "Relative L2 distances; a row passes if none is above its limit. Tokens differ where a latent lies near the"
        " border of two codes, so their share has no limit.",
    ),
    "training": (
        "Training steps",
        "Forward, backward and update of all phases, random weights and data, without loading data.",
    ),
    "sampling": (
        "Sampling",
        "Tokens in bfloat16 with the settings of the recipe; decoding to pixels not included.",
    ),
    "coding": ("Tokenizing", "Under autocast to bfloat16."),
    "fid": ("FID", "Features of Inception."),
}


def page(result: Mapping[str, Any]) -> str:
    """Markdown of a result."""
    lines = ["# GPU check", "", f"{result['size']} size, {result['seconds']:.0f} s, random weights.", ""]
    lines += table([{"": key, "value": value} for key, value in result["environment"].items()])
    for section, (title, about) in TITLES.items():
        lines += ["", f"## {title}", "", about, "", *table(result[section])]
    for key, title in (("failed", "Failed"), ("left_out", "Left out for lack of time")):
        if result[key]:
            lines += ["", f"## {title}", "", *(f"- {text}" for text in result[key])]
    return "\n".join(lines) + "\n"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table with every key of the rows as a column."""
    if not rows:
        return ["Nothing."]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_shown(row.get(column)) for column in columns] for row in rows]
    head = [column.replace("_", " ") for column in columns]
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(columns), *cells)]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:.0f}"
        if isinstance(value, float)
        else str(value)
    )
