"""Which models `scripts/gpu_check.sh` measures, at which sizes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """What is measured: names with arguments of the training programs, and sizes of batches."""

    training: dict[str, list[str]]  # recipes, one per family
    compiled: tuple[str, ...]  # those of `training` that are also timed compiled
    parity: dict[str, list[str]]
    sampling: dict[str, list[str]]
    coding: dict[str, list[str]]
    sampling_batches: tuple[int, ...]
    training_batch: int
    coding_batch: int
    attention: tuple[int, ...]  # sequence lengths
    inception: tuple[int, int]  # images, side


def _config(path: str, *more: str) -> list[str]:
    return [f"config=configs/{path}.yaml", *more]


_DATA_FREE = ("generator.codebook_size=48", "generator.num_tokens=6", "generator.num_classes=3")
SCALES = {
    "full": Scale(
        training={
            "TiTok-BL-64": _config("titok/imagenet_bl64_vq8k"),
            "TiTok-B-64, stage 1": _config("titok/imagenet_stage1_b64"),
            "TiTok-B-64, stage 2": _config("titok/imagenet_stage2_b64"),
            "TA-TiTok-BL-64": _config("tatitok/datacomp_bl64_vq"),
            "VQGAN": _config("vqgan/imagenet_16384"),
            "LlamaGen VQ-16": _config("llamagen/imagenet_vq16"),
            "Open-MAGVIT2": _config("magvit2/imagenet_256"),
            "IBQ": _config("ibq/imagenet_16384"),
            "FSQ": _config("fsq/imagenet_8000"),
            "CVQ-VAE": _config("cvq/imagenet_8192"),
            "VQ-KD": _config("vqkd/imagenet_clip_8192"),
            "Cluster, pixels": _config("cluster/imagenet_clip_8192_pixels"),
            "RAR-B": _config("rar/imagenet_b"),
            "GPT-B": _config("llamagen/imagenet_gpt_b"),
            "MaskGIT-L-32": _config("maskgit/imagenet_l32"),
            "UViT-S-128": _config("maskgit/imagenet_s128"),
            "Open-MAGVIT2 AR-B": _config("magvit2/ar_b"),
            "IBQ AR-B": _config("ibq/ar_b"),
        },
        compiled=("TiTok-BL-64", "VQGAN", "RAR-B"),
        parity={
            "TiTok-BL-64": _config("titok/imagenet_bl64_vq8k"),
            "VQGAN": _config("vqgan/imagenet_16384"),
            "RAR-B": _config("rar/imagenet_b"),
            "MaskGIT-L-32": _config("maskgit/imagenet_l32"),
            "GPT-B": _config("llamagen/imagenet_gpt_b"),
        },
        sampling={
            "RAR-B": _config("rar/imagenet_b"),
            "RAR-L": _config("rar/imagenet_l"),
            "MaskGIT-L-32": _config("maskgit/imagenet_l32"),
            "GPT-B": _config("llamagen/imagenet_gpt_b"),
        },
        coding={
            "TiTok-BL-64": _config("titok/imagenet_bl64_vq8k"),
            "LlamaGen VQ-16": _config("llamagen/imagenet_vq16"),
        },
        sampling_batches=(1, 16, 64, 256),
        training_batch=8,
        coding_batch=64,
        attention=(65, 257, 1025),
        inception=(64, 256),
    ),
    "tiny": Scale(
        training={"TiTok": _config("debug/titok"), "RAR": _config("debug/rar", *_DATA_FREE)},
        compiled=("RAR",),
        parity={"TiTok": _config("debug/titok"), "RAR": _config("debug/rar", *_DATA_FREE)},
        sampling={
            "RAR": _config("debug/rar", *_DATA_FREE),
            "MaskGIT": _config("debug/maskgit", *_DATA_FREE),
            "GPT": _config("debug/gpt", *_DATA_FREE),
        },
        coding={"TiTok": _config("debug/titok")},
        sampling_batches=(1, 2),
        training_batch=4,
        coding_batch=2,
        attention=(9,),
        inception=(1, 32),
    ),
}
