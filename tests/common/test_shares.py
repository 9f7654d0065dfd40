import pytest

from common.build import ConfigError, check_value, type_name
from common.config import to_tree
from common.shares import Share, Steps, is_before
from training.settings import ScheduleSettings


@pytest.mark.parametrize(
    ("text", "max_steps", "expected"),
    [("5%", 1000, 50), ("2.5%", 4000, 100), ("0%", 10, 0), ("100%", 7, 7), ("33%", 10, 3), ("1%", 20, 0)],
)
def test_a_share_is_a_number_of_steps(text, max_steps, expected):
    assert Share(text).of(max_steps) == expected


def test_options_take_steps_and_shares_and_say_what_else_was_given():
    assert check_value("a.b", "12.5%", Steps) == Share("12.5%")
    assert check_value("a.b", 1e3, Steps) == 1000
    assert check_value("a.b", ["75%", 9], list[Steps]) == [Share("75%"), 9]
    assert type_name(Steps) == "int or share of the run (5%)"
    for wrong in ("five%", "101%", "-5%", "5 %", "5%%"):
        with pytest.raises(ConfigError, match=r"a\.b: .*is not a share such as '5%', from 0% to 100%"):
            check_value("a.b", wrong, Steps)
    with pytest.raises(ConfigError, match=r"a\.b='5' has the wrong type; expected int or share"):
        check_value("a.b", "5", Steps)
    with pytest.raises(ConfigError, match=r"a\.b='5%' has the wrong type; expected int"):
        check_value("a.b", "5%", int)


def test_only_what_can_be_compared_is_before():
    assert is_before(3, 4) and is_before(Share("9.5%"), Share("10%"))
    assert not is_before(4, 4) and not is_before(Share("9%"), Share("9%"))
    assert not is_before(3, Share("9%")) and not is_before(Share("9%"), 3)
    with pytest.raises(ConfigError, match="must rise"):
        ScheduleSettings(name="steps", drop_steps=[Share("90%"), Share("75%")])


def test_a_share_is_stored_as_plain_text():
    stored = to_tree(ScheduleSettings(warmup_steps=Share("5%")))["warmup_steps"]
    assert stored == "5%" and type(stored) is str
