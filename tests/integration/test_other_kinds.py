"""Another data set, bottleneck or generator than that of the recipe, chosen on the command line."""

import pytest

import train_titok
from common.config import load_settings, read_yaml
from jobs.inspect_data import inspect_data
from jobs.options.inspect_data import InspectOptions
from training.generator_settings import GeneratorRun
from training.tokenizer_settings import TokenizerRun


def images_at(folder) -> list[str]:
    return [
        *("data.train.name=image_folder", f"data.train.path={folder}"),
        *("data.validation.name=image_folder", f"data.validation.path={folder}"),
    ]


def test_a_recipe_of_emoji_with_a_folder(image_folder, capsys):
    run = load_settings(TokenizerRun, ["config=configs/titok/openmoji.yaml", *images_at(image_folder)])
    common = {"name": "image_folder", "path": str(image_folder), "image_size": 48}
    assert run.data.train == common | {"random_flip": True} and run.data.validation == common
    assert capsys.readouterr().err.splitlines() == [
        "note: data.train: left out keys of openmoji: random_scale, random_shift, split",
        "note: data.validation: left out keys of openmoji: split",
    ]


def test_training_on_a_folder_with_a_recipe_of_emoji(program, image_folder, tmp_path):
    run = ["config=configs/debug/titok.yaml", f"experiment.output_dir={tmp_path / 'run'}"]
    run += [*images_at(image_folder), "training.max_steps=2", "training.evaluate_every=2"]
    refused = program(train_titok, TokenizerRun, *run, "data.validation.pth=x")
    assert refused.code == 1 and "data.validation.pth is not an option (did you mean 'path'?)" in refused.err
    refused = program(train_titok, TokenizerRun, *run, "data.train.split=train")
    assert refused.code == 1 and "data.train.split is not an option" in refused.err, "what one says oneself"
    done = program(train_titok, TokenizerRun, *run)
    assert done.code == 0, done.err
    assert "note: data.train: left out keys of openmoji: split\n" in done.err
    stored = read_yaml(tmp_path / "run" / "config.yaml")["data"]
    assert stored["train"] == {
        "name": "image_folder",
        "path": str(image_folder),
        "image_size": 16,
        "random_flip": True,
    }
    again = program(train_titok, TokenizerRun, *run)  # the run is the same one
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("settings", "recipe", "arguments", "section", "expected"),
    [
        (
            TokenizerRun,
            "debug/titok.yaml",
            ["tokenizer.quantizer.name=fsq", "tokenizer.quantizer.levels=[4,4]"],
            lambda run: run.tokenizer["quantizer"],
            {"name": "fsq", "levels": [4, 4]},
        ),
        (
            TokenizerRun,
            "debug/titok.yaml",
            ["discriminator.name=blur"],
            lambda run: run.discriminator,
            {"name": "blur", "base_channels": 32, "num_stages": 1},
        ),
        (
            GeneratorRun,
            "debug/rar.yaml",
            ["generator.name=gpt"],
            lambda run: {key: run.generator[key] for key in ("name", "hidden_size")},
            {"name": "gpt", "hidden_size": 32},
        ),
    ],
    ids=["quantizer", "discriminator", "generator"],
)
def test_other_parts(settings, recipe, arguments, section, expected):
    assert section(load_settings(settings, [f"config=configs/{recipe}", *arguments])) == expected


def test_scripts_take_another_data_set_too(program, image_folder):
    arguments = ["config=configs/titok/openmoji.yaml", *images_at(image_folder)]
    done = program(inspect_data, InspectOptions, *arguments, "workers=1")
    assert done.code == 0, done.err
    assert "7 images" in done.out and "note: data.train: left out keys of openmoji" in done.err
