import pytest

from common.requirements import require_all, require_files


def absent(kind, message):
    def find():
        raise kind(message)

    return find


def test_everything_that_is_missing_is_listed_at_once(capsys):
    found = []
    needed = {
        "weights": absent(ConnectionError, "no\nnetwork"),
        "images": lambda: found.append("images"),
        "library": absent(ValueError, "pip install it"),
    }
    with pytest.raises(
        FileNotFoundError, match="2 of 3 things that a job needs .*: weights, library; nothing"
    ):
        require_all(needed, "a job")
    assert found == ["images"]
    assert capsys.readouterr().err.splitlines() == [
        "missing: weights: no network",
        "missing: library: pip install it",
    ]
    require_all({"images": needed["images"]}, "a job")
    assert found == ["images"] * 2 and capsys.readouterr().err == ""


def test_bugs_are_not_taken_for_missing_pieces():
    with pytest.raises(TypeError):
        require_all({"x": absent(TypeError, "a bug")}, "a job")


def test_files_and_brace_patterns(tmp_path):
    for name in ("a0", "a2"):
        (tmp_path / name).touch()
    require_files(f"{tmp_path}/a0", "shards")
    require_files(f"{tmp_path}/a{{0,2}}", "shards")
    require_files("configs/debug", "relative to the repository")
    with pytest.raises(FileNotFoundError, match="a1 does not exist; expected shards"):
        require_files(f"{tmp_path}/a1", "shards")
    with pytest.raises(FileNotFoundError, match="2 of 4 files of .* the first is .*a1; expected shards"):
        require_files(f"{tmp_path}/a{{0..3}}", "shards")
    with pytest.raises(ValueError, match="braces do not match"):
        require_files(f"{tmp_path}/a{{0..3", "shards")
