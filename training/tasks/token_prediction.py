"""Training of token generators: what all of them share, and the two ways of learning tokens.

Autoregressive generators predict every token from those before it in the sample's order (RAR, arXiv:2411.00776);
masked generators predict hidden tokens from the visible ones (MaskGIT, arXiv:2202.04200).
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common import distributed
from common.build import ConfigError
from common.images import enlarge, grid
from data.loaders import eval_loader
from data.source import Source
from data.stream import Batch
from modeling.generators.base import AutoregressiveGenerator, Generator, drop_labels
from modeling.generators.masking import sample_masks
from modeling.generators.orders import permute_tokens, randomness, sample_orders
from modeling.losses.tokens import autoregressive_loss, factorized_loss, masked_token_loss
from modeling.sampling.draw import draw, numbers_needed
from modeling.sampling.noise import sample_uniforms
from modeling.token_factors import TokenFactors
from modeling.tokenizers.base import Tokenizer
from training.evaluation import SampleEvaluator
from training.generator_settings import NO_VALIDATION, MaskGITSettings, RARSettings
from training.means import HeldOutMeans
from training.randomness import ExampleRandom
from training.settings import OptimizerSettings
from training.task import DecidingValue, Phase, Picture, Scalars, StepContext, Task

PREVIEW_CLASSES, PREVIEW_PER_CLASS = 12, 8
PREVIEW_SIDE = 96  # pixels; smaller images are enlarged towards this size


@dataclass(kw_only=True, eq=False)
class TokenPredictionTask(Task):
    """Base: one phase, evaluation on held-out tokens, samples as previews."""

    generator: Generator
    validation: Source | None  # held-out tokens; None evaluates nothing on them
    tokenizer: Tokenizer | None  # decodes previews, and encodes images; None for tokens without previews
    settings: Any  # a section of `GENERATOR_TASKS`
    sampling: Any  # settings of previews
    optimizer: OptimizerSettings
    seed: int  # of previews and of the tokens that evaluation hides
    batch_size: int  # of evaluation and previews
    samples: SampleEvaluator | None = None  # measures samples at every evaluation

    def __post_init__(self) -> None:
        self.modules, self.optimizers, self.state = {"model": self.generator}, {"model": self.optimizer}, {}

    @staticmethod
    @abstractmethod
    def default_settings(generator: Generator) -> Any:
        """The settings of a run that gives none."""

    def phases(self) -> list[Phase]:
        return [Phase(module="model", loss=self.token_loss)]

    @abstractmethod
    def token_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """Loss of a training batch."""

    @abstractmethod
    def held_out_loss(
        self, model: nn.Module, tokens: torch.Tensor, labels: torch.Tensor, random: ExampleRandom
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss (nats per token) and accuracy of a batch of held-out tokens, with all labels kept."""

    def tokens_of(self, batch: Batch) -> torch.Tensor:
        """int64 [B, N]: the batch's tokens, or those of its images."""
        return batch["tokens"] if "tokens" in batch else self.tokenizer.encode(batch["images"])

    def labels_of(self, batch: Batch, context: StepContext, chance: torch.Tensor) -> torch.Tensor:
        """The batch's labels, dropped where `chance` [B] in [0, 1) is below the share of the settings."""
        share, none = self.settings.class_label_dropout, context.raw["model"].none_label
        return drop_labels(batch["labels"], chance, share, none).to(context.device, non_blocking=True)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean of `held_out_loss` over all held-out tokens, and metrics of samples; each process its share."""
        held_out = self._held_out(model, device) if self.validation is not None else {}
        return held_out | (self.samples.measure(model) if self.samples is not None else {})

    def deciding_value(self) -> DecidingValue:
        """Loss per held-out token."""
        if self.validation is None:
            raise ConfigError(NO_VALIDATION)
        return DecidingValue(name="loss")

    def _held_out(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        share = {"num_processes": distributed.world_size(), "process_index": distributed.rank()}
        means = HeldOutMeans("loss", "accuracy")
        for batch in eval_loader(self.validation, batch_size=self.batch_size, **share):
            means.skip(batch["skipped"])
            tokens, labels = batch["tokens"].to(device), batch["labels"].to(device)
            if not len(tokens):  # none of the batch can be read
                continue
            random = ExampleRandom(self.seed, batch["positions"])  # the same at every evaluation
            loss, accuracy = self.held_out_loss(model, tokens, labels, random)
            means.add({"loss": loss, "accuracy": accuracy}, len(tokens))
        return means.result()

    def preview(self, model: nn.Module, device: torch.device) -> list[Picture]:
        """Samples, a row per class, always from the same random numbers."""
        if self.tokenizer is None:
            return []
        classes = torch.arange(min(PREVIEW_CLASSES, model.num_classes))
        labels = classes.repeat_interleave(PREVIEW_PER_CLASS).to(device)
        uniforms = sample_uniforms(self.seed, range(len(labels)), numbers_needed(model, self.sampling))
        images = []
        for part, numbers in zip(labels.split(self.batch_size), uniforms.split(self.batch_size), strict=True):
            tokens = draw(model, part, numbers, self.sampling)
            images.append(self.tokenizer.decode(tokens).clamp(0, 1))
        image = torch.cat(images)
        factor = max(1, PREVIEW_SIDE // image.shape[-1])
        return [Picture(name="samples", image=grid(enlarge(image, factor), PREVIEW_PER_CLASS))]


Logits = torch.Tensor | tuple[torch.Tensor, ...]  # a tuple holds those of every factor of a token


def next_token_loss(
    generator: AutoregressiveGenerator, logits: Logits, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (nats per token) and accuracy of a generator's logits for targets int64 [B, N] in sequence order."""
    if isinstance(logits, torch.Tensor):
        return autoregressive_loss(logits, targets)
    return factorized_loss(logits, TokenFactors(generator.factors).split(targets))


