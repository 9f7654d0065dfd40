"""A leaderboard as Markdown, HTML and CSV."""

import csv
import html
import io
from collections.abc import Sequence

from common.console import printable
from evaluator.result_names import direction, is_spread, networks_behind
from jobs.leaderboard_rows import Group, Row

_ARROW = {"lower": " ↓", "higher": " ↑", "": ""}
_DAGGER = "†"


def columns(group: Group) -> list[str]:
    """Names of all numbers of a group in the order of their first row; spreads stand beside their numbers."""
    names = dict.fromkeys(name for row in group.rows for name in row.values)
    return [name for name in names if not is_spread(name)]


def cells(group: Group, row: Row) -> list[tuple[str, bool]]:
    """Text of every column, and whether it is the best of the rows that may be ranked."""
    found = []
    for name in columns(group):
        value, spread = row.values.get(name), row.values.get(f"{name}_std")
        if value is None:
            found.append(("–", False))
            continue
        text = f"{value:.5g}" + ("" if spread is None else f" ± {spread:.2g}")
        learnt = _learnt(row, name)
        others = [r.values[name] for r in group.rows if name in r.values and not _learnt(r, name)]
        best = {"lower": min, "higher": max}.get(direction(name))
        first = best is not None and len(others) > 1 and not learnt and value == best(others)
        found.append((text + (f" {_DAGGER}" if learnt else ""), first))
    return found


def _learnt(row: Row, name: str) -> bool:
    return any(network in row.trained_on for network in networks_behind(name))


def remarks(group: Group) -> list[str]:
    """What a reader must know of a group, a line each."""
    lines = list(group.unranked)
    for row in group.rows:
        lines += [f"{row.name}: {note}" for note in row.notes]
        lines += [
            f"{_DAGGER} {row.name}: {network}: {why}; not ranked" for network, why in row.trained_on.items()
        ]
    return [printable(line) for line in dict.fromkeys(lines)]


def heading(number: int, group: Group) -> tuple[str, list[str]]:
    """Title of a group, and why it is not the same as an earlier one."""
    facts = group.rows[0].required
    about = [f"{facts['images']} images"] if facts.get("images") else []
    about += [str(facts[key]) for key in ("resolution", "protocol name") if facts.get(key)]
    order = f", by {group.rank}" if group.rank else ""
    title = f"Group {number}: {', '.join(about) or 'protocol not stated'}{order}"
    return title, [f"Not comparable with {line}" for line in group.differences]


def markdown_page(groups: Sequence[Group]) -> str:
    """All groups; rows of different groups must not be compared, and each group says why."""
    lines = ["# Leaderboard", "", "Numbers compare within a group only."]
    for number, group in enumerate(groups, start=1):
        title, reasons = heading(number, group)
        heads = ["Model", *(f"{name}{_ARROW[direction(name)]}" for name in columns(group))]
        lines += [
            "",
            f"## {title}",
            "",
            *(f"- {_text(reason)}" for reason in reasons),
            *([""] if reasons else []),
        ]
        lines += [f"| {' | '.join(map(_text, heads))} |", "|---" * len(heads) + "|"]
        for row in group.rows:
            shown = [f"**{text}**" if best else text for text, best in cells(group, row)]
            lines.append(f"| {' | '.join([_text(row.name), *shown])} |")
        if notes := remarks(group):
            lines += ["", *(f"- {_text(note)}" for note in notes)]
    return "\n".join(lines) + "\n"


def _text(name: str) -> str:
    return printable(name).replace("|", "\\|").replace("<", "&lt;")


def html_page(groups: Sequence[Group]) -> str:
    """The same as one HTML file without scripts or files beside it."""
    style = "body{font-family:sans-serif;margin:2em}table{border-collapse:collapse}"
    style += "td,th{border:1px solid #ccc;padding:.3em .6em;text-align:right}td:first-child{text-align:left}"
    parts = ["<!doctype html>", '<html lang="en"><meta charset="utf-8"><title>Leaderboard</title>']
    parts += [
        f"<style>{style}</style>",
        "<h1>Leaderboard</h1>",
        "<p>Numbers compare within a group only.</p>",
    ]
    for number, group in enumerate(groups, start=1):
        title, reasons = heading(number, group)
        heads = ["Model", *(f"{name}{_ARROW[direction(name)]}" for name in columns(group))]
        parts += [f"<h2>{_safe(title)}</h2>", _list(reasons), "<table>"]
        parts.append(f"<tr>{''.join(f'<th>{_safe(head)}</th>' for head in heads)}</tr>")
        for row in group.rows:
            shown = [f"<b>{_safe(text)}</b>" if best else _safe(text) for text, best in cells(group, row)]
            parts.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in [_safe(row.name), *shown])}</tr>")
        parts += ["</table>", _list(remarks(group))]
    return "\n".join([part for part in parts if part] + ["</html>"]) + "\n"


def _safe(text: str) -> str:
    return html.escape(printable(text))


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_safe(line)}</li>' for line in lines)}</ul>" if lines else ""


def csv_table(groups: Sequence[Group]) -> str:
    """One row per model with full digits; `group` says which of them compare, `trained_on` what ranks them not."""
    names = list(dict.fromkeys(name for group in groups for row in group.rows for name in row.values))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["group", "model", *names, "trained_on", "file"])
    for number, group in enumerate(groups, start=1):
        for row in group.rows:
            numbers = [row.values.get(name, "") for name in names]
            table.writerow([number, row.name, *numbers, " ".join(row.trained_on), row.source])
    return text.getvalue()
