"""Token files: round trip, several writers, opening time, damaged files."""

import json
import pickle
import struct
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.loaders import eval_loader
from data.source import CorruptSample
from data.token_memmap import TokenHeader, TokenMemmap, TokenWriter

HEADER = TokenHeader(
    num_images=20,
    crops=3,
    num_tokens=5,
    codebook_size=100,
    tokenizer="runs/titok",
    weight_hash="0123456789abcdef",
    image_size=16,
    class_names=["a", "Food & Drink"],
)


def content(header: TokenHeader = HEADER) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (header.num_images, header.crops, header.num_tokens)
    return rng.integers(0, header.codebook_size, shape), np.arange(header.num_images) % len(
        header.class_names
    )


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "train.tokens", HEADER)


def write(path, header):
    tokens, labels = content(header)
    TokenWriter.create(path, header)
    writer = TokenWriter(path)
    writer.write(range(header.num_images), tokens, labels)
    writer.close()
    assert TokenWriter.finish(path) == 0
    return path


@pytest.mark.parametrize("codebook_size", [100, 2**16, 2**16 + 1, 2**20])
def test_round_trip(tmp_path, codebook_size):
    header = replace(HEADER, codebook_size=codebook_size)
    source = TokenMemmap(path=write(tmp_path / "x.tokens", header), random_crop=False)
    tokens, labels = content(header)
    assert source.header == header and header.dtype.itemsize == (2 if codebook_size <= 2**16 else 4)
    assert len(source) == 20 and source.class_names == header.class_names and source.item_shape == (5,)
    batches = list(eval_loader(source, batch_size=7))
    assert torch.cat([b["tokens"] for b in batches]).tolist() == tokens[:, 0].tolist()
    assert torch.cat([b["labels"] for b in batches]).tolist() == labels.tolist()
    assert batches[0]["tokens"].dtype == torch.int64


def test_random_crop_shows_every_crop(file):
    source, (tokens, _) = TokenMemmap(path=file), content()
    rng = np.random.default_rng(0)
    seen = {tuple(source.load(4, rng)[0].tolist()) for _ in range(50)}
    assert seen == {tuple(crop) for crop in tokens[4].tolist()}


def test_a_pickle_carries_the_path_and_not_the_tokens(file):
    source = TokenMemmap(path=file, random_crop=False)
    pickled = pickle.dumps(source)
    assert len(pickled) < 1000
    assert torch.equal(pickle.loads(pickled).load(3, None)[0], source.load(3, None)[0])


def test_several_writers_fill_one_file_and_an_interrupted_job_goes_on(tmp_path):
    path, (tokens, labels) = tmp_path / "x.tokens", content()
    TokenWriter.create(path, HEADER)
    writers = [TokenWriter(path), TokenWriter(path)]
    for rank, writer in enumerate(writers):
        rows = range(rank * 10, rank * 10 + 7)
        writer.write(rows, tokens[rows], labels[rows])
        writer.close()
    assert not path.exists()
    TokenWriter.create(path, HEADER)
    writer = TokenWriter(path)
    rows = writer.missing_rows()
    assert rows.tolist() == [7, 8, 9, 17, 18, 19]
    writer.write(rows, tokens[rows], labels[rows])
    assert TokenWriter.finish(path) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["x.tokens"]
    source = TokenMemmap(path=path, random_crop=False)
    assert source.load_many(range(20), [np.random.default_rng(0)] * 20).tolist() == tokens[:, 0].tolist()


def test_a_changed_job_starts_from_nothing(tmp_path):
    path = tmp_path / "x.tokens"
    TokenWriter.create(path, HEADER)
    writer = TokenWriter(path)
    writer.write([0], content()[0][:1], [0])
    TokenWriter.create(path, replace(HEADER, weight_hash="another"))
    assert len(TokenWriter(path).missing_rows()) == 20


