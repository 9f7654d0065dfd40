"""Training of VQ-KD: predict a frozen network's features through a bottleneck of codes (arXiv:2208.06366)."""

import torch
from torch import nn

from common.build import ConfigError, check_options, check_value
from data.stream import Batch
from evaluator.codebook_usage import CodebookUsage
from modeling.losses.distillation import feature_cosine, feature_distillation_loss
from modeling.pretrained.teachers import load_teacher
from training.means import HeldOutMeans
from training.task import DecidingValue, Phase, Picture, Scalars, StepContext
from training.tasks.tokenizer import SOFT_START, TokenizerSetup, TokenizerTask, pixel_options, side_by_side
from training.tokenizer_settings import LearningSettings


class FeatureDistillationTask(TokenizerTask):
    """One phase: predict the features [B, F, h, w] that the frozen teacher gives to the same augmented image.

    Loss: mean of 1 - cosine over all tokens, plus the bottleneck's commitment.

    Raises:
        ConfigError: the tokenizer's prediction and the teacher's features differ in shape.
    """

    needs = {"teacher": "this tokenizer learns from a frozen network; expected a section with a name of timm"}
    unused = pixel_options("this tokenizer learns from a frozen network and makes no pixels", "evaluation")

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
    def from_run(cls, run: LearningSettings, setup: TokenizerSetup, device: torch.device) -> TokenizerTask:
        section = check_value("teacher", run.teacher, dict)
        teacher = load_teacher(**check_options("teacher", load_teacher, section), device=device)
        setup.tokenizer.copy_teacher(teacher)
        return cls(setup, teacher=teacher)

    def phases(self) -> list[Phase]:
        return [Phase(module="model", loss=self.feature_loss)]

    def feature_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        """Distance to the teacher's features, and the bottleneck's loss."""
        features = self.teacher(batch["images"])  # in float32, autocast covers the model only
        output = self.forward(batch, context)
        distillation = feature_distillation_loss(output.reconstructions, features)
        quantizer = self.settings.quantizer_weight * output.losses["quantizer_loss"]
        total = distillation + quantizer
        scalars = {"total_loss": total, "feature_loss": distillation, **output.losses}
        scalars["quantizer_loss"] = quantizer
        return total, scalars | self.move_codebook(output, context)

    def deciding_value(self) -> DecidingValue:
        """Cosine of predicted and true features of held-out images."""
        return DecidingValue(name="feature_cosine", higher=True)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean `feature_cosine` of all tokens of held-out images, and codebook usage."""
        usage, means = CodebookUsage(model.codebook_size), HeldOutMeans("feature_cosine")
        for batch in self._held_out(device):
            means.skip(batch["skipped"])
            images = batch["images"]
            if not len(images):  # none of the batch can be read
                continue
            tokens = model.encode(images)
            cosine = feature_cosine(model.decode(tokens), self.teacher(images))
            means.add({"feature_cosine": cosine.mean(dim=(1, 2)).cpu().double().mean()}, len(images))
            usage.update(tokens)
        return means.result() | usage.result(device)

    def preview(self, model: nn.Module, device: torch.device) -> list[Picture]:
        """The teacher's features above the predicted ones, in false colours; and the images above the features."""
        images = self._preview_batch(device)["images"]
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
    """Fits the codes of a Cluster tokenizer by gradient descent instead of k-means (arXiv:2411.04406).

    The loss is the squared distance of the chosen codes to the teacher's features. Rarely used codes move if the
    quantizer has online clustering.
    """

    unused = FeatureDistillationTask.unused | dict.fromkeys(
        ("losses.quantizer_weight", *SOFT_START), "this tokenizer learns nothing but its codes"
    )

    def feature_loss(self, batch: Batch, context: StepContext) -> tuple[torch.Tensor, Scalars]:
        output = self.forward(batch, context)
        loss = output.losses["codebook_loss"]  # the codes are all that is trained
        scalars = {"total_loss": loss, "feature_loss": loss, **output.losses}
        return loss, scalars | self.move_codebook(output, context)


def false_colours(features: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features [B, F, h, w] (F at least 3) as colours: twice [B, 3, h, w] in [0, 1].

    The three principal components of the first become red, green and blue; equal features get equal colours.
    """
    rows = [nn.functional.normalize(f.float().cpu(), dim=1).movedim(1, -1) for f in (features, others)]
    flat = rows[0].flatten(0, 2).double()  # [B * h * w, F]
    mean = flat.mean(dim=0)
    axes = torch.linalg.eigh((flat - mean).T @ (flat - mean)).eigenvectors[:, -3:].flip(1)  # largest first
    spread = 2 * ((flat - mean) @ axes).std(dim=0).clamp_min(1e-8)  # two standard deviations
    first, second = (((r.double() - mean) @ axes / spread + 1).div(2).clamp(0, 1) for r in rows)
    return first.float().movedim(-1, 1), second.float().movedim(-1, 1)
