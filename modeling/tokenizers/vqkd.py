"""VQ-KD, the tokenizer of BEiT v2 (arXiv:2208.06366): codes from which a small decoder predicts a teacher's features.

State-dict names are those of the released files.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from modeling.layers.half import as_weights
from modeling.layers.mlp import MLP
from modeling.layers.trainable import Block
from modeling.quantizers.base import Quantizer
from modeling.tokenizers.feature_tokenizer import FeatureTokenizer

NORM_EPS = 1e-6
INIT_STD = 0.02


class KeylessBiasAttention(nn.Module):
    """Softmax self-attention whose queries and values have biases and whose keys have none."""

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or hidden_size % num_heads:
            raise ValueError(f"hidden_size={hidden_size} must be a multiple of num_heads={num_heads}")
        self.num_heads = num_heads
        self.q_bias = nn.Parameter(torch.zeros(hidden_size))
        self.v_bias = nn.Parameter(torch.zeros(hidden_size))
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, L, D] -> [B, L, D]
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])  # no bias for keys
        qkv = F.linear(x, self.qkv.weight, bias)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class ViTBlock(Block):
    """x + attention(LN(x)), then x + MLP(LN(x)); exact GELU, LayerNorm eps 1e-6."""

    stacked = {"attn.qkv.weight": 3}

    def __init__(self, *, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.attn = KeylessBiasAttention(hidden_size=hidden_size, num_heads=num_heads)
        self.norm2 = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self.mlp = MLP(hidden_size=hidden_size, mlp_size=4 * hidden_size, dropout=0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, L, D] -> [B, L, D]
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Non-overlapping patches by a convolution: [B, C, H, W] -> [B, D, H / p, W / p]."""

    def __init__(self, *, in_channels: int, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, patch_size, stride=patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> [B, D, H / p, W / p]
        return self.proj(x)


class GridTransformer(nn.Module):
    """A ViT that keeps the grid: class token, learned positions, pre-norm blocks, LayerNorm of the patches."""

    def __init__(
        self,
        *,
        in_channels: int,
        patch_size: int,
        position_grid: int,  # side of the table of positions; other grids interpolate it
        hidden_size: int,
        depth: int,
        num_heads: int,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.position_grid, self.activation_checkpointing = position_grid, activation_checkpointing
        self.cls_token = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.pos_embed = nn.Parameter(torch.zeros(1, position_grid**2 + 1, hidden_size))
        self.patch_embed = PatchEmbed(in_channels=in_channels, hidden_size=hidden_size, patch_size=patch_size)
        self.blocks = nn.ModuleList(
            ViTBlock(hidden_size=hidden_size, num_heads=num_heads) for _ in range(depth)
        )
        self.fc_norm = nn.LayerNorm(hidden_size, eps=NORM_EPS)
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Truncated normals; the branches of block l (1, 2, ...) end in weights divided by sqrt(2 l)."""
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=INIT_STD)
        self.apply(init_linear)
        for number, block in enumerate(self.blocks, start=1):
            block.attn.proj.weight.div_(math.sqrt(2 * number))
            block.mlp.fc2.weight.div_(math.sqrt(2 * number))

    def positions(self, height: int, width: int) -> torch.Tensor:
        """Position embeddings [1, 1 + height * width, D]; bicubic for another grid than that of the table.

        The scale (g + 0.1) / p instead of g / p is that of the released models; it moves sampling points a little.
        """
        side = self.position_grid
        if (height, width) == (side, side):
            return self.pos_embed
        first, rest = self.pos_embed.float().split([1, side**2], dim=1)
        table = rest.transpose(1, 2).unflatten(2, (side, side))  # [1, D, g, g]
        scale = ((height + 0.1) / side, (width + 0.1) / side)
        table = F.interpolate(table, scale_factor=scale, mode="bicubic", align_corners=False)
        table = table[..., :height, :width].flatten(2).transpose(1, 2)
        return torch.cat([first, table], dim=1).to(self.pos_embed.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, C, H, W] -> normalised patches [B, h, w, D]
        x = self.patch_embed(x)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)  # [B, h w, D]
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.positions(height, width)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.fc_norm(x[:, 1:]).unflatten(1, (height, width))  # without the class token


def init_linear(module: nn.Module) -> None:
    """Truncated normal with std 0.02 for the weight of a linear layer, 0 for its bias; nothing else changes."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def task_layer(hidden_size: int, channels: int) -> nn.Sequential:
    """Linear, tanh, linear: [..., D] -> [..., channels]."""
    layer = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, channels))
    return layer.apply(init_linear)


