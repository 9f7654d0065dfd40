"""Training of tokenizers that make pixels: reconstruct images, then also against a discriminator."""

from dataclasses import replace

import torch
from torch import nn

from common.build import ConfigError
from modeling.factory import build_discriminator
from modeling.losses.perceptual import PerceptualLoss
from modeling.pretrained.loading import load_tokenizer
from modeling.pretrained.perceptual_weights import find_perceptual
from modeling.pretrained.text import TextEncoder
from modeling.tokenizers.base import Tokenizer, TokenizerOutput
from training.settings import OptimizerSettings
from training.task import Batch, Phase, Scalars, StepContext
from training.tasks.tokenizer import LearningSettings, TokenizerSetup, TokenizerTask, find_text_encoder
from training.tasks.tokenizer_loss import TokenizerLoss


class ReconstructionTask(TokenizerTask):
    """Two phases: the tokenizer, and from `discriminator_start` on its discriminator on the same reconstructions.

    Args:
        setup: what every tokenizer's task gets.
        discriminator: images [B, 3, H, W] to logits; None trains without adversarial term.
        perceptual: frozen feature comparison, or None.
        discriminator_optimizer: settings of its optimizer.
        text: see `TokenizerTask`.

    Raises:
        ConfigError: adaptive loss weights with a tokenizer whose decoder is not convolutional.
    """

    def __init__(
        self,
        setup: TokenizerSetup,
        *,
        discriminator: nn.Module | None,
        perceptual: PerceptualLoss | None,
        discriminator_optimizer: OptimizerSettings,
        text: TextEncoder | None = None,
    ) -> None:
        super().__init__(setup)
        self.text = text
        if setup.losses.adaptive_weight and setup.tokenizer.last_layer is None:
            raise ConfigError(
                f"losses.adaptive_weight is for convolutional decoders, not for a {type(setup.tokenizer).__name__}"
            )
        self.loss = TokenizerLoss(setup.losses, perceptual)
        if discriminator is not None:
            self.modules["discriminator"] = discriminator
            self.optimizers["discriminator"] = discriminator_optimizer
        if self.loss.lecam is not None:
            self.state["lecam"] = self.loss.lecam

    @classmethod
    def from_run(
        cls, run: LearningSettings, setup: TokenizerSetup, device: torch.device
    ) -> "ReconstructionTask":
        """See `TokenizerTask.from_run`."""
        rate, losses = run.discriminator_learning_rate or run.optimizer.learning_rate, run.losses
        return cls(
            setup,
            discriminator=build_discriminator(run.discriminator) if run.discriminator else None,
            perceptual=find_perceptual(**vars(losses.perceptual)) if losses.perceptual_weight else None,
            discriminator_optimizer=replace(run.optimizer, learning_rate=rate, muon_learning_rate=None),
            # After the discriminator: both draw random numbers, and the discriminator's belong to the run.
            text=find_text_encoder(run.text_encoder, setup.tokenizer, device),
        )

    @classmethod
    def needs(cls, tokenizer: Tokenizer) -> dict[str, str]:
        """Beyond those of all tokenizers the teacher that a second stage copies."""
        found = super().needs(tokenizer)
        if tokenizer.copies_teacher:
            found["teacher"] = "the pixel decoder starts from the teacher's; expected one like maskgit-vqgan"
        return found

    @classmethod
    def unused(cls, tokenizer: Tokenizer) -> dict[str, str]:
        """Beyond those of all tokenizers a teacher."""
        found = super().unused(tokenizer)
        if not tokenizer.copies_teacher:
            found["teacher"] = "this tokenizer learns from images only"
        return found

    @classmethod
    def initialize(cls, run: LearningSettings, tokenizer: Tokenizer) -> None:
        """Beyond the weights of `initialize`, those that a second stage copies from its teacher."""
        super().initialize(run, tokenizer)
        if tokenizer.copies_teacher:
            tokenizer.copy_teacher(load_tokenizer(run.teacher))

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
            output = self.forward(batch, context)
        total, scalars = self.loss.generator(
            batch["images"],
            output.reconstructions,
            output.losses,
            context.raw.get("discriminator"),
            context.step,
            last_layer=tokenizer.last_layer if self.loss.settings.adaptive_weight else None,
        )
        return total, scalars | self.move_codebook(output, context)

    def discriminator_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """The discriminator's loss on the images and the reconstructions of this step's one forward pass."""
        if "reconstructions" not in context.shared:  # it goes first: the graph is kept for the tokenizer
            context.shared["output"] = self.forward(batch, context)
        reconstructions = context.shared["reconstructions"]
        return self.loss.discriminator(
            batch["images"], reconstructions, context.modules["discriminator"], context.step
        )

    def forward(self, batch: Batch, context: StepContext) -> TokenizerOutput:
        """See `TokenizerTask.forward`; without gradient the reconstructions are shared between phases."""
        output = super().forward(batch, context)
        context.shared["reconstructions"] = output.reconstructions.detach()
        return output

    def reconstruct(
        self, model: nn.Module, tokens: torch.Tensor, text: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Images of tokens."""
        return model.decode(tokens, **text)
