"""Token files of other programs, one JSON object per line: {"class_id": 7, "tokens": [3, 1, ...]}.

Such a file may have tens of millions of lines, so it is read in blocks. Lines that a program wrote in a loop differ in
their digits only: what is left of a block without digits must then be what is left of its first line, repeated. Where
that holds, numbers are computed for the whole block at once; every other block goes through a JSON parser line by line,
which also words the errors. Both read the same language: the first line is checked as JSON, and a line that differs
from it in digits only is as good, provided that every number still has digits and no leading zero.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from common.console import printable, progress
from storage.json_files import parse_json

_DIGITS = b"0123456789"
_BLOCK = 2**20  # small enough for its intermediate results to stay in the cache of a core
_LONGEST = 2**26  # bytes of a line
_KEYS = ("class_id", "tokens")


class TokenLines:
    """Lines of a file with a class and tokens each, read in constant memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is empty, or its first line is not as described.
    """

    def __init__(self, path: Path, *, codebook_size: int, num_classes: int) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist or is not a file")
        self.codebook_size, self.num_classes = codebook_size, num_classes
        with open(self.path, "rb") as file:
            first = file.readline(_LONGEST)
        if not first:
            raise ValueError(f"{self.path} is empty")
        first = first if first.endswith(b"\n") else first + b"\n"
        self.num_tokens = 0  # of the first line; every other one must have as many
        self.num_tokens = len(self._parse_line(first, 1)) - 1
        # Lines before a byte, and that byte, in steps of a block.
        self._marks: list[tuple[int, int]] = [(0, 0)]
        self._template, self._columns, self._class_last = first.translate(None, _DIGITS), None, False
        # Non-digits that end a number, unless there are other digits (in a key, say) than those of our numbers.
        found = np.flatnonzero(np.diff(np.flatnonzero(_digits(first) > 9)) > 1) + 1
        places = [first.find(f'"{key}"'.encode()) for key in _KEYS]
        if len(found) == self.num_tokens + 1 and min(places) >= 0:
            self._columns, self._class_last = found, places[0] > places[1]

    def count(self) -> int:
        """Number of lines, in one pass over the file; `offset` is fast afterwards."""
        marks, lines, at, ends = [(0, 0)], 0, 0, True
        bar = progress(None, "counting lines", total=self.path.stat().st_size // 2**20, unit="MB")
        with open(self.path, "rb") as file:
            while chunk := file.read(_BLOCK):
                lines, at, ends = lines + chunk.count(b"\n"), at + len(chunk), chunk.endswith(b"\n")
                marks.append((lines, at))
                bar.update(len(chunk) // 2**20)
        bar.close()
        self._marks = marks
        return lines if ends else lines + 1

    def offset(self, line: int) -> int:
        """First byte of line 0, 1, ...; ValueError if the file has fewer lines."""
        if line == 0:
            return 0
        before, at = self._marks[bisect_left(self._marks, line, key=lambda mark: mark[0]) - 1]
        with open(self.path, "rb") as file:
            file.seek(at)
            while chunk := file.read(_BLOCK):
                found = chunk.count(b"\n")
                if before + found >= line:
                    breaks = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n"))
                    return at + int(breaks[line - before - 1]) + 1
                before, at = before + found, at + len(chunk)
        raise ValueError(f"{self.path} ends before line {line + 1}")

    def classes(self, start: int, stop: int) -> list[int]:
        """Classes of lines start..stop-1 (counted from 0), fewer at the end of the file; raises as `blocks`."""
        with open(self.path, "rb") as file:
            file.seek(self.offset(start))
            lines = [(file.readline(_LONGEST), number) for number in range(start + 1, stop + 1)]
        return [self._parse_line(raw, number)[0] for raw, number in lines if raw]

    def blocks(self, *, start: int = 0, group: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Classes [L] and tokens [L, N], int32 or int64, of all lines from line `start` (counted from 0) on.

        `group` lines belong together; every block has a multiple of it.

        Raises:
            ValueError: a line is not as described, or the last group is not complete; names the file and line.
        """
        line, rest = start, b""
        with open(self.path, "rb") as file:
            file.seek(self.offset(start))
            while chunk := file.read(_BLOCK):
                rest += chunk
                whole = rest.count(b"\n") // group * group
                if whole:
                    end = _end_of_lines(rest, rest.count(b"\n") - whole)
                    yield self._parse(rest[:end], line, whole)
                    line, rest = line + whole, rest[end:]
                elif len(rest) > _LONGEST:
                    raise ValueError(f"{self.path}: line {line + 1} and the next are too long for tokens")
        if rest:
            rest = rest if rest.endswith(b"\n") else rest + b"\n"
            left = rest.count(b"\n")
            parsed = self._parse(rest, line, left)
            if left % group:
                what = f"not divisible by the {group} crops of an image"
                raise ValueError(f"{self.path} has {line + left} lines, {what}")
            yield parsed

    def _parse(self, block: bytes, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        numbers = self._parse_alike(block, count)
        if numbers is None:
            lines = block.split(b"\n")[:-1]
            parsed = [self._parse_line(raw, start + i) for i, raw in enumerate(lines, 1)]
            numbers = np.array(parsed, dtype=np.int64)
        return numbers[:, 0], numbers[:, 1:]

    def _parse_alike(self, block: bytes, count: int) -> np.ndarray | None:
        """Class and tokens [count, 1 + N] of lines that look like the first one; None if one does not."""
        if self._columns is None or block.translate(None, _DIGITS) != self._template * count:
            return None
        digits = _digits(block)
        breaks = np.flatnonzero(digits > 9).astype(np.int32).reshape(count, -1)  # non-digits of a line
        last = breaks[:, self._columns] - 1
        length = last - breaks[:, self._columns - 1]
        longest = int(length.max())
        # The sum says that there are no digits elsewhere; nine of them fit 32 bits.
        if length.min() < 1 or longest > 9 or length.sum() != len(block) - breaks.size:
            return None
        if ((digits[last - length + 1] == 0) & (length > 1)).any():  # JSON has no leading zeros
            return None
        numbers = digits[last].astype(np.int32)
        for place in range(1, longest):
            numbers += np.where(length > place, digits[last - place], np.uint8(0)) * np.int32(10**place)
        if self._class_last:  # keys may come in either order
            numbers = np.roll(numbers, 1, axis=1)
        if numbers[:, 0].max() >= self.num_classes or numbers[:, 1:].max() >= self.codebook_size:
            return None
        return numbers

    def _parse_line(self, raw: bytes, number: int) -> list[int]:
        where = f"{self.path}: line {number}"
        try:
            record = parse_json(raw)
        except ValueError as error:
            raise ValueError(f"{where} is {error}") from None
        if not isinstance(record, dict) or set(record) != set(_KEYS):
            found = f"keys {sorted(record)[:5]}" if isinstance(record, dict) else f"a {type(record).__name__}"
            raise ValueError(f"{where} must be an object with the keys class_id and tokens, found {found}")
        label, tokens = record["class_id"], record["tokens"]
        if type(label) is not int or not 0 <= label < self.num_classes:
            shown = printable(str(label)[:40])
            raise ValueError(f"{where}: class_id={shown} must be a whole number in 0..{self.num_classes - 1}")
        if not isinstance(tokens, list) or not tokens or any(type(token) is not int for token in tokens):
            raise ValueError(f"{where}: tokens must be a list of whole numbers")
        if self.num_tokens and len(tokens) != self.num_tokens:
            raise ValueError(f"{where} has {len(tokens)} tokens, the first line {self.num_tokens}")
        if min(tokens) < 0 or max(tokens) >= self.codebook_size:
            wrong = next(token for token in tokens if not 0 <= token < self.codebook_size)
            raise ValueError(f"{where}: token {str(wrong)[:40]} must be in 0..{self.codebook_size - 1}")
        return [label, *tokens]


def _digits(text: bytes) -> np.ndarray:
    return np.frombuffer(text, dtype=np.uint8) - np.uint8(ord("0"))  # above 9 for any other byte (wraps)


def _end_of_lines(text: bytes, left: int) -> int:
    end = text.rfind(b"\n")  # then `left` lines back
    for _ in range(left):
        end = text.rfind(b"\n", 0, end)
    return end + 1
