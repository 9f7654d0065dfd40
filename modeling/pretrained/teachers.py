"""Frozen feature networks, by their names in timm: CLIP, DINO, MAE, supervised ViTs, ConvNeXt, ..."""

import inspect
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common.build import nearest
from common.console import one_line
from modeling.layers.half import as_weights
from storage.weights import CheckpointError, read_weights

FLEXIBLE = {"dynamic_img_size": True}  # lets timm's vision transformers take other image sizes than their own


class Teacher(nn.Module):
    """Images to the patch features of a frozen network; no gradient, always in eval mode, float32 under autocast.

    Features are those after the last norm, without class and register tokens.

    Args:
        network: a model of timm.
        input_size: side to which images are resized (bicubic, not antialiased).
        grid: side to which the feature map is resized (bicubic); None keeps the network's.
        project: apply the linear head at every position (CLIP: into the space shared with text).

    Raises:
        ValueError: `project` with a network without a linear head, or a grid below 1.
    """

    def __init__(self, *, network: nn.Module, input_size: int, grid: int | None, project: bool) -> None:
        super().__init__()
        if grid is not None and grid < 1:
            raise ValueError(f"grid={grid} must be at least 1")
        head = network.get_classifier()
        if not project:
            network.reset_classifier(0)
        elif not isinstance(head, nn.Linear) or not hasattr(network, "num_prefix_tokens"):
            raise ValueError("project=true needs a vision transformer that ends in a linear layer")
        self.network, self.input_size, self.project = network, input_size, project
        self.width: int = head.out_features if project else network.num_features  # channels of the features
        # Not among the weights: files of others lack them.
        for name, values in zip(("mean", "std"), colour_statistics(network), strict=True):
            self.register_buffer(name, values, persistent=False)
        self.grid: int = grid or input_size // network.feature_info[-1]["reduction"]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)  # a task's train() must not reach a frozen network

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, width, grid, grid]."""
        with torch.autocast(images.device.type, enabled=False):
            images = as_weights(prepared(images.float(), self.mean, self.std, self.input_size), self)
            return _resized(self._map(self.network.forward_features(images)).float(), self.grid)

    def _map(self, features: torch.Tensor) -> torch.Tensor:
        """Output of the network as [B, C, h, w]."""
        if features.ndim == 4:  # convolutional
            channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
            return features.permute(0, 3, 1, 2) if channels_last else features
        prefix = getattr(self.network, "num_prefix_tokens", 0)  # class and register tokens
        features = features[:, prefix:]
        # Networks that average over patches normalise afterwards; normalising every patch comes closest.
        features = getattr(self.network, "fc_norm", nn.Identity())(features)
        if self.project:
            features = self.network.get_classifier()(features)
        side = math.isqrt(features.shape[1])
        if side**2 != features.shape[1]:
            raise ValueError(f"the teacher returns {features.shape[1]} features, which form no square")
        return features.transpose(1, 2).unflatten(2, (side, side))  # [B, N, C] -> [B, C, h, w]


def colour_statistics(network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [3, 1, 1] of the colours that a network of timm expects."""
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    return mean, std


def prepared(images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, side: int) -> torch.Tensor:
    """Images [B, 3, H, W] in [0, 1], normalised and resized for a network, [B, 3, side, side]."""
    return _resized((images - mean) / std, side)


def _resized(maps: torch.Tensor, side: int) -> torch.Tensor:
    if maps.shape[2:] == (side, side):
        return maps
    return F.interpolate(maps, size=(side, side), mode="bicubic", align_corners=False)


def build_teacher(
    *, name: str, grid: int | None = None, project: bool = False, input_size: int | None = None
) -> Teacher:
    """A teacher with random weights, to be filled from a state dict that holds it; arguments of `Teacher`.

    `name` is timm's, such as "vit_base_patch16_224.dino"; `input_size` None is the side it was trained with.

    Raises:
        ValueError: timm is not installed, or does not know the name; or as `Teacher`.
    """
    return _teacher(name, grid, project, input_size, pretrained=False)


def network_section(section: Any) -> dict[str, Any]:
    """The options of `build_teacher` in a section of `load_teacher`: the network without its weights."""
    given = section if isinstance(section, Mapping) else {}
    return {key: given[key] for key in inspect.signature(build_teacher).parameters if key in given}


def load_teacher(
    name: str,
    *,
    weights: str | Path | None = None,
    grid: int | None = None,
    project: bool = False,
    input_size: int | None = None,
    device: torch.device | str = "cpu",
) -> Teacher:
    """A teacher with trained weights; other arguments as `build_teacher`.

    `weights` is a local file under timm's names, `.safetensors` or a state dict saved by torch; None takes the file
    from the Hugging Face cache, downloading it on first use.

    Raises:
        FileNotFoundError: the local file does not exist.
        ConnectionError: the weights cannot be downloaded; the message says which file to put where.
        ValueError: as `build_teacher`; or the local file is damaged or does not fit.
    """
    build = partial(_teacher, name, grid, project, input_size, pretrained=True)
    if weights is not None:
        path = Path(weights)
        state = read_weights(path)
        try:  # as if downloaded: timm renames the entries of its older files
            teacher = build(pretrained_cfg_overlay={"state_dict": state})
        except (RuntimeError, KeyError) as error:
            reason = one_line(error)[:300]
            raise CheckpointError(f"{path} does not fit the teacher {name}: {reason}") from error
        return teacher.to(device)
    try:
        teacher = build()
    except ValueError:  # a wrong option, not a failed download
        raise
    except Exception as error:  # the errors of hub clients share no base class over their versions
        raise ConnectionError(_advice(name, error)) from error
    return teacher.to(device)


def build_network(name: str, input_size: int | None = None, **options: Any) -> nn.Module:
    """A network of timm with its head; `input_size` None is the side it was trained with.

    `options` are those of `timm.create_model`; without any, the weights are random. ValueError if timm is not
    installed, or does not know the name.
    """
    timm = timm_package()
    if not timm.is_model(name):
        choice = nearest(name, timm.list_models())
        raise ValueError(f"network {name!r} is no model of timm {timm.__version__}{choice}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # unknown tag, the part after the point
        config = None
    if config is None:
        known = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")[:8]) or "none"
        raise ValueError(f"network {name!r} has no trained weights in timm; there are: {known}")
    if input_size in (None, config.input_size[-1]):
        return timm.create_model(name, **options)
    try:
        return timm.create_model(name, **options, **FLEXIBLE)
    except TypeError:  # convolutional networks take any size and have no such option
        return timm.create_model(name, **options)


def _teacher(name: str, grid: int | None, project: bool, input_size: int | None, **options: Any) -> Teacher:
    network = build_network(name, input_size, **options)
    side = input_size or network.pretrained_cfg["input_size"][-1]
    return Teacher(network=network, input_size=side, grid=grid, project=project)


def _advice(name: str, error: Exception) -> str:
    config = timm_package().get_pretrained_cfg(name)
    if config.hf_hub_id:
        file = config.hf_hub_filename or "model.safetensors"
        source = f"https://huggingface.co/{config.hf_hub_id}/resolve/main/{file}"
    else:
        source = config.url or "a state dict of this network"
    return (
        f"the weights of teacher {name} cannot be downloaded ({one_line(error)[:200]}). Get {source}, put it on this"
        " machine and set teacher.weights to the file"
    )


def timm_package() -> ModuleType:
    """The library of frozen networks, which takes seconds to import; ValueError: it is not installed."""
    try:
        import timm
    except ImportError as error:
        raise ValueError(
            f"networks of timm need it ({error}): pip install -r requirements-teachers.txt"
        ) from error
    return timm
