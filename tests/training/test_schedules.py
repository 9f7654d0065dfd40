import pytest

from common.build import ConfigError
from tests.parity import golden, golden_json
from training.schedules import learning_rate, weight_decay
from training.settings import OptimizerSettings, ScheduleSettings

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


# Epochs, warm-up epochs, peak, end as a share of it, weight decay at the end; 1668 updates per epoch.
GENERATORS = {
    "ar_b": (300, 6, 3e-4, 0.1, None),
    "ar_xl": (350, 7, 2.4e-4, 0.1, None),
    "ibq_xxl": (450, 9, 3e-4, 0.01, 0.08),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_equals_the_generators_of_open_magvit2_and_ibq(name):
    epochs, warmup, peak, end, decay_end = GENERATORS[name]
    total = epochs * 1668
    settings = ScheduleSettings(
        name="linear", warmup_steps=warmup * 1668, warmup_start=0.005, end_lr=end * peak
    )
    optimizer = OptimizerSettings(weight_decay=0.05, weight_decay_end=decay_end)
    for step, rate, decay, same in golden("magvit2_misc")[f"sched_{name}"]:
        ours = learning_rate(int(step), peak=peak, base=peak, settings=settings, total=total)
        assert ours == pytest.approx(rate, rel=1e-9)
        assert decay == same  # there also what ours leaves without decay
        assert weight_decay(int(step), settings=optimizer, total=total) == pytest.approx(decay, rel=1e-9)
    assert int(step) == total - 1 and ours == pytest.approx(end * peak)


@pytest.mark.parametrize("name", ["cos", "lin0"])
def test_equals_the_pretraining_of_open_magvit2(name):
    kind, total = {"cos": "cosine", "lin0": "linear"}[name], 1_500_000
    settings = ScheduleSettings(name=kind, warmup_steps=5000, end_lr=1e-6)
    # The reference's cosine ends at the last update; ours right after it, so the same one is a step shorter.
    length = total - 1 if name == "cos" else total
    for step, generator, discriminator in golden("magvit2_misc")[f"sched_pretrain_{name}"]:
        ours = learning_rate(int(step), peak=1e-4, base=1e-4, settings=settings, total=length)
        assert ours == pytest.approx(generator, rel=1e-9, abs=0) and generator == discriminator
        in_runs = learning_rate(int(step), peak=1e-4, base=1e-4, settings=settings, total=total)
        assert abs(in_runs - ours) < 2e-6 * 1e-4


def test_equals_the_factors_of_open_magvit2():
    arrays = golden("magvit2_misc")
    constant, cosine = (ScheduleSettings(name=n, warmup_steps=100) for n in ("constant", "cosine"))
    for step, expected in arrays["sched_lambda_warmup"]:
        assert learning_rate(int(step), peak=1.0, base=1.0, settings=constant, total=1000) == expected
    for step, expected in arrays[
        "sched_lambda_cosine"
    ]:  # cut off at 0.05, where ours would approach an end_lr
        factor = learning_rate(int(step), peak=1.0, base=1.0, settings=cosine, total=1000)
        assert max(factor, 0.05 if step >= 100 else 0.0) == pytest.approx(expected, rel=1e-9)


def test_steps_drop_after_their_updates():
    settings = ScheduleSettings(name="steps", drop_steps=[5, 8], drop_factor=0.1, warmup_steps=2)
    rates = [learning_rate(s, peak=2.0, base=1.0, settings=settings, total=10) for s in range(12)]
    assert rates == pytest.approx([0, 1] + [2] * 3 + [0.2] * 3 + [0.02] * 4)


def test_plateau_and_warm_up_start():
    settings = ScheduleSettings(name="linear", warmup_steps=4, warmup_start=0.5, plateau=0.25, end_lr=0.2)
    rates = [learning_rate(s, peak=1.0, base=1.0, settings=settings, total=13) for s in range(15)]
    assert rates[:5] == pytest.approx([0.5, 0.625, 0.75, 0.875, 1.0])
    assert rates[5:7] == pytest.approx([1.0, 1.0])
    assert rates[12:] == pytest.approx([0.2] * 3)
    slopes = [b - a for a, b in zip(rates[6:12], rates[7:13], strict=True)]
    assert slopes == pytest.approx([-0.8 / 6] * 6)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "steps"}, "schedule.drop_steps=\\[\\]"),
        ({"drop_steps": [3]}, "the name is 'cosine'"),
        ({"name": "steps", "drop_steps": [3, 2]}, "must rise"),
        ({"name": "steps", "drop_steps": [3], "drop_factor": 0.0}, "schedule.drop_factor=0.0"),
        ({"warmup_start": 1.5}, "schedule.warmup_start=1.5"),
        ({"name": "linear", "plateau": 1.0}, "schedule.plateau=1.0"),
    ],
)
def test_impossible_schedules_are_named(options, named):
    with pytest.raises(ConfigError, match=named):
        ScheduleSettings(**options)
