"""What the name of a number in a result says: which way is better, which network saw the images. Imports no torch."""

import re
from typing import Literal

from evaluator.spaces import SPACES

Direction = Literal["lower", "higher", ""]

# By the first part of a name; "" is a number that describes and ranks nothing.
_LOWER = ("fid", "rfid", "gfid", "sfid", "kid", "kd", "fd", "fdr", "fdr6", "mind", "lpips", "gpt")
_HIGHER = ("is", "precision", "recall", "density", "coverage", "authenticity", "psnr", "ssim")
_OF_INCEPTION = ("fid", "rfid", "gfid", "sfid", "kid", "is", "precision", "recall", "mind", "density")
_OF_INCEPTION += ("coverage", "authenticity")
_COUNT = re.compile(r"_\d+k?(?=_|$)")  # number of images: fid_5k, is_1234_std


def base_name(name: str) -> str:
    """The name without the number of images that it may carry: fid of fid_5k, is_std of is_1234_std."""
    return _COUNT.sub("", name)


def direction(name: str) -> Direction:
    """Whether a lower or a higher number is better; "" for spreads, uses of a codebook and all that is not known."""
    base = base_name(name)
    if is_spread(base):
        return ""
    first = base.partition("_")[0]
    if base == "codebook_usage" or first in _HIGHER:
        return "higher"
    return "lower" if first in _LOWER else ""


def is_spread(name: str) -> bool:
    """Whether it is the deviation of another number."""
    return base_name(name).endswith("_std")


def networks_behind(name: str) -> tuple[str, ...]:
    """Names of the networks, as results list them in `extractors`; none for PSNR, SSIM and what is not known."""
    base = base_name(name)
    if base == "fdr6":
        return tuple(SPACES)
    known = [*SPACES, "titok_openmoji", "dinov2_dgm", "lpips"]
    named = [network for network in known if re.search(rf"(^|_){network}(_|$)", base)]
    if "dinov2_dgm" in named:
        named.remove("dinov2")
    if named:
        return tuple(named)
    return ("inception",) if base.partition("_")[0] in _OF_INCEPTION else ()


def same_family(network: str, model: str) -> bool:
    """Whether a model of this name, as recipes write it, is of the kind of network that measures: dinov2, clip, ..."""
    parts = re.split(r"[._/\-\s]+", model.lower())
    kind = network.partition("_")[0]
    return any(part.startswith(kind) for part in parts)
