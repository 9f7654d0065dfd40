"""Translation of the original project's section `model` into our sections.

Such trees lie in YAML files and in `config.json` of published checkpoints. Defaults are the original's: published files
rely on them.
"""

from collections.abc import Mapping
from typing import Any, Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.build import ConfigError, check_value, nearest
from common.console import one_line

SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, depth, heads

TEXT_KEYS = ("text_context_length", "text_embed_dim")
VQ_MODEL_KEYS = (
    "quantize_mode",
    "codebook_size",
    "token_size",
    "use_l2_norm",
    "commitment_cost",
    "clustering_vq",
    "vit_enc_model_size",
    "vit_dec_model_size",
    "vit_enc_patch_size",
    "vit_dec_patch_size",
    "num_latent_tokens",
    "finetune_decoder",
    "is_legacy",
    "pretrained_tokenizer_weight",
    "scale_factor",  # of the latents of text-to-image generators, which are not part of this project
    *TEXT_KEYS,
)
GENERATOR_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "dropout",
    "attn_drop",
    "class_label_dropout",
    "image_seq_len",
    "condition_num_classes",
    "num_steps",
    "randomize_temperature",
    "guidance_scale",
    "guidance_scale_pow",
    "guidance_decay",
    "softmax_temperature_annealing",
    "use_checkpoint",
    "randomness_anneal_start",
    "randomness_anneal_end",
)
# Its files name no model_type.
RAR_KEYS = ("guidance_scale_pow", "randomness_anneal_start", "randomness_anneal_end")
MODEL_TYPES = {"ViT": "maskgit", "UViT": "uvit"}
GUIDANCE_POWER = 3.0  # of the original's samplers where the configuration names none
GUIDANCE_SCHEDULES = Literal["constant", "linear", "power-cosine"]
# What the other layout flags make of `finetune_decoder`, `is_legacy`.
LAYOUTS = {(True, True): "two_stage", (False, True): "proxy", (False, False): "single_stage"}

_REQUIRED = object()


def is_original(tree: Any) -> bool:
    """Whether a tree is the original project's: it has a section `model.vq_model` or `model.generator`."""
    model = tree.get("model") if isinstance(tree, Mapping) else None
    parts = [model.get(key) for key in ("vq_model", "generator")] if isinstance(model, Mapping) else []
    return any(isinstance(part, Mapping) for part in parts)


def has_generator(tree: Mapping[str, Any]) -> bool:
    """Whether an original tree describes a generator."""
    return isinstance(tree.get("model"), Mapping) and isinstance(tree["model"].get("generator"), Mapping)


def is_text_aware(tree: Mapping[str, Any]) -> bool:
    """Whether an original tree shows that it is a TA-TiTok's; inference files do not, there the weights decide."""
    section = _model(tree).get("vq_model") or {}
    data = tree.get("dataset") or {}
    params = (data.get("params") if isinstance(data, Mapping) else None) or {}
    # Training files say that they load captions.
    captions = isinstance(params, Mapping) and params.get("dataset_with_text_label") is True
    return captions or any(key in section for key in TEXT_KEYS)


