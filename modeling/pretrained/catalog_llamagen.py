"""The catalog's entries of taming's VQGAN (arXiv:2012.09841) and of LlamaGen (arXiv:2406.06525).

Names of files and repositories are quoted from memory of the releases, the `_256` and `_384` of the generators too; the
error of a failing download names what was looked for.
"""

from typing import Any

from modeling.pretrained.llamagen import llamagen_section
from modeling.pretrained.release import Release

LLAMAGEN = "FoundationVision/LlamaGen"
MIT = "MIT (as stated by the authors' code release; check the place of the weights)"


def _vqgan(
    name: str, sections: dict[str, Any], tokens: int, parameters: int, rfid: float, **where: Any
) -> Release:
    """A VQGAN of 16384 codes; `where` says which file and how to read it."""
    return Release(
        name=name,
        kind="tokenizer",
        licence=MIT,
        tokens=tokens,
        bits_per_image=tokens * 14.0,
        parameters=parameters,
        metrics={"rfid": rfid},
        section={"name": "vqgan", "image_size": 256, **sections},
        **where,
    )


def _codes(channels: int, unit: bool) -> dict[str, Any]:
    return {
        "name": "vq",
        "codebook_size": 16384,
        "code_dim": channels,
        "commitment_cost": 0.25,
        "use_l2_norm": unit,
        "online_clustering": False,
    }


def _gpt(size: str, pixels: int, scale: float, fid: float, parameters: int, file: str) -> Release:
    """A generator; `pixels` is the side of the images whose tokens it learned, FID is at 256."""
    tokens = (pixels // 16) ** 2
    return Release(
        name=f"llamagen-{size}" if pixels == 256 else f"llamagen-{size}-{pixels}",
        kind="generator",
        licence=MIT,
        tokens=tokens,
        bits_per_image=tokens * 14.0,
        parameters=parameters,
        metrics={"gfid": fid},
        section=llamagen_section(size, tokens),
        sampling={
            "guidance_scale": scale,
            "guidance_power": 0.0,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
        },
        tokenizer="llamagen-vq16" if pixels == 256 else f"llamagen-vq16-{pixels}",
        repo=LLAMAGEN,
        file=file,
        manifest={"b": "llamagen_gpt_b", "l": "llamagen_gpt_l"}.get(size),
        format="llamagen_gpt",
    )


LLAMAGEN_FAMILY = (
    _vqgan(
        "taming-vqgan-f16", {"quantizer": _codes(256, False)}, 256, 76_073_859, 4.98,
        file="vqgan_imagenet_f16_16384.ckpt", manifest="taming_vqgan_f16_16384", format="taming",
        origin="the table of pretrained models of github.com/CompVis/taming-transformers, where it is called last.ckpt",
    ),
    _vqgan(
        "llamagen-vq16", {"quantizer": _codes(8, True)}, 256, 71_883_403, 2.19,
        repo=LLAMAGEN, file="vq_ds16_c2i.pt", manifest="llamagen_vq16", format="llamagen_vq",
    ),
    _vqgan(
        "llamagen-vq16-384", {"quantizer": _codes(8, True), "image_size": 384}, 576, 71_883_403, 0.94,
        repo=LLAMAGEN, file="vq_ds16_c2i.pt", manifest="llamagen_vq16", format="llamagen_vq",
    ),
    _vqgan(
        "llamagen-vq8", {"multipliers": [1, 2, 2, 4], "quantizer": _codes(8, True)}, 1024, 70_109_835, 0.59,
        repo=LLAMAGEN, file="vq_ds8_c2i.pt", manifest="llamagen_vq8", format="llamagen_vq",
    ),
    _gpt("b", 256, 2.0, 5.46, 110_888_448, "c2i_B_256.pt"),
    _gpt("l", 256, 2.0, 3.80, 342_910_976, "c2i_L_256.pt"),
    _gpt("b", 384, 2.0, 6.09, 110_888_448, "c2i_B_384.pt"),
    _gpt("l", 384, 2.0, 3.07, 342_910_976, "c2i_L_384.pt"),
    _gpt("xl", 384, 1.75, 2.62, 774_699_520, "c2i_XL_384.pt"),
    _gpt("xxl", 384, 1.75, 2.34, 1_410_972_672, "c2i_XXL_384.pt"),
    _gpt("3b", 384, 1.65, 2.18, 3_096_659_200, "c2i_3B_384.pt"),
)  # fmt: skip