class RARTask(TokenPredictionTask):
    """Next-token prediction in random orders that anneal to raster order; `settings` are RARSettings."""

    @staticmethod
    def default_settings(generator: AutoregressiveGenerator) -> RARSettings:
        if generator.any_order:
            return RARSettings()
        # Random orders need a generator that is told which position comes next.
        return RARSettings(randomness_anneal_start=0, randomness_anneal_end=0)

    def token_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        settings, tokens, random = self.settings, self.tokens_of(batch), context.random
        ratio = randomness(context.step, settings.randomness_anneal_start, settings.randomness_anneal_end)
        chance = random.uniform("order", 2)  # [B, 2]: whether to permute, whether to drop the label
        orders = None
        if ratio > 0:
            noise = random.uniform("permutation", tokens.shape[1])
            orders = sample_orders(chance[:, 0], noise, ratio).to(context.device, non_blocking=True)
        logits = context.modules["model"](tokens, self.labels_of(batch, context, chance[:, 1]), orders)
        loss, accuracy = next_token_loss(context.raw["model"], logits, permute_tokens(tokens, orders))
        return loss, {"total_loss": loss, "accuracy": accuracy, "randomness": ratio}

    def held_out_loss(
        self, model: nn.Module, tokens: torch.Tensor, labels: torch.Tensor, random: ExampleRandom
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return next_token_loss(model, model(tokens, labels), tokens)  # in raster order


class MaskGITTask(TokenPredictionTask):
    """Prediction of hidden tokens, a random share of them at a time; `settings` are MaskGITSettings."""

    @staticmethod
    def default_settings(generator: Generator) -> MaskGITSettings:
        return MaskGITSettings()

    def _hide(
        self, tokens: torch.Tensor, mask_token: int, random: ExampleRandom
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens with the mask id at random places, and those places, both [B, N]."""
        share, noise = random.uniform("mask share"), random.uniform("mask places", tokens.shape[1])
        mask = sample_masks(share, noise).to(tokens.device, non_blocking=True)
        return torch.where(mask, mask_token, tokens), mask

    def token_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        tokens = self.tokens_of(batch)
        labels = self.labels_of(batch, context, context.random.uniform("label"))
        hidden, mask = self._hide(tokens, context.raw["model"].mask_token, context.random)
        logits = context.modules["model"](hidden, labels)
        weights = (self.settings.label_smoothing, self.settings.unmasked_weight)
        loss, accuracy = masked_token_loss(logits, tokens, mask, *weights, distributed.all_reduce_mean)
        return loss, {"total_loss": loss, "accuracy": accuracy}

    def held_out_loss(
        self, model: nn.Module, tokens: torch.Tensor, labels: torch.Tensor, random: ExampleRandom
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden, mask = self._hide(tokens, model.mask_token, random)
        # Hidden tokens alone, without smoothing: nats that runs of other settings can be compared by.
        return masked_token_loss(model(hidden, labels), tokens, mask, 0.0, 0.0)
