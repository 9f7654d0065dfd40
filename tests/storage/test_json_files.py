"""Whatever is wrong with a JSON file is a ValueError that names it."""

import re

import pytest

from storage.json_files import parse_json, read_json, try_json

DEEP = b'{"a": ' * 5000


@pytest.mark.parametrize(
    "content, reason",
    [
        (DEEP, "not JSON: too many levels"),
        (b"\x80{", "not JSON: no text at byte 0"),
        (b"", "not JSON: Expecting value"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON: Exceeds the limit"),
        (b"[1]", "must hold keys and values, found list"),
        (b"{}", "loss is missing"),
        (b'{"loss": null}', "loss is None"),
        (b'{"loss": true}', "loss is True"),
        (b'{"loss": "1"}', "loss is '1'"),
    ],
)
def test_what_is_wrong_is_a_line_that_names_the_file(tmp_path, content, reason):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} cannot be read: .*{reason}") as caught:
        read_json(path, loss=(int, float))
    assert "\n" not in str(caught.value)
    assert try_json(path, loss=float) == {}


def test_what_is_right_is_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"loss": 1.5, "name": "x"}')
    assert read_json(path, loss=(int, float)) == try_json(path) == {"loss": 1.5, "name": "x"}
    assert parse_json("[1]") == [1]
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nowhere")