def test_rows_never_written_are_left_out(tmp_path):
    path, (tokens, labels) = tmp_path / "x.tokens", content()
    TokenWriter.create(path, HEADER)
    writer = TokenWriter(path)
    rows = [0, 3, 19]
    writer.write(rows, tokens[rows], labels[rows])
    assert TokenWriter.finish(path) == 17
    source = TokenMemmap(path=path, random_crop=False)
    assert source.labels.tolist() == labels[rows].tolist()
    assert [source.load(i, np.random.default_rng(0))[0].tolist() for i in range(3)] == tokens[
        rows, 0
    ].tolist()


def test_a_million_rows_open_in_milliseconds(tmp_path):
    path = tmp_path / "large.tokens"
    TokenWriter.create(path, replace(HEADER, num_images=10**6, crops=1, num_tokens=32))
    path.with_name(".large.tokens.part").rename(path)
    start = time.perf_counter()
    source = TokenMemmap(path=path)
    assert time.perf_counter() - start < 0.05
    assert len(source) == 10**6


@pytest.mark.parametrize("size", [3, 60, 5000, -1])
def test_a_file_cut_short_is_named(file, size):
    whole = file.read_bytes()
    file.write_bytes(whole[:size])
    with pytest.raises(
        ValueError, match=r"train.tokens (is cut short|has a damaged header|is not a token file)"
    ):
        TokenMemmap(path=file)


def test_other_damage_is_named(file, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.tokens does not exist"):
        TokenMemmap(path=tmp_path / "none.tokens")
    whole = file.read_bytes()
    file.write_bytes(whole + b"0")
    with pytest.raises(ValueError, match="do not belong"):
        TokenMemmap(path=file)
    file.write_bytes(whole.replace(b'"crops": 3', b'"crops": 2'))
    with pytest.raises(ValueError, match="damaged header"):
        TokenMemmap(path=file)
    file.write_bytes(whole[:7] + b"\x09" + whole[8:])
    with pytest.raises(ValueError, match="version 9"):
        TokenMemmap(path=file)
    file.write_bytes(b"PNG, or anything else" * 10)
    with pytest.raises(ValueError, match="is not a token file"):
        TokenMemmap(path=file)


def test_header_that_does_not_fit_the_content_is_named(file):
    import zlib

    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[8:16])[0]
    for change, message in (({"num_tokens": 9}, "is cut short"), ({"crops": "many"}, "crops='many'")):
        text = json.dumps(json.loads(whole[32 : 32 + length]) | change).encode()
        start = whole[:8] + struct.pack("<QQQ", len(text), zlib.crc32(text), 0) + text
        file.write_bytes(start + whole[len(start) :])
        with pytest.raises(ValueError, match=message):
            TokenMemmap(path=file)


def test_tokens_out_of_range_are_refused(file):
    writer_rows = np.full((1, 3, 5), 100)
    TokenWriter.create(file, HEADER)
    writer = TokenWriter(file)
    with pytest.raises(ValueError, match=r"tokens in 100..100 must be in 0..99"):
        writer.write([0], writer_rows, [0])
    with pytest.raises(ValueError, match=r"labels in 2..2 must be in 0..1"):
        writer.write([0], writer_rows - 1, [2])
    with pytest.raises(ValueError, match=r"\(1, 2, 5\) do not fit \(1, 3, 5\)"):
        writer.write([0], writer_rows[:, :2], [0])
    whole = bytearray(file.read_bytes())
    whole[-1] = 255  # the last token of the last crop of the last row
    file.write_bytes(whole)
    source = TokenMemmap(path=file)
    with pytest.raises(CorruptSample, match="row 19"):
        for seed in range(20):
            source.load(19, np.random.default_rng(seed))


def test_a_job_killed_while_it_makes_the_file_starts_again(tmp_path, monkeypatch):
    """A row is missing until it is written: none may look like the tokens 0 of class 0."""
    path, header = tmp_path / "train.tokens", replace(HEADER, num_images=2**20 + 5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        full = np.full

        def killed(count, *arguments, **keywords):
            if count == 5:
                raise KeyboardInterrupt
            return full(count, *arguments, **keywords)

        patch.setattr(np, "full", killed)
        TokenWriter.create(path, header)
    TokenWriter.create(path, header)
    assert len(TokenWriter(path).missing_rows()) == header.num_images
