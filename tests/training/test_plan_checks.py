"""A shortened run says before training what it will never reach, and what to write instead."""

import math

import pytest

import train_rar
import train_titok
from common.build import build_dataclass
from common.config import REPOSITORY, read_yaml
from common.shares import Share
from training.ema import ema_decay
from training.generator_settings import GeneratorRun, RARSettings
from training.plan_checks import short_generator_run, short_run, short_tokenizer_run
from training.run_lengths import in_steps
from training.settings import ScheduleSettings, TrainingSettings
from training.tokenizer_settings import TokenizerLossSettings, TokenizerRun

QUIET = {"preview_every": 0, "evaluate_every": 0, "save_every": 100}


def training(steps: int, **options: object) -> TrainingSettings:
    return TrainingSettings(max_steps=steps, **{**QUIET, **options})


@pytest.mark.parametrize(
    ("steps", "schedule", "said"),
    [
        (1000, {"warmup_steps": 5000}, ["only rises, to 20% of its peak", "warmup_steps=5%"]),
        (1000, {"warmup_steps": 1000}, ["warmup_steps=1000 is not over before training.max_steps=1000"]),
        (1000, {"warmup_steps": 600}, ["takes 60% of training.max_steps=1000"]),
        (1000, {"warmup_steps": 500}, []),
        (
            1000,
            {"name": "steps", "drop_steps": [900, 1000, 2000]},
            ["does not drop at [1000, 2000]", "75%,90%"],
        ),
        (1000, {"name": "steps", "drop_steps": [900, 999]}, []),
    ],
)
def test_learning_rate(steps, schedule, said):
    lines = list(short_run(training(steps), ScheduleSettings(**schedule)))
    assert len(lines) == bool(said) and all(part in lines[0] for part in said), lines


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"preview_every": 1001}, ["preview_every=1001: no picture", "training.preview_every=100,"]),
        ({"evaluate_every": 5000}, ["evaluate_every=5000: nothing is measured before the end"]),
        (
            {"save_every": 5000},
            ["save_every=5000: no checkpoint is saved before the end, training.max_steps=1000"],
        ),
        ({"save_every": 300, "milestone_every": 400}, ["milestone_every=400 with save_every=300"]),
        ({"save_every": 0, "milestone_every": 400}, ["milestone_every=400 with save_every=0"]),
        ({"save_every": 250, "milestone_every": 500, "preview_every": 1000}, []),
    ],
)
def test_what_is_done_every_so_many_steps(options, said):
    lines = list(short_run(training(1000, **options), ScheduleSettings()))
    assert len(lines) == bool(said) and all(part in lines[0] for part in said), lines


@pytest.mark.parametrize(
    ("losses", "kinds", "said"),
    [
        (
            {"quantize_start": 500, "quantize_end": 1500},
            {},
            ["never over", "50% of the images", "quantize_end=10%"],
        ),
        ({"quantize_end": 999}, {}, []),
        ({"discriminator_start": 1000}, {"adversarial": True}, ["never trains", "discriminator_start=30%"]),
        ({"discriminator_start": 1000}, {"adversarial": False}, []),
        ({"discriminator_start": 950}, {"adversarial": True}, ["leaves 50", "own warm-up"]),
        ({"entropy_boost": 2.0}, {"entropy": True}, ["entropy_boost_steps=2000", "entropy_boost_steps=5%"]),
        ({"entropy_boost": 2.0}, {"entropy": False}, []),
        ({}, {"adversarial": True, "entropy": True}, []),
    ],
)
def test_tokenizer(losses, kinds, said):
    kinds = {"adversarial": False, "entropy": False, **kinds}
    schedule, settings = ScheduleSettings(warmup_steps=100), TokenizerLossSettings(**losses)
    lines = list(short_tokenizer_run(training(1000), schedule, settings, **kinds))
    assert len(lines) == bool(said) and all(part in lines[0] for part in said), lines


def test_orders_that_are_still_random_at_the_end():
    lines = list(short_generator_run(training(1000), ScheduleSettings(), RARSettings()))
    assert len(lines) == 1 and "100% of the orders are still random" in lines[0]
    assert "randomness_anneal_start=50%" in lines[0] and "randomness_anneal_end=75%" in lines[0]
    half = RARSettings(randomness_anneal_start=499, randomness_anneal_end=1499)
    assert "50% of the orders" in next(short_generator_run(training(1000), ScheduleSettings(), half))
    shares = in_steps(
        RARSettings(randomness_anneal_start=Share("50%"), randomness_anneal_end=Share("100%")), 1000
    )
    assert not list(short_generator_run(training(1000), ScheduleSettings(), shares))
    assert not list(short_generator_run(training(1000), ScheduleSettings(), None))


def test_patience_that_never_ends_is_named():
    def said(**options):
        return [t for t in short_run(training(1000, **options), ScheduleSettings()) if "patience" in t]

    assert "training.patience=5 with evaluate_every=200: the run cannot stop" in (
        line := said(patience=5, evaluate_every=200)[0]
    )
    assert line.endswith("training.max_steps=1000; write training.evaluate_every=50")
    assert not said(patience=4, evaluate_every=199) and not said(evaluate_every=500)


@pytest.mark.parametrize("decay", [0.9, 0.999, 0.99999])
def test_an_average_forgets_its_first_weights_in_any_run(decay):
    """Why there is no warning of it: the share of the weights before and after the first update in the average."""
    before = math.prod(ema_decay(n, decay) for n in range(1, 3))
    after = math.prod(ema_decay(n, decay) for n in range(2, 6))
    assert before == 0 and after < 0.01


@pytest.mark.parametrize(
    "name", ["rar/openmoji", "maskgit/openmoji", "titok/images_gpu", "titok/images_cpu", "rar/imagenet_b"]
)
def test_recipes_with_shares_survive_a_short_run(name):
    """Nothing but what is done every so many steps, which no share can mend."""
    kind = (
        GeneratorRun
        if "generator" in (tree := read_yaml(REPOSITORY / f"configs/{name}.yaml"))
        else TokenizerRun
    )
    tree["training"] |= {"max_steps": 400, **QUIET, "milestone_every": 0}
    run = build_dataclass(kind, tree)
    run = in_steps(run, run.training.max_steps)
    if kind is TokenizerRun:
        kinds = {"adversarial": True, "entropy": False}
        assert not list(short_tokenizer_run(run.training, run.schedule, run.losses, **kinds))
    else:
        assert not list(short_generator_run(run.training, run.schedule, run.rar))


def test_programs_warn_before_training(tmp_path, tiny_token_file, program):
    output = f"experiment.output_dir={tmp_path / 'run'}"
    options = [output, f"data.tokens={tiny_token_file}", "training.max_steps=2"]
    done = program(train_rar, GeneratorRun, "config=configs/debug/rar.yaml", *options)
    lines = done.err.splitlines()
    assert done.code == 0 and len(lines) == 3 and all(line.startswith("warning: ") for line in lines), (
        done.err
    )
    assert (
        "warmup_steps=5" in lines[0]
        and "save_every=10" in lines[1]
        and "randomness_anneal_end=20" in lines[2]
    )
    options = [
        f"experiment.output_dir={tmp_path / 'titok'}",
        "training.max_steps=2",
        "schedule.warmup_steps=50%",
    ]
    options += ["training.save_every=1", "losses.discriminator_start=100%"]
    done = program(train_titok, TokenizerRun, "config=configs/debug/titok.yaml", *options)
    assert done.code == 0 and "losses.discriminator_start=2 is not before training.max_steps=2" in done.err
