import pytest

from tests.parity import golden, golden_json
from training.schedules import learning_rate
from training.settings import ScheduleSettings

SCHEDULES = golden_json("lr_schedule")


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_equals_released_schedules(name):
    arrays, spec = golden("lr_schedule"), SCHEDULES[name]
    settings = ScheduleSettings(name=spec["kind"], warmup_steps=spec["warmup_updates"], end_lr=spec["end_lr"])
    # The reference subtracts the discriminator's start from a length that it multiplied by the process count.
    total = spec["max_updates"] - (spec["discriminator_start"] or 0) / spec["processes"]
    compared = 0
    for updates, expected in zip(arrays[f"{name}_updates"], arrays[f"{name}_lr"], strict=True):
        if updates <= total:  # beyond its end the reference's cosine rises again; ours stays
            rate = learning_rate(
                int(updates), peak=spec["optimizer_lr"], base=spec["base_lr"], settings=settings, total=total
            )
            assert rate == pytest.approx(expected, rel=1e-12)
            compared += 1
    assert compared >= 10


def test_stays_at_the_end_value():
    settings = ScheduleSettings(warmup_steps=2, end_lr=0.1)
    rates = [learning_rate(s, peak=1.0, base=1.0, settings=settings, total=10) for s in range(15)]
    assert rates[0] == 0 and rates[2] == 1.0
    assert rates[10:] == pytest.approx([0.1] * 5)
    assert rates[2:11] == sorted(rates[2:11], reverse=True)
