"""What `scripts/inspect_data.py` found, as rows of the terminal and as a page of Markdown."""

from collections.abc import Mapping
from typing import Any

from common.console import printable

MOST_CLASSES = 50  # on the page; the JSON file has all


def rows(result: Mapping[str, Any]) -> dict[str, str]:
    """A name and a text for everything that was found."""
    found = {"data": _shown(result["data"]), "images": f"{result['images']:,}"}
    if result["inspected"] < result["images"]:
        found["inspected"] = f"{result['inspected']:,}, at even distances"
    found["readable"] = f"{result['readable']:,}"
    found |= _reasons("unreadable", result["unreadable"]) | _reasons("left out", result["left_out"])
    found |= _labels(result["labels"]) | _captions(result["captions"])
    for key in ("formats", "modes"):
        found[key] = _counts(result[key])
    if sizes := result["sizes"]:
        found |= _sizes(sizes)
    rules = result["rules"]
    if result["transparent_files"]:
        found["transparent"] = f"{result['transparent_files']:,} files, alpha: {rules['alpha']}"
    if result["turned_files"]:
        kinds = {f"EXIF {key}": n for key, n in result["orientations"].items() if key != "1"}
        found["orientation"] = f"{_counts(kinds)}; {rules['orientation']}"
    if result["files_of_several_pictures"]:
        found["several pictures"] = f"in {result['files_of_several_pictures']:,} files; the first is read"
    return found | _duplicates(result["duplicates"])


def page(result: Mapping[str, Any], *, with_sheet: bool) -> str:
    """Markdown: a table, the contact sheet beside it, the classes, and the first equal pictures."""
    lines = ["# Data", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(text)} |" for name, text in rows(result).items()]
    if with_sheet:
        lines += ["", "![contact sheet](contact_sheet.png)"]
    if labels := result["labels"]:
        lines += ["", "## Classes", "", "| Class | Images |", "|---|---|"]
        counts = list(labels["counts"].items())
        lines += [f"| {_cell(printable(name))} | {count:,} |" for name, count in counts[:MOST_CLASSES]]
        if len(counts) > MOST_CLASSES:
            lines.append(f"| {len(counts) - MOST_CLASSES:,} more | in inspection.json |")
    if groups := result["duplicates"]["first"]:
        lines += ["", "## Equal pictures", ""]
        lines += [f"- {_cell(', '.join(names))}" for names in groups]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _shown(data: Any) -> str:
    if isinstance(data, Mapping):
        return " ".join(f"{key}={value}" for key, value in data.items() if key in ("name", "path", "split"))
    return printable(", ".join(data) if isinstance(data, list) else str(data))


def _reasons(title: str, reasons: Mapping[str, list]) -> dict[str, str]:
    found = {}
    for number, (reason, (count, names)) in enumerate(reasons.items()):
        shown = ", ".join([printable(name) for name in names] + (["..."] if count > len(names) else []))
        found[title if number == 0 else f"{title} ({number + 1})"] = f"{count:,}: {reason}: {shown}"
    return found


def _labels(labels: Mapping[str, Any] | None) -> dict[str, str]:
    if labels is None:
        return {"classes": "none"}
    text = f"{labels['classes']:,}, of {labels['fewest_images']:,} to {labels['most_images']:,} images"
    for key, what in (
        ("without_images", "classes without images"),
        ("images_without_label", "images without label"),
    ):
        text += f"; {labels[key]:,} {what}" if labels[key] else ""
    return {"classes": text} | _reasons("without label", labels["without_label"])


def _captions(captions: Mapping[str, Any] | None) -> dict[str, str]:
    if captions is None:
        return {}
    text = f"{captions['images']:,}"
    if spread := captions["characters"]:
        text += f", of {spread['least']} to {spread['most']} characters (median {spread['median']})"
    text += f"; {captions['empty']:,} empty" if captions["empty"] else ""
    return {"captions": text} | _reasons("captions not read", captions["unreadable"])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _sizes(sizes: Mapping[str, Any]) -> dict[str, str]:
    def spread(key: str) -> str:
        found = sizes[key]
        if found["least"] == found["most"]:
            return f"{found['most']}"
        return f"{found['least']} to {found['most']}, median {found['median']}"

    frequent = ", ".join(f"{w} x {h} ({n:,})" for w, h, n in sizes["most_frequent"])
    below = {f"below {side}": n for side, n in sizes["shorter_side_below"].items() if n}
    return {
        "width": spread("width"),
        "height": spread("height"),
        "shorter side": spread("shorter_side") + (f"; {_counts(below)}" if below else ""),
        "longer / shorter": spread("longer_by_shorter"),
        "sizes": f"{sizes['different']:,} different: {frequent}"
        + (", ..." if sizes["different"] > 5 else ""),
    }


def _duplicates(found: Mapping[str, Any]) -> dict[str, str]:
    if not found["groups"]:
        return {"equal pictures": "none"}
    text = f"{found['copies']:,} copies in {found['groups']:,} groups, as {' = '.join(found['first'][0])}"
    several = found["groups_of_several_classes"]
    return {"equal pictures": text + (f"; {several:,} groups have several classes" if several else "")}
