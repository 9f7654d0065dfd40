"""The catalog's entries of Open-MAGVIT2 (arXiv:2409.04410) and of IBQ (arXiv:2412.02692).

Files of Open-MAGVIT2 have the names of the authors' release. The names that IBQ's files have there are not known here,
so they are looked for under names of ours; of IBQ's tokenizers, the entries are known for 16384 codes, and other sizes
are taken to differ in the codebook alone. A generator's tokenizer lies in the generator's file (see `magvit2_formats`)
and has an entry of its own.
"""

import math
from typing import Any

from modeling.pretrained.release import Release

ORIGIN = "the tables of models of github.com/TencentARC/SEED-Voken"
LICENCE = "see the release (github.com/TencentARC/SEED-Voken, and the place of the weights)"

# Published sizes: width, depth, depth over the sub-tokens of a token, heads, inner width of the MLPs.
MAGVIT2_SIZES = {
    "b": (1024, 24, 2, 16, 2816),
    "l": (1280, 36, 3, 20, 3584),
    "xl": (1536, 48, 4, 24, 4096),
}
# Width, depth, heads, inner width of the MLPs.
IBQ_SIZES = {
    "b": (1024, 16, 16, 2816),
    "l": (1280, 20, 20, 3584),
    "xl": (1536, 24, 24, 4096),
    "xxl": (1920, 30, 30, 5120),
}


def _magvit2_section(bits: int = 18, pixels: int = 256) -> dict[str, Any]:
    return {
        "name": "magvit2",
        "image_size": pixels,
        "multipliers": [1, 1, 2, 2, 4] if pixels == 256 else [1, 2, 2, 4],
        "quantizer": {"name": "lfq", "bits": bits},
    }


def _ibq_section(codes: int) -> dict[str, Any]:
    quantizer = {"name": "ibq", "codebook_size": codes, "code_dim": 256}
    return {"name": "vqgan", "image_size": 256, "num_blocks": 4, "quantizer": quantizer}


def _release(kind: str, name: str, codes: int, **about: Any) -> Release:
    """An entry; all models have 256 tokens per image, none lies in a Hub repository that is known here."""
    bits = 256 * math.log2(codes)
    return Release(name=name, kind=kind, licence=LICENCE, tokens=256, bits_per_image=bits, **about)


def _quality(
    rfid: float, psnr: float | None = None, ssim: float | None = None, **more: float
) -> dict[str, float]:
    published = {"rfid": rfid, "psnr": psnr, "ssim": ssim, **more}
    return {metric: value for metric, value in published.items() if value is not None}


def _magvit2(
    name: str, file: str, manifest: str, parameters: int, metrics: dict[str, float], **design: int
) -> Release:
    section = _magvit2_section(**design)
    return _release(
        "tokenizer",
        f"magvit2-{name}",
        2 ** section["quantizer"]["bits"],
        parameters=parameters,
        metrics=metrics,
        section=section,
        file=file,
        manifest=f"magvit2_tokenizer_{manifest}",
        format="magvit2",
        origin=ORIGIN,
    )


def _ibq(name: str, codes: int, metrics: dict[str, float]) -> Release:
    return _release(
        "tokenizer",
        f"ibq-{name}",
        codes,
        parameters=106_787_715 + 256 * codes,
        metrics=metrics,
        section=_ibq_section(codes),
        file=f"ibq_{name.replace('-', '_')}.ckpt",
        manifest="ibq_tokenizer_16384" if codes == 16_384 else None,
        format="magvit2",
        origin=f"{ORIGIN}, where it has another name",
    )


def _generator(
    name: str,
    sizes: dict[str, Any],
    first_stage: Release,
    parameters: int,
    metrics: tuple[float, float],
    sampler: tuple[Any, Any],
    **where: str,
) -> tuple[Release, Release]:
    """A generator, and the tokenizer in its file, which is of the design of `first_stage`.

    Args:
        metrics: gFID, Inception Score.
        sampler: guidance and temperature, for sub-tokens if the generator predicts these.
    """
    codes = round(2 ** (first_stage.bits_per_image / first_stage.tokens))
    tokens = {"codebook_size": codes, "num_tokens": first_stage.tokens, "num_classes": 1000}
    scale, temperature = sampler
    filters = {"top_k": 0, "top_p": 1.0}
    generator = _release(
        "generator",
        name,
        codes,
        parameters=parameters,
        metrics=dict(zip(("gfid", "inception_score"), metrics, strict=True)),
        section={**sizes, **tokens, "dropout": 0.1},
        sampling={"guidance_scale": scale, "guidance_power": 0.0, "temperature": temperature, **filters},
        tokenizer=f"{name}-tokenizer",
        manifest=name.replace("-", "_"),
        format="magvit2_generator",
        **where,
    )
    tokenizer = _release(
        "tokenizer",
        f"{name}-tokenizer",
        codes,
        parameters=first_stage.parameters,
        metrics={},
        section=first_stage.section,
        manifest=first_stage.manifest,
        format="magvit2_first_stage",
        **where,
    )
    return generator, tokenizer


