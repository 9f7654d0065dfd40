"""Class numbers are exact whole numbers, or none."""

import json

import pytest

from storage.labels import LARGEST, class_number


@pytest.mark.parametrize(
    "written", [7, 7.0, "7", " 7 \r\n", b"7\n", b"\xef\xbb\xbf7", "7.0", "+7", "007", b"7\0", "7.000"]
)
def test_ways_to_write_seven(written):
    assert class_number(written) == 7 and type(class_number(written)) is int


@pytest.mark.parametrize(
    "written",
    [3.7, "3.7", True, False, None, -1, "-1", "1_0", "\uff11", "\u0667", "\u00b2", b"\xff", "", " ", "7 8", "7.", ".7"]
    + [float("nan"), float("inf"), 1e300, "1e1", "0x7", "n01440764", [7], {"label": 7}, LARGEST + 1, "9" * 5000],
)  # fmt: skip
def test_what_is_no_class_number(written):
    assert class_number(written) is None


def test_the_largest_numbers_are_exact():
    assert (
        class_number(LARGEST)
        == class_number(str(LARGEST))
        == class_number(json.loads(f"{LARGEST}.0"))
        == LARGEST
    )
    assert class_number("0") == class_number("0000000000000000000") == class_number(-0.0) == 0
