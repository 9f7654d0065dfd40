"""Configurations of the original project with the key sets of its published files, built compactly, and tiny models."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from compat import models as original
from modeling.factory import build_generator, build_tokenizer
from tests.parity import fill_module

LETTERS = {"s": "small", "b": "base", "l": "large"}
REFERRED = "${model.vq_model.num_latent_tokens}"


def titok_tree(
    sizes: str, tokens: int, quantizer: str, file: str = "", crop_size: int = 256, **more: Any
) -> dict:
    """An inference file of TiTok or, with `clustering_vq` among the further keys, TA-TiTok.

    quantizer "vq4k" leaves out what the oldest files leave out: quantize_mode and is_legacy.
    """
    section: dict[str, Any] = {"commitment_cost": 0.25}
    if quantizer == "vae":
        section = {"quantize_mode": "vae", "token_size": 16}
    elif quantizer == "vq4k":
        section |= {"codebook_size": 4096, "token_size": 12, "use_l2_norm": True}
    else:
        section |= {"codebook_size": 8192, "token_size": 64, "use_l2_norm": False}
    for key, letter in (("enc", sizes[0]), ("dec", sizes[-1])):
        section |= {f"vit_{key}_model_size": LETTERS[letter], f"vit_{key}_patch_size": 16}
    section |= {"num_latent_tokens": tokens, "finetune_decoder": quantizer == "vq4k"}
    if quantizer != "vq4k":
        section["is_legacy"] = False
    return {
        "experiment": {"tokenizer_checkpoint": file, "output_dir": "somewhere"},
        "model": {"vq_model": section | more},
        "dataset": {"preprocessing": {"crop_size": crop_size}},
    }


def generator_keys(model_type: str | None, shape: tuple[int, int, int], **more: Any) -> dict[str, Any]:
    """A section `model.generator`; shape is width, depth, MLP."""
    width, depth, mlp = shape
    return ({"model_type": model_type} if model_type else {}) | {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": 16,
        "intermediate_size": mlp,
        "dropout": 0.1,
        "attn_drop": 0.1,
        "class_label_dropout": 0.1,
        "image_seq_len": REFERRED,
        "condition_num_classes": 1000,
        **more,
    }


def maskgit_tree(
    sizes: str,
    tokens: int,
    model_type: str,
    shape: tuple[int, int, int],
    sampling: tuple[int, float, float, str],
) -> dict:
    """An inference file of TiTok with its MaskGIT; sampling is steps, temperature, guidance, schedule."""
    tree = titok_tree(sizes, tokens, "vq4k", f"tokenizer_titok_{sizes}{tokens}.bin")
    tree["experiment"]["generator_checkpoint"] = f"generator_titok_{sizes}{tokens}.bin"
    keys = ("num_steps", "randomize_temperature", "guidance_scale", "guidance_decay")
    tree["model"]["generator"] = generator_keys(model_type, shape, **dict(zip(keys, sampling, strict=True)))
    return tree


def rar_tree(shape: tuple[int, int, int], guidance: tuple[float, float, float]) -> dict:
    """The training file of RAR, with the size and the sampling that its users give on the command line."""
    keys = ("guidance_scale", "guidance_scale_pow", "randomize_temperature")
    anneal = {"randomness_anneal_start": 125000, "randomness_anneal_end": 187500}
    return {
        "experiment": {"project": "rar_generation", "resume": True},
        "model": {
            "vq_model": {
                "codebook_size": 1024,
                "token_size": 256,
                "num_latent_tokens": 256,
                "finetune_decoder": False,
                "pretrained_tokenizer_weight": "maskgit-vqgan-imagenet-f16-256.bin",
            },
            "generator": generator_keys(None, shape, use_checkpoint=False, **anneal)
            | {"image_seq_len": 256}
            | dict(zip(keys, guidance, strict=True)),
        },
        "dataset": {"preprocessing": {"crop_size": 256}},
    }


# Our name -> the original's inference file.
TREES: dict[str, dict] = {
    "titok-bl64-vq8k": titok_tree("bl", 64, "vq8k"),
    "titok-bl128-vq8k": titok_tree("bl", 128, "vq8k"),
    "titok-sl256-vq8k": titok_tree("sl", 256, "vq8k"),
    "titok-ll32-vae": titok_tree("ll", 32, "vae"),
    "titok-bl64-vae": titok_tree("bl", 64, "vae"),
    "titok-bl128-vae": titok_tree("bl", 128, "vae"),
    "tatitok-bl32-vq": titok_tree("bl", 32, "vq8k", quantize_mode="vq", clustering_vq=False),
    "tatitok-bl64-vq": titok_tree("bl", 64, "vq8k", quantize_mode="vq", clustering_vq=False),
    "tatitok-bl128-vq": titok_tree("bl", 128, "vq8k", quantize_mode="vq", clustering_vq=False),
    "tatitok-bl32-vae": titok_tree("bl", 32, "vae"),
    "tatitok-bl64-vae": titok_tree("bl", 64, "vae"),
    "tatitok-sl128-vae": titok_tree("sl", 128, "vae"),
    "maskgit-titok-l32": maskgit_tree("l", 32, "ViT", (768, 24, 3072), (8, 9.5, 4.5, "linear")),
    "maskgit-titok-b64": maskgit_tree("b", 64, "ViT", (768, 24, 3072), (8, 11.0, 3.0, "linear")),
    "maskgit-titok-s128": maskgit_tree("s", 128, "UViT", (1024, 20, 4096), (64, 2.8, 6.9, "power-cosine")),
    "rar-b": rar_tree((768, 24, 3072), (16.0, 2.75, 1.0)),
    "rar-l": rar_tree((1024, 24, 4096), (15.5, 2.5, 1.02)),
    "rar-xl": rar_tree((1280, 32, 5120), (6.9, 1.5, 1.02)),
    "rar-xxl": rar_tree((1408, 40, 6144), (8.0, 1.2, 1.02)),
}

SMALL = (32, 1, 2)  # what "small" and "large" stand for in tests that write files


def small_tokenizer_tree(quantizer: str, **more: Any) -> dict:
    """A single-stage tokenizer of 32 x 32 pixels and 5 tokens, if `SMALL` is patched in."""
    sizes = {} if quantizer == "vae" else {"codebook_size": 24, "token_size": 8}
    return titok_tree("sl", 5, quantizer, crop_size=32, **sizes, **more)


def small_generator_tree(kind: str) -> dict:
    """A generator of 5 tokens of 24 codes, the tokenizer of `small_tokenizer_tree` beside it."""
    tree = small_tokenizer_tree("vq8k")
    shape, types = (32, 3, 64), {"rar": None, "maskgit": "ViT", "uvit": "UViT"}
    keys = {"guidance_scale": 4.0, "randomize_temperature": 1.0}
    keys |= {"guidance_scale_pow": 2.0} if kind == "rar" else {"num_steps": 4, "guidance_decay": "linear"}
    tree["model"]["generator"] = generator_keys(types[kind], shape, num_attention_heads=2, **keys)
    return tree


def filled_model(tree: Mapping[str, Any], kind: str, text: bool = False) -> torch.nn.Module:
    """The model of an original tree with deterministic weights."""
    if kind == "tokenizer":
        return fill_module(build_tokenizer(original.tokenizer_section(tree, text=text))).eval()
    return fill_module(build_generator(original.generator_section(tree))).eval()


def write_weights(path: Path, module: torch.nn.Module, **more: torch.Tensor) -> Path:
    """A plain state dict as the original publishes them, .bin or .safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = module.state_dict() | more
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path
