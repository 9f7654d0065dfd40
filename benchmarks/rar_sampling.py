"""Seconds per sampled image: the cached sampler beside naive full forward passes.

    python benchmarks/rar_sampling.py --size b --batch 4
    python benchmarks/rar_sampling.py --size small --batch 64 --device cuda --dtype bfloat16

Weights are random; guidance is on. The naive sampler runs the whole sequence for every token, so all of its steps
cost the same: a few are timed (`--naive-steps`) and multiplied by the number of tokens.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import argument_parser, clock
from modeling.generators import RAR
from modeling.sampling.autoregressive import sample
from modeling.sampling.noise import sample_uniforms

IMAGENET = {"codebook_size": 1024, "num_classes": 1000, "num_tokens": 256, "num_heads": 16}
SIZES = {
    "small": {"codebook_size": 1024, "num_classes": 10, "num_tokens": 32, "num_heads": 4}
    | {"hidden_size": 256, "depth": 6, "mlp_size": 1024},
    "b": IMAGENET | {"hidden_size": 768, "depth": 24, "mlp_size": 3072},
    "l": IMAGENET | {"hidden_size": 1024, "depth": 24, "mlp_size": 4096},
    "xl": IMAGENET | {"hidden_size": 1280, "depth": 32, "mlp_size": 5120},
    "xxl": IMAGENET | {"hidden_size": 1408, "depth": 40, "mlp_size": 6144},
}


def build(size: str, device: str, dtype: torch.dtype) -> RAR:
    """A model with small random weights, made where it is used."""
    with torch.device("meta"):  # no time for an initialisation that is overwritten
        model = RAR(**SIZES[size])
    model = model.to(dtype).to_empty(device=device).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    return model


def cached_seconds(model: RAR, labels: torch.Tensor, device: str) -> float:
    """One batch with the sampler."""
    uniforms = sample_uniforms(0, range(len(labels)), model.num_tokens)
    start = clock(device)
    sample(model, labels, guidance_scale=4.0, guidance_power=1.0, temperature=1.0, uniforms=uniforms)
    return clock(device) - start


@torch.inference_mode()
def naive_seconds(model: RAR, labels: torch.Tensor, device: str, steps: int) -> float:
    """One batch with a full forward pass of both guidance halves per token."""
    rows = torch.cat([labels, torch.full_like(labels, model.none_label)])
    tokens = torch.zeros(len(rows), model.num_tokens, dtype=torch.long, device=labels.device)
    start = clock(device)
    for _ in range(steps):
        model(tokens, rows)
    return (clock(device) - start) / steps * model.num_tokens


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argument_parser(__doc__, torch.get_num_threads(), "cuda" if cuda else "cpu")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch", type=int, default=4, help="images per batch")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--repeats", type=int, default=1, help="batches with the cached sampler; the best counts"
    )
    parser.add_argument("--naive-steps", type=int, default=2, help="forward passes timed; 0 leaves them out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    model = build(options.size, options.device, getattr(torch, options.dtype))
    labels = torch.arange(options.batch, device=options.device) % model.num_classes
    if options.device.startswith("cuda"):
        cached_seconds(model, labels, options.device)  # loads kernels
    seconds = (cached_seconds(model, labels, options.device) for _ in range(options.repeats))
    cached = min(seconds) / options.batch
    print(f"rar {options.size}, batch {options.batch}, {options.device}, {options.dtype}, guidance on")
    print(f"cached {cached:10.4f} s/image")
    if options.naive_steps:
        naive = naive_seconds(model, labels, options.device, options.naive_steps) / options.batch
        print(f"naive  {naive:10.4f} s/image ({naive / cached:.1f} times as long)")


if __name__ == "__main__":
    main()
