"""Class numbers as people write them: exact whole numbers, or none."""

import re
from typing import Any

LARGEST = 2**31 - 1
_WHOLE = re.compile(r"\+?0*([0-9]{1,10})(\.0+)?", re.ASCII)


def class_number(value: Any) -> int | None:
    """The number that a text, bytes in UTF-8, or a value of a JSON file stands for; None if it is no class number.

    7, 7.0, "7", " 7\\n" and "7.0" are 7. 3.7, -1, true, "1_0", digits of other scripts and numbers above LARGEST are
    none.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")  # some editors begin a file with a mark
        except UnicodeDecodeError:
            return None
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value.strip(" \t\r\n\0"))
        value = int(match[1]) if match else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= LARGEST else None  # True is an int, too
