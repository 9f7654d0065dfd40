"""The block parser of token lines against a JSON parser, on well-formed and damaged files."""

import json

import numpy as np
import pytest

from data import token_lines
from data.token_lines import TokenLines

STYLES = {
    "as json.dumps writes": lambda label, tokens: json.dumps({"class_id": label, "tokens": tokens}),
    "compact": lambda label, tokens: json.dumps({"class_id": label, "tokens": tokens}, separators=(",", ":")),
    "tokens first": lambda label, tokens: json.dumps({"tokens": tokens, "class_id": label}),
    "ends of lines with a carriage return": lambda label, tokens: (
        json.dumps({"class_id": label, "tokens": tokens}) + "\r"
    ),
    "key twice": lambda label, tokens: f'{{"class_id": 1, "tokens": {tokens}, "class_id": {label}}}',
    "key with an escape": lambda label, tokens: f'{{"\\u0063lass_id": {label}, "tokens": {tokens}}}',
}


def content(count: int, num_tokens: int = 6, codebook_size: int = 1024) -> list[tuple[int, list[int]]]:
    rng = np.random.default_rng(0)
    # As many short numbers as long ones.
    tokens = (codebook_size ** rng.random((count, num_tokens))).astype(int) - 1
    return list(zip(rng.integers(0, 1000, count).tolist(), tokens.tolist(), strict=True))


def write(path, lines, end="\n"):
    path.write_text("\n".join(lines) + end)
    return path


def read(path, codebook_size=1024, start=0, group=1):
    lines = TokenLines(path, codebook_size=codebook_size, num_classes=1000)
    blocks = list(lines.blocks(start=start, group=group))
    return [pair for labels, tokens in blocks for pair in zip(labels.tolist(), tokens.tolist(), strict=True)]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("end", ["\n", ""])
def test_every_style_is_read_as_a_json_parser_reads_it(tmp_path, monkeypatch, style, end):
    monkeypatch.setattr(token_lines, "_BLOCK", 500)
    pairs = content(300)
    path = write(tmp_path / "x.jsonl", [STYLES[style](*pair) for pair in pairs], end)
    assert read(path) == pairs
    lines = TokenLines(path, codebook_size=1024, num_classes=1000)
    assert lines.count() == 300 and lines.num_tokens == 6


def test_lines_written_alike_need_no_json_parser(tmp_path, monkeypatch):
    pairs = content(300)
    path = write(tmp_path / "x.jsonl", [STYLES["as json.dumps writes"](*pair) for pair in pairs])
    lines, parsed = TokenLines(path, codebook_size=1024, num_classes=1000), []
    monkeypatch.setattr(lines, "_parse_line", lambda raw, number: parsed.append(number))
    (block,) = lines.blocks()
    assert block[1].tolist() == [tokens for _, tokens in pairs] and not parsed


def test_styles_may_be_mixed(tmp_path):
    pairs = content(60)
    styles = list(STYLES.values())
    path = write(tmp_path / "x.jsonl", [styles[i % len(styles)](*pair) for i, pair in enumerate(pairs)])
    assert read(path) == pairs


@pytest.mark.parametrize("codebook_size", [1, 2**16 + 1, 10**9, 2**32])
def test_small_and_large_codebooks(tmp_path, codebook_size):
    pairs = [*content(20, codebook_size=codebook_size), (0, [codebook_size - 1] * 6)]
    path = write(tmp_path / "x.jsonl", [STYLES["compact"](*pair) for pair in pairs])
    assert read(path, codebook_size) == pairs


@pytest.mark.parametrize("counted", [True, False])
def test_reading_starts_at_any_line_and_groups_stay_whole(tmp_path, monkeypatch, counted):
    monkeypatch.setattr(token_lines, "_BLOCK", 300)
    pairs = content(90)
    path = write(tmp_path / "x.jsonl", [STYLES["compact"](*pair) for pair in pairs])
    lines = TokenLines(path, codebook_size=1024, num_classes=1000)
    assert not counted or lines.count() == 90
    raw = path.read_bytes().splitlines(keepends=True)
    for start in (0, 1, 37, 89):
        assert lines.offset(start) == sum(map(len, raw[:start]))
        assert lines.classes(start, start + 3) == [label for label, _ in pairs[start : start + 3]]
    blocks = list(lines.blocks(start=10, group=8))
    assert len(blocks) > 3 and all(len(labels) % 8 == 0 for labels, _ in blocks)
    assert [row for _, tokens in blocks for row in tokens.tolist()] == [tokens for _, tokens in pairs[10:]]
    with pytest.raises(ValueError, match=r"x.jsonl ends before line 200"):
        lines.offset(199)
    with pytest.raises(ValueError, match=r"has 90 lines, not divisible by the 7 crops"):
        list(lines.blocks(group=7))


