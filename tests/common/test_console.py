"""Texts that a stream cannot show do not end a program."""

import io
import sys

import pytest

from common.console import printable, say


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_names_that_are_not_text_are_printed(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    say("caf\udce9.png 猫")
    shown = stream.buffer.getvalue().decode(encoding)
    assert shown == ("caf\\udce9.png 猫\n" if encoding == "utf-8" else "caf\\udce9.png \\u732b\n")


def test_names_stay_on_one_line():
    assert printable("plain name, 猫.png") == "plain name, 猫.png"
    assert printable("a\udce9\n\x1b[31m\ud800.png") == "a\\xe9\\n\\x1b[31m\\ud800.png"
