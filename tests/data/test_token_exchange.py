"""Token files of other programs: exact round trips, resumed and repeated imports, damaged sources, memory."""

import json
import os
import shutil
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import multiprocessing

from data import token_exchange, token_lines
from data.token_exchange import (
    ImportOptions,
    export_jsonl,
    export_npy,
    import_jsonl,
    import_npy,
    open_tokens,
)
from data.token_memmap import TokenHeader, TokenMemmap, TokenWriter

OPTIONS = ImportOptions(codebook_size=1024, tokenizer="maskgit-vqgan")


def content(images=40, crops=10, num_tokens=6):
    rng = np.random.default_rng(0)
    return rng.integers(0, 1024, (images, crops, num_tokens)), rng.integers(0, 1000, images)


def write_lines(path, tokens, labels):
    lines = [
        json.dumps({"class_id": label, "tokens": row})
        for image, label in zip(tokens.tolist(), labels.tolist(), strict=True)
        for row in image
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_arrays(root, tokens, labels, name="imagenet256"):
    for kind in ("codes", "labels"):
        (root / f"{name}_{kind}").mkdir(parents=True)
    for i, (image, label) in enumerate(zip(tokens, labels, strict=True)):
        np.save(root / f"{name}_codes" / f"{i}.npy", image[None])
        np.save(root / f"{name}_labels" / f"{i}.npy", np.array([label]))
    return root


def assert_holds(path, tokens, labels):
    source = TokenMemmap(path=path)
    assert np.array_equal(source.all_crops(0, len(source)), tokens)
    assert np.array_equal(source.labels, labels)


def folder_content(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def lines(tmp_path):
    return write_lines(tmp_path / "x.jsonl", *content())


# ---- lines of JSON


@pytest.mark.parametrize("crops", [1, 10, None])
def test_lines_go_in_and_come_out_unchanged(tmp_path, lines, crops, capsys):
    header = import_jsonl(lines, tmp_path / "x.tokens", replace(OPTIONS, crops=crops))
    tokens, labels = content()
    if crops == 1:
        tokens, labels = tokens.reshape(400, 1, 6), labels.repeat(10)
    assert_holds(tmp_path / "x.tokens", tokens, labels)
    assert TokenMemmap(path=tmp_path / "x.tokens").header == header
    assert (header.num_images, header.crops, header.num_tokens) == (len(tokens), tokens.shape[1], 6)
    assert (header.codebook_size, header.tokenizer, header.weight_hash) == (1024, "maskgit-vqgan", "")
    assert header.class_names == [str(i) for i in range(1000)] and header.image_size == 256
    assert ("taken as 40 images x 10 crops" in capsys.readouterr().out) == (crops is None)
    export_jsonl(tmp_path / "x.tokens", tmp_path / "y.jsonl")
    assert (tmp_path / "y.jsonl").read_bytes() == lines.read_bytes()
    with pytest.raises(ValueError, match=r"y.jsonl exists; overwrite=true"):
        export_jsonl(tmp_path / "x.tokens", tmp_path / "y.jsonl")


def test_number_of_images_saves_the_count(tmp_path, lines, monkeypatch):
    def never(self):
        raise AssertionError("counted")

    monkeypatch.setattr(token_lines.TokenLines, "count", never)
    import_jsonl(lines, tmp_path / "x.tokens", replace(OPTIONS, crops=10, num_images=40))
    assert_holds(tmp_path / "x.tokens", *content())


@pytest.mark.parametrize(("images", "crops", "expected"), [(45, 1, 1), (40, 1, 1), (4, 10, 10), (3, 7, 1)])
def test_crops_are_guessed_from_classes(tmp_path, images, crops, expected):
    tokens, labels = content(images, crops)
    labels[:] = np.arange(images)
    path = write_lines(tmp_path / "x.jsonl", tokens, labels)
    assert import_jsonl(path, tmp_path / "x.tokens", OPTIONS).crops == expected


def test_wrong_numbers_of_lines_are_named(tmp_path, lines):
    for change, message in (
        ({"crops": 7}, "has 400 lines, expected a multiple of crops=7"),
        ({"num_images": 39}, "has 400 lines, expected num_images=39 x 10"),
        ({"num_images": 39, "crops": 10}, "more lines than num_images=39 x 10"),
        ({"num_images": 41, "crops": 10}, "ends after 400 lines, expected num_images=41 x 10"),
    ):
        with pytest.raises(ValueError, match=f"x.jsonl (has )?{message}"):
            import_jsonl(lines, tmp_path / "x.tokens", replace(OPTIONS, **change))
        assert [p.name for p in tmp_path.iterdir()] == ["x.jsonl"]


def test_crops_of_one_image_must_have_one_class(tmp_path):
    tokens, labels = content(400, 1)
    labels[:] = 3
    labels[257] = 4
    path = write_lines(tmp_path / "x.jsonl", tokens, labels)
    message = r"line 258 has class_id=4, but line 251, of the same image with crops=10, has 3"
    with pytest.raises(ValueError, match=message):
        import_jsonl(path, tmp_path / "x.tokens", replace(OPTIONS, crops=10))


def test_options_are_checked():
    for key, value in (("codebook_size", 0), ("crops", 0), ("num_classes", None), ("num_images", 1.5)):
        with pytest.raises(ValueError, match=f"{key}={value} must be a positive whole number"):
            ImportOptions(**{"codebook_size": 1024, key: value})


def test_interrupted_import_goes_on_where_it_stopped(tmp_path, lines, monkeypatch):
    monkeypatch.setattr(token_lines, "_BLOCK", 2000)
    write, done, fail = TokenWriter.write, [], True

    def fail_later(self, rows, tokens, labels):
        if fail and len(done) > 12:
            raise OSError("disk full")
        write(self, rows, tokens, labels)
        done.extend(rows.tolist())

    monkeypatch.setattr(TokenWriter, "write", fail_later)
    with pytest.raises(OSError, match="disk full"):
        import_jsonl(lines, tmp_path / "x.tokens", OPTIONS)
    assert not (tmp_path / "x.tokens").exists()
    fail = False
    import_jsonl(lines, tmp_path / "x.tokens", OPTIONS)
    assert done == list(range(40))  # none of them twice
    assert_holds(tmp_path / "x.tokens", *content())


def test_repeating_an_import_does_nothing_and_another_is_refused(tmp_path, lines):
    path = tmp_path / "x.tokens"
    header = import_jsonl(lines, path, OPTIONS)
    before = path.stat().st_mtime_ns
    assert import_jsonl(lines, path, OPTIONS) == header and path.stat().st_mtime_ns == before
    for change, message in (
        ({"crops": 1}, "crops 10 instead of 1"),
        ({"num_classes": 1001}, "num_classes 1000 instead of 1001"),
        ({"weight_hash": "abc"}, "weight_hash '' instead of 'abc'"),
    ):
        with pytest.raises(ValueError, match=f"holds other tokens .{message}.; overwrite=true"):
            import_jsonl(lines, path, replace(OPTIONS, **change))
    assert import_jsonl(lines, path, replace(OPTIONS, crops=1), overwrite=True).crops == 1
    path.write_text("something else")
    with pytest.raises(ValueError, match="not a token file"):
        import_jsonl(lines, path, OPTIONS)


def test_a_source_that_changes_meanwhile_is_refused(tmp_path, lines, monkeypatch):
    write = TokenWriter.write

    def change(self, rows, tokens, labels):
        os.utime(lines, ns=(1, 1))
        write(self, rows, tokens, labels)

    monkeypatch.setattr(TokenWriter, "write", change)
    with pytest.raises(ValueError, match="changed while it was imported"):
        import_jsonl(lines, tmp_path / "x.tokens", OPTIONS)
    assert not (tmp_path / "x.tokens").exists()


def test_memory_does_not_grow_with_the_file(tmp_path):
    """50,000 lines, 77 MB: importing needs at most 20 MB; holding all lines, or all tokens, would need more."""
    line = json.dumps({"class_id": 7, "tokens": list(range(1000, 1256))}) + "\n"
    path = tmp_path / "x.jsonl"
    path.write_text(line * 50_000)
    assert path.stat().st_size > 75e6
    tracemalloc.start()
    try:
        import_jsonl(path, tmp_path / "x.tokens", replace(OPTIONS, codebook_size=2000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6, peak
    assert len(TokenMemmap(path=tmp_path / "x.tokens")) == 5000


# ---- pairs of arrays


@pytest.mark.parametrize("crops", [1, 10])
def test_arrays_go_in_and_come_out_unchanged(tmp_path, crops):
    root = write_arrays(tmp_path / "in", *content(12, crops), name="imagenet384")
    header = import_npy(root, tmp_path / "x.tokens", OPTIONS)
    assert (header.num_images, header.crops, header.num_tokens, header.image_size) == (12, crops, 6, 384)
    assert_holds(tmp_path / "x.tokens", *content(12, crops))
    assert import_npy(root, tmp_path / "x.tokens", OPTIONS) == header  # again
    export_npy(tmp_path / "x.tokens", tmp_path / "out")
    assert folder_content(tmp_path / "out") == folder_content(root)
    with pytest.raises(ValueError, match=r"imagenet384_codes exists; remove it"):
        export_npy(tmp_path / "x.tokens", tmp_path / "out")


def test_arrays_may_lack_the_leading_dimension(tmp_path):
    root = write_arrays(tmp_path / "in", *content(5, 3))
    for i, image in enumerate(content(5, 3)[0]):
        np.save(root / f"imagenet256_codes/{i}.npy", image)
    import_npy(root, tmp_path / "x.tokens", OPTIONS)
    assert_holds(tmp_path / "x.tokens", *content(5, 3))


def test_damaged_folders_are_named(tmp_path):
    whole = write_arrays(tmp_path / "whole", *content(5, 3))

    def attempt(message, damage, **change):
        root = shutil.copytree(whole, tmp_path / "in")
        damage(root / "imagenet256_codes", root / "imagenet256_labels")
        with pytest.raises(ValueError, match=message):
            import_npy(root, tmp_path / "x.tokens", replace(OPTIONS, **change))
        shutil.rmtree(root)

    ones = np.ones((1, 3, 6), dtype=np.int64)
    attempt(r"_codes has 5 arrays and .* 4", lambda c, i: (i / "4.npy").unlink())
    attempt(r"codes/2.npy is missing", lambda c, i: (c / "2.npy").rename(c / "9.npy"))
    attempt(r"codes/2.npy cannot be read", lambda c, i: (c / "2.npy").write_bytes(b"\x93NUMPY"))
    attempt(r"codes/2.npy cannot be read", lambda c, i: np.save(c / "2.npy", [{}, None], allow_pickle=True))
    attempt(r"codes/2.npy must hold .* whole", lambda c, i: np.save(c / "2.npy", ones * 0.5))
    attempt(r"codes/2.npy has shape \[1, 3, 5\], expected", lambda c, i: np.save(c / "2.npy", ones[..., :5]))
    attempt(r"codes/2.npy has values in 1024..1024", lambda c, i: np.save(c / "2.npy", 1024 * ones))
    attempt(r"labels/2.npy has values in -1..-1", lambda c, i: np.save(i / "2.npy", np.array([-1])))
    attempt(r"labels/2.npy has shape \[2\]", lambda c, i: np.save(i / "2.npy", np.array([1, 2])))
    attempt(r"codes/0.npy has shape \[6\]", lambda c, i: np.save(c / "0.npy", ones[0, 0]))
    attempt(r"5 images with 3 crops, expected crops=10", lambda c, i: None, crops=10)
    attempt(r"no imagenet256_labels", lambda c, i: shutil.rmtree(i))
    attempt(r"ends in _codes, found none", lambda c, i: shutil.rmtree(c))
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        import_npy(tmp_path / "nowhere", tmp_path / "x.tokens", OPTIONS)


@pytest.mark.parametrize("suffix", ["jsonl", "folder"])
def test_images_never_tokenized_are_left_out(tmp_path, suffix, capsys):
    header = TokenHeader(
        num_images=4,
        crops=2,
        num_tokens=6,
        codebook_size=1024,
        tokenizer="x",
        weight_hash="1",
        image_size=64,
        class_names=["a", "b"],
    )
    tokens = content(4, 2)[0]
    TokenWriter.create(tmp_path / "x.tokens", header)
    writer = TokenWriter(tmp_path / "x.tokens")
    writer.write([0, 3], tokens[[0, 3]], [1, 0])
    writer.close()
    assert TokenWriter.finish(tmp_path / "x.tokens") == 2
    out = tmp_path / f"x.{suffix}"
    (export_jsonl if suffix == "jsonl" else export_npy)(tmp_path / "x.tokens", out)
    assert "2 images of" in capsys.readouterr().err
    options = replace(OPTIONS, crops=2, num_classes=2)
    header = (import_jsonl if suffix == "jsonl" else import_npy)(out, tmp_path / "y.tokens", options)
    assert_holds(tmp_path / "y.tokens", tokens[[0, 3]], [1, 0])
    assert header.image_size == (256 if suffix == "jsonl" else 64)


# ---- training straight from them


def test_open_tokens_imports_once(tmp_path, lines, monkeypatch):
    imports = []
    write = TokenWriter.create
    monkeypatch.setattr(TokenWriter, "create", lambda *a: (imports.append(a), write(*a)))
    source = open_tokens(lines, codebook_size=1024)
    assert source.path == tmp_path / "x.jsonl.tokens" and source.header.crops == 10 and len(source) == 40
    assert len(open_tokens(lines, codebook_size=1024, random_crop=False)) == 40
    assert len(imports) == 1
    assert open_tokens(lines, codebook_size=1024, crops=1).header.crops == 1  # other options
    write_lines(lines, *content(30, 1))
    assert len(open_tokens(lines, codebook_size=1024, crops=1)) == 30  # another source
    assert len(imports) == 3
    assert not open_tokens(tmp_path / "x.jsonl.tokens", random_crop=False).random_crop  # as it is
    root = write_arrays(tmp_path / "arrays", *content(5, 3))
    assert len(open_tokens(root, codebook_size=1024, imported=tmp_path / "b.tokens")) == 5
    assert (tmp_path / "b.tokens").exists()


def test_open_tokens_refuses_what_it_cannot_know_or_must_not_replace(tmp_path, lines):
    with pytest.raises(ValueError, match=r"codebook_size must be given to import .*x.jsonl"):
        open_tokens(lines)
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        open_tokens(tmp_path / "none.jsonl", codebook_size=1024)
    header = import_jsonl(lines, tmp_path / "a.tokens", OPTIONS)
    mine = tmp_path / "x.jsonl.tokens"
    TokenWriter.create(mine, replace(header, source=""))
    writer = TokenWriter(mine)
    writer.write([0], content()[0][:1], [0])
    writer.close()
    TokenWriter.finish(mine)
    with pytest.raises(ValueError, match="x.jsonl.tokens holds other tokens"):
        open_tokens(lines, codebook_size=1024)


def _worker(rank: int, store: str, good: str, bad: str) -> None:
    torch.set_num_threads(1)
    load = token_exchange.import_jsonl
    entered = []
    token_exchange.import_jsonl = lambda *a, **k: (entered.append(a), time.sleep(0.2), load(*a, **k))
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    source = open_tokens(good, codebook_size=1024)
    assert len(entered) == (rank == 0)
    assert np.array_equal(source.all_crops(0, 40), content()[0])
    with pytest.raises(ValueError, match=r"bad.jsonl: line 3 is not JSON"):
        open_tokens(bad, codebook_size=1024, crops=1)
    torch.distributed.destroy_process_group()


def test_of_two_processes_one_imports_and_both_hear_of_errors(tmp_path, lines):
    bad = write_lines(tmp_path / "bad.jsonl", *content(2, 1))
    bad.write_text(bad.read_text() + "nonsense\n")
    arguments = (str(tmp_path / "store"), str(lines), str(bad))
    multiprocessing.start_processes(_worker, arguments, nprocs=2, start_method="fork")


def test_whoever_imports_at_the_same_time_and_is_second_gets_the_same(tmp_path, lines, monkeypatch):
    path, create, others = tmp_path / "x.tokens", TokenWriter.create, []

    def create_while_another_program_starts(output, header):
        pid = os.fork()
        if not pid:
            try:
                monkeypatch.setattr(TokenWriter, "create", None)  # it finds the tokens, and makes none
                os._exit(import_jsonl(lines, path, OPTIONS) != header)
            finally:
                os._exit(2)
        others.append(pid)
        create(output, header)

    monkeypatch.setattr(TokenWriter, "create", create_while_another_program_starts)
    import_jsonl(lines, path, OPTIONS)
    assert os.waitpid(others[0], 0)[1] == 0
    assert_holds(path, *content())


def test_tokens_of_large_codebooks_survive_every_format(tmp_path):
    """2^18 codes need 32 bits in the token file, whichever file they came from."""
    size = 2**18
    rng = np.random.default_rng(0)
    tokens, labels = rng.integers(0, size, (20, 10, 16)), rng.integers(0, 1000, 20)
    tokens[0, 0, :2] = 0, size - 1
    options = ImportOptions(codebook_size=size)
    sources = {
        "lines": (import_jsonl, write_lines(tmp_path / "x.jsonl", tokens, labels)),
        "arrays": (import_npy, write_arrays(tmp_path / "arrays", tokens, labels)),
    }
    for name, (load, source) in sources.items():
        header = load(source, tmp_path / f"{name}.tokens", replace(options, crops=10))
        assert header.dtype == np.uint32 and header.row_bytes == 4 * 160
        assert_holds(tmp_path / f"{name}.tokens", tokens, labels)
    export_jsonl(tmp_path / "arrays.tokens", tmp_path / "again.jsonl")
    export_npy(tmp_path / "lines.tokens", tmp_path / "again")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "x.jsonl").read_bytes()
    assert folder_content(tmp_path / "again") == folder_content(tmp_path / "arrays")
    tokens[3, 2, 1] = size
    with pytest.raises(ValueError, match=f"token {size} must be in 0..{size - 1}"):
        import_jsonl(write_lines(tmp_path / "y.jsonl", tokens, labels), tmp_path / "y.tokens", options)
