"""A tokenizer training run: its settings, and how its parts are put together."""

import inspect
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from common.build import ConfigError, build, check_options
from common.config import option, to_tree
from compat.runs import translate_run
from data import DATASETS
from data.source import Source
from modeling.factory import build_discriminator, build_tokenizer
from modeling.pretrained.loading import load_tokenizer
from modeling.pretrained.perceptual import find_perceptual
from modeling.pretrained.teachers import build_teacher, load_teacher
from modeling.pretrained.text import TextEncoder, load_text_encoder
from modeling.tokenizers import TOKENIZERS
from modeling.tokenizers.base import Tokenizer
from training.accelerator import start
from training.checkpoint import CheckpointFolder
from training.evaluation import ReconstructionEvaluator, TokenizerEvaluation
from training.settings import ExperimentSettings, OptimizerSettings, ScheduleSettings, TrainingSettings
from training.tasks.feature_distillation import CodebookFittingTask, FeatureDistillationTask
from training.tasks.proxy_codes import ProxyCodesTask
from training.tasks.reconstruction import ReconstructionTask
from training.tasks.tokenizer import TokenizerTask
from training.tasks.tokenizer_loss import TokenizerLossSettings
from training.trainer import Trainer


@dataclass(kw_only=True)
class ImageData:
    """Training and held-out images; `name` selects the kind (see data/), other keys are its options."""

    train: dict = option(help="section: name openmoji, image_folder or webdataset, and its options")
    validation: dict = option(help="section like data.train")


@dataclass(kw_only=True)
class TokenizerRun:
    """Everything a tokenizer training run is made of."""

    experiment: ExperimentSettings = option()
    tokenizer: dict = option(help=f"section: name ({', '.join(TOKENIZERS)}), its options, and a quantizer")
    teacher: str | dict | None = option(
        None,
        "frozen network to learn from: of the layouts proxy and two_stage a 2-D tokenizer (maskgit-vqgan, a folder,"
        " a file); of vqkd a section: name (of timm), weights, project, ...",
    )
    initialize: str | dict | None = option(
        None, "tokenizer to start from; two_stage, pixel_decoder: the finished first stage"
    )
    text_encoder: str | None = option(None, "weights of the CLIP text tower (tatitok); null = from the hub")
    losses: TokenizerLossSettings = option(TokenizerLossSettings())
    discriminator: dict | None = option(None, "section: name and options; null = no adversarial training")
    data: ImageData = option()
    optimizer: OptimizerSettings = option(OptimizerSettings())
    discriminator_learning_rate: float | None = option(None, "null = that of the tokenizer")
    schedule: ScheduleSettings = option(ScheduleSettings())
    training: TrainingSettings = option()
    evaluation: TokenizerEvaluation = option(TokenizerEvaluation())

    @classmethod
    def translate(cls, tree: dict) -> dict:
        """Files of the original code release are taken too."""
        return translate_run(tree, "tokenizer", cls)

    def __post_init__(self) -> None:
        if self.tokenizer.get("name") == "cluster" and "teacher" not in self.tokenizer:
            # Its encoder is the teacher: the same network, whose weights become part of the tokenizer.
            given = self.teacher if isinstance(self.teacher, dict) else {}
            kept = [key for key in inspect.signature(build_teacher).parameters if key in given]
            self.tokenizer["teacher"] = {key: given[key] for key in kept}


def train_tokenizer(run: TokenizerRun) -> None:
    """Train to the end, from the newest checkpoint if there is one.

    Raises:
        ConfigError, FileNotFoundError, CheckpointError: something in the run does not fit; before any training.
    """
    accelerator = start(run.training, run.experiment)
    tokenizer = build_tokenizer(run.tokenizer)
    _check_layout(run, tokenizer)
    source = build_images("data.train", run.data.train, tokenizer.image_size)
    validation = build_images("data.validation", run.data.validation, tokenizer.image_size)
    # A run that goes on has its weights in its checkpoints, and needs the other models no more.
    if not CheckpointFolder(Path(run.experiment.output_dir), keep=1).steps():
        _initialize(run, tokenizer)
    Trainer(
        task=_task(run, tokenizer, source, validation, accelerator.device),
        source=source,
        accelerator=accelerator,
        experiment=run.experiment,
        training=run.training,
        schedule=run.schedule,
        config=to_tree(run),
    ).fit()


