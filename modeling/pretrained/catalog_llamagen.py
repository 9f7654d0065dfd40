"""The catalog's entries of taming's VQGAN (arXiv:2012.09841) and of LlamaGen (arXiv:2406.06525).

File and repository names are quoted from memory of the releases, including the `_256` and `_384` of the generators; the
error of a failing download names what was looked for.
"""

from typing import Any

from modeling.pretrained.llamagen import CODEBOOK_SIZE, llamagen_section
from modeling.pretrained.release import Release, entry, unfiltered, vq_section

LLAMAGEN = "FoundationVision/LlamaGen"
MIT = "MIT (as stated by the authors' code release; check the place of the weights)"
VQ16_FILE = {"repo": LLAMAGEN, "file": "vq_ds16_c2i.pt", "manifest": "llamagen_vq16", "format": "llamagen_vq"}
VQ8_FILE = {"repo": LLAMAGEN, "file": "vq_ds8_c2i.pt", "manifest": "llamagen_vq8", "format": "llamagen_vq"}


def _vqgan(
    name: str, channels: int, tokens: int, parameters: int, rfid: float, design: dict[str, Any], **where: Any
) -> Release:
    quantizer = vq_section(CODEBOOK_SIZE, channels, unit=channels == 8)  # LlamaGen's are normalised
    section = {"name": "vqgan", "image_size": 256, "quantizer": quantizer, **design}
    about = {"licence": MIT, "parameters": parameters, "metrics": {"rfid": rfid}, "section": section}
    return entry("tokenizer", name, tokens, CODEBOOK_SIZE, **about, **where)


def _gpt(size: str, pixels: int, scale: float, fid: float, parameters: int) -> Release:
    """A generator of images of `pixels` x `pixels`; the published FID is measured at 256."""
    tokens = (pixels // 16) ** 2
    suffix = "" if pixels == 256 else f"-{pixels}"
    return entry(
        "generator",
        f"llamagen-{size}{suffix}",
        tokens,
        CODEBOOK_SIZE,
        licence=MIT,
        parameters=parameters,
        metrics={"gfid": fid},
        section=llamagen_section(size, tokens),
        sampling=unfiltered(scale),
        tokenizer=f"llamagen-vq16{suffix}",
        repo=LLAMAGEN,
        file=f"c2i_{size.upper()}_{pixels}.pt",
        manifest=f"llamagen_gpt_{size}" if size in ("b", "l") else None,  # larger ones differ in sizes alone
        format="llamagen_gpt",
    )


LLAMAGEN_FAMILY = (
    _vqgan(
        "taming-vqgan-f16", 256, 256, 76_073_859, 4.98, {},
        file="vqgan_imagenet_f16_16384.ckpt", manifest="taming_vqgan_f16_16384", format="taming",
        origin="the table of pretrained models of github.com/CompVis/taming-transformers, where it is called last.ckpt",
        url="https://heibox.uni-heidelberg.de/d/a7530b09fed84f80a887/files/?p=%2Fckpts%2Flast.ckpt&dl=1",
    ),
    _vqgan("llamagen-vq16", 8, 256, 71_883_403, 2.19, {}, **VQ16_FILE),
    _vqgan("llamagen-vq16-384", 8, 576, 71_883_403, 0.94, {"image_size": 384}, **VQ16_FILE),
    _vqgan("llamagen-vq8", 8, 1024, 70_109_835, 0.59, {"multipliers": [1, 2, 2, 4]}, **VQ8_FILE),
    _gpt("b", 256, 2.0, 5.46, 110_888_448),
    _gpt("l", 256, 2.0, 3.80, 342_910_976),
    _gpt("b", 384, 2.0, 6.09, 110_888_448),
    _gpt("l", 384, 2.0, 3.07, 342_910_976),
    _gpt("xl", 384, 1.75, 2.62, 774_699_520),
    _gpt("xxl", 384, 1.75, 2.34, 1_410_972_672),
    _gpt("3b", 384, 1.65, 2.18, 3_096_659_200),
)  # fmt: skip
