"""How far lower precisions, compiled blocks and flash attention are from float32 on a device."""

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from jobs.gpu_models import DTYPES, model_of
from modeling.generators.base import Generator, MaskedGenerator
from modeling.tokenizers.base import Tokenizer
from training.compiler import compile_by_units

# Largest relative L2 distance that rounding explains: some units in the last place, through about 50 layers.
LIMITS = {"compile": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
ATTENTION_LIMITS = {"bf16": 1e-2, "fp16": 2e-3}
Outputs = dict[str, torch.Tensor]


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative L2 distance."""
    found, exact = found.detach().float(), exact.detach().float()
    return float((found - exact).norm() / exact.norm().clamp_min(1e-12))


@torch.no_grad()
def _tokenizer_outputs(tokenizer: Tokenizer, images: torch.Tensor, tokens: torch.Tensor | None) -> Outputs:
    latents = tokenizer.encode_latents(images)
    tokens = tokenizer.encode(images) if tokens is None else tokens
    return {"latents": latents, "tokens": tokenizer.encode(images), "images": tokenizer.decode(tokens)}


@torch.no_grad()
def _generator_outputs(generator: Generator, tokens: torch.Tensor) -> Outputs:
    logits = generator(tokens, torch.arange(len(tokens), device=tokens.device) % generator.num_classes)
    return {"logits": logits if isinstance(logits, torch.Tensor) else torch.cat(logits, dim=-1)}


def outputs_of(model: Tokenizer | Generator, device: torch.device, batch_size: int) -> Callable[..., Outputs]:
    """A function that gives what is compared: latents, tokens and images of a tokenizer, logits of a generator.

    A tokenizer always decodes the tokens of its first call, because a latent near a border changes its token.
    """
    seeded = torch.Generator(device).manual_seed(0)
    if isinstance(model, Tokenizer):
        side, first = model.image_size, []
        images = torch.rand(batch_size, 3, side, side, device=device, generator=seeded)

        def tokenizer_outputs() -> Outputs:
            outputs = _tokenizer_outputs(model, images, first[0] if first else None)
            first[:] = first or [outputs["tokens"]]
            return outputs

        return tokenizer_outputs
    shape = (batch_size, model.num_tokens)
    tokens = torch.randint(model.codebook_size, shape, device=device, generator=seeded)
    if isinstance(model, MaskedGenerator):
        tokens[:, ::2] = model.mask_token
    return lambda: _generator_outputs(model, tokens)


def model_parity(
    arguments: list[str], device: torch.device, batch_size: int, *, compiled: bool
) -> Iterator[dict]:
    """Rows of a model in bf16, fp16 and perhaps compiled: distances to float32, share of equal tokens, `passed`."""
    model = model_of(arguments, device)
    compute = outputs_of(model, device, batch_size)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        exact = compute()
        for kind in ("bf16", "fp16"):
            with torch.autocast(device.type, dtype=DTYPES[kind]):
                yield _row(kind, exact, compute())
        if compiled:
            compile_by_units(model)
            yield _row("compile", exact, compute())
    finally:
        torch.set_float32_matmul_precision(before)


def _row(kind: str, exact: Outputs, found: Outputs) -> dict:
    row: dict = {"kind": kind, "limit": LIMITS[kind], "passed": True}
    for name, tensor in found.items():
        if name == "tokens" and not tensor.is_floating_point():
            row["equal_tokens"] = float((tensor == exact[name]).float().mean())
            continue
        row[name] = distance(tensor, exact[name])
        row["passed"] &= row[name] <= LIMITS[kind]  # also false for what is not a number
    return row


def attention_parity(device: torch.device, tokens: int, causal: bool) -> Iterator[dict]:
    """Rows of flash attention in bf16 and fp16, forward and backward, against the plain formula in float32."""
    seeded = torch.Generator(device).manual_seed(0)
    exact = [torch.randn(2, 4, tokens, 64, device=device, generator=seeded) for _ in range(3)]
    expected = _attend(exact, SDPBackend.MATH, causal)
    for kind, limit in ATTENTION_LIMITS.items():
        found = _attend([part.to(DTYPES[kind]) for part in exact], SDPBackend.FLASH_ATTENTION, causal)
        far = [distance(*pair) for pair in zip(found, expected, strict=True)]
        passed = all(number <= limit for number in far)
        yield {"kind": kind, "output": far[0], "gradient": max(far[1:]), "limit": limit, "passed": passed}


def _attend(parts: list[torch.Tensor], kernel: SDPBackend, causal: bool) -> list[torch.Tensor]:
    parts = [part.detach().requires_grad_() for part in parts]
    with sdpa_kernel(kernel):
        mixed = F.scaled_dot_product_attention(*parts, is_causal=causal)
    mixed.float().square().sum().backward()
    return [mixed, *(part.grad for part in parts)]
