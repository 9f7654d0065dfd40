"""Result files in one table, in groups of rows that may be compared."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.console import say
from evaluator.result_names import base_name, direction, networks_behind
from jobs.leaderboard_pages import csv_table, html_page, markdown_page
from jobs.leaderboard_rows import Group, Row, read_rows, result_files
from jobs.options.leaderboard import LeaderboardOptions
from storage.files import write_text
from storage.locks import reserved_folder


def leaderboard(options: LeaderboardOptions) -> None:
    """Read, group, order, write and print."""
    rows = list(unique_names([row for path in result_files(options.results) for row in read_rows(path)]))
    groups = grouped(rows)
    for group in groups:
        order(group, options.rank)
    if options.rank is not None and not any(group.rank for group in groups):
        known = sorted({base_name(n) for row in rows for n in row.values if direction(n)})
        raise ValueError(f"rank={options.rank} orders no row; expected one of {', '.join(known)}")
    page, folder = markdown_page(groups), Path(options.output)
    with reserved_folder(folder):
        for suffix, text in ((".md", page), (".html", html_page(groups)), (".csv", csv_table(groups))):
            write_text(folder / f"leaderboard{suffix}", text)
    say(page)
    say(f"{len(rows)} rows, {len(groups)} groups: {folder}/leaderboard.md, .html and .csv")


def unique_names(rows: Sequence[Row]) -> Iterator[Row]:
    """The rows; those of equal names get their files behind them."""
    names = [row.name for row in rows]
    for row, name in zip(rows, names, strict=True):
        row.name = f"{name} ({row.source})" if names.count(name) > 1 else name
        yield row


def grouped(rows: Sequence[Row]) -> list[Group]:
    """Each row goes to the first group that it may be compared with."""
    groups: list[Group] = []
    for row in rows:
        lists = [differences(row, group) for group in groups]
        if [] in lists:
            group = groups[lists.index([])]
            group.rows.append(row)
            group.shared = row.shared | group.shared
        else:
            groups.append(Group([row], dict(row.shared), min(lists, key=len, default=[])))
            if lists:
                number = lists.index(groups[-1].differences) + 1
                groups[-1].differences = [f"group {number}: {line}" for line in groups[-1].differences]
    return groups


def differences(row: Row, group: Group) -> list[str]:
    """Why a row must not stand in a group: one line each, its own value first."""
    theirs, own = group.rows[0].required, row.required
    lines = [
        _line(key, own.get(key), theirs.get(key))
        for key in {**theirs, **own}
        if own.get(key) != theirs.get(key)
    ]
    both = [key for key in row.shared if key in group.shared and row.shared[key] != group.shared[key]]
    return lines + [_line(key, row.shared[key], group.shared[key]) for key in both]


def _line(key: str, *values: Any) -> str:
    shown = ["not stated" if value is None else _short(value) for value in values]
    return f"{key}: {shown[0]}, there {shown[1]}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def order(group: Group, rank: str | None) -> None:
    """Sort the rows of a group by a metric; a row that was trained on its space comes last and has no place."""
    if len(group.rows) < 2:
        return
    name = next(iter(_rankable(group, rank)), None)
    if name is None:
        return
    group.rank = name

    def place(row: Row) -> tuple[int, float]:
        value = row.values.get(name)
        worth = 0.0 if value is None else value if direction(name) == "lower" else -value
        return (2 if value is None else int(bool(spaces_of(row, name))), worth)

    group.rows.sort(key=place)
    for row in group.rows:
        for network in spaces_of(row, name):
            group.unranked.append(f"{row.name} has no place by {name}: {network}: {row.trained_on[network]}")


def _rankable(group: Group, rank: str | None) -> Iterator[str]:
    for name in dict.fromkeys(name for row in group.rows for name in row.values):
        have = [row for row in group.rows if name in row.values]
        free = [row for row in have if not spaces_of(row, name)]
        asked = len(free) == len(group.rows) if rank is None else rank in (name, base_name(name))
        if asked and direction(name):
            yield name


def spaces_of(row: Row, name: str) -> list[str]:
    """Networks behind a metric that the model of a row was trained on."""
    return [network for network in networks_behind(name) if network in row.trained_on]
