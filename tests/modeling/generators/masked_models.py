"""Masked generators of the golden files, and what is compared of them."""

import json
from collections.abc import Callable

import numpy as np
import torch

from modeling.generators import MaskGIT, UViT
from modeling.generators.base import MaskedGenerator
from modeling.losses.tokens import masked_token_loss
from tests.parity import assert_close, filled, golden

BERT_TINY = {"codebook_size": 48, "num_classes": 10, "num_tokens": 16}
BERT_TINY |= {"hidden_size": 64, "depth": 3, "num_heads": 4, "mlp_size": 160}
UVIT_SMALL = {"codebook_size": 1024, "num_classes": 1000, "num_tokens": 64}
UVIT_SMALL |= {"hidden_size": 512, "depth": 8, "num_heads": 8, "mlp_size": 2048}
IMAGENET = {"codebook_size": 4096, "num_classes": 1000, "num_heads": 16}
BERT_BASE = IMAGENET | {"hidden_size": 768, "depth": 24, "mlp_size": 3072}
BUILDERS: dict[str, Callable[[], MaskedGenerator]] = {
    "bert_tiny": lambda: MaskGIT(**BERT_TINY),
    "uvit_small": lambda: UViT(**UVIT_SMALL),
    "generator_titok_l32": lambda: MaskGIT(**BERT_BASE, num_tokens=32),
    "generator_titok_b64": lambda: MaskGIT(**BERT_BASE, num_tokens=64),
    "generator_titok_s128": lambda: UViT(
        **IMAGENET, num_tokens=128, hidden_size=1024, depth=20, mlp_size=4096
    ),
}


def masked_model(name: str) -> tuple[MaskedGenerator, dict[str, np.ndarray]]:
    """The model of golden file `name`, with its weights, and the arrays."""
    arrays = golden(name)
    model = filled(BUILDERS[name])
    with torch.no_grad():
        for part, factor in json.loads(str(arrays["fill_rules"])):
            for key, tensor in model.state_dict().items():
                if part in key:
                    tensor *= factor
    return model, arrays


def check_forward(model: MaskedGenerator, arrays: dict[str, np.ndarray]) -> None:
    """Logits, argmax and training loss with and without class."""
    tokens, masked, mask, labels = (
        torch.from_numpy(arrays[key]) for key in ("tokens", "masked_tokens", "mask", "classes")
    )
    assert torch.equal(tokens.masked_fill(mask, model.mask_token), masked)
    places, stride = torch.from_numpy(arrays["positions"]).long(), int(arrays["vocab_stride"])
    for name, given in (("cond", labels), ("uncond", torch.full_like(labels, model.none_label))):
        with torch.no_grad():
            logits = model(masked, given)
        stored = logits[:, places][:, :, ::stride]
        assert_close(stored, arrays[f"{name}_logits"], atol=1e-4, rtol=1e-4)
        assert_close(logits.logsumexp(-1), arrays[f"{name}_logsumexp"], atol=1e-4, rtol=1e-4)
        clear = arrays[f"{name}_margin"] > 1e-4
        assert clear.mean() > 0.9
        assert (logits.argmax(-1).numpy() == arrays[f"{name}_argmax"])[clear].all()
        loss, accuracy = masked_token_loss(logits, tokens, mask, label_smoothing=0.1, unmasked_weight=0.1)
        assert_close(loss, arrays[f"{name}_mlm_loss"], atol=1e-5, rtol=1e-5)
        assert_close(accuracy, arrays[f"{name}_mlm_correct"], atol=1e-6)
