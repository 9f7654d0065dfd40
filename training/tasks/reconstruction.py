"""Training of image tokenizers: reconstruct images, then also against a discriminator."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from common import distributed
from common.build import ConfigError
from common.images import enlarge, grid, to_float
from data.loaders import eval_loader
from data.source import Source
from evaluator.codebook_usage import CodebookUsage
from evaluator.image_quality import ImageQuality
from modeling.losses.perceptual import PerceptualLoss
from modeling.tokenizers.base import Tokenizer
from training.settings import OptimizerSettings
from training.task import Batch, Phase, Picture, Scalars, StepContext, Task
from training.tasks.tokenizer_loss import TokenizerLoss, TokenizerLossSettings

PREVIEW_IMAGES = 64
PREVIEW_SIDE = 96  # pixels; smaller images are enlarged towards this size for people


class ReconstructionTask(Task):
    """Two phases: the tokenizer, and from `discriminator_start` on its discriminator on the same images.

    Args:
        tokenizer: what is trained.
        discriminator: images [B, 3, H, W] to logits; None trains without adversarial term.
        perceptual: frozen feature comparison, or None.
        validation: held-out images.
        loss: weights of the terms.
        optimizer, discriminator_optimizer: settings of both.
        batch_size, num_workers: of the evaluation.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        discriminator: nn.Module | None,
        perceptual: PerceptualLoss | None,
        validation: Source,
        loss: TokenizerLossSettings,
        optimizer: OptimizerSettings,
        discriminator_optimizer: OptimizerSettings,
        batch_size: int,
        num_workers: int = 0,
    ):
        if not tokenizer.predicts_pixels:
            raise ConfigError(
                "tokenizer.layout='proxy' predicts codes, not pixels; this task trains 'single_stage'"
            )
        self.loss = TokenizerLoss(loss, perceptual)
        self.validation, self.batch_size, self.num_workers = validation, batch_size, num_workers
        self.modules = {"model": tokenizer}
        self.optimizers = {"model": optimizer}
        if discriminator is not None:
            self.modules["discriminator"] = discriminator
            self.optimizers["discriminator"] = discriminator_optimizer
        self.state = {"lecam": self.loss.lecam} if self.loss.lecam is not None else {}

    def phases(self) -> list[Phase]:
        """The tokenizer, then its discriminator if it has one."""
        phases = [Phase(module="model", loss=self.tokenizer_loss)]
        if "discriminator" in self.modules:
            start = self.loss.settings.discriminator_start
            phases.append(Phase(module="discriminator", loss=self.discriminator_loss, start=start))
        return phases

    def tokenizer_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """Reconstruction, bottleneck, perceptual and adversarial terms."""
        images = batch["images"]
        tokenizer = context.raw["model"]
        noise = None
        if not tokenizer.is_discrete:
            shape = (tokenizer.quantize.code_dim, 1, tokenizer.num_tokens)
            noise = context.random.normal("bottleneck", *shape).to(context.device)
        bypass, share = None, self.loss.quantized_share(context.step)
        if share < 1:
            bypass = (context.random.uniform("bypass") >= share).to(context.device)
        output = context.modules["model"](images, noise, bypass)
        context.shared["reconstructions"] = output.reconstructions.detach()
        return self.loss.generator(
            images, output.reconstructions, output.losses, context.raw.get("discriminator"), context.step
        )

    def discriminator_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """Hinge loss on the images and the reconstructions of the tokenizer phase."""
        reconstructions = context.shared["reconstructions"]
        return self.loss.discriminator(
            batch["images"], reconstructions, context.modules["discriminator"], context.step
        )

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """PSNR, SSIM and codebook usage over all held-out images, each process its share."""
        quality = ImageQuality()
        usage = CodebookUsage(model.codebook_size) if model.is_discrete else None
        for images in self._held_out(device):
            tokens = model.encode(images)
            quality.update(images, model.decode(tokens))
            if usage:
                usage.update(tokens)
        return quality.result(device) | (usage.result(device) if usage else {})

    def _held_out(self, device: torch.device) -> Iterator[torch.Tensor]:
        loader = eval_loader(
            self.validation,
            batch_size=self.batch_size,
            num_processes=distributed.world_size(),
            process_index=distributed.rank(),
            num_workers=self.num_workers,
        )
        for batch in loader:
            yield to_float(batch["images"].to(device))

    def preview(self, model: nn.Module, device: torch.device) -> list[Picture]:
        """Held-out images above their reconstructions, evenly chosen over the validation set."""
        count = min(PREVIEW_IMAGES, len(self.validation))
        indices = [i * len(self.validation) // count for i in range(count)]
        examples = [self.validation.load(i, np.random.default_rng(0))[0] for i in indices]
        images = to_float(torch.stack(examples).to(device))
        reconstructions = torch.cat(
            [model.decode(model.encode(part)) for part in images.split(self.batch_size)]
        )
        return [Picture(name="reconstructions", image=side_by_side(images, reconstructions))]


def side_by_side(images: torch.Tensor, reconstructions: torch.Tensor, columns: int = 8) -> torch.Tensor:
    """Rows of originals, each above the row of its reconstructions: both [B, 3, H, W] -> [3, h, w]."""
    factor = max(1, PREVIEW_SIDE // images.shape[-1])
    images, reconstructions = images.clamp(0, 1).cpu(), reconstructions.clamp(0, 1).cpu()
    rows = []
    for start in range(0, len(images), columns):
        for part in (images, reconstructions):
            row = part[start : start + columns]
            missing = row.new_ones(columns - len(row), *row.shape[1:])
            rows.append(torch.cat([row, missing]))
    return grid(enlarge(torch.cat(rows), factor), columns)
