"""State dicts of other class-conditional LLaMA transformers as those of our GPT; pure functions.

LlamaGen (arXiv:2406.06525)     our names; a training file has the weights under "model"
bare Llama (arXiv:2411.04406)   one vocabulary of classes, "no class" and codes; separate queries, keys and values
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Published sizes: width, depth, heads, inner width of the MLPs.
SIZES = {
    "b": (768, 12, 12, 2048),
    "l": (1024, 24, 16, 2816),
    "xl": (1280, 36, 20, 3584),
    "xxl": (1536, 48, 24, 4096),
    "3b": (3200, 24, 32, 8704),
}
CODEBOOK_SIZE, NUM_CLASSES = 16_384, 1000
DROPOUT = 0.1
_REFERENCE_PREFIX = "_transformer._transformer."
_PARTS = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def llamagen_section(size: str, num_tokens: int = 256) -> dict[str, Any]:
    """The `generator` section of a released LlamaGen; 256 tokens for 256 x 256 pixels, 576 for 384 x 384."""
    if size not in SIZES:
        raise ValueError(f"size={size!r} is unknown; choose {', '.join(SIZES)}")
    hidden_size, depth, num_heads, mlp_size = SIZES[size]
    tokens = {"codebook_size": CODEBOOK_SIZE, "num_tokens": num_tokens, "num_classes": NUM_CLASSES}
    shape = {"hidden_size": hidden_size, "depth": depth, "num_heads": num_heads, "mlp_size": mlp_size}
    return {"name": "gpt", **tokens, **shape, "rope": "2d", "dropout": DROPOUT}


def adapt_llamagen(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict for `GPT(rope="2d")` of a class-conditional LlamaGen file, in which it may lie under "model".

    Raises:
        ValueError: there is no state dict, or that of a text-conditional model.
    """
    state = tree["model"] if isinstance(tree.get("model"), Mapping) else tree
    if "tok_embeddings.weight" not in state:
        raise ValueError("the state dict lacks the entry 'tok_embeddings.weight', which every LlamaGen has")
    captions = next((name for name in state if name.startswith("cls_embedding.cap_proj.")), None)
    if captions is not None:
        raise ValueError(f"entry {captions!r} shows a text-conditional LlamaGen; expected one with classes")
    # Our rotary table is computed.
    return {name: tensor for name, tensor in state.items() if name != "freqs_cis"}


def adapt_llama(state: Mapping[str, Tensor], *, num_classes: int, codebook_size: int) -> dict[str, Tensor]:
    """The state dict for `GPT(rope="1d")` of a bare Llama whose vocabulary is the classes, "no class", then the codes.

    Raises:
        ValueError: an entry is missing or surplus, or the vocabulary has another size.
    """
    rest = {name.removeprefix(_REFERENCE_PREFIX): tensor for name, tensor in state.items()}

    def take(name: str) -> Tensor:
        if name not in rest:
            raise ValueError(f"the state dict lacks the entry {name!r}, which every bare Llama has")
        return rest.pop(name)

    codes, expected = num_classes + 1, num_classes + 1 + codebook_size
    embeddings, output = take("model.embed_tokens.weight"), take("lm_head.weight")
    for name, table in (("model.embed_tokens.weight", embeddings), ("lm_head.weight", output)):
        if len(table) != expected:
            raise ValueError(
                f"entry {name!r} has {len(table)} rows, expected {expected}: {num_classes} classes,"
                f' "no class" and {codebook_size} codes'
            )
    adapted = {
        "cls_embedding.embedding_table.weight": embeddings[:codes],
        "tok_embeddings.weight": embeddings[codes:],
        "norm.weight": take("model.norm.weight"),
        "output.weight": output[codes:],  # classes are never drawn
    }
    layer = 0
    while any(name.startswith(f"model.layers.{layer}.") for name in rest):
        theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
        joint = [take(f"{theirs}.self_attn.{part}_proj.weight") for part in "qkv"]
        adapted[f"{ours}.attention.wqkv.weight"] = torch.cat(joint)  # [3 * width, width]
        for own, other in _PARTS.items():
            adapted[f"{ours}.{own}.weight"] = take(f"{theirs}.{other}.weight")
        layer += 1
    surplus = sorted(name for name in rest if not name.endswith("rotary_emb.inv_freq"))  # of old files
    if surplus:
        raise ValueError(f"the state dict has the entry {surplus[0]!r}, which no bare Llama has")
    return adapted
