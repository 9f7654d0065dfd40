"""Training of token generators: predict an image's tokens from its class."""

from dataclasses import dataclass

import torch
from torch import nn

from common import distributed
from common.build import ConfigError
from common.config import option
from common.images import enlarge, grid
from data.loaders import eval_loader
from data.source import Source
from modeling.generators.base import drop_labels
from modeling.generators.orders import permute_tokens, randomness, sample_orders
from modeling.losses.tokens import autoregressive_loss
from modeling.sampling import SamplingSettings, sample, sample_uniforms
from modeling.tokenizers.base import Tokenizer
from training.settings import OptimizerSettings
from training.task import Batch, Phase, Picture, Scalars, StepContext, Task

PREVIEW_CLASSES, PREVIEW_PER_CLASS = 12, 8
PREVIEW_SIDE = 96


@dataclass(kw_only=True)
class RARSettings:
    """Randomized autoregressive training (arXiv:2411.00776)."""

    class_label_dropout: float = option(0.1, "share of labels replaced by 'no class', for guidance")
    randomness_anneal_start: int = option(125_000, "orders are random before this step")
    randomness_anneal_end: int = option(187_500, "and raster from this step on")

    def __post_init__(self) -> None:
        if not 0 <= self.class_label_dropout <= 1:
            raise ConfigError(f"class_label_dropout={self.class_label_dropout} must be in [0, 1]")
        if self.randomness_anneal_end < self.randomness_anneal_start:
            raise ConfigError(
                f"randomness_anneal_end={self.randomness_anneal_end} is before"
                f" randomness_anneal_start={self.randomness_anneal_start}"
            )


class RARTask(Task):
    """Next-token prediction in random orders that anneal to raster order.

    Args:
        generator: what is trained.
        validation: held-out tokens, or None to evaluate nothing.
        tokenizer: decodes previews; None for no previews.
        settings: orders and label dropout.
        sampling: settings of previews.
        optimizer: settings of AdamW.
        seed: of previews.
        batch_size: of evaluation and previews.
    """

    def __init__(
        self,
        *,
        generator: nn.Module,
        validation: Source | None,
        tokenizer: Tokenizer | None,
        settings: RARSettings,
        sampling: SamplingSettings,
        optimizer: OptimizerSettings,
        seed: int,
        batch_size: int,
    ):
        self.modules, self.optimizers, self.state = {"model": generator}, {"model": optimizer}, {}
        self.validation, self.tokenizer = validation, tokenizer
        self.settings, self.sampling, self.seed, self.batch_size = settings, sampling, seed, batch_size

    def phases(self) -> list[Phase]:
        """One phase: the generator."""
        return [Phase(module="model", loss=self.next_token_loss)]

    def next_token_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """Cross-entropy of every token given its predecessors in the sample's order."""
        settings, tokens, random = self.settings, batch["tokens"], context.random
        generator = context.raw["model"]
        ratio = randomness(context.step, settings.randomness_anneal_start, settings.randomness_anneal_end)
        chance = random.uniform("order", 2)
        labels = drop_labels(
            batch["labels"],
            chance[:, 1].to(context.device),
            settings.class_label_dropout,
            generator.none_label,
        )
        orders = None
        if ratio > 0:
            noise = random.uniform("permutation", tokens.shape[1])
            orders = sample_orders(chance[:, 0], noise, ratio).to(context.device)
        logits = context.modules["model"](tokens, labels, orders)
        loss, accuracy = autoregressive_loss(logits, permute_tokens(tokens, orders))
        return loss, {"total_loss": loss, "accuracy": accuracy, "randomness": ratio}

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Loss (nats per token) and accuracy in raster order on held-out tokens."""
        if self.validation is None:
            return {}
        loader = eval_loader(
            self.validation,
            batch_size=self.batch_size,
            num_processes=distributed.world_size(),
            process_index=distributed.rank(),
        )
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for batch in loader:
            tokens, labels = batch["tokens"].to(device), batch["labels"].to(device)
            loss, accuracy = autoregressive_loss(model(tokens, labels), tokens)
            sums += torch.stack([loss, accuracy, loss.new_ones(())]).double() * len(tokens)
        loss, accuracy, count = distributed.all_reduce_sum(sums).tolist()
        return {"loss": loss / count, "accuracy": accuracy / count, "images": count}

    def preview(self, model: nn.Module, device: torch.device) -> list[Picture]:
        """Samples, a row per class; always from the same random numbers."""
        if self.tokenizer is None:
            return []
        classes = torch.arange(min(PREVIEW_CLASSES, model.num_classes))
        labels = classes.repeat_interleave(PREVIEW_PER_CLASS).to(device)
        uniforms = sample_uniforms(self.seed, range(len(labels)), model.num_tokens)
        images = []
        for part, numbers in zip(labels.split(self.batch_size), uniforms.split(self.batch_size), strict=True):
            tokens = sample(model, part, uniforms=numbers, **vars(self.sampling))
            images.append(self.tokenizer.decode(tokens).clamp(0, 1))
        image = torch.cat(images)
        factor = max(1, PREVIEW_SIDE // image.shape[-1])
        return [Picture(name="samples", image=grid(enlarge(image, factor), PREVIEW_PER_CLASS))]
