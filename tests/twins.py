"""Every debug twin as a trainer before its first step; frozen models are random and images are noise: no files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from common.config import REPOSITORY, load_settings, read_yaml
from data.source import Source
from modeling.factory import build_generator, build_tokenizer
from modeling.pretrained.teachers import build_teacher
from modeling.pretrained.text import TextEncoder, build_text_tower
from modeling.sampling.draw import settings_type
from tests.recipes import RECIPES
from training.accelerator import start
from training.evaluation import ReconstructionEvaluator
from training.generator_settings import GeneratorRun
from training.tasks import GENERATOR_TASKS, TOKENIZER_TASKS, feature_distillation, proxy_codes, tokenizer
from training.tasks.tokenizer import TokenizerSetup
from training.tokenizer_settings import TokenizerRun
from training.trainer import Trainer

TWINS = [p.stem for p in RECIPES if p.parent.name == "debug" and p.stem != "cluster"]  # which is not trained
GENERATORS = [name for name in TWINS if "generator" in read_yaml(REPOSITORY / f"configs/debug/{name}.yaml")]
TOKENS = {"codebook_size": 48, "num_tokens": 6, "num_classes": 3}


class Noise(Source):
    """Ten random images [3, S, S], or sequences of random tokens [N]; the last batch of four is half full."""

    class_names = ["cat", "dog", "bird"]
    labels = np.arange(10) % 3

    def __init__(self, image_size: int | None = None) -> None:
        self.item_key = "tokens" if image_size is None else "images"
        self.item_shape = (TOKENS["num_tokens"],) if image_size is None else (3, image_size, image_size)

    def load(self, index, rng):
        draws = np.random.default_rng(index)
        if self.item_key == "tokens":
            item = draws.integers(0, TOKENS["codebook_size"], self.item_shape)
        else:
            item = draws.integers(0, 256, self.item_shape, dtype=np.uint8)
        return torch.from_numpy(item), int(self.labels[index])


def twin_trainer(
    name: str, folder: Path, patch: pytest.MonkeyPatch, *options: str, accelerator: Accelerator | None = None
) -> Trainer:
    """The trainer of a twin, in batches of four; `options` override the twin's. Needs the fixture `engine`."""
    arguments = [f"config=configs/debug/{name}.yaml", f"experiment.output_dir={folder}"]
    arguments += ["training.per_gpu_batch_size=4", "schedule.warmup_steps=1", "training.log_every=0"]
    arguments += ["training.save_every=0", "training.num_workers=0", "training.ema_decay=null", *options]
    if name not in GENERATORS:
        run = load_settings(TokenizerRun, arguments)
        accelerator = accelerator or start(run.training, run.experiment)
        task, source = _tokenizer_task(run, accelerator, patch)
    else:
        run = load_settings(GeneratorRun, arguments)
        accelerator = accelerator or start(run.training, run.experiment)
        task, source = _generator_task(run), Noise()
    return Trainer(
        task=task,
        source=source,
        accelerator=accelerator,
        experiment=run.experiment,
        training=run.training,
        schedule=run.schedule,
        config={},
    )


def _tokenizer_task(run, accelerator, patch):
    patch.setattr(proxy_codes, "load_tokenizer", lambda name, device: _maskgit_vqgan().to(device))
    patch.setattr(feature_distillation, "load_teacher", _teacher)
    patch.setattr(tokenizer, "load_text_encoder", lambda weights, device: _text_encoder().to(device))
    model = build_tokenizer(run.tokenizer)
    source = Noise(model.image_size)
    setup = TokenizerSetup(
        tokenizer=model,
        validation=source,
        losses=run.losses,
        optimizer=run.optimizer,
        batch_size=run.training.per_gpu_batch_size,
        evaluator=ReconstructionEvaluator(run.evaluation, accelerator.device),
        class_names=source.class_names,
    )
    return TOKENIZER_TASKS[model.learns].from_run(run, setup, accelerator.device), source


def _maskgit_vqgan():
    return build_tokenizer(
        read_yaml(REPOSITORY / "configs/debug/maskgit_vqgan.yaml")["tokenizer"] | {"image_size": 32}
    ).eval()


def _teacher(name, *, grid=None, project=False, input_size=None, device="cpu"):
    return build_teacher(name=name, grid=grid, project=project, input_size=input_size).to(device)


def _text_encoder():
    tower = build_text_tower(hidden_size=16, depth=1, num_heads=1)
    return TextEncoder(tower=tower, tokenize=lambda texts: torch.zeros(len(texts), 77, dtype=torch.int64))


def _generator_task(run):
    model = build_generator(run.generator, **{k: v for k, v in TOKENS.items() if k not in run.generator})
    kind, key = GENERATOR_TASKS[model.kind]
    return kind(
        generator=model,
        validation=Noise(),
        tokenizer=None,
        settings=getattr(run, key) or kind.default_settings(model),
        sampling=settings_type(model)(**run.sampling),
        optimizer=run.optimizer,
        seed=0,
        batch_size=run.training.per_gpu_batch_size,
    )
