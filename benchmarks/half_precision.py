"""What half precision does to tokens, images, samples and FID features.

    python benchmarks/half_precision.py --tokenizer openmoji-titok --generators openmoji-rar openmoji-maskgit
    python benchmarks/half_precision.py --inception pt_inception-2015-12-05-6726825d.pth

Images are the held-out ones of the tokenizer's run. Samples are drawn with the same random numbers in every precision;
after a first token that differs the rest of a sample goes its own way.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common.images import to_float
from data.loaders import eval_loader
from data.still import evenly_chosen, still_source
from evaluator.inception import load_inception
from modeling.layers.half import HALF_PRECISIONS
from modeling.pipeline import decode, encode, generate_tokens, load_image_model, load_tokenizer
from modeling.pretrained.model_names import open_model


def held_out(name: str, count: int) -> torch.Tensor:
    """Images float32 [count, 3, S, S] in [0, 1] of the validation data of a tokenizer's run."""
    config, size = open_model(name, "tokenizer").config, load_tokenizer(name).image_size
    source = still_source(None, split="validation", config=config, image_size=size)
    batches = eval_loader(evenly_chosen(source, min(count, len(source))), batch_size=64)
    return torch.cat([to_float(batch["images"]) for batch in batches])


def psnr(images: torch.Tensor, others: torch.Tensor) -> float:
    """Mean over images in dB, rounded to 8 bit as they are stored."""
    error = (images.mul(255).round() - others.mul(255).round()).square().flatten(1).mean(dim=1)
    return float((20 * torch.tensor(255.0).log10() - 10 * error.log10()).mean())


def compare_tokenizer(name: str, images: torch.Tensor, device: str) -> None:
    """Print the share of tokens that change, and the PSNR of reconstructions."""
    print(f"{name}: {len(images)} images")
    exact = None
    for precision in ("float32", *HALF_PRECISIONS):
        tokenizer = load_tokenizer(name, device, precision=precision)
        tokens = encode(tokenizer, images).cpu()
        quality = psnr(images, decode(tokenizer, tokens).cpu())
        exact = tokens if exact is None else exact
        changed = float((tokens != exact).double().mean())
        print(f"  {precision:9}  {changed:7.3%} of tokens differ  PSNR {quality:.4f} dB")


def compare_generator(name: str, count: int, device: str) -> None:
    """Print the share of sampled tokens, and of whole samples, that change."""
    print(f"{name}: {count} samples")
    exact = None
    for precision in ("float32", *HALF_PRECISIONS):
        model = load_image_model(name, device=device, precision=precision)
        labels = torch.arange(count) % len(model.class_names)
        tokens = generate_tokens(model.generator, labels, seed=0, **model.sampling).cpu()
        exact = tokens if exact is None else exact
        differ = tokens != exact
        whole = float(differ.any(dim=1).double().mean())
        print(
            f"  {precision:9}  {float(differ.double().mean()):7.3%} of tokens in {whole:.1%} of samples differ"
        )


def compare_features(weights: str, images: torch.Tensor, device: str) -> None:
    """Print how far Inception's features move, relative to their norm."""
    pixels, exact = images.mul(255).round().to(torch.uint8), None
    print(f"{weights}: features of {len(images)} images")
    for precision in ("float32", *HALF_PRECISIONS):
        features = load_inception(weights, device=device, precision=precision)(pixels).pool.double().cpu()
        exact = features if exact is None else exact
        print(f"  {precision:9}  {float((features - exact).norm() / exact.norm()):.2e} off")


def main() -> None:
    """Compare what is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", default="openmoji-titok")
    parser.add_argument("--generators", nargs="*", default=[])
    parser.add_argument("--inception", help="weight file")
    parser.add_argument("--count", type=int, default=256, help="images, and samples")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    images = held_out(options.tokenizer, options.count)
    compare_tokenizer(options.tokenizer, images, options.device)
    for name in options.generators:
        compare_generator(name, options.count, options.device)
    if options.inception:
        compare_features(options.inception, images, options.device)


if __name__ == "__main__":
    main()
