"""Training of tokenizers that make pixels: reconstruct images, then also against a discriminator."""

from collections.abc import Sequence

import torch
from torch import nn

from common.build import ConfigError
from data.source import Source
from modeling.losses.perceptual import PerceptualLoss
from modeling.pretrained.text import TextEncoder
from modeling.tokenizers.base import Tokenizer, TokenizerOutput
from training.evaluation import ReconstructionEvaluator
from training.settings import OptimizerSettings
from training.task import Batch, Phase, Scalars, StepContext
from training.tasks.tokenizer import TokenizerTask
from training.tasks.tokenizer_loss import TokenizerLoss, TokenizerLossSettings


class ReconstructionTask(TokenizerTask):
    """Two phases: the tokenizer, and from `discriminator_start` on its discriminator on the same reconstructions.

    Args:
        tokenizer: what is trained.
        discriminator: images [B, 3, H, W] to logits; None trains without adversarial term.
        perceptual: frozen feature comparison, or None.
        validation: held-out images.
        loss: weights of the terms.
        optimizer, discriminator_optimizer: settings of both.
        batch_size, num_workers: of the evaluation.
        evaluator, text, class_names: see `TokenizerTask`.
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
        evaluator: ReconstructionEvaluator | None = None,
        text: TextEncoder | None = None,
        class_names: Sequence[str] = (),
    ):
        if not tokenizer.predicts_pixels:
            raise ConfigError("this tokenizer predicts no pixels, so they cannot be compared with images")
        if loss.adaptive_weight and tokenizer.last_layer is None:
            raise ConfigError(
                f"losses.adaptive_weight is for convolutional decoders, not for a {type(tokenizer).__name__}"
            )
        super().__init__(
            tokenizer=tokenizer,
            validation=validation,
            optimizer=optimizer,
            batch_size=batch_size,
            num_workers=num_workers,
            evaluator=evaluator,
            text=text,
            class_names=class_names,
        )
        self.loss = TokenizerLoss(loss, perceptual)
        if discriminator is not None:
            self.modules["discriminator"] = discriminator
            self.optimizers["discriminator"] = discriminator_optimizer
        if self.loss.lecam is not None:
            self.state["lecam"] = self.loss.lecam

    def phases(self) -> list[Phase]:
        """The tokenizer, then its discriminator if it has one; with `discriminator_first` the other way round."""
        phases = [Phase(module="model", loss=self.tokenizer_loss)]
        if "discriminator" in self.modules:
            start = self.loss.settings.discriminator_start
            phases.append(Phase(module="discriminator", loss=self.discriminator_loss, start=start))
        return phases[::-1] if self.loss.settings.discriminator_first else phases

    def tokenizer_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """Reconstruction, bottleneck, perceptual and adversarial terms."""
        tokenizer, output = context.raw["model"], context.shared.pop("output", None)
        if output is None:  # the discriminator did not go first
            output = self._forward(batch, context)
        total, scalars = self.loss.generator(
            batch["images"],
            output.reconstructions,
            output.losses,
            context.raw.get("discriminator"),
            context.step,
            last_layer=tokenizer.last_layer if self.loss.settings.adaptive_weight else None,
        )
        return total, scalars | self.codebook_scalars(output, context)

    def discriminator_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """The discriminator's loss on the images and the reconstructions of this step's one forward pass."""
        if "reconstructions" not in context.shared:  # it goes first: the graph is kept for the tokenizer
            context.shared["output"] = self._forward(batch, context)
        reconstructions = context.shared["reconstructions"]
        return self.loss.discriminator(
            batch["images"], reconstructions, context.modules["discriminator"], context.step
        )

    def _forward(self, batch: Batch, context: StepContext) -> TokenizerOutput:
        """What the tokenizer makes of the images; without gradient the reconstructions are shared between phases."""
        tokenizer = context.raw["model"]
        options = self.text_of(batch, self.class_names)
        if not tokenizer.is_discrete:
            shape = (tokenizer.quantize.code_dim, 1, tokenizer.num_tokens)
            options["noise"] = context.random.normal("bottleneck", *shape).to(context.device)
        share = self.loss.quantized_share(context.step)
        if share < 1:
            options["bypass"] = (context.random.uniform("bypass") >= share).to(context.device)
        output = context.modules["model"](batch["images"], **options)
        context.shared["reconstructions"] = output.reconstructions.detach()
        return output

    def reconstruct(
        self, model: nn.Module, tokens: torch.Tensor, text: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Images of tokens."""
        return model.decode(tokens, **text)
