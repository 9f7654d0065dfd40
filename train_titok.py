"""Train an image tokenizer.

    python train_titok.py config=configs/titok/openmoji.yaml
    accelerate launch train_titok.py config=FILE training.per_gpu_batch_size=32 experiment.output_dir=runs/mine

Running the same command again resumes from the newest checkpoint. The run folder can then be given wherever a
tokenizer is asked for.
"""

from dataclasses import dataclass, replace

from common.build import ConfigError, build
from common.config import option, run_script, to_tree
from data import DATASETS
from data.source import Source
from modeling.factory import build_discriminator, build_tokenizer
from modeling.pretrained.perceptual import find_perceptual
from training.settings import ExperimentSettings, OptimizerSettings, ScheduleSettings, TrainingSettings
from training.tasks.reconstruction import ReconstructionTask
from training.tasks.tokenizer_loss import TokenizerLossSettings
from training.trainer import Trainer, start


@dataclass(kw_only=True)
class ImageData:
    """Training and held-out images; `name` selects the kind (see data/), other keys are its options."""

    train: dict = option(help="section: name openmoji, image_folder or webdataset, and its options")
    validation: dict = option(help="section like data.train")


@dataclass(kw_only=True)
class TokenizerRun:
    """Everything a tokenizer training run is made of."""

    experiment: ExperimentSettings = option()
    tokenizer: dict = option(help="section: name titok, its options, and a quantizer section")
    losses: TokenizerLossSettings = option(TokenizerLossSettings())
    discriminator: dict | None = option(None, "section: name and options; null = no adversarial training")
    data: ImageData = option()
    optimizer: OptimizerSettings = option(OptimizerSettings())
    discriminator_learning_rate: float | None = option(None, "null = that of the tokenizer")
    schedule: ScheduleSettings = option(ScheduleSettings())
    training: TrainingSettings = option()


def build_images(key: str, section: dict, image_size: int) -> Source:
    """The images of a data section; they must have the size that the tokenizer takes."""
    source = build(key, DATASETS, section)
    if source.item_shape != (3, image_size, image_size):
        held = f"images of {source.item_shape[-1]} pixels" if source.item_key == "images" else source.item_key
        raise ConfigError(f"{key} gives {held}, but tokenizer.image_size={image_size}")
    return source


def main(run: TokenizerRun, tree: dict) -> None:
    """Build the parts of the run and train."""
    accelerator = start(run.training, run.experiment)
    tokenizer = build_tokenizer(run.tokenizer)
    discriminator = build_discriminator(run.discriminator) if run.discriminator else None
    source = build_images("data.train", run.data.train, tokenizer.image_size)
    rate = run.discriminator_learning_rate or run.optimizer.learning_rate
    task = ReconstructionTask(
        tokenizer=tokenizer,
        discriminator=discriminator,
        perceptual=find_perceptual(**vars(run.losses.perceptual)) if run.losses.perceptual_weight else None,
        validation=build_images("data.validation", run.data.validation, tokenizer.image_size),
        loss=run.losses,
        optimizer=run.optimizer,
        discriminator_optimizer=replace(run.optimizer, learning_rate=rate, muon_learning_rate=None),
        batch_size=run.training.per_gpu_batch_size,
        num_workers=run.training.num_workers,
    )
    Trainer(
        task=task,
        source=source,
        accelerator=accelerator,
        experiment=run.experiment,
        training=run.training,
        schedule=run.schedule,
        config=to_tree(run),
    ).fit()


if __name__ == "__main__":
    run_script(main, TokenizerRun, __doc__)
