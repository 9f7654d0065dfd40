"""Early stop and best weights of real runs: processes agree, and every script loads `best/` like a run folder."""

import json

import pytest
import torch
from safetensors.torch import load_file

from common.build import ConfigError
from common.config import load_settings
from modeling.pretrained.loading import load_generator, load_tokenizer
from tests.integration.several import needs_fork, train_together
from training.generator_run import train_generator
from training.generator_settings import GeneratorRun
from training.tokenizer_run import train_tokenizer
from training.tokenizer_settings import TokenizerRun

# A rate of zero: nothing gets better after the first evaluation.
SAME = ["optimizer.learning_rate=0", "training.evaluate_every=1", "training.preview_every=0"]
SAME += ["training.max_steps=6", "training.save_every=6", "training.patience=2", "training.keep_best=true"]
FEW = [f"data.{part}.validation_fraction=0.01" for part in ("train", "validation")]


@needs_fork
def test_processes_agree_and_the_best_weights_are_loaded_like_a_run(tmp_path, tiny_token_file):
    generator = ["config=configs/debug/rar.yaml", f"data.tokens={tiny_token_file}", "data.tokenizer=null"]
    generator += [f"data.validation={tiny_token_file}", "training.per_gpu_batch_size=4", *SAME]
    sharded = [*generator, "training.sharding=full", f"experiment.output_dir={tmp_path / 'sharded'}"]
    tokenizer = ["config=configs/debug/titok.yaml", "discriminator=null", *FEW, *SAME]
    tokenizer += ["training.per_gpu_batch_size=4", f"experiment.output_dir={tmp_path / 'tokenizer'}"]
    train_together(2, [(train_generator, GeneratorRun, sharded), (train_tokenizer, TokenizerRun, tokenizer)])
    for run, load, weights in (
        ("sharded", load_generator, "model.shards"),
        ("tokenizer", load_tokenizer, "model.safetensors"),
    ):
        folder = tmp_path / run
        assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000003"]
        assert json.loads((folder / "best/metrics.json").read_text())["step"] == 1
        assert (folder / "best" / weights).exists()
        last = load_file(folder / "model.safetensors")
        model = load(str(folder / "best"))
        found = (getattr(model, "generator", model)).state_dict()
        learned = [name for name in last if not name.startswith("quantize.")]  # codes move without a rate
        assert found.keys() == last.keys() and all(torch.equal(found[name], last[name]) for name in learned)


def test_a_generator_without_held_out_tokens_is_refused_before_anything_is_opened():
    options = ["config=configs/debug/rar.yaml", "data.tokens=none.tokens", "data.validation=null"]
    for option in ("training.patience=2", "training.keep_best=true"):
        with pytest.raises(
            ConfigError, match=r"training\.(patience=2|keep_best=True): .*name their file in data.valid"
        ):
            load_settings(GeneratorRun, [*options, option, "training.evaluate_every=1"])


def test_a_tokenizer_without_psnr_is_refused(tmp_path):
    options = ["config=configs/debug/titok.yaml", "training.patience=2", "training.evaluate_every=1"]
    options += ["evaluation.metrics=[ssim]", f"experiment.output_dir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=r"training.patience=2: PSNR .*; add psnr to evaluation.metrics"):
        train_tokenizer(load_settings(TokenizerRun, options))
