"""A tokenizer training run: its settings and its parts."""

import math
from pathlib import Path

from accelerate import Accelerator

from common import distributed
from common.build import ConfigError, build
from common.config import to_tree
from common.console import warn
from data import DATASETS
from data.source import Source
from modeling.factory import build_tokenizer
from modeling.tokenizers.base import Tokenizer
from storage.locks import reserved_folder
from training.accelerator import start
from training.auto_settings import settle, warn_of_batch
from training.checkpoint import CheckpointFolder
from training.evaluation import ReconstructionEvaluator
from training.plan_checks import short_tokenizer_run
from training.run_lengths import begun_again, in_steps
from training.small_data import DataFacts, say_advice, tokenizer_advice, trained
from training.tasks import TOKENIZER_TASKS
from training.tasks.tokenizer import TokenizerSetup
from training.tokenizer_settings import TokenizerRun
from training.trainer import Trainer


def train_tokenizer(run: TokenizerRun) -> None:
    """Train to the end, from the newest checkpoint if there is one.

    Raises:
        ConfigError, FileNotFoundError, CheckpointError: a setting or a file does not fit; before any training.
        ValueError, WriteError: another job trains in the run folder, or it cannot be written.
    """
    accelerator = start(run.training, run.experiment)  # first: it seeds the initialisation
    with reserved_folder(run.experiment.output_dir, key="experiment.output_dir", training=True):
        _train(run, accelerator)


def _train(run: TokenizerRun, accelerator: Accelerator) -> None:
    settle(run, accelerator)
    tokenizer = build_tokenizer(run.tokenizer)
    task = TOKENIZER_TASKS[tokenizer.learns]
    task.check(run, tokenizer)
    steps = in_steps(run, run.training.max_steps)  # `run` keeps its shares: it is what is stored
    _warn_of_lengths(run, steps, tokenizer)
    source = build_images("data.train", run.data.train, tokenizer.image_size)
    validation = build_images("data.validation", run.data.validation, tokenizer.image_size)
    # A resumed run has its weights in its checkpoints: the other models may be gone.
    checkpoints = CheckpointFolder(Path(run.experiment.output_dir), keep=1)
    if not distributed.on_main(checkpoints.steps):  # listings of a network disk may differ
        task.initialize(run, tokenizer)
    setup = TokenizerSetup(
        tokenizer=tokenizer,
        validation=validation,
        losses=steps.losses,
        optimizer=run.optimizer,
        batch_size=run.training.per_gpu_batch_size,
        num_workers=run.training.num_workers,
        evaluator=ReconstructionEvaluator(run.evaluation, accelerator.device),
        class_names=source.class_names,
    )
    _advise(run, tokenizer, source)
    loaded = task.from_run(steps, setup, accelerator.device)
    warn_of_batch(run, loaded, accelerator.device)
    Trainer(
        task=loaded,
        source=source,
        accelerator=accelerator,
        experiment=run.experiment,
        training=run.training,
        schedule=steps.schedule,
        config=to_tree(run),
    ).fit()


def _warn_of_lengths(run: TokenizerRun, steps: TokenizerRun, tokenizer: Tokenizer) -> None:
    lines = short_tokenizer_run(
        steps.training,
        steps.schedule,
        steps.losses,
        adversarial=run.discriminator is not None,
        entropy=bool(tokenizer.quantize.entropy_weight),
    )
    folder = Path(run.experiment.output_dir)
    for line in (*lines, *distributed.on_main(lambda: begun_again(run, run.training.max_steps, folder))):
        warn(line)


def _advise(run: TokenizerRun, tokenizer: Tokenizer, source: Source) -> None:
    facts = DataFacts(
        images=len(source),
        classes=len(source.class_names),
        epochs=run.training.max_steps * run.training.global_batch / len(source),
        parameters=trained(tokenizer),
        numbers=math.prod(source.item_shape),
        unit="pixel value",
    )
    lines = tokenizer_advice(
        facts,
        run.training,
        section=run.data.train,
        kind=type(source),
        codes=tokenizer.codebook_size if tokenizer.is_discrete else None,
        tokens=tokenizer.num_tokens,
    )
    say_advice(facts, lines)


def build_images(key: str, section: dict, image_size: int) -> Source:
    """The images of a data section; says what they leave out. ConfigError unless they have the tokenizer's size."""
    source = build(key, DATASETS, section)
    source.left_out.warn(key)
    if source.item_shape != (3, image_size, image_size):
        held = f"images of {source.item_shape[-1]} pixels" if source.item_key == "images" else source.item_key
        raise ConfigError(f"{key} gives {held}, but tokenizer.image_size={image_size}")
    return source