class VQKD(FeatureTokenizer):
    """ViT encoder, quantizer, and a shallow ViT that predicts a teacher's features; optionally a pixel decoder.

    The defaults are the released sizes; those run at 224 pixels (14 x 14 tokens) or, with position_grid=14 and
    interpolated positions, at 256 (16 x 16), which is what generators learn from. The released quantizer is
    spherical_vq with 8192 codes of 32 channels.
    """

    parts = ("quantizer", "pixel_decoder")
    learns = "features"

    def __init__(
        self,
        *,
        quantizer: Quantizer,
        feature_channels: int,  # width F of the teacher's features
        image_size: int = 224,  # other sizes work too, in multiples of the patch
        patch_size: int = 16,
        position_grid: int | None = None,  # side of the table of positions; None: that of `image_size`
        encoder_hidden_size: int = 768,
        encoder_depth: int = 12,
        encoder_num_heads: int = 12,
        decoder_hidden_size: int = 768,
        decoder_depth: int = 1,
        decoder_num_heads: int = 12,
        activation_checkpointing: bool = False,  # recompute blocks in the backward pass
        pixel_decoder: nn.Module | None = None,  # [B, C, h, w] -> [B, 3, f h, f w] in [0, 1]
    ) -> None:
        if patch_size < 1 or image_size % patch_size:
            raise ValueError(f"image_size={image_size} must be a multiple of patch_size={patch_size}")
        super().__init__(image_size=image_size, grid=image_size // patch_size)
        shared = dict(
            position_grid=position_grid or self.grid, activation_checkpointing=activation_checkpointing
        )
        self.patch_size, self.feature_channels = patch_size, feature_channels
        self.encoder = GridTransformer(
            in_channels=3,
            patch_size=patch_size,
            hidden_size=encoder_hidden_size,
            depth=encoder_depth,
            num_heads=encoder_num_heads,
            **shared,
        )
        self.decoder = GridTransformer(
            in_channels=quantizer.code_dim,
            patch_size=1,
            hidden_size=decoder_hidden_size,
            depth=decoder_depth,
            num_heads=decoder_num_heads,
            **shared,
        )
        self.quantize = quantizer
        self.encode_task_layer = task_layer(encoder_hidden_size, quantizer.latent_channels)
        self.decode_task_layer = task_layer(decoder_hidden_size, feature_channels)
        self._attach(pixel_decoder)

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.patch_size, width // self.patch_size

    def check_images(self, images: torch.Tensor) -> None:
        self._check_pixels(images)
        height, width = images.shape[2:]
        if not height or not width or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"images must be [B, 3, H, W] with sides that are multiples of {self.patch_size}, got"
                f" {tuple(images.shape)}"
            )

    def encode_latents(self, images: torch.Tensor) -> torch.Tensor:
        self.check_images(images)
        hidden = self.encoder(as_weights(2 * images - 1, self))  # [B, h, w, D]
        with torch.autocast(images.device.type, enabled=False):  # rounding here changes codes
            return self.encode_task_layer(as_weights(hidden, self)).permute(0, 3, 1, 2)

    def decode_features(self, quantized: torch.Tensor) -> torch.Tensor:
        return self.decode_task_layer(self.decoder(quantized)).permute(0, 3, 1, 2)  # [B, F, h, w]
