"""Training of VQ-KD: predict a frozen network's features through a bottleneck of codes (arXiv:2208.06366)."""

import torch
from torch import nn

from common import distributed
from common.build import ConfigError, check_options, check_value
from common.images import to_float
from data.stream import EvalStream
from evaluator.codebook_usage import CodebookUsage
from modeling.losses.distillation import feature_cosine, feature_distillation_loss
from modeling.pretrained.teachers import load_teacher
from modeling.tokenizers.base import Tokenizer
from training.task import Batch, Phase, Picture, Scalars, StepContext
from training.tasks.tokenizer import (
    PREVIEW_IMAGES,
    LearningSettings,
    TokenizerSetup,
    TokenizerTask,
    pixel_options,
    side_by_side,
)


class FeatureDistillationTask(TokenizerTask):
    """One phase: the tokenizer predicts the teacher's features of the same augmented image.

    Loss: mean of 1 - cosine over all tokens, plus the bottleneck's commitment.

    Args:
        setup: what every tokenizer's task gets.
        teacher: frozen; images in [0, 1] -> features [B, F, h, w].

    Raises:
        ConfigError: the tokenizer predicts something else than the teacher gives.
    """

    def __init__(self, setup: TokenizerSetup, *, teacher: nn.Module) -> None:
        super().__init__(setup)
        self.teacher = teacher.eval().requires_grad_(False)
        device, size = next(teacher.parameters()).device, setup.tokenizer.image_size
        with torch.no_grad():
            given = tuple(teacher(torch.zeros(1, 3, size, size, device=device)).shape[1:])
        made = setup.tokenizer.prediction_shape
        if given != made:
            raise ConfigError(
                f"the tokenizer predicts features {list(made)} (tokenizer.feature_channels, and twice the tokens per"
                f" side), but the teacher gives {list(given)} (teacher.project, teacher.grid)"
            )

    @classmethod
    def from_run(
        cls, run: LearningSettings, setup: TokenizerSetup, device: torch.device
    ) -> "FeatureDistillationTask":
        """See `TokenizerTask.from_run`."""
        section = check_value("teacher", run.teacher, dict)
        teacher = load_teacher(**check_options("teacher", load_teacher, section), device=device)
        setup.tokenizer.copy_teacher(teacher)
        return cls(setup, teacher=teacher)

    @classmethod
    def needs(cls, tokenizer: Tokenizer) -> dict[str, str]:
        """The teacher."""
        what = (
            "this tokenizer learns the features of a frozen network; expected a section with a name of timm"
        )
        return super().needs(tokenizer) | {"teacher": what}

    @classmethod
    def unused(cls, tokenizer: Tokenizer) -> dict[str, str]:
        """All that belongs to pixels, metrics of images among it."""
        why = "this tokenizer learns the features of a frozen network and makes no pixels"
        return super().unused(tokenizer) | pixel_options(why) | {"evaluation": why}

    def phases(self) -> list[Phase]:
        """One phase: the tokenizer."""
        return [Phase(module="model", loss=self.feature_loss)]

    def feature_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """Distance to the teacher's features, which are computed in float32, and the bottleneck's loss."""
        features = self.teacher(batch["images"])
        output = self.forward(batch, context)
        distillation = feature_distillation_loss(output.reconstructions, features)
        quantizer = self.settings.quantizer_weight * output.losses["quantizer_loss"]
        total = distillation + quantizer
        scalars = {"total_loss": total, "feature_loss": distillation, **output.losses}
        scalars["quantizer_loss"] = quantizer
        return total, scalars | self.move_codebook(output, context)

    def reconstruct(
        self, model: nn.Module, tokens: torch.Tensor, text: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Predicted features [B, F, h, w]; there are no pixels yet."""
        return model.decode(tokens)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Over all held-out images: `feature_cosine`, the mean over all tokens, and codebook usage."""
        usage, sums = CodebookUsage(model.codebook_size), torch.zeros(2, dtype=torch.float64)
        for batch in self._held_out(device):
            images = batch["images"]
            if not len(images):  # none of the batch can be read
                continue
            tokens = model.encode(images)
            cosine = feature_cosine(model.decode(tokens), self.teacher(images)).mean(dim=(1, 2))
            sums += torch.tensor([cosine.double().sum().item(), len(images)], dtype=torch.float64)
            usage.update(tokens)
        # As float32 where the device has no float64: a mean of cosines needs no more.
        total, count = distributed.all_reduce_sum(sums.float().to(device)).tolist()
        measured = {"feature_cosine": total / max(count, 1), "images": count}
        return measured | usage.result(device)

    def preview(self, model: nn.Module, device: torch.device) -> list[Picture]:
        """The teacher's features of held-out images above the predicted ones, in false colours, and the images."""
        count = min(PREVIEW_IMAGES, len(self.validation))
        indices = [i * len(self.validation) // count for i in range(count)]
        images = to_float(EvalStream(self.validation).__getitems__(indices)["images"].to(device))
        true, predicted = [], []
        for part in images.split(self.batch_size):
            true.append(self.teacher(part))
            predicted.append(model.decode(model.encode(part)))
        colours = false_colours(torch.cat(true), torch.cat(predicted))
        size = images.shape[2:]
        above, below = (nn.functional.interpolate(c, size=size, mode="nearest") for c in colours)
        return [
            Picture(name="features", image=side_by_side(above, below)),
            Picture(name="feature_images", image=side_by_side(images, above)),
        ]


class CodebookFittingTask(FeatureDistillationTask):
    """Fits the codes of a Cluster tokenizer while images go by (arXiv:2411.04406), in place of k-means.

    The loss is the squared distance of the chosen codes to the teacher's features as they are; rarely used codes move
    when the quantizer has online clustering.
    """

    @classmethod
    def unused(cls, tokenizer: Tokenizer) -> dict[str, str]:
        """All weights of losses."""
        why = "this tokenizer learns nothing but its codes"
        losses = ("quantizer_weight", "quantize_start", "quantize_end")
        return super().unused(tokenizer) | {f"losses.{name}": why for name in losses}

    def feature_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """The bottleneck's codebook term alone; nothing else is trained."""
        output = self.forward(batch, context)
        loss = output.losses["codebook_loss"]
        return loss, {"total_loss": loss, "feature_loss": loss, **output.losses} | self.move_codebook(
            output, context
        )


def false_colours(features: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions of unit features as colours: the three principal components of the first become red, green, blue.

    Args:
        features, others: [B, F, h, w], F at least 3; both get the same colours for the same features.

    Returns:
        Twice [B, 3, h, w] in [0, 1].
    """
    rows = [nn.functional.normalize(f.float().cpu(), dim=1).movedim(1, -1) for f in (features, others)]
    flat = rows[0].flatten(0, 2).double()
    mean = flat.mean(dim=0)
    axes = torch.linalg.eigh((flat - mean).T @ (flat - mean)).eigenvectors[:, -3:].flip(1)
    spread = 2 * ((flat - mean) @ axes).std(dim=0).clamp_min(1e-8)
    first, second = (((r.double() - mean) @ axes / spread + 1).div(2).clamp(0, 1) for r in rows)
    return first.float().movedim(-1, 1), second.float().movedim(-1, 1)
