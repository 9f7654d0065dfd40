"""Encoder and decoders of TiTok (arXiv:2406.07550, 2501.07730): images to a short 1-D sequence and back.

Sequences, with P patch positions and N latent positions:

    encoder   [class | patch 1 ... patch P | latent 1 ... latent N]   the latent positions are the output
    decoder   [class | mask  1 ... mask  P | latent 1 ... latent N]   the mask positions are the output
    with text [class | mask  1 ... mask  P | latent 1 ... latent N | text 1 ... text T]
"""

import torch
from torch import nn
from torch.nn import functional as F

from modeling.layers.conv import depth_to_space, space_to_depth
from modeling.layers.initialization import scaled_embedding
from modeling.layers.transformer import TransformerBlock, run_blocks


def patch_grid(image_size: int, patch_size: int) -> int:
    """Patches per image side; ValueError if patches do not tile the image."""
    if patch_size < 1 or image_size % patch_size:
        raise ValueError(f"image_size={image_size} must be a multiple of the patch size {patch_size}")
    return image_size // patch_size


def make_blocks(hidden_size: int, depth: int, num_heads: int) -> nn.ModuleList:
    """`depth` transformer blocks, at least one."""
    if depth < 1:
        raise ValueError(f"depth={depth} must be at least 1")
    return nn.ModuleList(TransformerBlock(hidden_size=hidden_size, num_heads=num_heads) for _ in range(depth))


class TokenEncoder(nn.Module):
    """Vision transformer that reads images [B, 3, S, S] into N latent positions; patches of side p must divide S."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_latent_tokens: int,
        latent_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.num_latent_tokens = num_latent_tokens
        positions = patch_grid(image_size, patch_size) ** 2 + 1  # class token
        self.class_embedding = scaled_embedding(1, hidden_size)
        self.positional_embedding = scaled_embedding(positions, hidden_size)
        self.latent_token_positional_embedding = scaled_embedding(num_latent_tokens, hidden_size)
        self.patch_embed = nn.Conv2d(3, hidden_size, patch_size, stride=patch_size)
        self.ln_pre = nn.LayerNorm(hidden_size)
        self.transformer = make_blocks(hidden_size, depth, num_heads)
        self.ln_post = nn.LayerNorm(hidden_size)
        self.conv_out = nn.Conv2d(hidden_size, latent_channels, 1)

    def forward(self, images: torch.Tensor, latent_tokens: torch.Tensor) -> torch.Tensor:
        batch = images.shape[0]
        patches = self.embed_patches(images) + self.positional_embedding[1:]  # [B, P, D]
        # Class token and queries are the same for every image: add their positions once, not per image.
        start = self.class_embedding + self.positional_embedding[:1]
        queries = latent_tokens + self.latent_token_positional_embedding
        x = torch.cat([start.expand(batch, -1, -1), patches, queries.expand(batch, -1, -1)], dim=1)
        latent_rows = slice(x.shape[1] - self.num_latent_tokens, None)  # only these leave the last block
        x = run_blocks(self.transformer, self.ln_pre(x), latent_rows, self.activation_checkpointing)
        return self.project(self.ln_post(x))

    def embed_patches(self, images: torch.Tensor) -> torch.Tensor:  # [B, 3, S, S] -> [B, P, D]
        weight = self.patch_embed.weight
        patches = space_to_depth(images, weight.shape[-1])  # [B, P, 3 p p]
        return F.linear(patches, weight.flatten(1), self.patch_embed.bias)  # cheaper backward on a CPU

    def project(self, latents: torch.Tensor) -> torch.Tensor:  # [B, N, D] -> [B, C, 1, N]
        weight = self.conv_out.weight.flatten(1)
        return F.linear(latents, weight, self.conv_out.bias).transpose(1, 2).unsqueeze(2)


class ReviewedTokenEncoder(TokenEncoder):
    """Encoder of the released two-stage models, whose head re-views memory instead of transposing.

    The N x D numbers of an image are read, in memory order, as a D x N matrix before the head, so that one
    output position mixes strided entries of all latents. S-128, B-64 and L-32 weights depend on it.
    """

    def project(self, latents: torch.Tensor) -> torch.Tensor:
        batch, num_latents, width = latents.shape
        return self.conv_out(latents.contiguous().view(batch, width, 1, num_latents))  # not a transpose


class LatentDecoder(nn.Module):
    """Vision transformer that fills P mask positions from N latents of `code_dim` channels; subclasses add the head."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_latent_tokens: int,
        code_dim: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        activation_checkpointing: bool,
    ) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.patch_size = patch_size
        self.grid = patch_grid(image_size, patch_size)
        self.class_embedding = scaled_embedding(1, hidden_size)
        self.positional_embedding = scaled_embedding(self.grid**2 + 1, hidden_size)
        self.mask_token = scaled_embedding(1, 1, hidden_size)
        self.latent_token_positional_embedding = scaled_embedding(num_latent_tokens, hidden_size)
        self.decoder_embed = nn.Linear(code_dim, hidden_size)
        self.ln_pre = nn.LayerNorm(hidden_size)
        self.transformer = make_blocks(hidden_size, depth, num_heads)
        self.ln_post = nn.LayerNorm(hidden_size)

    def patch_features(self, quantized: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Features at the patch positions: [B, C, 1, N] and further tokens [B, T, D] -> [B, P, D], row-major.

        Raises ValueError if `quantized` has another shape.
        """
        num_latents = self.latent_token_positional_embedding.shape[0]
        if quantized.ndim != 4 or quantized.shape[2:] != (1, num_latents):
            raise ValueError(
                f"the decoder expects latents [B, C, 1, {num_latents}], got {tuple(quantized.shape)}; "
                "num_latent_tokens is fixed by the model"
            )
        latents = (
            self.decoder_embed(quantized.squeeze(2).transpose(1, 2)) + self.latent_token_positional_embedding
        )
        masks = self.mask_token[0].expand(self.grid**2, -1)  # [P, D]
        # The same for every image until the first block, so built once.
        canvas = torch.cat([self.class_embedding, masks]) + self.positional_embedding
        tokens = [latents] if context is None else [latents, context]
        x = torch.cat([canvas.expand(quantized.shape[0], -1, -1), *tokens], dim=1)
        x = run_blocks(
            self.transformer, self.ln_pre(x), slice(1, canvas.shape[0]), self.activation_checkpointing
        )
        return self.ln_post(x)


class PixelTokenDecoder(LatentDecoder):
    """Decoder of the single-stage models: one linear map per patch to its pixels, then a 3x3 convolution."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        width = self.ln_pre.normalized_shape[0]
        self.ffn = nn.Sequential(nn.Conv2d(width, 3 * self.patch_size**2, 1))
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, quantized: torch.Tensor) -> torch.Tensor:
        return self.paint(self.patch_features(quantized))  # [B, 3, S, S], not clamped

    def paint(self, features: torch.Tensor) -> torch.Tensor:
        head = self.ffn[0]  # a 1x1 convolution: a matrix product on tokens, without a transposed copy
        pixels = F.linear(features, head.weight.flatten(1), head.bias)
        return self.conv_out(depth_to_space(pixels, self.patch_size))  # [B, P, 3 p p] -> [B, 3, S, S]


