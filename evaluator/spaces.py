"""The feature spaces of FDr6, in one table: which network sees which pixels, what is taken from it, what is divided by.

In every space FD is the Frechet distance of samples to the training set of ImageNet, and

    FDr = FD / constant,    FDr6 = mean of the six FDr,

where `constant` is the FD of ImageNet's 50,000 validation images to the same reference: 1 is as close as real images
that were held out. Constants are those in print. They are rounded (two digits in `mae`): published tables were
made with finer ones, which are not published, so a number of ours may differ from a printed one by 3 % with equal
features. Results hold the constants that they were divided by.

Images are resized to side x side, bicubic with antialiasing and without a crop, neither rounded nor clamped, and then
normalised. Inception is prepared in its own way (`evaluator.resize`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from common.build import ConfigError, nearest

Colour = tuple[float, float, float]

IMAGENET: tuple[Colour, Colour] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES: tuple[Colour, Colour] = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
CLIP: tuple[Colour, Colour] = (
    (0.48145466, 0.4578275, 0.40821073),
    (0.26862954, 0.26130258, 0.27577711),
)
INCEPTION: tuple[Colour, Colour] = ((128 / 255,) * 3, (128 / 255,) * 3)  # (x - 128) / 128 of levels 0 ... 255


@dataclass(frozen=True, kw_only=True)
class Space:
    """One space; `features` is its kind of features, by which metrics and reference files know it."""

    name: str
    model: str  # timm's name; Inception is the network of 2015, which is not in timm
    side: int  # pixels that the network sees
    colours: tuple[Colour, Colour]  # mean and deviation of values in [0, 1]
    output: Literal["pool", "spatial_mean", "class_token", "attention_pool"]
    dim: int
    constant: float  # FD of ImageNet's validation images to its training images
    parameters: int  # of the network without its head, in millions
    licence: str  # of the weights
    published: str  # name of the published statistics of ImageNet's training images

    @property
    def features(self) -> str:
        return "pool" if self.name == "inception" else self.name

    def facts(self) -> dict[str, Any]:
        """For results: what a number in this space depends on besides the weights."""
        keys = ("model", "side", "output", "constant")
        return {key: getattr(self, key) for key in keys}


def _vision(name: str, model: str, side: int, colours: tuple[Colour, Colour], **about: Any) -> Space:
    published = f"{model.replace('.', '_')}_in256_t{side}_stats.npz"
    return Space(name=name, model=model, side=side, colours=colours, published=published, **about)


SPACES = {
    space.name: space
    for space in (
        Space(
            name="inception",
            model="inception-2015-12-05",
            side=299,
            colours=INCEPTION,
            output="pool",
            dim=2048,
            constant=1.68,
            parameters=22,
            licence="Apache-2.0",
            published="guided_diffusion_stats.npz",
        ),
        # The mean of the last map, without the norm that the head would apply to it.
        _vision(
            "convnext",
            "convnextv2_base.fcmae_ft_in22k_in1k",
            224,
            IMAGENET,
            output="spatial_mean",
            dim=1024,
            constant=56.87,
            parameters=88,
            licence="CC-BY-NC-4.0",
        ),
        # 256 pixels are no multiple of its patches: zeros are appended after normalising, 266 pixels, 19 x 19 patches.
        _vision(
            "dinov2",
            "vit_large_patch14_dinov2.lvd142m",
            256,
            IMAGENET,
            output="class_token",
            dim=1024,
            constant=14.19,
            parameters=304,
            licence="Apache-2.0",
        ),
        _vision(
            "mae",
            "vit_large_patch16_224.mae",
            224,
            IMAGENET,
            output="class_token",
            dim=1024,
            constant=0.04,
            parameters=303,
            licence="CC-BY-NC-4.0",
        ),
        # A network of 256 pixels that sees 224.
        _vision(
            "siglip",
            "vit_so400m_patch16_siglip_256.v2_webli",
            224,
            HALVES,
            output="attention_pool",
            dim=1152,
            constant=0.60,
            parameters=428,
            licence="Apache-2.0",
        ),
        # Padded as dinov2. The class token after the last norm, before the projection; plain GELU, although the
        # weights were trained with another.
        _vision(
            "clip",
            "vit_large_patch14_clip_224.openai",
            256,
            CLIP,
            output="class_token",
            dim=1024,
            constant=5.60,
            parameters=303,
            licence="Apache-2.0",
        ),
    )
}


def check_weight_names(names: Iterable[str], key: str) -> None:
    """Raise ConfigError if an option that names files by space names something else."""
    known = [name for name in SPACES if name != "inception"]  # which has an option of its own
    for name in names:
        if name not in known:
            raise ConfigError(f"{key}.{name} is no space{nearest(name, known)}; expected {', '.join(known)}")
