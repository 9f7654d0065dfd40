"""Lengths that belong to a run: a number of steps, or a share of them such as 5%."""

import re
from fractions import Fraction


class Share(str):
    """A share of a run's steps as it is written: '5%', '12.5%', from 0% to 100%.

    Raises:
        ValueError: it is written in another way, or above 100%.
    """

    def __new__(cls, text: str) -> "Share":
        if not re.fullmatch(r"\d+(\.\d+)?%", text) or Fraction(text[:-1]) > 100:
            raise ValueError(f"{text!r} is not a share such as '5%', from 0% to 100%")
        return super().__new__(cls, text)

    def of(self, max_steps: int) -> int:
        """The share of `max_steps` as a whole number of steps."""
        return round(Fraction(self[:-1]) * max_steps / 100)  # exact: 2.5% of 4000 is 100 on every machine


Steps = int | Share


def is_before(first: Steps, second: Steps) -> bool:
    """Whether `first` is certainly less than `second`; False for a number and a share, which only a run can compare."""
    if isinstance(first, Share) and isinstance(second, Share):
        return Fraction(first[:-1]) < Fraction(second[:-1])
    return not isinstance(first, Share) and not isinstance(second, Share) and first < second
