"""Advice for few images: when it is given, and what each rule says."""

import pytest
from torch import nn

from common.config import load_settings
from data import DATASETS
from data.image_folder import ImageFolder
from data.openmoji import OpenMoji
from training.generator_run import train_generator
from training.generator_settings import GeneratorRun
from training.settings import TrainingSettings
from training.small_data import DataFacts, default, generator_advice, say_advice, tokenizer_advice, trained
from training.tokenizer_run import train_tokenizer
from training.tokenizer_settings import TokenizerRun
from training.trainer import Trainer

TRAINING = TrainingSettings(max_steps=1000, evaluate_every=0)
STOPS = TrainingSettings(max_steps=1000, evaluate_every=50, patience=5, keep_best=True)


def facts(**changed) -> DataFacts:
    """The shipped RAR: 2,213 images, 32 tokens, 2.4 million parameters."""
    return DataFacts(
        **{
            "images": 2213,
            "classes": 10,
            "epochs": 116.0,
            "parameters": 2_400_000,
            "numbers": 32,
            "unit": "token",
            **changed,
        }
    )


def for_generator(training=TRAINING, dropout=0.05, validation=True, crops=2, **changed) -> list[str]:
    about = {"dropout": dropout, "validation": validation, "crops": crops}
    return list(generator_advice(facts(**changed), training, **about))


def test_the_facts_are_said():
    said = (
        "2213 images in 10 classes, each shown 116 times; 2.4M parameters, 34 per token of the training data"
    )
    assert str(facts()) == said
    assert str(facts(classes=1)).startswith("2213 images, each shown")


@pytest.mark.parametrize("changed", [{"images": 20_000}, {"epochs": 9.9}])
def test_large_sets_and_short_runs_get_no_advice(changed, capsys):
    assert not for_generator(**changed, validation=False, crops=1)
    assert not list(
        tokenizer_advice(facts(**changed), TRAINING, section={}, kind=ImageFolder, codes=2**18, tokens=1)
    )
    say_advice(facts(**changed), ["never"])
    assert capsys.readouterr().out == ""


def test_a_generator_is_told_to_stop_in_time():
    lines = for_generator()
    assert len(lines) == 2
    assert "shown 116 times may be learnt by heart" in lines[0]
    assert lines[0].endswith("training.patience=5 training.keep_best=true training.evaluate_every=50")
    assert "large for so few tokens; generator.dropout=0.1 or more (now 0.05), or a smaller" in lines[1]
    assert len(for_generator(STOPS)) == 1
    assert not for_generator(epochs=20.0, parameters=500_000)
    kept = TrainingSettings(max_steps=1000, evaluate_every=100, keep_best=True)
    assert for_generator(kept)[0].endswith(": training.patience=5")


def test_what_is_advised_is_accepted(tiny_token_file):
    options = for_generator()[0].split(": ")[1].split()
    load_settings(
        GeneratorRun,
        [
            "config=configs/debug/rar.yaml",
            f"data.validation={tiny_token_file}",
            "generator.dropout=0.1",
            *options,
        ],
    )


def test_generators_have_rules_for_data_too():
    assert "name some in data.validation" in for_generator(validation=False)[0]
    assert "now" not in for_generator(dropout=0.1)[1] and "now" not in for_generator(dropout=None)[1]
    assert "crops=flip" in for_generator(STOPS, crops=1)[1] and len(for_generator(STOPS, crops=None)) == 1
    few = for_generator(STOPS, images=240, classes=12)
    assert "20 images per class are few" in few[-1]
    assert not any("per class" in line for line in for_generator(STOPS, images=40, classes=1))


def for_tokenizer(
    training=TRAINING, section=None, kind=ImageFolder, codes=512, tokens=64, **changed
) -> list[str]:
    about = facts(
        **{"images": 240, "parameters": 2_000_000, "numbers": 12288, "unit": "pixel value", **changed}
    )
    return list(
        tokenizer_advice(about, training, section=section or {}, kind=kind, codes=codes, tokens=tokens)
    )


def test_tokenizers_have_rules_of_their_own():
    assert for_tokenizer() == [
        "images could be varied more; data.train.random_flip=true data.train.random_crop=true"
    ]
    assert not for_tokenizer(section={"random_flip": True, "random_crop": True})
    assert for_tokenizer(kind=OpenMoji)[0].endswith("varied more; data.train.random_flip=true")
    large = for_tokenizer(STOPS, section={"random_flip": True, "random_crop": True}, parameters=51_000_000)
    assert len(large) == 1 and "more parameters than its training data has values" in large[0]
    assert "training.patience=5" in for_tokenizer(kind=nn.Linear, parameters=51_000_000)[0]
    codes = for_tokenizer(kind=nn.Linear, codes=4096)
    assert len(codes) == 1 and "4096 codes has 3.8 training tokens per code" in codes[0]
    assert codes[0].endswith("choose at most 512 codes")
    assert not for_tokenizer(kind=nn.Linear, codes=None)


def test_options_are_those_of_the_data_sets():
    assert [name for name, kind in DATASETS.items() if default(kind, "random_flip") is False]
    assert default(ImageFolder, "no_such_option") is None and default(ImageFolder, "path") is None


def test_frozen_parameters_do_not_count():
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert trained(layer) == 6


def test_runs_say_it_before_training(tmp_path, capsys, engine, tiny_token_file, monkeypatch):
    monkeypatch.setattr("training.trainer.draw_curves", lambda *_: False)
    options = ["config=configs/debug/rar.yaml", f"data.tokens={tiny_token_file}", "data.tokenizer=null"]
    options += ["training.max_steps=1", "training.per_gpu_batch_size=3000", "training.preview_every=0"]
    train_generator(load_settings(GeneratorRun, [*options, f"experiment.output_dir={tmp_path / 'rar'}"]))
    out = capsys.readouterr().out
    assert "few images: 300 images in 3 classes, each shown 10 times; " in out.split("step ")[0]
    assert "  - there are no held-out tokens" in out and "pretokenize with crops=flip" in out
    options = ["config=configs/debug/titok.yaml", "training.max_steps=20000", "discriminator=null"]
    options += ["evaluation.metrics=[]", f"experiment.output_dir={tmp_path / 'titok'}"]
    monkeypatch.setattr(Trainer, "fit", lambda self: None)
    train_tokenizer(load_settings(TokenizerRun, options))
    out = capsys.readouterr().out
    assert "few images: " in out and " per pixel value of the training data" in out