def _magvit2_ar(
    size: str, parameters: int, metrics: tuple[float, float], sampler: tuple[list[float], list[float]]
) -> tuple[Release, Release]:
    keys = ("hidden_size", "depth", "intra_depth", "num_heads", "mlp_size")
    section = {
        "name": "factorized_ar",
        "factors": [64, 4096],
        **dict(zip(keys, MAGVIT2_SIZES[size], strict=True)),
    }
    where = {"file": f"AR_256_{size.upper()}.ckpt", "origin": ORIGIN}
    return _generator(f"magvit2-ar-{size}", section, _TOKENIZERS[0], parameters, metrics, sampler, **where)


def _ibq_ar(
    size: str, parameters: int, metrics: tuple[float, float], sampler: tuple[float, float]
) -> tuple[Release, Release]:
    keys = ("hidden_size", "depth", "num_heads", "mlp_size")
    section = {"name": "ibq_ar", **dict(zip(keys, IBQ_SIZES[size], strict=True))}
    where = {"file": f"ibq_ar_{size}.ckpt", "origin": f"{ORIGIN}, where it has another name"}
    return _generator(f"ibq-ar-{size}", section, _IBQ_TOKENIZERS[2], parameters, metrics, sampler, **where)


_TOKENIZERS = (
    _magvit2("256", "imagenet_256_L.ckpt", "256", 115_127_829, _quality(1.17, 21.90)),
    _magvit2("128", "imagenet_128_L.ckpt", "128", 112_021_653, _quality(1.18, 25.08), pixels=128),
    _magvit2(
        "pretrain-262144", "pretrain256_262144.ckpt", "pretrain_256_262144", 115_127_829, _quality(1.67, 22.70, 0.64)
    ),
    _magvit2(
        "pretrain-16384", "pretrain256_16384.ckpt", "pretrain_256_16384", 115_094_033, _quality(2.55, 22.21, 0.62),
        bits=14,
    ),
)  # fmt: skip
_IBQ_TOKENIZERS = (
    _ibq("1024", 1024, _quality(2.24, lpips=0.2580, codebook_usage=0.99)),
    _ibq("8192", 8192, _quality(1.87, lpips=0.2437, codebook_usage=0.98)),
    _ibq("16384", 16_384, _quality(1.37, lpips=0.2235, codebook_usage=0.96)),
    _ibq("262144", 262_144, _quality(1.00, lpips=0.2030, codebook_usage=0.84)),
    _ibq("pretrain-16384", 16_384, _quality(2.06, 22.01, 0.61)),
    _ibq("pretrain-262144", 262_144, _quality(1.53, 22.69, 0.64)),
)
MAGVIT2_FAMILY = (
    *_TOKENIZERS,
    *_magvit2_ar("b", 343_570_432, (3.08, 258.26), ([1.9, 2.0], [1.0, 1.0])),
    *_magvit2_ar("l", 804_362_240, (2.51, 271.70), ([1.9, 1.9], [1.1, 1.0])),
    *_magvit2_ar("xl", 1_486_679_040, (2.33, 271.77), ([1.75, 1.85], [1.1, 1.0])),
    *_IBQ_TOKENIZERS,
    *_ibq_ar("b", 342_994_944, (2.88, 254.73), (2.25, 1.1)),
    *_ibq_ar("l", 649_640_960, (2.45, 267.48), (2.0, 1.0)),
    *_ibq_ar("xl", 1_076_103_168, (2.14, 278.99), (2.35, 1.15)),
    *_ibq_ar("xxl", 2_063_331_840, (2.05, 286.73), (2.85, 1.2)),
)
