"""State dicts of other two-dimensional tokenizers under our names; pure functions.

taming (arXiv:2012.09841)           our names; also losses and discriminator
LlamaGen (arXiv:2406.06525)         blocks called `conv_blocks`, the decoder's from coarse to fine
understanding (arXiv:2411.04406)    private names, attention of `nn.MultiheadAttention`, decoder from coarse to fine
BEiT v2's VQ-KD (arXiv:2208.06366)  our names; also statistics and parts of the teacher
"""

import re
from collections.abc import Callable, Mapping

import torch

State = dict[str, torch.Tensor]

# Usage statistics, the unused half of the moving average, and parts of other networks.
_BEYOND_VQKD = re.compile(
    r"quantize\.(embedding\.)?cluster_size$|quantize\.embedding\.embed_avg$|(teacher_model|scaling_layer)\."
)

MIDDLE = ("block_1", "attn_1", "block_2")
# Their nn.Sequential counts activations and dropout too.
_RESIDUAL = {"_residual.0": "norm1", "_residual.2": "conv1", "_residual.3": "norm2", "_residual.5": "conv2"}
_ENDS = {"_in_conv": "conv_in", "_projector.0": "norm_out", "_projector.2": "conv_out"}
_BORDERS = {"_post_encode": "quant_conv", "_pre_decode": "post_quant_conv"}
# Discriminators, counters of loss schedules, usage statistics, and all codes of an implicit codebook.
_UNUSED = re.compile(
    r"_discriminator\.|_[dgr]_loss|_r_losses\.|.*\._steps$|_quantizer\._(probability|embeddings)$"
)


def from_taming(state: Mapping[str, torch.Tensor]) -> State:
    """A taming VQGAN without its losses (`loss.*`)."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("loss.")}


def from_llamagen(state: Mapping[str, torch.Tensor]) -> State:
    """A VQ-8 or VQ-16 of LlamaGen."""
    levels = _count(state, r"decoder\.conv_blocks\.(\d+)\.")  # needed to reverse the decoder's order
    renamed = {}
    for name, tensor in state.items():
        if name == "quantize.codebook_used":  # ring buffer of statistics
            continue
        if match := re.fullmatch(r"(encoder|decoder)\.conv_blocks\.(\d+)\.(.+)", name):
            level, rest = int(match[2]), re.sub(r"^res\.", "block.", match[3])
            # Our decoder's levels count from fine to coarse.
            place = f"down.{level}" if match[1] == "encoder" else f"up.{levels - 1 - level}"
            name = f"{match[1]}.{place}.{rest}"
        elif match := re.fullmatch(r"(encoder|decoder)\.mid\.(\d)\.(.+)", name):
            name = f"{match[1]}.mid.{MIDDLE[int(match[2])]}.{match[3]}"
        renamed[name] = tensor
    return renamed


def from_beit(state: Mapping[str, torch.Tensor]) -> State:
    """A VQ-KD of BEiT v2 without statistics and teacher."""
    return {name: tensor for name, tensor in state.items() if not _BEYOND_VQKD.match(name)}


def from_understanding(state: Mapping[str, torch.Tensor]) -> State:
    """A VQGAN, CVQ or FSQ of that study without its training state; ValueError if an entry has an unknown name."""
    levels = _count(state, r"_decoder\._layers\.(\d+)\.")
    renamed: State = {}
    for name, tensor in state.items():
        if not _UNUSED.match(name):
            renamed |= _understood(name, tensor, levels)
    return renamed


def _count(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    """One more than the highest number of a level; 0 without levels."""
    return max((int(match[1]) for name in state if (match := re.match(pattern, name))), default=-1) + 1


def _understood(name: str, tensor: torch.Tensor, levels: int) -> State:
    """Our entries for one entry of that study: one, or three for stacked queries, keys and values."""
    if name == "_quantizer._embedding.weight":
        return {"quantize.embedding.weight": tensor}
    if match := re.fullmatch(
        r"(_post_encode|_pre_decode)(?:\._connectors\.(\d+))?\._conv\.(weight|bias)", name
    ):
        number = "" if match[2] is None else f".{match[2]}"
        return {f"{_BORDERS[match[1]]}{number}.{match[3]}": tensor}
    if match := re.fullmatch(r"_(encoder|decoder)\.(.+)", name):
        half, rest = match[1], match[2]
        for theirs, ours in _ENDS.items():
            if rest.startswith(f"{theirs}."):
                return {f"{half}.{ours}{rest.removeprefix(theirs)}": tensor}
        place = _place(half, rest, levels)
        if place is not None:
            return _block(*place, tensor)
    raise ValueError(f"entry {name!r} is unknown in a tokenizer of the study of understanding tokenizers")


def _place(half: str, rest: str, levels: int) -> tuple[str, str] | None:
    """Our prefix of a block, and the rest of the name."""
    if match := re.fullmatch(r"_refine\.(\d)\.(.+)", rest):
        return f"{half}.mid.{MIDDLE[int(match[1])]}", match[2]
    if match := re.fullmatch(r"_(layers|resamples)\.(\d+)\.(.+)", rest):
        level = int(match[2]) if half == "encoder" else levels - 1 - int(match[2])
        prefix = f"{half}.{'down' if half == 'encoder' else 'up'}.{level}"
        if match[1] == "resamples":
            return f"{prefix}.{'downsample' if half == 'encoder' else 'upsample'}", match[3]
        if inner := re.fullmatch(r"_(residuals|attentions)\.(\d+)\.(.+)", match[3]):
            return f"{prefix}.{'block' if inner[1] == 'residuals' else 'attn'}.{inner[2]}", inner[3]
    return None


def _block(prefix: str, rest: str, tensor: torch.Tensor) -> State:
    """Entries of a residual block, an attention or a change of resolution."""
    if rest.startswith("_multihead_attention.in_proj_"):
        kind = rest.rpartition("_")[2]
        parts = zip("qkv", tensor.chunk(3), strict=True)  # rows [3 * C]: queries, keys, values
        return {f"{prefix}.{part}.{kind}": _as_convolution(rows) for part, rows in parts}
    owner, _, kind = rest.rpartition(".")
    names = _RESIDUAL | {"_shortcut": "nin_shortcut", "_group_norm": "norm", "_conv": "conv"}
    if owner == "_multihead_attention.out_proj":
        return {f"{prefix}.proj_out.{kind}": _as_convolution(tensor)}
    if owner not in names:
        raise ValueError(f"entry {rest!r} of {prefix} is unknown")
    return {f"{prefix}.{names[owner]}.{kind}": tensor}


def _as_convolution(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, :, None, None] if tensor.ndim == 2 else tensor  # matrix -> 1x1 kernel; biases stay


VQGAN_FORMATS: dict[str, Callable[[Mapping[str, torch.Tensor]], State]] = {
    "taming": from_taming,
    "llamagen_vq": from_llamagen,
    "understanding": from_understanding,
    "beit_vqkd": from_beit,
}