def tokenizer_section(tree: Mapping[str, Any], text: bool | None = None) -> dict[str, Any]:
    """Our `tokenizer` section of an original tree; `text` True is a TA-TiTok, None decides by `is_text_aware`.

    Raises:
        ConfigError: `model.vq_model` is missing, has an unknown or missing key, or a combination that no model has.
    """
    section = _Section(_model(tree).get("vq_model"), "model.vq_model", VQ_MODEL_KEYS)
    image_size = _image_size(tree)
    if _is_vqgan(section):
        return {"name": "maskgit_vqgan"} | ({} if image_size == 256 else {"image_size": image_size})
    if text is None:
        text = is_text_aware(tree)
    mode = section.take("quantize_mode", Literal["vq", "vae"], "vq")
    layout = _layout(section, mode)
    translated: dict[str, Any] = {"name": "tatitok" if text else "titok", "image_size": image_size}
    translated["num_latent_tokens"] = section.take("num_latent_tokens", int)
    for side, key in (("encoder", "enc"), ("decoder", "dec")):
        size = section.take(f"vit_{key}_model_size", Literal["small", "base", "large"])
        width, depth, heads = SIZES[size]
        patch = section.take(f"vit_{key}_patch_size", int)
        translated |= {f"{side}_hidden_size": width, f"{side}_depth": depth}
        translated |= {f"{side}_num_heads": heads, f"{side}_patch_size": patch}
    if text:
        if layout != "single_stage":
            raise ConfigError(
                "model.vq_model of a TA-TiTok needs finetune_decoder=false and is_legacy=false,"
                f" these flags say layout {layout}"
            )
        translated["text_length"] = section.take("text_context_length", int, 77)
        translated["text_width"] = section.take("text_embed_dim", int, 768)
    else:
        translated["layout"] = layout
    return translated | {"quantizer": _quantizer(section, mode, text)}


def generator_section(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Our `generator` section of an original tree: RAR, MaskGIT ("ViT") or U-ViT.

    Raises:
        ConfigError: `model.generator` or the size of the codebook is missing, or a key is unknown.
    """
    section, kind = _generator(tree)
    tokens = _Section(_model(tree).get("vq_model") or {}, "model.vq_model", VQ_MODEL_KEYS)
    num_tokens = tokens.take("num_latent_tokens", int, None)  # MaskGIT's VQGAN has none
    translated = {
        "name": kind,
        "codebook_size": tokens.take("codebook_size", int),
        "num_tokens": section.take("image_seq_len", int, _REQUIRED if num_tokens is None else num_tokens),
        "num_classes": section.take("condition_num_classes", int, 1000),
        "hidden_size": section.take("hidden_size", int),
        "depth": section.take("num_hidden_layers", int),
        "num_heads": section.take("num_attention_heads", int),
        "mlp_size": section.take("intermediate_size", int),
    }
    if kind != "uvit":  # the original's U-ViT ignores both
        translated["dropout"] = section.take("dropout", float, 0.1)
        translated["attention_dropout"] = section.take("attn_drop", float, 0.1)
    if section.take("use_checkpoint", bool, False):
        translated["activation_checkpointing"] = True
    return translated


def sampling_section(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Our complete `sampling` section of an original tree, {} without a generator; errors as `generator_section`."""
    if not has_generator(tree):
        return {}
    section, kind = _generator(tree)
    power = section.take("guidance_scale_pow", float, GUIDANCE_POWER)
    if kind == "rar":
        return {
            "guidance_scale": section.take("guidance_scale", float, 4.0),
            "guidance_power": power,
            "temperature": section.take("randomize_temperature", float, 1.0),
        }
    return {
        "num_steps": section.take("num_steps", int, 8),
        "guidance_schedule": section.take("guidance_decay", GUIDANCE_SCHEDULES, "constant"),
        "guidance_scale": section.take("guidance_scale", float, 3.0),
        "guidance_power": power,
        "temperature": section.take("randomize_temperature", float, 4.5),
        # A switch of the original's sampling script, on for all published numbers.
        "softmax_annealing": section.take("softmax_temperature_annealing", bool, True),
    }


def weight_file(tree: Mapping[str, Any], kind: str) -> str | None:
    """The weight file that an original tree names for its "tokenizer" or "generator", if any."""
    experiment = _resolved(tree, "experiment")
    named = experiment.get(f"{kind}_checkpoint")
    if not named and kind == "tokenizer":
        section = _Section(_model(tree).get("vq_model") or {}, "model.vq_model", VQ_MODEL_KEYS)
        # For a TiTok the key names its frozen teacher, not the tokenizer.
        named = section.values.get("pretrained_tokenizer_weight") if _is_vqgan(section) else None
    return None if not named else str(named)


class _Section:
    """One section of the original: checks keys when it is opened, values when they are taken."""

    def __init__(self, values: Any, path: str, known: tuple[str, ...]) -> None:
        if not isinstance(values, Mapping):
            raise ConfigError(f"{path} is missing; a configuration of the original project needs it")
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"{path}.{key} is not a key of the original project{nearest(str(key), known)};"
                    f" keys: {', '.join(known)}"
                )
        self.values, self.path = values, path

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def take(self, key: str, annotation: Any, default: Any = _REQUIRED) -> Any:
        if self.values.get(key) is not None:  # null means the default
            return check_value(f"{self.path}.{key}", self.values[key], annotation)
        if default is _REQUIRED:
            raise ConfigError(f"{self.path}.{key} is missing")
        return default


