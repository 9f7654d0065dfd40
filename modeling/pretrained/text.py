"""The frozen text encoder of TA-TiTok: the text tower of CLIP ViT-L/14-336 (arXiv:2103.00020).

Network and byte-pair vocabulary come from open_clip, an optional dependency. Only the text tower is built; the image
tower in a published file is skipped.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from modeling.pretrained.downloads import hub_file
from modeling.pretrained.release import english_names
from storage.weights import CheckpointError, read_weights

# Hub repository of OpenAI's weights in safetensors form; the original file is a program archive, not a state dict.
WEIGHTS_REPOSITORY = "timm/vit_large_patch14_clip_336.openai"
WEIGHTS_FILE = "open_clip_model.safetensors"
TEXT_LENGTH, TEXT_WIDTH, TEXT_DEPTH, TEXT_HEADS = 77, 768, 12, 12
VOCABULARY = 49408


class TextEncoder(nn.Module):
    """Captions to per-token features; frozen, always in eval mode and float32."""

    def __init__(self, *, tower: nn.Module, tokenize: Callable[[list[str]], torch.Tensor]) -> None:
        """`tower`: int64 [B, T] -> (pooled, [B, T, width]); `tokenize` pads with zeros and cuts long captions."""
        super().__init__()
        self.tower = tower.float()
        self._tokenize = tokenize
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "TextEncoder":
        return super().train(False)  # a task's train() must not reach a frozen network

    @property
    def length(self) -> int:
        return self.tower.context_length  # T, positions per caption

    @property
    def width(self) -> int:
        return self.tower.width  # channels per position

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> torch.Tensor:
        """Features of captions, float32 [B, T, width], on the device of the weights."""
        device = self.tower.positional_embedding.device
        tokens = self._tokenize(list(captions)).to(device, non_blocking=True)
        with torch.autocast(device.type, enabled=False):  # float32 inside bf16 training too
            # After the final LayerNorm, causal, padding included, neither projected nor pooled: what released TA-TiTok
            # decoders were trained with.
            return self.tower(tokens)[1]


def load_text_encoder(weights: str | Path | None = None, device: torch.device | str = "cpu") -> TextEncoder:
    """The text encoder of the released TA-TiTok models.

    `weights` is a local file of CLIP ViT-L/14-336 under open_clip's names, `.safetensors` or a state dict saved by
    torch; None takes it from the Hugging Face cache, downloading it on first use.

    Raises:
        FileNotFoundError: the local file does not exist.
        ValueError: open_clip is not installed, the weights cannot be downloaded, are damaged, or do not fit; the
            message says what to do.
    """
    open_clip = _open_clip()
    path = Path(weights) if weights is not None else _download()
    # open_clip writes the text tower at the top level, beside `visual.`, or below `text.`.
    state = {name.removeprefix("text."): tensor for name, tensor in read_weights(path).items()}
    tower = build_text_tower(**_sizes(state))
    _fill(tower, state, path)
    tokenize = open_clip.SimpleTokenizer(context_length=tower.positional_embedding.shape[0])
    return TextEncoder(tower=tower, tokenize=tokenize).to(device)


def build_text_tower(
    *,
    text_length: int = TEXT_LENGTH,
    hidden_size: int = TEXT_WIDTH,
    depth: int = TEXT_DEPTH,
    num_heads: int = TEXT_HEADS,
    vocabulary: int = VOCABULARY,
) -> nn.Module:
    """A randomly initialised text tower, int64 [B, T] -> (pooled, [B, T, hidden_size]); needs open_clip."""
    _open_clip()
    from open_clip.transformer import QuickGELU, TextTransformer

    return TextTransformer(
        context_length=text_length,
        vocab_size=vocabulary,
        width=hidden_size,
        heads=num_heads,
        layers=depth,
        output_dim=None,  # no projection
        act_layer=QuickGELU,  # the activation OpenAI trained with
        output_tokens=True,  # per-token features beside the pooled one
    )


def _sizes(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Sizes of the text tower in a weight file, by its shapes."""
    shapes = {name: tensor.shape for name, tensor in state.items()}
    needed = ("token_embedding.weight", "positional_embedding")
    if any(len(shapes.get(name, ())) != 2 for name in needed):
        return {}  # `_fill` says what is missing
    blocks = {name.split(".")[2] for name in state if name.startswith("transformer.resblocks.")}
    vocabulary, width = shapes["token_embedding.weight"]
    return {
        "text_length": shapes["positional_embedding"][0],
        "hidden_size": width,
        "depth": len(blocks),
        "num_heads": max(1, width // 64),  # no shape shows it; heads are 64 wide in all CLIP models
        "vocabulary": vocabulary,
    }


def _fill(tower: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    wanted = tower.state_dict()  # a file's image tower, projection and scale are skipped
    for name, tensor in wanted.items():
        if name not in state:
            raise CheckpointError(
                f"{path} lacks the entry {name!r}; expected CLIP ViT-L/14-336 under open_clip's names"
                f" ({WEIGHTS_FILE} of {WEIGHTS_REPOSITORY})"
            )
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{path}: entry {name!r} has shape {list(state[name].shape)}, but the text encoder needs"
                f" {list(tensor.shape)}; expected CLIP ViT-L/14-336"
            )
    tower.load_state_dict({name: state[name] for name in wanted}, strict=True)


def class_captions(names: Sequence[str]) -> list[str]:
    """Captions for images with a class alone, in the template of TA-TiTok's evaluation (arXiv:2501.07730).

    `names` are those of all classes, by label: a thousand numbers are recognised as a whole only.
    """
    return [f"A photo of a {name}." for name in english_names(names)]


def _open_clip() -> ModuleType:
    try:
        import open_clip
    except ImportError as error:
        raise ValueError(
            f"captions need open_clip ({error}): pip install -r requirements-text.txt"
        ) from error
    return open_clip


def _download() -> Path:
    try:
        return hub_file(WEIGHTS_REPOSITORY, WEIGHTS_FILE)
    except OSError as error:
        reason = str(error)
        raise ValueError(
            f"the weights of the text encoder cannot be downloaded ({reason}). Get"
            f" https://huggingface.co/{WEIGHTS_REPOSITORY}/resolve/main/{WEIGHTS_FILE}, put it on this machine and name"
            " the file as the weights of the text encoder"
        ) from error
