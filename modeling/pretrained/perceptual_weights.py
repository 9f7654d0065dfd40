"""Weights of the frozen networks of the perceptual loss."""

from common.console import warn
from modeling.losses.perceptual import PerceptualLoss, load_perceptual_loss
from modeling.pretrained.downloads import direct_file

# Published by torchvision (hash in the name) and by the authors of LPIPS (arXiv:1801.03924).
VGG16 = "https://download.pytorch.org/models/vgg16-397923af.pth"
LPIPS_HEADS = (
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/vgg.pth"
)
LPIPS_HEADS_FILE = "lpips_vgg_heads.pth"  # the published name says too little
CONVNEXT_SMALL = "https://download.pytorch.org/models/convnext_small-0c510722.pth"


def find_perceptual(
    *,
    lpips_weight: float,
    convnext_weight: float,
    lpips_path: str | None,
    convnext_path: str | None,
    required: bool,
) -> PerceptualLoss | None:
    """The perceptual loss with weights from local files, or downloaded once into torch's hub folder (path None).

    A weight of 0 leaves a network out. If a download fails and `required` is False, a warning is printed and None
    returned.

    Raises:
        ValueError: a download fails, or weights do not fit; the message says which file to put where.
        FileNotFoundError: a local file does not exist, even if `required` is False.
    """
    try:
        lpips_files = [lpips_path] if lpips_path else None
        if lpips_weight and not lpips_path:
            lpips_files = lpips_weights()
        convnext_file = convnext_path or (str(direct_file(CONVNEXT_SMALL)) if convnext_weight else None)
        return load_perceptual_loss(
            lpips_weight=lpips_weight,
            convnext_weight=convnext_weight,
            lpips_path=lpips_files,
            convnext_path=convnext_file,
        )
    except ConnectionError as error:
        if required:
            raise ValueError(
                f"losses.perceptual: {error}. Put the files on this machine and name them in"
                " losses.perceptual.lpips_path and .convnext_path, or set losses.perceptual.required=false to train"
                " without the term"
            ) from error
        warn(f"training WITHOUT the perceptual term: {error}")
        return None


def lpips_weights() -> list[str]:
    """The files of LPIPS on VGG-16, trunk and heads, downloaded if missing; ConnectionError if that fails."""
    return [str(direct_file(VGG16)), str(direct_file(LPIPS_HEADS, LPIPS_HEADS_FILE))]
