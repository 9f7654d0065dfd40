"""Shares of a run become steps in one place, and follow its length."""

from dataclasses import replace

import pytest

import train_rar
from common.build import ConfigError
from common.config import read_yaml
from common.shares import Share
from training.generator_settings import GeneratorRun
from training.run_lengths import in_steps
from training.settings import ScheduleSettings
from training.tokenizer_settings import LearningSettings, TokenizerLossSettings


def test_every_share_of_nested_sections_becomes_steps():
    losses = TokenizerLossSettings(
        quantize_start=3, quantize_end=Share("20%"), discriminator_start=Share("50%")
    )
    run = in_steps(LearningSettings(losses=losses), 200)
    assert (run.losses.quantize_start, run.losses.quantize_end, run.losses.discriminator_start) == (
        3,
        40,
        100,
    )
    assert losses.quantize_end == "20%", "the run that is stored keeps its shares"
    drops = ScheduleSettings(name="steps", drop_steps=[10, Share("75%")])
    assert in_steps(drops, 40).drop_steps == [10, 30]
    settings = ScheduleSettings(warmup_steps=7)
    assert in_steps(settings, 40) is settings, "nothing to do"


def test_lengths_that_fit_only_some_runs_are_refused_for_the_others():
    losses = TokenizerLossSettings(quantize_start=30, quantize_end=Share("20%"))
    assert in_steps(losses, 200).quantize_end == 40
    with pytest.raises(
        ConfigError, match=r"training\.max_steps=100: quantize_end=20 is before quantize_start=30"
    ):
        in_steps(losses, 100)
    with pytest.raises(ConfigError, match="must rise"):
        in_steps(ScheduleSettings(name="steps", drop_steps=[50, Share("75%")]), 60)
    with pytest.raises(ConfigError, match="must be at least 1"):
        in_steps(replace(losses, quantize_start=0, entropy_boost_steps=Share("1%")), 20)


def test_a_longer_run_moves_its_shares_and_names_what_begins_again(tmp_path, tiny_token_file, program):
    """Orders anneal by shares: the same numbers as given in steps; stored as shares; named when passed twice."""

    def train(folder: str, steps: int, start: object, end: object):
        done = program(
            train_rar,
            GeneratorRun,
            "config=configs/debug/rar.yaml",
            f"data.tokens={tiny_token_file}",
            f"experiment.output_dir={tmp_path / folder}",
            "schedule.warmup_steps=25%",
            f"rar.randomness_anneal_start={start}",
            f"rar.randomness_anneal_end={end}",
            f"training.max_steps={steps}",
            "training.save_every=4",
        )
        assert done.code == 0, done.err
        return done

    assert train("shares", 4, "25%", "75%").err == ""
    stored = read_yaml(tmp_path / "shares" / "config.yaml")
    assert stored["rar"]["randomness_anneal_end"] == "75%" and stored["schedule"]["warmup_steps"] == "25%"
    train("steps", 4, 1, 3)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("shares", "steps")]
    assert weights[0] == weights[1]

    said = train("shares", 8, "25%", "75%").err
    assert (
        "rar.randomness_anneal_end=75% was step 3 of training.max_steps=4 and is now step 6 of 8: the run is at step 4"
        " and comes before it again; write rar.randomness_anneal_end=3 to keep it passed"
    ) in said
    assert said.count("warning: ") == 1, "the start of the annealing, now step 2, stays passed"


def test_a_soft_start_whose_shares_are_one_step_is_over_after_it():
    losses = TokenizerLossSettings(quantize_start=Share("5%"), quantize_end=Share("10%"))
    short, long = in_steps(losses, 12), in_steps(losses, 100)
    assert [short.quantized_share(step) for step in (0, 1, 2)] == [0.0, 1.0, 1.0]
    assert [long.quantized_share(step) for step in (0, 5, 6, 10)] == [0.0, 0.0, 0.2, 1.0]
