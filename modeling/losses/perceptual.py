"""Perceptual loss of tokenizer training: LPIPS and ConvNeXt-S terms with frozen, loaded weights."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from modeling.losses.convnext import ConvNeXtDistance
from modeling.losses.lpips import LPIPS, torchvision_vgg16_name
from storage.weights import read_weights


def load_frozen(
    module: nn.Module, paths: str | Sequence[str], rename: Callable[[str], str | None] = lambda name: name
) -> None:
    """Load one or several files into a module; together they must hold every entry, and later ones win.

    `rename` maps a name in a file to one in the module, or to None to leave it out. Raises FileNotFoundError naming the
    path, or ValueError naming entries that are missing, unexpected or of another shape.
    """
    paths = [paths] if isinstance(paths, str) else list(paths)
    found: dict[str, torch.Tensor] = {}
    for path in paths:
        for name, tensor in read_weights(path).items():
            target = rename(name)
            if target is not None:
                found[target] = tensor
    expected = module.state_dict()
    # Constants such as the colour scaling are known here; public files may leave them out.
    constants = {name: tensor for name, tensor in module.named_buffers() if name in expected}
    found = {**constants, **found}
    wrong = sorted(expected.keys() ^ found.keys())
    wrong += sorted(k for k in expected.keys() & found.keys() if expected[k].shape != found[k].shape)
    if wrong:
        shown = ", ".join(wrong[:4]) + (" ..." if len(wrong) > 4 else "")
        raise ValueError(
            f"{', '.join(map(str, paths))} does not fit {type(module).__name__}: {len(wrong)} entries are "
            f"missing, unexpected or of another shape: {shown}"
        )
    module.load_state_dict(found)


def lpips_entry(name: str) -> str | None:
    """Name inside `LPIPS` of an entry of an LPIPS file, of its linear heads, or of torchvision's VGG-16."""
    if name.startswith(("features.", "classifier.")):
        return torchvision_vgg16_name(name)
    return name


class PerceptualLoss(nn.Module):
    """(w_l LPIPS + w_c ConvNeXt) / (w_l + w_c); a network is None exactly if its weight is 0.

    The networks are frozen and always in eval mode; gradient flows to the reconstructions only. `load_perceptual_loss`
    reads them from files.
    """

    def __init__(
        self,
        *,
        lpips: LPIPS | None,
        convnext: ConvNeXtDistance | None,
        lpips_weight: float,  # w_l
        convnext_weight: float,  # w_c
    ) -> None:
        super().__init__()
        _check_weights(lpips_weight, convnext_weight)
        if (lpips is not None) != (lpips_weight > 0) or (convnext is not None) != (convnext_weight > 0):
            raise ValueError("a perceptual network must be given exactly if its weight is above 0")
        self.lpips_share = lpips_weight / (lpips_weight + convnext_weight)
        self.convnext_share = convnext_weight / (lpips_weight + convnext_weight)
        self.lpips = lpips
        self.convnext = convnext
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "PerceptualLoss":
        return super().train(False)  # the networks measure, whatever mode is asked

    def forward(self, images: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
        """Scalar float32 distance of images [B, 3, H, W] in [0, 1], sides at least 16, and reconstructions."""
        total = images.new_zeros((), dtype=torch.float32)
        with torch.autocast(images.device.type, enabled=False):  # float32 whatever the caller's state
            images, reconstructions = images.float(), reconstructions.float()
            if self.lpips is not None:
                total = total + self.lpips_share * self.lpips(images, reconstructions).mean()
            if self.convnext is not None:
                total = total + self.convnext_share * self.convnext(images, reconstructions)
        return total


def _check_weights(lpips_weight: float, convnext_weight: float) -> None:
    if lpips_weight < 0 or convnext_weight < 0 or lpips_weight + convnext_weight == 0:
        raise ValueError(
            f"lpips_weight={lpips_weight} and convnext_weight={convnext_weight} "
            "must be at least 0 and not both 0"
        )


def load_perceptual_loss(
    *,
    lpips_weight: float,
    convnext_weight: float,
    lpips_path: str | Sequence[str] | None = None,
    convnext_path: str | None = None,
) -> PerceptualLoss:
    """Build the perceptual loss with weights from local files; a term with weight 0 is neither built nor run.

    `lpips_path` is one file with all LPIPS entries, or several that make them up together (torchvision's VGG-16 and the
    linear heads); `convnext_path` is torchvision's ConvNeXt-S state dict. Raises ValueError for unusable weights, a
    missing path or a file that does not fit, FileNotFoundError naming a missing file.
    """
    _check_weights(lpips_weight, convnext_weight)
    for key, weight, path in (
        ("lpips", lpips_weight, lpips_path),
        ("convnext", convnext_weight, convnext_path),
    ):
        if weight > 0 and not path:
            raise ValueError(
                f"{key}_weight={weight} needs {key}_path, a local weight file; or set {key}_weight=0"
            )
    lpips = convnext = None
    if lpips_weight > 0 and lpips_path:
        lpips = LPIPS()
        load_frozen(lpips, lpips_path, lpips_entry)
    if convnext_weight > 0 and convnext_path:
        convnext = ConvNeXtDistance()
        load_frozen(convnext.net, convnext_path)
    return PerceptualLoss(
        lpips=lpips, convnext=convnext, lpips_weight=lpips_weight, convnext_weight=convnext_weight
    )
