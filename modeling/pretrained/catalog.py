"""Models with published weights by name: their sections, files and published results.

Sizes, files and numbers are those of the authors' code releases and papers (TiTok arXiv:2406.07550, TA-TiTok
arXiv:2501.07730, RAR arXiv:2411.00776, MaskGIT arXiv:2202.04200, taming VQGAN arXiv:2012.09841, LlamaGen
arXiv:2406.06525, Open-MAGVIT2 arXiv:2409.04410, IBQ arXiv:2412.02692). State dicts agree with the published ones
entry by entry; the files themselves were never opened here.
"""

from collections.abc import Mapping
from typing import Any

from common.build import nearest
from compat.models import SIZES
from modeling.pretrained.catalog_llamagen import LLAMAGEN_FAMILY
from modeling.pretrained.catalog_magvit2 import MAGVIT2_FAMILY
from modeling.pretrained.release import Release, entry, vq_section

TITOK, TATITOK, RAR = "fun-research/TiTok", "fun-research/TA-TiTok", "yucornetto/RAR"
LICENCE = "Apache-2.0 (as stated by the authors' code release; check the repository of the weights)"
OPENMOJI_LICENCE = "CC BY-SA 4.0 (trained on drawings of OpenMoji, openmoji.org)"


TITOK_QUANTIZERS = {
    "vq4k": vq_section(4096, 12, unit=True),
    "vq8k": vq_section(8192, 64, unit=False),
    "vae": {"name": "vae", "code_dim": 16},
}
TITOK_SIZES = {"s": SIZES["small"], "b": SIZES["base"], "l": SIZES["large"]}  # width, depth, heads


def _titok_section(sizes: str, tokens: int, quantizer: str, text: bool) -> dict[str, Any]:
    name = "tatitok" if text else "titok"
    section: dict[str, Any] = {"name": name, "image_size": 256, "num_latent_tokens": tokens}
    for side, letter in (("encoder", sizes[0]), ("decoder", sizes[-1])):  # "bl": base encoder, large decoder
        width, depth, heads = TITOK_SIZES[letter]
        section |= {f"{side}_hidden_size": width, f"{side}_depth": depth}
        section |= {f"{side}_num_heads": heads, f"{side}_patch_size": 16}
    if text:
        section |= {"text_length": 77, "text_width": 768}  # of CLIP ViT-L/14
    else:
        section["layout"] = "two_stage" if quantizer == "vq4k" else "single_stage"
    return section | {"quantizer": dict(TITOK_QUANTIZERS[quantizer])}


def _titok(
    sizes: str, tokens: int, quantizer: str, parameters: int, rfid: float, **published: float
) -> Release:
    """A TiTok; a TA-TiTok if an Inception Score is given, which is published for all of those and no others."""
    text, short = bool(published), f"{sizes}{tokens}"
    if text:
        kind = "vae" if quantizer == "vae" else "vq"
        name, manifest = f"tatitok-{short}-{kind}", f"tatitok_{short}_{kind}"
        hub, file = f"turkeyju/tokenizer_{manifest}", f"{manifest}.bin"
    else:
        ending = {"vq4k": "", "vq8k": "_vq8k", "vae": "_vae_c16"}[quantizer]
        name = f"titok-{short}" + {"vq4k": "", "vq8k": "-vq8k", "vae": "-vae"}[quantizer]
        manifest, hub = f"titok_{short}{ending}", f"yucornetto/tokenizer_titok_{short}{ending}_imagenet"
        file = f"{manifest}.bin" if quantizer == "vae" else f"tokenizer_{manifest}.bin"
    return entry(
        "tokenizer",
        name,
        tokens,
        TITOK_QUANTIZERS[quantizer].get("codebook_size"),
        licence=LICENCE,
        parameters=parameters,
        metrics={"rfid": rfid, **published},
        section=_titok_section(sizes, tokens, quantizer, text),
        repo=TATITOK if text else TITOK,
        file=file,
        hub_repo=hub,
        manifest=manifest,
    )


def _generator(name: str, section: dict[str, Any], **about: Any) -> Release:
    codes = section["codebook_size"]
    return entry("generator", name, section["num_tokens"], codes, licence=LICENCE, section=section, **about)


def _sizes(codes: int, tokens: int, width: int, depth: int, mlp: int) -> dict[str, int]:
    shape = {"hidden_size": width, "depth": depth, "num_heads": 16, "mlp_size": mlp}
    return {"codebook_size": codes, "num_tokens": tokens, "num_classes": 1000, **shape}


DROPOUT = {"dropout": 0.1, "attention_dropout": 0.1}


def _rar(
    size: str,
    shape: tuple[int, int, int],  # width, depth, inner width of the MLPs
    guidance: tuple[float, float, float],  # scale, power of the cosine schedule, temperature
    parameters: int,
    metrics: tuple[float, ...],
) -> Release:
    return _generator(
        f"rar-{size}",
        {"name": "rar", **_sizes(1024, 256, *shape), **DROPOUT},
        sampling=dict(zip(("guidance_scale", "guidance_power", "temperature"), guidance, strict=True)),
        tokenizer="maskgit-vqgan",
        repo=RAR,
        file=f"rar_{size}.bin",
        manifest=f"rar_{size}",
        parameters=parameters,
        metrics=dict(zip(("gfid", "inception_score", "precision", "recall"), metrics, strict=True)),
    )


def _maskgit(short: str, section: dict[str, Any], sampler: tuple[Any, ...], **published: Any) -> Release:
    keys = ("num_steps", "guidance_schedule", "guidance_scale", "temperature")
    sampling = dict(zip(keys, sampler, strict=True))
    return _generator(
        f"maskgit-titok-{short}",
        section,
        sampling=sampling | {"guidance_power": 3.0, "softmax_annealing": True},
        tokenizer=f"titok-{short}",
        repo=TITOK,
        file=f"generator_titok_{short}.bin",
        hub_repo=f"yucornetto/generator_titok_{short}_imagenet",
        manifest=f"generator_titok_{short}",
        **published,
    )