def build_images(key: str, section: dict, image_size: int) -> Source:
    """The images of a data section; they must have the size that the tokenizer takes."""
    source = build(key, DATASETS, section)
    if source.item_shape != (3, image_size, image_size):
        held = f"images of {source.item_shape[-1]} pixels" if source.item_key == "images" else source.item_key
        raise ConfigError(f"{key} gives {held}, but tokenizer.image_size={image_size}")
    return source


def _check_layout(run: TokenizerRun, tokenizer: Tokenizer) -> None:
    """Refuse sections that the tokenizer's layout lacks, or has no use for."""
    learns = tokenizer.copies_teacher or not tokenizer.predicts_pixels
    if run.teacher is not None and not learns:
        raise ConfigError(f"teacher={run.teacher!r} has no use: this tokenizer learns from images alone")
    if run.teacher is None and learns:
        network = tokenizer.learns in ("features", "codebook")
        what = "a section with a name of timm" if network else "one such as maskgit-vqgan"
        raise ConfigError(f"teacher is missing; this tokenizer needs {what}")
    if tokenizer.frozen_encoder and run.initialize is None:
        raise ConfigError(
            "initialize is missing; a pixel decoder learns on the codes of a finished tokenizer without one"
        )
    if not tokenizer.predicts_pixels and run.discriminator is not None:
        raise ConfigError("discriminator must be null: this tokenizer makes no pixels")
    if run.losses.entropy_boost and not tokenizer.quantize.entropy_weight:
        raise ConfigError(
            f"losses.entropy_boost={run.losses.entropy_boost} has no use: the quantizer has no entropy term; expected"
            " tokenizer.quantizer.entropy_weight above 0 (lfq, bsq, ibq, vq)"
        )
    if run.text_encoder is not None and not tokenizer.needs_text:
        raise ConfigError(f"text_encoder={run.text_encoder!r} has no use: this tokenizer takes no text")


def _initialize(run: TokenizerRun, tokenizer: Tokenizer) -> None:
    """Copy weights of other models as the run says."""
    if run.initialize is not None:
        other = load_tokenizer(run.initialize)
        try:
            tokenizer.copy_weights(other)
        except ValueError as error:
            raise ConfigError(f"initialize={run.initialize}: {error}") from error
    if tokenizer.copies_teacher:
        tokenizer.copy_teacher(load_tokenizer(run.teacher))


def _task(
    run: TokenizerRun, tokenizer: Tokenizer, source: Source, validation: Source, device: torch.device
) -> TokenizerTask:
    common = dict(
        tokenizer=tokenizer,
        validation=validation,
        optimizer=run.optimizer,
        batch_size=run.training.per_gpu_batch_size,
        num_workers=run.training.num_workers,
    )
    if tokenizer.learns in ("features", "codebook"):
        teacher = load_teacher(**check_options("teacher", load_teacher, run.teacher), device=device)
        tokenizer.copy_teacher(teacher)
        if tokenizer.learns == "codebook":
            return CodebookFittingTask(**common, teacher=teacher)
        weight = run.losses.quantizer_weight
        return FeatureDistillationTask(**common, teacher=teacher, quantizer_weight=weight)
    common["evaluator"] = ReconstructionEvaluator(run.evaluation, device)
    if not tokenizer.predicts_pixels:
        weight = run.losses.quantizer_weight
        return ProxyCodesTask(**common, teacher=load_tokenizer(run.teacher, device), quantizer_weight=weight)
    rate = run.discriminator_learning_rate or run.optimizer.learning_rate
    return ReconstructionTask(
        **common,
        discriminator=build_discriminator(run.discriminator) if run.discriminator else None,
        perceptual=find_perceptual(**vars(run.losses.perceptual)) if run.losses.perceptual_weight else None,
        loss=run.losses,
        discriminator_optimizer=replace(run.optimizer, learning_rate=rate, muon_learning_rate=None),
        text=_text_encoder(run.text_encoder, tokenizer, device) if tokenizer.needs_text else None,
        class_names=source.class_names,
    )


def _text_encoder(weights: str | None, tokenizer: Tokenizer, device: torch.device) -> TextEncoder:
    """The encoder of captions; its embeddings must be what the tokenizer's decoder reads."""
    encoder = load_text_encoder(weights, device)
    if (encoder.length, encoder.width) != (tokenizer.text_length, tokenizer.text_width):
        raise ConfigError(
            f"tokenizer.text_length={tokenizer.text_length} and .text_width={tokenizer.text_width}, but text_encoder"
            f" {weights} gives {encoder.length} embeddings of {encoder.width}"
        )
    return encoder
