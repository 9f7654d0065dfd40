"""scripts/plan.py: what a run needs, for the arguments of a training program."""

import pytest

from common.build import ConfigError
from common.config import load_settings
from jobs.options.plan import PlanOptions
from jobs.plan import estimate, plan
from training.generator_settings import GeneratorRun

SMALL = [
    "config=configs/rar/imagenet_xl.yaml",
    *("generator.depth=2", "generator.hidden_size=128", "generator.num_heads=4", "generator.mlp_size=512"),
]


@pytest.fixture(scope="module")
def run():
    return load_settings(GeneratorRun, SMALL)


@pytest.fixture(scope="module")
def measured(run):
    return estimate(run, PlanOptions()).plan


def test_lines():
    said = dict(line.split("  ", 1) for line in plan([*SMALL, "gpus=8", "sharding=full", "precision=bf16"]))
    said = {key: value.strip() for key, value in said.items()}
    assert said["run"] == "rar-xl, 8 x a100-80, precision bf16, sharding full"
    assert said["global batch"] == "64 per GPU x 8 x 1 accumulated = 512"
    assert said["steps per epoch"].startswith("2502 of 1281167 examples; 250000 steps are 99.9 epochs")
    assert said["in all per GPU"].endswith("of 74.3 GB usable: fits")
    assert {"gathered blocks per GPU", "checkpoint", "time per step", "from storage"} <= said.keys()


def test_a_global_batch_is_kept_on_any_number_of_gpus(run, measured):
    for gpus, micro, accumulation in ((1, 64, 32), (8, 64, 4), (64, 32, 1), (256, 8, 1)):
        found = estimate(run, PlanOptions(gpus=gpus, global_batch=2048), measured)
        assert (found.micro_batch, found.accumulation, found.global_batch) == (micro, accumulation, 2048)


def test_time_follows_from_operations(run, measured):
    found = estimate(run, PlanOptions(gpu="a100-80", utilisation=0.5, gpus=4), measured)
    assert found.step_seconds == pytest.approx(measured.flops(64) / (312e12 * 0.5))
    assert found.images_per_second == pytest.approx(4 * 64 / found.step_seconds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*SMALL, "gpu=v100-32"], "gpu=v100-32 has no bf16; use precision=fp16"),
        ([*SMALL, "gpu=abacus"], "gpu='abacus' is not allowed; expected one of t4"),
        ([*SMALL, "utilisation=2"], r"utilisation=2.0 must be in \(0, 1\]"),
        (["gpus=8"], "no run is given"),
        ([*SMALL, "generator.dept=3"], r"generator\.dept is not an option \(did you mean 'depth'\?\)"),
    ],
)
def test_what_is_wrong_is_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        list(plan(arguments))


def test_auto_values_suit_the_gpu():
    auto = (
        "training.per_gpu_batch_size=auto",
        "training.global_batch_size=100000",
        "training.mixed_precision=auto",
    )
    run = load_settings(GeneratorRun, [*SMALL, *auto])
    found = estimate(run, PlanOptions(gpu="t4", gpus=1))
    assert found.plan.run.training.mixed_precision == "fp16" and found.fits
    assert found.micro_batch < found.global_batch == 100_000