def _bert(tokens: int) -> dict[str, Any]:
    return {"name": "maskgit", **_sizes(4096, tokens, 768, 24, 3072), **DROPOUT}


def _openmoji(kind: str, short: str, parameters: int, **about: Any) -> Release:
    """A small model that comes with this repository."""
    tokenizer = "openmoji-titok" if kind == "generator" else None
    about |= {"tokenizer": tokenizer, "folder": f"assets/models/{short}_openmoji", "parameters": parameters}
    return entry(kind, f"openmoji-{short}", 32, 1024, licence=OPENMOJI_LICENCE, **about)


_ALL = (
    _titok("l", 32, "vq4k", 641_054_735, 2.21),
    _titok("b", 64, "vq4k", 204_814_095, 1.70),
    _titok("s", 128, "vq4k", 83_674_639, 1.71),
    _titok("bl", 64, "vq8k", 390_016_148, 2.06),
    _titok("bl", 128, "vq8k", 390_179_988, 1.49),
    _titok("sl", 256, "vq8k", 330_260_884, 1.03),
    _titok("ll", 32, "vae", 606_879_604, 1.61),
    _titok("bl", 64, "vae", 389_418_100, 1.25),
    _titok("bl", 128, "vae", 389_581_940, 0.84),
    _titok("bl", 32, "vq8k", 390_800_532, 3.95, inception_score=219.6),
    _titok("bl", 64, "vq8k", 390_882_452, 2.43, inception_score=218.8),
    _titok("bl", 128, "vq8k", 391_046_292, 1.53, inception_score=222.8),
    _titok("bl", 32, "vae", 390_202_484, 1.53, inception_score=222.0),
    _titok("bl", 64, "vae", 390_284_404, 1.47, inception_score=220.7),
    _titok("sl", 128, "vae", 330_275_188, 0.90, inception_score=227.7),
    entry(
        "tokenizer", "maskgit-vqgan", 256, 1024, licence=LICENCE, parameters=54_515_587, metrics={"rfid": 2.28},
        section={"name": "maskgit_vqgan"},
        repo=TITOK, file="maskgit-vqgan-imagenet-f16-256.bin", manifest="maskgit_vqgan",
    ),
    *LLAMAGEN_FAMILY,
    *MAGVIT2_FAMILY,
    _maskgit(
        "l32", _bert(32), (8, "linear", 4.5, 9.5),
        parameters=177_202_432, metrics={"gfid": 2.77, "inception_score": 194.0},
    ),
    _maskgit(
        "b64", _bert(64), (8, "linear", 3.0, 11.0),
        parameters=177_227_008, metrics={"gfid": 2.48, "inception_score": 214.7},
    ),
    _maskgit(
        "s128", {"name": "uvit", **_sizes(4096, 128, 1024, 20, 4096)}, (64, "power-cosine", 6.9, 2.8),
        parameters=294_990_848, metrics={"gfid": 1.97, "inception_score": 281.8},
    ),
    _rar("b", (768, 24, 3072), (16.0, 2.75, 1.0), 260_923_648, (1.95, 290.5, 0.82, 0.58)),
    _rar("l", (1024, 24, 4096), (15.5, 2.5, 1.02), 461_668_352, (1.70, 299.5, 0.81, 0.60)),
    _rar("xl", (1280, 32, 5120), (6.9, 1.5, 1.02), 955_425_024, (1.50, 306.9, 0.80, 0.62)),
    _rar("xxl", (1408, 40, 6144), (8.0, 1.2, 1.02), 1_498_520_704, (1.48, 326.0, 0.80, 0.63)),
    _openmoji("tokenizer", "titok", 1_482_277, metrics={"psnr": 18.72, "ssim": 0.847}),
    _openmoji("generator", "rar", 2_394_112, metrics={"loss": 7.61}),
    _openmoji("generator", "maskgit", 1_753_088, metrics={"loss": 5.57}),
)  # fmt: skip

RELEASES: dict[str, Release] = {release.name: release for release in _ALL}


def find_release(name: str) -> Release:
    """The release with this name; ValueError names the nearest one if there is none."""
    if name not in RELEASES:
        raise ValueError(f"model {name!r} is unknown{nearest(name, list(RELEASES))}")
    return RELEASES[name]


def releases_of_file(file: str, kind: str | None = None) -> list[Release]:
    """The releases whose published weight file has this name (without folders).

    A file may hold a generator and its tokenizer; `kind` selects one of them, None the generator. Of several files with
    the name, each has an entry of its own (`mark`).
    """
    found = [release for release in _ALL if release.file == file]
    kinds = [release.kind for release in found]
    wanted = kind if kind in kinds else "generator" if "generator" in kinds else "tokenizer"
    found = [release for release in found if release.kind == wanted]
    return (
        found if all(release.mark for release in found) else found[:1]
    )  # one file may have names for two sizes


def release_of_section(section: Mapping[str, Any]) -> Release | None:
    """The first released tokenizer with this section, apart from the weight of its training loss."""

    def design(tree: Mapping[str, Any]) -> dict[str, Any]:
        quantizer = tree.get("quantizer")
        if not isinstance(quantizer, Mapping):
            return dict(tree)
        return {**tree, "quantizer": {k: v for k, v in quantizer.items() if k != "commitment_cost"}}

    tokenizers = (release for release in _ALL if release.kind == "tokenizer" and release.section)
    return next((release for release in tokenizers if design(release.section) == design(section)), None)
