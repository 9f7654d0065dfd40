"""First of TiTok's two stages: predict the codes of a frozen 2-D tokenizer (arXiv:2406.07550, section 3.3)."""

import torch

from common.build import ConfigError
from data.stream import Batch
from modeling.losses.reconstruction import proxy_cross_entropy
from modeling.pretrained.loading import load_tokenizer
from modeling.tokenizers.base import Tokenizer
from training.task import DecidingValue, Phase, Scalars, StepContext
from training.tasks.tokenizer import TokenizerSetup, TokenizerTask, pixel_options
from training.tokenizer_settings import LearningSettings


def proxy_loss(
    logits: torch.Tensor, codes: torch.Tensor, bottleneck: dict[str, torch.Tensor], quantizer_weight: float
) -> tuple[torch.Tensor, Scalars]:
    """Cross-entropy of logits [B, K, g, g] with codes int64 [B, g * g] (row-major), plus the bottleneck's loss.

    `bottleneck` holds unweighted terms, `quantizer_loss` among them. Returns the total and the terms to log.
    """
    reconstruction = proxy_cross_entropy(logits, codes)
    scalars = {"reconstruction_loss": reconstruction, **bottleneck}
    scalars["quantizer_loss"] = quantizer_weight * bottleneck["quantizer_loss"]
    total = reconstruction + scalars["quantizer_loss"]
    return total, {"total_loss": total, **scalars}


class ProxyCodesTask(TokenizerTask):
    """One phase: predict the codes that a frozen 2-D tokenizer, the teacher, gives to the same augmented image.

    Raises:
        ConfigError: the teacher's codes do not fit the tokenizer's decoder.
    """

    compared = ("proxy_cross_entropy",)
    needs = {"teacher": "this tokenizer learns the codes of another one; expected one like maskgit-vqgan"}
    unused = pixel_options("this tokenizer learns the codes of another one and makes no pixels")

    def __init__(self, setup: TokenizerSetup, *, teacher: Tokenizer) -> None:
        super().__init__(setup)
        self.teacher = teacher.eval().requires_grad_(False)
        size = setup.tokenizer.image_size
        with torch.no_grad():
            device = next(teacher.parameters()).device
            count = teacher.encode(torch.zeros(1, 3, size, size, device=device)).shape[1]
        proxy, height, width = setup.tokenizer.prediction_shape
        if (proxy, height * width) != (teacher.codebook_size, count):
            raise ConfigError(
                f"the tokenizer predicts {height * width} codes of {proxy} (tokenizer.decoder_patch_size and"
                f" .proxy_codebook_size), but the teacher gives {count} of {teacher.codebook_size}"
            )

    @classmethod
    def from_run(cls, run: LearningSettings, setup: TokenizerSetup, device: torch.device) -> TokenizerTask:
        return cls(setup, teacher=load_tokenizer(run.teacher, device))

    def phases(self) -> list[Phase]:
        return [Phase(module="model", loss=self.code_loss)]

    def code_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """Cross-entropy with the teacher's codes."""
        codes = self.teacher.encode(batch["images"])  # [B, g * g]; in float32, autocast covers the model only
        output = self.forward(batch, context)
        weight = self.settings.quantizer_weight
        total, scalars = proxy_loss(output.reconstructions, codes, output.losses, weight)
        with torch.no_grad():
            correct = (output.reconstructions.argmax(dim=1).flatten(1) == codes).float().mean()
        return total, {**scalars, "proxy_accuracy": correct} | self.move_codebook(output, context)

    def pixels(self, prediction: torch.Tensor) -> torch.Tensor:
        return self.teacher.decode(prediction.argmax(dim=1))  # images of the likeliest codes

    def deciding_value(self) -> DecidingValue:
        """Cross-entropy of held-out images."""
        return DecidingValue(name="proxy_cross_entropy")

    def compare(self, prediction: torch.Tensor, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """`proxy_cross_entropy`: the mean over all codes in nats."""
        return {"proxy_cross_entropy": proxy_cross_entropy(prediction, self.teacher.encode(images))}
