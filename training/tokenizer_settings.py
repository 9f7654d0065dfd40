"""A tokenizer's training run as options: the dataclass fields are the YAML keys."""

from dataclasses import dataclass
from typing import Literal

from common.build import ConfigError
from common.choices import LeCamForm
from common.config import option
from common.shares import Steps, is_before
from compat.runs import translate_run
from data import DATASETS
from modeling.losses import DISCRIMINATORS
from modeling.quantizers import QUANTIZERS
from modeling.tokenizers import TOKENIZERS
from training.evaluation_settings import TokenizerEvaluation
from training.settings import ExperimentSettings, OptimizerSettings, ScheduleSettings, TrainingSettings

GANLoss = Literal["hinge", "non_saturating", "hinge_softplus", "vanilla_softplus", "image_softplus"]


@dataclass(kw_only=True)
class PerceptualSettings:
    """Networks whose features are compared; weight 0 leaves a network out."""

    lpips_weight: float = option(0.0, "share of LPIPS in the perceptual term")
    convnext_weight: float = option(0.0, "share of the ConvNeXt-S logits distance")
    lpips_path: str | None = option(None, "LPIPS weights (VGG-16 and linear heads); null = from the hub")
    convnext_path: str | None = option(None, "torchvision ConvNeXt-S weights; null = from the hub")
    required: bool = option(True, "false: train without the term, and say so, when its weights cannot be had")


@dataclass(kw_only=True)
class TokenizerLossSettings:
    """Weights of the terms; a weight of 0 leaves the term out."""

    reconstruction_loss: Literal["l1", "l2"] = option("l2", "pixel loss")
    reconstruction_weight: float = option(1.0)
    quantizer_weight: float = option(1.0, "VQ: commitment and codebook terms")
    quantize_start: Steps = option(0, "soft start: before this step images bypass the codebook")
    quantize_end: Steps = option(
        0, "soft start: from this step on every image is quantized; the share rises linearly"
    )
    kl_weight: float = option(1e-6, "VAE: KL divergence, summed per image")
    logvar_init: float = option(0.0, "VAE: log-variance by which the pixel loss is divided")
    perceptual_weight: float = option(0.0)
    perceptual: PerceptualSettings = option(PerceptualSettings())
    discriminator_start: Steps = option(0, "first step with the adversarial term and discriminator training")
    discriminator_factor: float = option(1.0)
    discriminator_weight: float = option(0.0)
    adaptive_weight: bool = option(
        False, "multiply discriminator_weight by the ratio of gradients at the decoder's last layer"
    )
    gan_loss: GANLoss = option(
        "hinge",
        "non_saturating: logistic losses on both sides; *_softplus: the tokenizer minimizes the softplus of minus every"
        " image's mean logit, the discriminator a hinge, a logistic loss, or the logistic loss of those means",
    )
    discriminator_first: bool = option(
        False,
        "update the discriminator before the tokenizer, both from one forward pass of the tokenizer; costs the"
        " memory of both graphs at once",
    )
    lecam_regularization_weight: float = option(0.0)
    lecam_ema_decay: float = option(0.999)
    lecam_form: LeCamForm = option(
        "mean",
        "mean: means of a batch against the averages before they move; logits: every logit, after they move",
    )
    entropy_boost: float = option(
        0.0, "lfq, bsq, ibq, vq: at step 0 the entropy term weighs 1 + this; the addition falls linearly"
    )
    entropy_boost_steps: Steps = option(2000, "steps until the entropy term has its own weight")

    def __post_init__(self) -> None:
        if self.entropy_boost < 0 or is_before(self.entropy_boost_steps, 1):
            raise ConfigError(
                f"losses.entropy_boost={self.entropy_boost} must not be negative, and"
                f" losses.entropy_boost_steps={self.entropy_boost_steps} must be at least 1"
            )
        if is_before(self.quantize_end, self.quantize_start):
            raise ConfigError(
                f"quantize_end={self.quantize_end} is before quantize_start={self.quantize_start}"
            )
        if self.perceptual_weight and not (self.perceptual.lpips_weight or self.perceptual.convnext_weight):
            raise ConfigError(
                f"perceptual_weight={self.perceptual_weight} needs perceptual.lpips_weight or .convnext_weight"
            )

    def quantized_share(self, step: int) -> float:
        """Share of images whose latents are quantized at a step (soft start of the bottleneck)."""
        if step >= self.quantize_end:
            return 1.0
        if step <= self.quantize_start:  # of a short run, shares of the steps can both be one step
            return 0.0
        return (step - self.quantize_start) / (self.quantize_end - self.quantize_start)


@dataclass(kw_only=True)
class LearningSettings:
    """What a run says about how its tokenizer learns; a task refuses what it does not use."""

    teacher: str | dict | None = option(
        None,
        "frozen model to learn from; titok's layouts proxy and two_stage: a 2-D tokenizer (maskgit-vqgan, a folder,"
        " a file); vqkd and cluster: a section: name (of timm), weights, project, ...",
    )
    initialize: str | dict | None = option(
        None, "tokenizer to start from; two_stage, pixel_decoder: the finished first stage"
    )
    text_encoder: str | None = option(None, "weights of the CLIP text tower (tatitok); null = from the hub")
    losses: TokenizerLossSettings = option(TokenizerLossSettings())
    discriminator: dict | None = option(
        None, "section: name and options; null = no adversarial training", kinds=DISCRIMINATORS
    )
    optimizer: OptimizerSettings = option(OptimizerSettings())
    discriminator_learning_rate: float | None = option(None, "null = that of the tokenizer")
    evaluation: TokenizerEvaluation = option(TokenizerEvaluation())


@dataclass(kw_only=True)
class ImageData:
    """Training and held-out images; `name` selects the kind (see data/), other keys are its options."""

    train: dict = option(
        help="section: name openmoji, image_folder or webdataset, and its options", kinds=DATASETS
    )
    validation: dict = option(help="section like data.train", kinds=DATASETS)


@dataclass(kw_only=True)
class TokenizerRun(LearningSettings):
    """Everything a tokenizer training run is made of."""

    experiment: ExperimentSettings = option()
    tokenizer: dict = option(
        help=f"section: name ({', '.join(TOKENIZERS)}), its options, and a quantizer",
        kinds=TOKENIZERS,
        parts={"quantizer": QUANTIZERS},
    )
    data: ImageData = option()
    schedule: ScheduleSettings = option(ScheduleSettings())
    training: TrainingSettings = option()

    @classmethod
    def translate(cls, tree: dict) -> dict:
        """Also takes the original release's YAML."""
        return translate_run(tree, "tokenizer", cls)

    def __post_init__(self) -> None:
        kind = TOKENIZERS.get(str(self.tokenizer.get("name")))
        if kind is not None and "teacher" in kind.parts and "teacher" not in self.tokenizer:
            from modeling.pretrained.teachers import network_section  # here: it needs torch

            # The network that it learns from becomes part of the tokenizer, weights included.
            self.tokenizer["teacher"] = network_section(self.teacher)
