"""Options of `jobs/sampling.py`."""

from dataclasses import dataclass

from common.build import check_least
from common.choices import Precision
from common.config import option
from compat.sampling import translate_sampling
from modeling.sampling.foreign_keywords import refuse_foreign


@dataclass(kw_only=True)
class SampleOptions:
    """What to sample, and where to write it."""

    generator: str | dict = option(help="name of a released model, folder, or file (docs/models.md)")
    tokenizer: str | dict | None = option(
        None, "likewise; null = the one that the generator was trained with"
    )
    output: str = option(help="folder for <index:06d>.png, samples.npz, samples.png and samples.json")
    num_samples: int = option(50_000, "number of samples, all classes together")
    classes: list[int | str] | int | str = option("all", "class numbers or names: all, 3, [3,7], [Flags]")
    guidance_scale: float | list[float] | None = option(
        None, "0 = off; null = as the generator suggests (so all of these); [1.9,2.0]: per sub-token"
    )
    guidance_power: float | None = option(None, "rise of the guidance, 0 = constant")
    guidance_schedule: str | None = option(None, "masked generators: constant, linear or power-cosine")
    temperature: float | list[float] | None = option(None, "0 = always the likeliest token")
    top_k: int | list[int] | None = option(None, "autoregressive generators: the k likeliest tokens; 0 = all")
    top_p: float | list[float] | None = option(None, "likewise: the likeliest tokens of this mass; 1 = all")
    num_steps: int | None = option(None, "masked generators: steps in which the tokens are filled in")
    softmax_annealing: bool | None = option(None, "masked generators: sharpen the choice towards the end")
    seed: int = option(0, "random seed; a sample depends on it and its index only")
    precision: Precision = option("float32", "of the models' weights and computation (docs/precision.md)")
    batch_size: int = option(64, "samples per process and batch; affects speed and memory only")
    png: bool = option(True, "write a PNG file per sample")
    npz: bool = option(True, "write samples.npz for evaluators")
    grid: bool = option(True, "write samples.png, a row of samples for each of the first classes")
    overwrite: bool = option(False, "replace samples that were made with other settings")

    @classmethod
    def translate(cls, tree: dict) -> dict:  # files of the original code release are accepted too
        refuse_foreign(tree)
        return translate_sampling(tree)

    def __post_init__(self) -> None:
        check_least(self, num_samples=1, batch_size=1)
