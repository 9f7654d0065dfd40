"""Train a token generator on pretokenized images.

    python scripts/pretokenize.py tokenizer=runs/titok output=runs/titok/train.tokens
    python train_rar.py config=configs/rar/openmoji.yaml data.tokens=runs/titok/train.tokens
    accelerate launch train_rar.py config=FILE training.per_gpu_batch_size=64

Codebook size, tokens per image and classes come from the token file. Running the same command again resumes from
the newest checkpoint.
"""

from dataclasses import dataclass

from common.config import option, run_script, to_tree
from data.token_memmap import TokenMemmap
from modeling.factory import build_generator
from modeling.pipeline import load_tokenizer, require_tokenizer
from modeling.sampling import SamplingSettings
from training.settings import ExperimentSettings, OptimizerSettings, ScheduleSettings, TrainingSettings
from training.tasks.token_prediction import RARSettings, RARTask
from training.trainer import Trainer, start


@dataclass(kw_only=True)
class TokenData:
    """Token files written by scripts/pretokenize.py, and the tokenizer that shows what is learned."""

    tokens: str = option(help="token file to train on")
    validation: str | None = option(None, "token file of held-out images")
    tokenizer: str | None = option(None, "tokenizer run for previews; null = no previews")


@dataclass(kw_only=True)
class GeneratorRun:
    """Everything a generator training run is made of."""

    experiment: ExperimentSettings = option()
    generator: dict = option(help="section: name rar, and its options; sizes of the tokens may be left out")
    rar: RARSettings = option(RARSettings())
    sampling: SamplingSettings = option(SamplingSettings())
    data: TokenData = option()
    optimizer: OptimizerSettings = option(OptimizerSettings())
    schedule: ScheduleSettings = option(ScheduleSettings())
    training: TrainingSettings = option()
    tokens: dict | None = option(None, "filled in by training: where the tokens came from")


def main(run: GeneratorRun, tree: dict) -> None:
    """Build the parts of the run and train."""
    accelerator = start(run.training, run.experiment)
    source = TokenMemmap(path=run.data.tokens)
    origin = source.header
    sizes = {
        "codebook_size": origin.codebook_size,
        "num_tokens": origin.num_tokens,
        "num_classes": len(origin.class_names),
    }
    for key, size in sizes.items():
        if run.generator.setdefault(key, size) != size:
            raise ValueError(f"generator.{key}={run.generator[key]!r}, but {run.data.tokens} has {size}")
    generator = build_generator(run.generator)
    validation = TokenMemmap(path=run.data.validation) if run.data.validation else None
    tokenizer = load_tokenizer(run.data.tokenizer, accelerator.device) if run.data.tokenizer else None
    for key in ("weight_hash", "class_names"):
        if validation is not None and getattr(validation.header, key) != getattr(origin, key):
            raise ValueError(f"{run.data.validation} and {run.data.tokens} differ in {key}")
    if tokenizer is not None:
        require_tokenizer(
            tokenizer, origin.weight_hash, what=run.data.tokens, tokenizer_name=run.data.tokenizer or ""
        )
    run.tokens = {
        "tokenizer": run.data.tokenizer or origin.tokenizer,
        "weight_hash": origin.weight_hash,
        "class_names": list(origin.class_names),
        "image_size": origin.image_size,
    }
    task = RARTask(
        generator=generator,
        validation=validation,
        tokenizer=tokenizer,
        settings=run.rar,
        sampling=run.sampling,
        optimizer=run.optimizer,
        seed=run.experiment.seed,
        batch_size=run.training.per_gpu_batch_size,
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
    run_script(main, GeneratorRun, __doc__)
