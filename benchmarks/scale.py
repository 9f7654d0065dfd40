"""Sampling and evaluation of a whole set of images: images per second and peak resident memory of every stage.

    python benchmarks/scale.py
    python benchmarks/scale.py --count 2000 --size 128 --metrics fid,is,kid
    python benchmarks/scale.py --inception pt_inception-2015-12-05-6726825d.pth --metrics fid,sfid,is,precision_recall

Stages are the programs that people run, one after the other, each in a process of its own: `sample_imagenet.py` with
a tiny random RAR and TiTok, `scripts/evaluate.py make_ref=` on the PNG files, `scripts/evaluate.py` on the NPZ against
that reference. Both files hold the same images, so FID is 0 up to rounding. Without --inception a random projection
takes the place of the network: then the numbers are what everything around the network costs.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measuring import argument_parser, in_new_process, resident_bytes
from evaluator.inception_network import InceptionFeatures
from evaluator.networks import NETWORKS
from jobs import evaluate
from jobs.options.sample_images import SampleOptions
from jobs.sampling import sample_images
from modeling.factory import build_generator, build_tokenizer
from modeling.pipeline import save_pretrained

CODES, TOKENS, CLASSES = 256, 8, 1000
TINY = {"hidden_size": 32, "depth": 1, "num_heads": 2}


class Projection:
    """Fixed random projections of coarse pixels in place of Inception, fast enough to show what is around it."""

    approximate, weights_hash = False, "random projection"
    dims = {"pool": 256, "logits": 1008, "spatial": 128}

    def __init__(self) -> None:
        draws = torch.Generator().manual_seed(0)
        self._matrices = {name: torch.randn(192, dim, generator=draws) / 4 for name, dim in self.dims.items()}

    def __call__(self, images: torch.Tensor) -> InceptionFeatures:
        """Features of uint8 images [B, 3, H, W]."""
        coarse = F.adaptive_avg_pool2d(images.float() / 64, 8).flatten(1)
        return InceptionFeatures(**{name: coarse @ matrix for name, matrix in self._matrices.items()})


def write_models(folder: Path, size: int) -> Path:
    """A TiTok of `size` x `size` pixels and 8 tokens with its RAR, random; returns the folder of the RAR."""
    torch.manual_seed(0)
    blocks = {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in TINY.items()}
    patches = {"encoder_patch_size": size // 4, "decoder_patch_size": size // 4}
    quantizer = {"name": "vq", "codebook_size": CODES, "code_dim": 8}
    options = {"name": "titok", "image_size": size, "num_latent_tokens": TOKENS}
    tokenizer = build_tokenizer({**options, **blocks, **patches, "quantizer": quantizer})
    options = {"name": "rar", "codebook_size": CODES, "num_tokens": TOKENS, "num_classes": CLASSES}
    generator = build_generator({**options, **TINY, "mlp_size": 64})
    # Every image another one, of middle grey values that PNG can hardly make smaller: the worst case for a disk.
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    torch.nn.init.normal_(tokenizer.decoder.conv_out.weight, std=0.02)
    torch.nn.init.constant_(tokenizer.decoder.conv_out.bias, 0.5)
    save_pretrained(tokenizer, folder / "tokenizer")
    tokens = {"tokenizer": str(folder / "tokenizer"), "class_names": [str(n) for n in range(CLASSES)]}
    sampling = {"guidance_scale": 3.0, "guidance_power": 1.0, "temperature": 1.0}
    return save_pretrained(generator, folder / "generator", tokens=tokens, sampling=sampling)


def measured(script: str, options: dict[str, Any], cheap: bool, threads: int) -> tuple[float, float, float]:
    """Run a program in this process (meant to be a new one): seconds, memory before in bytes, peak of memory."""
    torch.set_num_threads(threads)
    if cheap:
        NETWORKS["inception"] = replace(NETWORKS["inception"], load=lambda *_, **__: Projection(), find=None)
    before, start = resident_bytes("VmRSS"), time.perf_counter()
    if script == "sample":
        sample_images(SampleOptions(**options))
    else:
        evaluate.evaluate(evaluate.EvaluateOptions(**options))
    return time.perf_counter() - start, before, resident_bytes("VmHWM")


def run(folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    """All stages; per stage images/s, memory at its start and peak in MB."""
    samples, reference, result = folder / "samples", folder / "reference.npz", folder / "result.json"
    metrics = settings.metrics.split(",")
    inception = {"inception_weights": settings.inception, "batch_size": settings.batch}
    # KID and precision/recall need images of the reference, as ADM's files hold them.
    kept = min(settings.count, 10_000) if {"kid", "precision_recall"} & set(metrics) else 0
    frechet = [m for m in metrics if m in ("fid", "sfid")] or ["fid"]
    stages = {
        "sampling to PNG and NPZ": ("sample", {
            "generator": str(write_models(folder, settings.size)), "output": str(samples),
            "num_samples": settings.count, "batch_size": settings.batch,
        }),
        "reference from the PNG files": ("evaluate", {
            "samples": str(folder / "png"), "make_ref": str(reference), "metrics": frechet, "keep_images": kept,
            "reference_set": "training", **inception,
        }),
        "evaluation of the NPZ": ("evaluate", {
            "samples": str(samples), "reference": str(reference), "metrics": metrics, "output": str(result),
            **inception,
        }),
    }  # fmt: skip
    report: dict[str, Any] = {"count": settings.count, "size": settings.size, "stages": {}}
    for name, (script, options) in stages.items():
        shared = settings.inception is None, settings.threads
        seconds, before, peak = in_new_process(measured, script, options, *shared)
        report["stages"][name] = {
            "images_per_second": settings.count / seconds,
            "start_megabytes": before / 1e6,
            "peak_megabytes": peak / 1e6,
        }
        if script == "sample":  # the pictures alone: beside the NPZ, the NPZ would be read
            (folder / "png").mkdir()
            for picture in samples.glob("[0-9]*.png"):
                picture.rename(folder / "png" / picture.name)
    report["npz_bytes"] = (samples / "samples.npz").stat().st_size
    found = json.loads(result.read_text())
    report["metrics"], facts = found["metrics"], found["protocol"]
    made_of = facts["reference"]["protocol"]["pixels_fingerprint"]
    report["same_pixels"] = facts["pixels_fingerprint"] == made_of
    return report


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--count", type=int, default=50_000, help="number of images")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels, a multiple of 16")
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    parser.add_argument("--metrics", default="fid,sfid,is", help="of scripts/evaluate.py, with commas")
    parser.add_argument("--inception", help="weight file of the feature network")
    parser.add_argument("--folder", help="where files go, and stay; a temporary folder if not given")
    parser.add_argument("--json", help="file for the numbers")
    settings = parser.parse_args()

    folder = Path(settings.folder or tempfile.mkdtemp(prefix="scale-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        report = run(folder, settings)
    finally:
        if settings.folder is None:
            shutil.rmtree(folder)
    size = f"{settings.size} x {settings.size}"
    print(f"\n{settings.count} images of {size}, {settings.threads} thread(s), torch {torch.__version__}")
    print(f"{'':32}{'images/s':>10}{'start MB':>10}{'peak MB':>10}")
    for name, stage in report["stages"].items():
        rate, start, peak = stage.values()
        print(f"{name:32}{rate:10.1f}{start:10.0f}{peak:10.0f}")
    pixels = np.prod([settings.count, settings.size, settings.size, 3]) / 1e6
    if not report["same_pixels"]:
        print("the PNG files and the NPZ hold different images")
    print(
        f"all pixels are {pixels:.0f} MB; " + ", ".join(f"{k} {v:.4g}" for k, v in report["metrics"].items())
    )
    if settings.json:
        Path(settings.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
