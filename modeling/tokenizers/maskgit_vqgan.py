"""MaskGIT's VQGAN (arXiv:2202.04200), f = 16: the frozen 2-D tokenizer behind two-stage TiTok.

All convolutions use SAME padding; GroupNorm has 32 groups and eps 1e-6.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from modeling.layers.conv import SameConv2d
from modeling.layers.half import as_weights
from modeling.layers.trainable import CompileUnit
from modeling.quantizers.base import CodebookQuantizer, QuantizerOutput
from modeling.quantizers.vq import squared_distances
from modeling.tokenizers.convolutional import ConvolutionalTokenizer


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(CompileUnit):
    """Two convolutions with pre-activation.

    Where the width changes, the released network adds a 1x1 convolution of the block's *own output* and drops
    the input, so there is no skip connection; the weights depend on it.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = SameConv2d(in_channels, out_channels, 3, bias=False)
        self.norm2 = _norm(out_channels)
        self.conv2 = SameConv2d(out_channels, out_channels, 3, bias=False)
        changes_width = in_channels != out_channels
        self.nin_shortcut = SameConv2d(out_channels, out_channels, 1, bias=False) if changes_width else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [B, in_channels, H, W] -> [B, out_channels, H, W]
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return hidden + (x if self.nin_shortcut is None else self.nin_shortcut(hidden))  # of hidden, not x


class Level(CompileUnit):
    """Residual blocks of one resolution; optionally nearest x2 up-sampling and a convolution after them."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.Sequential(
            *(ResBlock(in_channels if i == 0 else out_channels, out_channels) for i in range(num_blocks))
        )
        self.upsample_conv = SameConv2d(out_channels, out_channels, 3) if upsample else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, H, W], or [..., 2H, 2W] when up-sampling."""
        x = self.block(x)
        if self.upsample_conv is None:
            return x
        return self.upsample_conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class VQGANEncoder(nn.Module):
    """[B, 3, H, W] -> [B, code_dim, H / f, W / f]; 2x2 average pooling between levels."""

    def __init__(
        self, *, base_channels: int, multipliers: Sequence[int], num_blocks: int, code_dim: int
    ) -> None:
        super().__init__()
        widths = [base_channels * m for m in (1, *multipliers)]
        self.conv_in = SameConv2d(3, base_channels, 3, bias=False)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], num_blocks) for i in range(len(multipliers))
        )
        self.mid = nn.Sequential(*(ResBlock(widths[-1], widths[-1]) for _ in range(num_blocks)))
        self.norm_out = _norm(widths[-1])
        self.conv_out = SameConv2d(widths[-1], code_dim, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:  # Continuous features of images in [0, 1]
        x = self.conv_in(images)
        for index, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if index else x)  # the finest level keeps the image's side
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class VQGANDecoder(nn.Module):
    """[B, code_dim, h, w] -> [B, 3, f h, f w], not clamped; levels are stored fine to coarse."""

    def __init__(
        self, *, base_channels: int, multipliers: Sequence[int], num_blocks: int, code_dim: int
    ) -> None:
        super().__init__()
        widths = [base_channels * m for m in multipliers]
        inputs = [*widths[1:], widths[-1]]
        self.upscale = 2 ** (len(multipliers) - 1)
        self.conv_in = SameConv2d(code_dim, widths[-1], 3)
        self.mid = nn.Sequential(*(ResBlock(widths[-1], widths[-1]) for _ in range(num_blocks)))
        self.up = nn.ModuleList(
            Level(inputs[i], widths[i], num_blocks, upsample=i > 0) for i in range(len(multipliers))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = SameConv2d(widths[0], 3, 3)

    def forward(self, features: torch.Tensor) -> torch.Tensor:  # Images of (mixtures of) codes
        x = self.mid(self.conv_in(features))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class PixelCodebook(CodebookQuantizer):
    """The VQGAN's K codes of C channels: nearest-code look-up, and soft mixing for the second stage of TiTok."""

    def __init__(self, *, codebook_size: int, code_dim: int) -> None:
        super().__init__(codebook_size, code_dim)
        self.embedding = nn.Embedding(codebook_size, code_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            tokens = self.encode(latents)  # nearest by squared distance
            codes = self.lookup(tokens).reshape(latents.shape)  # [B, C, h, w]
            # The factor multiplies the codebook term, unlike in `VectorQuantizer`.
            loss = F.mse_loss(latents, codes.detach()) + 0.25 * F.mse_loss(codes, latents.detach())
            quantized = latents + (codes - latents).detach()  # straight-through
        return QuantizerOutput(quantized=quantized, tokens=tokens, losses={"quantizer_loss": loss})

    def _select(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.embedding(tokens).float()

    @torch.no_grad()
    def _nearest(self, rows: torch.Tensor) -> torch.Tensor:
        return squared_distances(rows, self.embedding.weight.float()).argmin(dim=1)

    def mix(self, logits: torch.Tensor) -> torch.Tensor:
        """Expected code under softmax(logits): [B, K, h, w] -> [B, C, h, w]; differentiable."""
        weights = logits.softmax(dim=1)  # [B, K, h, w]
        return F.linear(weights.movedim(1, -1), self.embedding.weight.t()).movedim(-1, 1)


class MaskGITVQGAN(ConvolutionalTokenizer):
    """Stand-alone VQGAN tokenizer; tokens are the row-major codes. Keywords as in `ConvolutionalTokenizer`."""

    parts = ()  # the codebook is built in

    def __init__(
        self,
        *,
        image_size: int = 256,
        base_channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_blocks: int = 2,
        codebook_size: int = 1024,
        code_dim: int = 256,
    ) -> None:
        super().__init__(image_size=image_size, multipliers=multipliers)
        check_base_channels(base_channels)
        shape = dict(
            base_channels=base_channels, multipliers=multipliers, num_blocks=num_blocks, code_dim=code_dim
        )
        self.encoder = VQGANEncoder(**shape)
        self.decoder = VQGANDecoder(**shape)
        self.quantize = PixelCodebook(codebook_size=codebook_size, code_dim=code_dim)

    def _encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.encoder(as_weights(pixels, self))  # in [0, 1], unlike other VQGANs

    def decode_latents(self, quantized: torch.Tensor) -> torch.Tensor:
        return self.decoder(as_weights(quantized, self))


def check_base_channels(base_channels: int) -> None:
    """Raise ValueError unless 32 groups fit into the narrowest level."""
    if base_channels < 32 or base_channels % 32:
        raise ValueError(f"base_channels={base_channels} must be a multiple of 32 (group normalisation)")
