"""A generator's training run as options: the dataclass fields are the YAML keys."""

from dataclasses import dataclass

from common.build import ConfigError
from common.config import option
from common.shares import Steps, is_before
from compat.runs import translate_run
from data import DATASETS
from modeling.generators import GENERATORS
from training.evaluation_settings import GeneratorEvaluation
from training.settings import ExperimentSettings, OptimizerSettings, ScheduleSettings, TrainingSettings

NO_VALIDATION = "the loss of held-out tokens decides; name their file in data.validation"


def _check_share(key: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{key}={value} must be in [0, 1]")


@dataclass(kw_only=True)
class RARSettings:
    """Randomized autoregressive training (arXiv:2411.00776)."""

    class_label_dropout: float = option(0.1, "share of labels replaced by 'no class', for guidance")
    randomness_anneal_start: Steps = option(125_000, "orders are random before this step")
    randomness_anneal_end: Steps = option(187_500, "and raster from this step on")

    def __post_init__(self) -> None:
        _check_share("class_label_dropout", self.class_label_dropout)
        if is_before(self.randomness_anneal_end, self.randomness_anneal_start):
            raise ConfigError(
                f"randomness_anneal_end={self.randomness_anneal_end} is before"
                f" randomness_anneal_start={self.randomness_anneal_start}"
            )


@dataclass(kw_only=True)
class MaskGITSettings:
    """Masked token training (arXiv:2202.04200)."""

    class_label_dropout: float = option(0.1, "share of labels replaced by 'no class', for guidance")
    label_smoothing: float = option(0.1, "share of the target spread evenly over the codebook")
    unmasked_weight: float = option(0.1, "weight of visible tokens in the loss; masked ones count 1")

    def __post_init__(self) -> None:
        for key, value in vars(self).items():
            _check_share(key, value)


@dataclass(kw_only=True)
class TokenData:
    """Training data of a generator: a token file, or images that are tokenized in every step."""

    tokens: str | None = option(None, "token file (scripts/pretokenize.py), or JSONL of the original release")
    images: dict | None = option(None, "instead of tokens: section like data.train", kinds=DATASETS)
    validation: str | None = option(None, "token file of held-out images")
    tokenizer: str | dict | None = option(
        None, "name or folder; needed for images, and for previews; null = no previews"
    )
    factors: list[int] | None = option(
        None,
        "split every token into sub-tokens of these equal sizes, for codebooks too large for one softmax:"
        " [512,512] for 2^18 codes",
    )

    def __post_init__(self) -> None:
        if self.factors is not None:
            from modeling.tokenizers.sub_tokens import equal_factors  # here: it needs torch

            try:
                equal_factors(self.factors)
            except ValueError as error:
                raise ConfigError(f"data.{error}") from error
        if (self.tokens is None) == (self.images is None):
            raise ConfigError("set exactly one of data.tokens (a file) or data.images (a section)")
        if self.images is not None and self.tokenizer is None:
            raise ConfigError("data.images needs data.tokenizer, which turns images into tokens")


@dataclass(kw_only=True)
class GeneratorRun:
    """Everything a generator training run is made of."""

    experiment: ExperimentSettings = option()
    generator: dict = option(
        help=f"section: name ({', '.join(GENERATORS)}) and its options; sizes of the tokens may be left out",
        kinds=GENERATORS,
    )
    rar: RARSettings | None = option(
        None, "section: how rar, gpt, factorized_ar and ibq_ar learn; null = their defaults"
    )
    maskgit: MaskGITSettings | None = option(
        None, "section: how maskgit and uvit learn; null = their defaults"
    )
    sampling: dict = option({}, "section: how tokens are drawn for previews, and by default later")
    data: TokenData = option()
    optimizer: OptimizerSettings = option(OptimizerSettings())
    schedule: ScheduleSettings = option(ScheduleSettings())
    training: TrainingSettings = option()
    evaluation: GeneratorEvaluation = option(GeneratorEvaluation())
    tokens: dict | None = option(None, "filled in by training: where the tokens came from")

    def __post_init__(self) -> None:
        key = self.training.needs_deciding_value
        if (
            key is not None and self.data.validation is None
        ):  # said by the task, too, but after models are loaded
            raise ConfigError(f"training.{key}={getattr(self.training, key)}: {NO_VALIDATION}")

    @classmethod
    def translate(cls, tree: dict) -> dict:
        """Also takes the original release's YAML."""
        return translate_run(tree, "generator", cls)