GOOD = '{"class_id": 5, "tokens": [1, 20, 300]}'


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("PNG", "is not JSON"),
        ("", "is not JSON"),
        (GOOD[:-3], "is not JSON"),
        (GOOD.replace("20", "020"), "is not JSON"),
        (GOOD.replace("5", "05"), "is not JSON"),
        (GOOD.replace("20", ""), "is not JSON"),
        (GOOD.replace('"class', '7"class'), "is not JSON"),
        # Without digits these look like the first line, with as many numbers.
        (GOOD.replace("20", "").replace("tokens", "to20kens"), "is not JSON"),
        (
            GOOD.replace("tokens", "tokens1"),
            r"keys class_id and tokens, found keys \['class_id', 'tokens1'\]",
        ),
        ("[1, 2, 3]", "must be an object with the keys class_id and tokens, found a list"),
        ('{"class_id": 5}', r"found keys \['class_id'\]"),
        (GOOD.replace("}", ', "file": "x"}'), r"found keys \['class_id', 'file', 'tokens'\]"),
        (GOOD.replace("5", "1000"), r"class_id=1000 must be a whole number in 0..999"),
        (GOOD.replace("5", "-1"), r"class_id=-1 must be"),
        (GOOD.replace("5", "true"), r"class_id=True must be"),
        (GOOD.replace("5", '"5"'), r"class_id=5 must be"),
        (GOOD.replace("5", '"\\n"'), r"class_id=\\n must be"),
        (GOOD.replace("20", "1024"), r"token 1024 must be in 0..1023"),
        (GOOD.replace("20", "-20"), r"token -20 must be in 0..1023"),
        (GOOD.replace("20", "9" * 12), r"token 999999999999 must be"),
        (GOOD.replace("20", "9" * 30), r"token 9+ must be"),
        (GOOD.replace("20", "2.0"), "must be a list of whole numbers"),
        (GOOD.replace("20", "[20]"), "must be a list of whole numbers"),
        (GOOD.replace("[1, 20, 300]", "7"), "must be a list of whole numbers"),
        (GOOD.replace(", 300", ""), "has 2 tokens, the first line 3"),
        (GOOD.replace("300", "300, 4"), "has 4 tokens, the first line 3"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, bad, message):
    path = write(tmp_path / "x.jsonl", [GOOD] * 30 + [bad] + [GOOD] * 9)
    with pytest.raises(ValueError, match=rf"x\.jsonl: line 31.* ?{message}"):
        read(path)


def test_files_without_usable_lines_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="is empty"):
        read(write(tmp_path / "x.jsonl", [], ""))
    with pytest.raises(ValueError, match="line 1: tokens must be a list"):
        read(write(tmp_path / "x.jsonl", ['{"class_id": 5, "tokens": []}']))
    monkeypatch.setattr(token_lines, "_LONGEST", 1000)
    monkeypatch.setattr(token_lines, "_BLOCK", 200)
    with pytest.raises(ValueError, match="line 2 and the next are too long"):
        read(write(tmp_path / "x.jsonl", [GOOD, "0" * 2000]))


def test_random_damage_never_gives_other_tokens_than_a_json_parser(tmp_path):
    """Every byte of a block of digits, brackets and spaces may be wrong; both ways of reading must agree."""
    rng, path = np.random.default_rng(0), tmp_path / "x.jsonl"
    alphabet = np.frombuffer(b'0123456789 ,[]{}:"-.ets\n', dtype=np.uint8)
    whole = np.frombuffer("\n".join([GOOD] * 4 + [""]).encode(), dtype=np.uint8)
    read_well = 0
    for attempt in range(400):
        damaged = whole.copy()
        where = rng.integers(len(GOOD) + 1, len(whole) - 1, rng.integers(1, 4))
        # Often digits for digits, or hardly anything is still well-formed.
        if attempt % 2:
            where = where[np.isin(damaged[where], alphabet[:10])]
        damaged[where] = rng.choice(alphabet[: 10 if attempt % 2 else None], len(where))
        path.write_bytes(damaged.tobytes())
        lines = TokenLines(path, codebook_size=1024, num_classes=1000)
        raw = path.read_bytes().split(b"\n")[:-1]
        try:
            expected = [lines._parse_line(line, i) for i, line in enumerate(raw, 1)]
        except ValueError:
            with pytest.raises(ValueError, match="line"):
                list(lines.blocks())
            continue
        read_well += 1
        ((labels, tokens),) = lines.blocks()
        assert np.column_stack([labels, tokens]).tolist() == expected
    assert 20 < read_well < 380