def _model(tree: Mapping[str, Any]) -> dict[str, Any]:
    return _resolved(tree, "model")


def _resolved(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section, by its dotted name, with its interpolations resolved; those of others may not resolve here."""
    try:
        section = OmegaConf.select(OmegaConf.create(dict(tree)), name)
        return OmegaConf.to_container(section, resolve=True) if OmegaConf.is_dict(section) else {}
    except OmegaConfBaseException as error:
        raise ConfigError(f"section {name} of the original configuration: {one_line(error)}") from error


def _image_size(tree: Mapping[str, Any]) -> int:
    preprocessing = _resolved(tree, "dataset.preprocessing")
    return check_value("dataset.preprocessing.crop_size", preprocessing.get("crop_size", 256), int)


def _is_vqgan(section: _Section) -> bool:
    if any(key.startswith("vit_") for key in section.values):
        return False
    # RAR's configurations describe MaskGIT's VQGAN by the size of its codebook alone.
    sizes = (section.values.get("codebook_size", 1024), section.values.get("token_size", 256))
    if sizes != (1024, 256):
        raise ConfigError(
            f"model.vq_model without vit_* sizes is MaskGIT's VQGAN (codebook_size 1024, token_size 256),"
            f" but has codebook_size {sizes[0]}, token_size {sizes[1]}"
        )
    return True


def _layout(section: _Section, mode: str) -> str:
    flags = (section.take("finetune_decoder", bool, True), section.take("is_legacy", bool, True))
    if flags not in LAYOUTS:
        raise ConfigError("model.vq_model.is_legacy=false needs finetune_decoder=false (default: true)")
    if flags[0] and mode == "vae":
        raise ConfigError("model.vq_model.quantize_mode='vae' needs finetune_decoder=false (default: true)")
    return LAYOUTS[flags]


def _quantizer(section: _Section, mode: str, text: bool) -> dict[str, Any]:
    if mode == "vae":
        return {"name": "vae", "code_dim": section.take("token_size", int)}
    return {
        "name": "vq",
        "codebook_size": section.take("codebook_size", int),
        "code_dim": section.take("token_size", int),
        "commitment_cost": section.take("commitment_cost", float, 0.25),
        "use_l2_norm": section.take("use_l2_norm", bool),
        # The original's TiTok ignores the key.
        "online_clustering": section.take("clustering_vq", bool, False) if text else False,
    }


def _generator(tree: Mapping[str, Any]) -> tuple[_Section, str]:
    model = _model(tree)
    if "generator" not in model and "maskgen" in model:
        raise ConfigError("model.maskgen: text-to-image generators are not supported")
    section = _Section(model.get("generator"), "model.generator", GENERATOR_KEYS)
    if section.values.get("model_type") is not None:
        return section, MODEL_TYPES[section.take("model_type", Literal["ViT", "UViT"])]
    if any(key in section for key in RAR_KEYS):
        return section, "rar"
    raise ConfigError(
        f"model.generator is of no known kind: it has neither model_type (ViT, UViT) nor a key of RAR"
        f" ({', '.join(RAR_KEYS)})"
    )
