import pytest
import torch

from modeling.sampling.guidance import GUIDANCE_SCHEDULES, guidance_weights, guide, power_cosine_schedule
from tests.parity import assert_close, golden


@pytest.mark.parametrize("size", ["b", "l", "xl", "xxl"])
def test_published_schedules(size):
    arrays = golden("generator_functions")
    scale, power, _ = arrays[f"guidance_settings/rar_{size}"].tolist()
    weights = torch.tensor(power_cosine_schedule(256, scale, power), dtype=torch.float64)
    assert_close(weights, arrays[f"guidance/rar_{size}"], atol=1e-6)
    assert weights[0] == 1


def test_power_zero_is_constant():
    arrays = golden("generator_functions")
    weights = torch.tensor(power_cosine_schedule(256, 4, 0), dtype=torch.float64)
    assert_close(weights, arrays["guidance/pow0_scale4"], atol=1e-6)


def test_steps_are_counted_relative_to_the_total():
    expected = golden("generator_functions")["guidance/maskgit_s128_64steps_6.9_pow3"]
    weights = torch.tensor(guidance_weights("power-cosine", 64, 6.9, 3), dtype=torch.float64)
    assert_close(weights, expected, atol=1e-6)


def test_guide_weighs_the_halves():
    logits = torch.tensor([[3.0, 1.0], [1.0, 1.0]])
    assert guide(logits, 0).tolist() == [[1.0, 1.0]]
    assert guide(logits, 1).tolist() == [[3.0, 1.0]]
    assert guide(logits, 4).tolist() == [[9.0, 1.0]]


@pytest.mark.parametrize(("scale", "power"), [(-1.0, 1.0), (1.0, -1.0)])
def test_negative_settings_are_refused(scale, power):
    with pytest.raises(ValueError, match="must not be negative"):
        power_cosine_schedule(4, scale, power)


def test_constant_and_linear_add_to_the_conditional_logits():
    assert guidance_weights("constant", 3, 2.0, 0) == [3.0, 3.0, 3.0]
    assert guidance_weights("linear", 4, 2.0, 0) == [1.0, 1.5, 2.0, 2.5]


@pytest.mark.parametrize("schedule", GUIDANCE_SCHEDULES)
def test_scale_zero_is_off(schedule):
    assert guidance_weights(schedule, 3, 0, 1) == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("cosine", 8, 1.0, 1.0),
            "guidance_schedule='cosine' is unknown; choose constant, linear, power-cosine",
        ),
        (("linear", 0, 1.0, 1.0), "num_steps=0 must be at least 1"),
        (("linear", 8, -1.0, 1.0), "guidance_scale=-1.0"),
        (("constant", 8, 1.0, -2.0), "guidance_power=-2.0"),
    ],
)
def test_bad_schedules_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        guidance_weights(*arguments)
