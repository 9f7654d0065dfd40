"""What the training of all tokenizers shares: codebook health, measuring held-out images, pictures."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import ClassVar

import torch
from torch import nn

from common import distributed
from common.build import ConfigError
from common.images import enlarge, grid, to_float
from data.loaders import eval_loader
from data.source import Source
from data.stream import Batch, EvalStream
from evaluator.codebook_usage import CodebookUsage
from modeling.pretrained.loading import load_tokenizer
from modeling.pretrained.text import TextEncoder, class_captions, load_text_encoder
from modeling.tokenizers.base import Tokenizer, TokenizerOutput
from training.codebook_health import CodebookHealth
from training.evaluation import ReconstructionEvaluator
from training.evaluation_settings import TokenizerEvaluation
from training.means import HeldOutMeans
from training.settings import OptimizerSettings
from training.task import Picture, Scalars, StepContext, Task
from training.tokenizer_settings import LearningSettings, TokenizerLossSettings

PREVIEW_IMAGES = 64
PREVIEW_SIDE = 96  # pixels; smaller images are enlarged towards this size

SOFT_START = ("losses.quantize_start", "losses.quantize_end")
COPIED = "the pixel decoder starts from the teacher's; expected one like maskgit-vqgan"
FROZEN = "encoder and codes of this tokenizer are frozen; expected the finished tokenizer"
Text = dict[str, torch.Tensor]  # {"text": [B, text_length, text_width]}, or empty
NO_ENTROPY = "the quantizer has no entropy term; expected its entropy_weight above 0 (lfq, bsq, ibq, vq)"


@dataclass(frozen=True, kw_only=True)
class TokenizerSetup:
    """What every task that trains a tokenizer gets."""

    tokenizer: Tokenizer
    validation: Source  # held-out images
    losses: TokenizerLossSettings = field(default_factory=TokenizerLossSettings)
    optimizer: OptimizerSettings  # of the tokenizer
    batch_size: int  # of evaluation and previews
    num_workers: int = 0
    evaluator: ReconstructionEvaluator | None = None  # None measures by the default settings
    class_names: Sequence[str] = ()  # of the training images


class TokenizerTask(Task):
    """Base of the tasks that train a tokenizer; `TOKENIZER_TASKS` holds one for every way to learn."""

    needs: ClassVar[Mapping[str, str]] = {}  # keys of the run that must be given, with what is expected
    unused: ClassVar[Mapping[str, str]] = {}  # keys of the run that must keep their defaults, with the reason
    compared: ClassVar[tuple[str, ...]] = ()  # names of what `compare` gives
    text: TextEncoder | None = None  # encodes captions for a tokenizer that needs them

    def __init__(self, setup: TokenizerSetup) -> None:
        self.validation, self.class_names = setup.validation, setup.class_names
        self.batch_size, self.num_workers = setup.batch_size, setup.num_workers
        self.evaluator, self.settings = setup.evaluator, setup.losses
        self.modules = {"model": setup.tokenizer}
        self.optimizers = {"model": setup.optimizer}
        self.health = CodebookHealth(setup.tokenizer.codebook_size) if setup.tokenizer.is_discrete else None
        self.state = {"codebook_health": self.health} if self.health else {}

    @classmethod
    @abstractmethod
    def from_run(cls, run: LearningSettings, setup: TokenizerSetup, device: torch.device) -> "TokenizerTask":
        """The task with the frozen models that the run names, on `device`.

        Raises:
            OSError, ValueError: a model cannot be loaded, or does not fit.
        """

    @classmethod
    def check(cls, run: LearningSettings, tokenizer: Tokenizer) -> None:
        """Raise ConfigError if the run lacks what the tokenizer needs, or gives what it does not use."""
        needs, unused = dict(cls.needs), {}
        if tokenizer.frozen_encoder:
            needs["initialize"] = FROZEN
        if tokenizer.copies_teacher:
            needs.setdefault("teacher", COPIED)
        if "teacher" not in needs:
            unused["teacher"] = "this tokenizer learns from images only"
        if not tokenizer.needs_text:
            unused["text_encoder"] = "this tokenizer takes no text"
        if tokenizer.frozen_encoder or not tokenizer.is_discrete:
            why = "codes of this tokenizer are frozen" if tokenizer.frozen_encoder else "it has no codes"
            unused |= dict.fromkeys(SOFT_START, why)
        if not tokenizer.quantize.entropy_weight:
            unused["losses.entropy_boost"] = NO_ENTROPY
        for key, expected in needs.items():
            if getattr(run, key) is None:
                raise ConfigError(f"{key} is missing; {expected}")
        defaults = LearningSettings()
        for key, why in (unused | cls.unused).items():
            value = attrgetter(key)(run)
            if value != attrgetter(key)(defaults):
                raise ConfigError(f"{key}={value!r} is not used: {why}")

    @classmethod
    def initialize(cls, run: LearningSettings, tokenizer: Tokenizer) -> None:
        """Start from the weights of other models as the run says.

        Raises:
            OSError, ValueError: a model cannot be loaded, or does not fit.
        """
        if run.initialize is None:
            return
        finished = load_tokenizer(run.initialize)
        try:
            tokenizer.copy_weights(finished)
        except ValueError as error:
            raise ConfigError(f"initialize={run.initialize}: {error}") from error

    def forward(self, batch: Batch, context: StepContext) -> TokenizerOutput:
        """The tokenizer's output for a training batch, with random numbers that belong to its examples."""
        model, tokenizer = context.modules["model"], context.raw["model"]
        options = self.text_of(batch, self.class_names)
        if not tokenizer.is_discrete:
            shape = (tokenizer.quantize.code_dim, 1, tokenizer.num_tokens)
            # Drawn here, not in the model: the same numbers on any number of processes, and after a resume.
            noise = context.random.normal("bottleneck", *shape)
            options["noise"] = noise.to(context.device, non_blocking=True)
        share = self.settings.quantized_share(context.step)
        if share < 1:
            bypass = context.random.uniform("bypass") >= share
            options["bypass"] = bypass.to(context.device, non_blocking=True)
        if context.step == 0 and not tokenizer.codebook_started:  # codes that start at latents: one pass more
            with torch.no_grad():
                tokenizer.start_codebook(model(batch["images"], **options))
        return model(batch["images"], **options)

    def reconstruct(self, model: Tokenizer, tokens: torch.Tensor, text: Text) -> torch.Tensor:
        """Images [B, 3, H, W] of tokens."""
        return self.pixels(model.decode(tokens, **text))

    def pixels(self, prediction: torch.Tensor) -> torch.Tensor:
        """Images [B, 3, H, W] of what the tokenizer's decoder gives; here it gives images."""
        return prediction

    def compare(self, prediction: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Means over a batch of what `compared` names, of what the decoder gives for held-out images."""
        return {}

    def text_of(self, batch: Batch, class_names: Sequence[str]) -> Text:
        """Keyword argument with the text embeddings of a batch, for tokenizers that need them; else empty."""
        if self.text is None:
            return {}
        captions = batch.get("captions")
        if captions is None:  # images without captions get one of their class
            by_class = class_captions(class_names)
            captions = [by_class[label] for label in batch["labels"].tolist()]
        return {"text": self.text.encode(captions)}

    def move_codebook(self, output: TokenizerOutput, context: StepContext) -> Scalars:
        """Move the codes after a forward pass and before its backward pass; returns the codebook's health to log."""
        update = context.raw["model"].update_codebook(output)
        if self.health is None:
            return {}
        return self.health.update(output.tokens, update.revived if update else None)

    def warnings(self, step: int, scalars: Mapping[str, float]) -> list[str]:
        found = self.health.warning(step, scalars) if self.health else None
        return [found] if found else []

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Metrics of the settings and codebook usage over all held-out images, each process its share."""
        maker = self.evaluator or ReconstructionEvaluator(TokenizerEvaluation(), device)
        evaluator, means = maker.start(), HeldOutMeans(*self.compared)
        usage = CodebookUsage(model.codebook_size) if model.is_discrete else None
        for batch in self._held_out(device):
            means.skip(batch["skipped"])
            images = batch["images"]
            if not len(images):  # none of the batch can be read
                continue
            tokens = model.encode(images)
            prediction = model.decode(tokens, **self.text_of(batch, self.validation.class_names))
            means.add(self.compare(prediction, images), len(images))
            results = self.pixels(prediction).clamp(0, 1)  # decoders go a little beyond
            evaluator.update_pairs(results, images, batch["positions"])
            if usage:
                usage.update(tokens)
        means = means.result()
        measured = evaluator.outcome().with_warnings() | means if means["images"] else means
        return measured | (usage.result(device) if usage else {})

    def _held_out(self, device: torch.device) -> Iterator[Batch]:
        loader = eval_loader(
            self.validation,
            batch_size=self.batch_size,
            num_processes=distributed.world_size(),
            process_index=distributed.rank(),
            num_workers=self.num_workers,
        )
        for batch in loader:
            yield {**batch, "images": to_float(batch["images"].to(device))}

    def preview(self, model: nn.Module, device: torch.device) -> list[Picture]:
        """Held-out images above their reconstructions."""
        batch = self._preview_batch(device)
        images = batch["images"]
        text = self.text_of(batch, self.validation.class_names)
        parts = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            tokens = model.encode(images[part])
            parts.append(self.reconstruct(model, tokens, {k: v[part] for k, v in text.items()}))
        return [Picture(name="reconstructions", image=side_by_side(images, torch.cat(parts)))]

    def _preview_batch(self, device: torch.device) -> Batch:
        count = min(PREVIEW_IMAGES, len(self.validation))
        # Evenly over the set: files are often sorted by class.
        indices = [i * len(self.validation) // count for i in range(count)]
        batch = EvalStream(self.validation).__getitems__(indices)
        return {**batch, "images": to_float(batch["images"].to(device))}


def pixel_options(why: str, *others: str) -> dict[str, str]:
    """`TokenizerTask.unused` of tasks without pixels: all that belongs to them, and `others`, with the reason `why`."""
    read = {"quantizer_weight", "quantize_start", "quantize_end"}
    losses = [f"losses.{f.name}" for f in fields(TokenizerLossSettings) if f.name not in read]
    return dict.fromkeys(["discriminator", "discriminator_learning_rate", *losses, *others], why)


def find_text_encoder(weights: str | None, tokenizer: Tokenizer, device: torch.device) -> TextEncoder | None:
    """The encoder of captions, None for a tokenizer that takes no text.

    Raises:
        OSError, ValueError: it cannot be loaded, or its embeddings do not fit the tokenizer's decoder.
    """
    if not tokenizer.needs_text:
        return None
    encoder = load_text_encoder(weights, device)
    if (encoder.length, encoder.width) != (tokenizer.text_length, tokenizer.text_width):
        raise ConfigError(
            f"tokenizer.text_length={tokenizer.text_length} and .text_width={tokenizer.text_width}, but text_encoder"
            f" {weights} gives {encoder.length} embeddings of {encoder.width}"
        )
    return encoder


def side_by_side(images: torch.Tensor, reconstructions: torch.Tensor, columns: int = 8) -> torch.Tensor:
    """Rows of images [B, 3, H, W], each above the row of their reconstructions, as one picture [3, h, w]."""
    factor = max(1, PREVIEW_SIDE // images.shape[-1])
    images, reconstructions = images.clamp(0, 1).cpu(), reconstructions.clamp(0, 1).cpu()
    rows = []
    for start in range(0, len(images), columns):
        for part in (images, reconstructions):
            row = part[start : start + columns]
            missing = row.new_ones(columns - len(row), *row.shape[1:])  # white, to fill the last row
            rows.append(torch.cat([row, missing]))
    return grid(enlarge(torch.cat(rows), factor), columns)
