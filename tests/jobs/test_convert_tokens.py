import json

import numpy as np
import pytest

from data.token_memmap import TokenMemmap
from jobs.convert_tokens import convert_tokens
from jobs.options.convert_tokens import ConvertTokensOptions


@pytest.fixture
def convert(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: program(convert_tokens, ConvertTokensOptions, *arguments)


@pytest.fixture
def lines(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"class_id": i // 10, "tokens": rng.integers(0, 1024, 5).tolist()} for i in range(30)]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_there_and_back(convert, lines, tmp_path):
    arguments = ("input=x.jsonl", "output=x.tokens", "crops=10", "codebook_size=1024", "tokenizer=vqgan")
    done = convert(*arguments)
    assert done.code == 0, done.err
    assert (
        "3 images x 10 crops x 5 tokens" in done.out and "crops/s" in done.out and "MB: x.tokens" in done.out
    )
    header = TokenMemmap(path=tmp_path / "x.tokens").header
    assert (header.tokenizer, header.codebook_size, header.crops) == ("vqgan", 1024, 10)
    assert "already holds these 3 images; nothing to do" in convert(*arguments).out
    assert convert("input=x.tokens", "output=y.jsonl").code == 0
    assert (tmp_path / "y.jsonl").read_bytes() == lines.read_bytes()


def test_a_folder_is_one_of_arrays(convert, lines, tmp_path):
    assert convert("input=x.jsonl", "output=x.tokens", "codebook_size=1024").code == 0
    done = convert("input=x.tokens", "output=codes")
    assert done.code == 0 and "3 images x 10 crops x 5 tokens" in done.out
    assert np.load(tmp_path / "codes/imagenet256_codes/2.npy").shape == (1, 10, 5)
    assert np.load(tmp_path / "codes/imagenet256_labels/2.npy").tolist() == [2]
    assert convert("input=codes", "output=y.tokens", "codebook_size=1024").code == 0
    old, new = TokenMemmap(path=tmp_path / "x.tokens"), TokenMemmap(path=tmp_path / "y.tokens")
    assert np.array_equal(old.all_crops(0, 3), new.all_crops(0, 3)) and np.array_equal(old.labels, new.labels)


def test_mistakes_are_one_line(convert, lines, tmp_path):
    assert convert("input=x.jsonl", "output=x.tokens", "codebook_size=1024").code == 0
    (tmp_path / "bad.jsonl").write_text(lines.read_text().replace("[", "{", 1))
    for arguments, message in (
        (("input=x.jsonl", "output=y.tokens"), "codebook_size is required"),
        (("input=x.jsonl", "output=y.jsonl"), "exactly one of them must be a .tokens file"),
        (("input=x.tokens", "output=y.tokens"), "exactly one of them"),
        (("input=x.tokens", "output=y.csv"), "suffix '.csv' must be .tokens or .jsonl"),
        (("input=none.jsonl", "output=y.tokens"), "input none.jsonl does not exist"),
        (("input=x.tokens", "output=x.jsonl"), "x.jsonl exists; overwrite=true replaces it"),
        (("input=x.jsonl", "output=x.tokens", "codebook_size=2048"), "codebook_size 1024 instead of 2048"),
        (("input=x.jsonl", "output=y.tokens", "codebook_size=9"), "x.jsonl: line 1: token"),
        (("input=bad.jsonl", "output=y.tokens", "codebook_size=1024"), "bad.jsonl: line 1 is not JSON"),
    ):
        done = convert(*arguments)
        assert done.code == 1 and message in done.err.splitlines()[-1], (arguments, done.err)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.jsonl", "x.jsonl", "x.tokens"]
    help_text = convert("--help").out
    assert "codebook_size=" in help_text
