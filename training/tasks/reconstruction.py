"""Training of tokenizers that make pixels: reconstruct images, then also against a discriminator."""

from dataclasses import replace

import torch

from common.build import ConfigError
from data.stream import Batch
from modeling.factory import build_discriminator
from modeling.layers.trainable import Trainable
from modeling.losses.perceptual import PerceptualLoss
from modeling.pretrained.loading import load_tokenizer
from modeling.pretrained.perceptual_weights import find_perceptual
from modeling.pretrained.text import TextEncoder
from modeling.tokenizers.base import Tokenizer, TokenizerOutput
from training.evaluation_settings import TokenizerEvaluation
from training.settings import OptimizerSettings
from training.task import DecidingValue, Phase, Scalars, StepContext
from training.tasks.tokenizer import TokenizerSetup, TokenizerTask, find_text_encoder
from training.tasks.tokenizer_loss import TokenizerLoss
from training.tokenizer_settings import LearningSettings


class ReconstructionTask(TokenizerTask):
    """Two phases: the tokenizer, and from `discriminator_start` on its discriminator on the same reconstructions.

    Without a discriminator there is no adversarial term.

    Raises:
        ConfigError: adaptive loss weights with a tokenizer whose decoder is not convolutional.
    """

    def __init__(
        self,
        setup: TokenizerSetup,
        *,
        discriminator: Trainable | None,
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
        if (
            setup.losses.adaptive_weight
        ):  # a gradient at one layer: half a backward pass, which sharding does not know
            self.unshardable = "losses.adaptive_weight=true"
        self.loss = TokenizerLoss(setup.losses, perceptual)
        if discriminator is not None:
            self.modules["discriminator"] = discriminator
            self.optimizers["discriminator"] = discriminator_optimizer
        if self.loss.lecam is not None:
            self.state["lecam"] = self.loss.lecam

    @classmethod
    def from_run(cls, run: LearningSettings, setup: TokenizerSetup, device: torch.device) -> TokenizerTask:
        rate, losses = run.discriminator_learning_rate or run.optimizer.learning_rate, run.losses
        return cls(
            setup,
            discriminator=build_discriminator(run.discriminator) if run.discriminator else None,
            perceptual=find_perceptual(**vars(losses.perceptual)) if losses.perceptual_weight else None,
            # Discriminators are convolutional: nothing for Muon.
            discriminator_optimizer=replace(run.optimizer, learning_rate=rate, muon_learning_rate=None),
            # After the discriminator: both draw random numbers, and the discriminator's belong to the run.
            text=find_text_encoder(run.text_encoder, setup.tokenizer, device),
        )

    @classmethod
    def initialize(cls, run: LearningSettings, tokenizer: Tokenizer) -> None:
        super().initialize(run, tokenizer)
        if tokenizer.copies_teacher:  # after `initialize`: the first stage has no pixel decoder
            tokenizer.copy_teacher(load_tokenizer(run.teacher))

    def phases(self) -> list[Phase]:
        phases = [Phase(module="model", loss=self.tokenizer_loss)]
        if "discriminator" in self.modules:
            start = self.loss.settings.discriminator_start
            phases.append(Phase(module="discriminator", loss=self.discriminator_loss, start=start))
        return phases[::-1] if self.loss.settings.discriminator_first else phases

    def deciding_value(self) -> DecidingValue:
        """PSNR of held-out images; LPIPS, if measured, of a run with a discriminator, whose gain PSNR does not see."""
        metrics = self.evaluator.settings.metrics if self.evaluator else TokenizerEvaluation().metrics
        adversarial = "discriminator" in self.modules
        # What came before is not comparable: PSNR falls when a discriminator begins.
        since = self.loss.settings.discriminator_start if adversarial else 0
        if adversarial and "lpips" in metrics:
            return DecidingValue(name="lpips", since=since)
        if "psnr" not in metrics:
            raise ConfigError("PSNR of held-out images decides; add psnr to evaluation.metrics")
        return DecidingValue(name="psnr", higher=True, since=since)

    def tokenizer_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """Reconstruction, bottleneck, perceptual and adversarial terms."""
        output = context.shared.pop("output", None)
        if output is None:  # the discriminator did not go first
            output = self.forward(batch, context)
        discriminator = context.raw.get("discriminator")  # unwrapped: DDP would expect gradients
        last_layer = context.raw["model"].last_layer if self.loss.settings.adaptive_weight else None
        total, scalars = self.loss.generator(
            batch["images"], output.reconstructions, output.losses, discriminator, context.step, last_layer
        )
        return total, scalars | self.move_codebook(output, context)

    def discriminator_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """Loss on the images and the reconstructions of this step's one forward pass of the tokenizer."""
        if "reconstructions" not in context.shared:  # it goes first: the graph is kept for the tokenizer
            context.shared["output"] = self.forward(batch, context)
        reconstructions = context.shared["reconstructions"]
        return self.loss.discriminator(
            batch["images"], reconstructions, context.modules["discriminator"], context.step
        )

    def forward(self, batch: Batch, context: StepContext) -> TokenizerOutput:
        output = super().forward(batch, context)
        context.shared["reconstructions"] = output.reconstructions.detach()  # for the discriminator's phase
        return output
