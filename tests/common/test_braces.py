"""Brace patterns are counted before they are written out."""

import pytest

from common.braces import expand_braces
from storage.shard_paths import expand_shards


def test_patterns_are_written_out():
    assert expand_braces("a-{00..02}.tar") == ["a-00.tar", "a-01.tar", "a-02.tar"]
    assert expand_braces("{a,b{0..1}}.tar") == ["a.tar", "b0.tar", "b1.tar"]
    assert expand_braces("a.tar") == ["a.tar"]
    assert len(expand_braces("{0..99999}.tar")) == 100_000


@pytest.mark.parametrize(
    "pattern, reason",
    [
        ("a-{0..9999999999}.tar", "names 10000000000 files, at most 1000000"),
        ("a-{000..999}{000..999}{000..999}.tar", "names 1000000000 files"),
        ("{a,b}" * 40, "names 1099511627776 files"),
        ("{" * 5000, "is no usable brace pattern"),
        ("a-{0..3.tar", "braces do not match"),
    ],
)
def test_patterns_that_are_refused(pattern, reason):
    for expand in (expand_braces, expand_shards):
        with pytest.raises(ValueError, match=reason):
            expand(pattern)
