"""Lists of image files with labels or captions, as people have them: CSV, JSON, JSON lines.

| Form | Holds |
|---|---|
| `.csv`, `.tsv` | a header and a row per image; commas, semicolons or tabs; quotes as RFC 4180 has them |
| `.jsonl` | an object per line |
| `.json` | a list of such objects, or one object of {path: label} |

Columns and keys are known by their names, in upper or lower case (COLUMNS); others are ignored. `metadata.csv` and
`metadata.jsonl` of the `datasets` library are such lists.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.console import printable
from storage.files import atomic_file
from storage.json_files import parse_json
from storage.labels import class_number

# What a column holds, by its name. "label" is a number or a name, "class" always a name.
COLUMNS = {
    "path": ("path", "file_name", "filename", "file", "image"),
    "label": ("label",),
    "class": ("class", "class_name"),
    "caption": ("caption", "text"),
}
_KINDS = {name: kind for kind, names in COLUMNS.items() for name in names}
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+(e[+-]?[0-9]+)?", re.ASCII | re.IGNORECASE)
_TO_QUOTE = frozenset(',"\r\n;\t')
_SHOWN = 40  # characters of a value in a message


class Row(NamedTuple):
    """One entry of a list."""

    line: int  # from 1; of JSON, the number of the entry
    path: str  # as written, with the bytes of the file name
    label: int | str | None  # class number, class name, or None for an empty field
    caption: str | None


class ListFile(NamedTuple):
    """Entries of a list in their order."""

    path: Path
    rows: list[Row]
    has_labels: bool  # there is such a column
    has_captions: bool

    def where(self, row: Row) -> str:
        """File and place of a row, for messages."""
        return _where(self.path, row.line)


def read_image_list(path: str | Path) -> ListFile:
    """Read a list of images.

    Labels are class numbers if all of the column "label" are whole numbers from 0 on, else names. Whether files are
    there is not looked at.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no such list, or a value is none; the message names the file, the line and the value.
    """
    path = Path(path)
    if not path.is_file():
        what = "is no ordinary file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"list of images {path} {what}")
    ending = path.suffix.lower()
    if ending not in LIST_SUFFIXES:
        raise ValueError(f"{path} is no list of images by its suffix; expected {', '.join(LIST_SUFFIXES)}")
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is UTF-16; save it as UTF-8")
    # Names of files may be any bytes; texts are checked one by one, with their lines.
    text = content.decode("utf-8-sig", "surrogateescape")
    if ending in (".csv", ".tsv"):
        records = _csv_records(path, text, ending)
    else:
        records = _json_lines(path, text) if ending == ".jsonl" else _json_records(path, text)
    rows, kinds = [], set()
    for line, record in records:
        found = _row(path, line, record)
        kinds.update(record)
        rows.append(found)
    if not rows:
        raise ValueError(f"{path} lists no image")
    if {"label", "class"} <= kinds:
        raise ValueError(f'{path} has "label" and "class"; keep one of them, or rename the other')
    if "label" in kinds:
        rows = _labelled(path, rows)
    _check_repeated(path, rows)
    return ListFile(path, rows, not kinds.isdisjoint(("label", "class")), "caption" in kinds)


def _where(path: Path, line: int) -> str:
    return f"{path}: {'entry' if path.suffix.lower() == '.json' else 'line'} {line}"


def _csv_records(path: Path, text: str, ending: str) -> Iterator[tuple[int, dict[str, Any]]]:
    header = text.partition("\n")[0]
    delimiter = "\t" if ending == ".tsv" else max(",;\t", key=header.count)  # the comma if there is none
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        kinds = _columns(path, next(reader, []))
        line = reader.line_num + 1
        for fields in reader:
            if fields:  # an empty line is no row
                if len(fields) != len(kinds):
                    raise ValueError(
                        f"{_where(path, line)} has {len(fields)} fields, the header {len(kinds)}"
                        " (a field with a comma must be in quotes)"
                    )
                yield line, {k: value for k, value in zip(kinds, fields, strict=True) if k}
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{_where(path, line)} is not CSV: {error}") from None


def _columns(path: Path, names: Sequence[str]) -> list[str]:
    """What each column holds; empty for those that are ignored."""
    kinds = [_KINDS.get(name.strip().lower(), "") for name in names]
    shown = printable(", ".join(names))[:200]
    if "path" not in kinds:
        known = ", ".join(COLUMNS["path"])
        raise ValueError(f"{path}: the first line must name a column {known}; found: {shown or 'nothing'}")
    for kind in COLUMNS:
        if kinds.count(kind) > 1:
            twice = [name.strip() for name, k in zip(names, kinds, strict=True) if k == kind]
            raise ValueError(f"{path} has several columns of one meaning: {printable(', '.join(twice))}")
    return kinds


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            try:
                record = parse_json(content)
            except ValueError as error:
                raise ValueError(f"{_where(path, line)} is {error}") from None
            yield line, _object(path, line, record)


def _json_records(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        tree = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is {error}") from None
    if isinstance(tree, dict):
        yield from ((i, {"path": key, "label": value}) for i, (key, value) in enumerate(tree.items(), 1))
    elif isinstance(tree, list):
        yield from ((i, _object(path, i, record)) for i, record in enumerate(tree, 1))
    else:
        raise ValueError(f"{path} must hold a list of objects, or one object of path and label")


def _object(path: Path, line: int, record: Any) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"{_where(path, line)} must be an object, found {_shown(record)}")
    found: dict[str, Any] = {}
    for key, value in record.items():
        if kind := _KINDS.get(key.strip().lower()):
            if kind in found:
                raise ValueError(f"{_where(path, line)} has several values of one meaning, such as {key}")
            found[kind] = value
    if "path" not in found:
        raise ValueError(f"{_where(path, line)} has no key {', '.join(COLUMNS['path'])}")
    return found


def _row(path: Path, line: int, record: dict[str, Any]) -> Row:
    where, name, caption = _where(path, line), record["path"], record.get("caption")
    if not isinstance(name, str) or not name or "\0" in name:
        raise ValueError(f"{where}: the path must be a text, found {_shown(name)}")
    if caption is not None:
        caption = _text(where, "caption", caption)
    if "class" in record:
        value = record["class"]
        number = type(value) is int  # names as other programs write them
        label = None if value is None else _text(where, "class", str(value) if number else value) or None
    else:
        label = record.get("label")
        if isinstance(label, str):
            label = _text(where, "label", label) or None
        elif label is not None:
            label = class_number(label)
            if label is None:
                raise ValueError(f"{where}: label {_shown(record['label'])} is no class number and no name")
    return Row(line, name, label, caption)


def _text(where: str, what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: the {what} must be a text, found {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where}: the {what} is not UTF-8: {_shown(value)}") from None
    return value.strip()


def _shown(value: Any) -> str:
    text = printable(value if isinstance(value, str) else str(value))
    return repr(text[:_SHOWN] + ("..." if len(text) > _SHOWN else ""))


def _labelled(path: Path, rows: list[Row]) -> list[Row]:
    """Labels as numbers, where all are; else as names."""
    numbers = [class_number(row.label) for row in rows]
    given = [(row, n) for row, n in zip(rows, numbers, strict=True) if row.label is not None]
    if all(n is not None for _, n in given):
        return [row._replace(label=n) for row, n in zip(rows, numbers, strict=True)]
    if all(_NUMBER.fullmatch(str(row.label)) for row, _ in given):  # such as -1 or 3.7 among numbers
        wrong = next(row for row, n in given if n is None)
        raise ValueError(
            f"{_where(path, wrong.line)}: label {_shown(wrong.label)} is no class number; expected whole numbers"
            ' from 0 on, or names (a column "class" holds names, whatever they look like)'
        )
    return [row if row.label is None else row._replace(label=str(row.label)) for row in rows]


def _check_repeated(path: Path, rows: Iterable[Row]) -> None:
    first: dict[str, Row] = {}
    for row in rows:
        seen = first.setdefault(row.path, row)
        if seen.label != row.label:
            raise ValueError(
                f"{_where(path, row.line)}: {printable(row.path)} has the label {_shown(row.label)},"
                f" in line {seen.line} {_shown(seen.label)}"
            )


def write_image_list(path: str | Path, rows: Iterable[Sequence[str]], columns: Sequence[str]) -> None:
    """Write rows of texts as a CSV file that ``read_image_list`` reads, whole or not at all; raises WriteError."""
    lines = [",".join(map(_quoted, row)) + "\n" for row in (columns, *rows)]
    with atomic_file(path) as temporary:
        temporary.write_bytes(
            "".join(lines).encode("utf-8", "surrogateescape")
        )  # file names may be any bytes


def _quoted(value: str) -> str:
    return value if value and _TO_QUOTE.isdisjoint(value) else '"' + value.replace('"', '""') + '"'
