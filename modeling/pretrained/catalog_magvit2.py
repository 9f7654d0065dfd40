"""The catalog's entries of Open-MAGVIT2 (arXiv:2409.04410) and of IBQ (arXiv:2412.02692).

The sections of IBQ's tokenizers are known for 16384 codes; other sizes are taken to differ in the codebook alone.
A generator's tokenizer lies in the generator's file (see `magvit2_formats`) and is a release of its own. Generators of
both families have files of the same names; what such a file is follows from its entries.
"""

from typing import Any

from modeling.pretrained.release import Release, entry, unfiltered

HUB = "TencentARC"  # organisation on the Hub
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


def _magvit2(
    name: str,
    repo: str,
    file: str,
    manifest: str,
    metrics: dict[str, float],
    *,
    bits: int = 18,
    pixels: int = 256,
) -> Release:
    multipliers = [1, 1, 2, 2, 4] if pixels == 256 else [1, 2, 2, 4]  # 16 x 16 tokens from either size
    quantizer = {"name": "lfq", "bits": bits}
    return entry(
        "tokenizer",
        f"magvit2-{name}",
        256,
        2**bits,
        licence=LICENCE,
        parameters={(18, 256): 115_127_829, (18, 128): 112_021_653, (14, 256): 115_094_033}[bits, pixels],
        metrics=metrics,
        section={"name": "magvit2", "image_size": pixels, "multipliers": multipliers, "quantizer": quantizer},
        repo=f"{HUB}/Open-MAGVIT2-Tokenizer-{repo}",
        file=file,
        manifest=f"magvit2_tokenizer_{manifest}",
        format="magvit2",
    )


def _ibq(name: str, repo: str, file: str, codes: int, metrics: dict[str, float]) -> Release:
    quantizer = {"name": "ibq", "codebook_size": codes, "code_dim": 256}
    return entry(
        "tokenizer",
        f"ibq-{name}",
        256,
        codes,
        licence=LICENCE,
        parameters=106_787_715 + 256 * codes,
        metrics=metrics,
        section={"name": "vqgan", "image_size": 256, "num_blocks": 4, "quantizer": quantizer},
        repo=f"{HUB}/IBQ-Tokenizer-{repo}",
        file=file,
        manifest="ibq_tokenizer_16384" if codes == 16_384 else None,
        format="magvit2",  # both projects write the same kind of file
    )


def _pair(
    name: str,
    sizes: dict[str, Any],
    first_stage: Release,
    parameters: int,
    metrics: tuple[float, float],  # gFID, Inception Score
    sampler: tuple[Any, Any],  # guidance and temperature; lists have one per sub-token
    **where: str,
) -> tuple[Release, Release]:
    """A generator and the tokenizer in its file, which is built like `first_stage`."""
    codes = round(2 ** (first_stage.bits_per_image / first_stage.tokens))
    tokens = {"codebook_size": codes, "num_tokens": first_stage.tokens, "num_classes": 1000}
    generator = entry(
        "generator",
        name,
        first_stage.tokens,
        codes,
        licence=LICENCE,
        parameters=parameters,
        metrics=dict(zip(("gfid", "inception_score"), metrics, strict=True)),
        section={**sizes, **tokens, "dropout": 0.1},
        sampling=unfiltered(*sampler),
        tokenizer=f"{name}-tokenizer",
        manifest=name.replace("-", "_"),
        format="magvit2_generator",
        **where,
    )
    same = {key: getattr(first_stage, key) for key in ("parameters", "section", "manifest")}
    about = {"licence": LICENCE, "metrics": {}, "format": "magvit2_first_stage", **same, **where}
    return generator, entry("tokenizer", f"{name}-tokenizer", first_stage.tokens, codes, **about)


def _magvit2_ar(size: str, *about: Any) -> tuple[Release, Release]:
    keys = ("hidden_size", "depth", "intra_depth", "num_heads", "mlp_size")
    sizes = dict(zip(keys, MAGVIT2_SIZES[size], strict=True))
    section = {"name": "factorized_ar", "factors": [64, 4096], **sizes}  # 2^18 codes = 2^6 x 2^12
    where = {"repo": f"{HUB}/Open-MAGVIT2-AR-{size.upper()}-256-resolution"}
    where |= {"file": f"AR_256_{size.upper()}.ckpt", "mark": "transformer.pre_emb.weight"}
    return _pair(f"magvit2-ar-{size}", section, _TOKENIZERS[0], *about, **where)


def _ibq_ar(size: str, *about: Any) -> tuple[Release, Release]:
    sizes = dict(zip(("hidden_size", "depth", "num_heads", "mlp_size"), IBQ_SIZES[size], strict=True))
    where = {"repo": f"{HUB}/IBQ-AR-{size.upper()}"}
    where |= {"file": f"AR_256_{size.upper()}.ckpt", "mark": "transformer.tok_emb.weight"}
    return _pair(f"ibq-ar-{size}", {"name": "ibq_ar", **sizes}, _IBQ_TOKENIZERS[2], *about, **where)


_TOKENIZERS = (
    _magvit2("256", "256-resolution", "imagenet_256_L.ckpt", "256", dict(rfid=1.17, psnr=21.90)),
    _magvit2("128", "128-resolution", "imagenet_128_L.ckpt", "128", dict(rfid=1.18, psnr=25.08), pixels=128),
    _magvit2(
        "pretrain-262144", "262144-Pretrain", "pretrain256_262144.ckpt", "pretrain_256_262144",
        dict(rfid=1.67, psnr=22.70, ssim=0.64),
    ),
    _magvit2(
        "pretrain-16384", "16384-Pretrain", "pretrain256_16384.ckpt", "pretrain_256_16384",
        dict(rfid=2.55, psnr=22.21, ssim=0.62), bits=14,
    ),
)  # fmt: skip
_IBQ_TOKENIZERS = (
    _ibq("1024", "1024", "imagenet256_1024.ckpt", 1024, dict(rfid=2.24, lpips=0.2580, codebook_usage=0.99)),
    _ibq("8192", "8192", "imagenet256_8192.ckpt", 8192, dict(rfid=1.87, lpips=0.2437, codebook_usage=0.98)),
    _ibq("16384", "16384", "imagenet256_16384.ckpt", 16_384, dict(rfid=1.37, lpips=0.2235, codebook_usage=0.96)),
    _ibq("262144", "262144", "imagenet256_262144.ckpt", 262_144, dict(rfid=1.00, lpips=0.2030, codebook_usage=0.84)),
    _ibq(
        "pretrain-16384", "16384-Pretrain", "IBQ_pretrain_16384.ckpt", 16_384,
        dict(rfid=2.06, psnr=22.01, ssim=0.61),
    ),
    _ibq(
        "pretrain-262144", "262144-Pretrain", "IBQ_pretrain_262144.ckpt", 262_144,
        dict(rfid=1.53, psnr=22.69, ssim=0.64),
    ),
)  # fmt: skip
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