class TextTokenDecoder(PixelTokenDecoder):
    """Decoder of TA-TiTok (arXiv:2501.07730, section 3.2): T positions of a caption's features close the sequence."""

    def __init__(self, *, text_length: int, text_width: int, **options) -> None:
        for key, value in (("text_length", text_length), ("text_width", text_width)):
            if value < 1:
                raise ValueError(f"{key}={value} must be at least 1")
        super().__init__(**options)
        width = self.ln_pre.normalized_shape[0]
        self.text_guidance_positional_embedding = scaled_embedding(text_length, width)
        self.text_guidance_proj = nn.Linear(text_width, width)

    def forward(self, quantized: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        context = self.text_guidance_proj(text) + self.text_guidance_positional_embedding  # [B, T, D]
        return self.paint(self.patch_features(quantized, context))  # [B, 3, S, S], not clamped


class ProxyTokenDecoder(LatentDecoder):
    """Decoder of the two-stage models: logits over the codes of a frozen 2-D tokenizer at every patch."""

    def __init__(self, proxy_codebook_size: int, **options) -> None:
        super().__init__(**options)
        self.codebook_size = proxy_codebook_size
        width = self.ln_pre.normalized_shape[0]
        self.ffn = nn.Sequential(
            nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, proxy_codebook_size, 1)
        )

    def forward(self, quantized: torch.Tensor) -> torch.Tensor:
        features = self.patch_features(quantized).transpose(1, 2)  # [B, D, P]
        return self.ffn(features.unflatten(2, (self.grid, self.grid)))  # logits [B, K, g, g]
