"""Files of taming, LlamaGen and the study of understanding tokenizers, in the names of our VQGAN."""

import pytest
import torch

from modeling.factory import build_tokenizer
from modeling.pretrained.vqgan_formats import from_llamagen, from_taming, from_understanding
from tests.parity import manifest

STUDY = {
    "vq_vqgan_16384_dd2": {"name": "vq", "codebook_size": 16384, "code_dim": 256},
    "vq_fsq_8000": {"name": "fsq", "levels": [8, 8, 5, 5, 5]},
}


def file_of(name: str) -> dict[str, torch.Tensor]:
    return {entry: torch.empty(shape, device="meta") for entry, (shape, _) in manifest(name).items()}


@pytest.mark.parametrize("name", STUDY)
def test_the_study_becomes_our_layout(name: str) -> None:
    widths = [256] if name == "vq_fsq_8000" else []
    with torch.device("meta"):
        model = build_tokenizer({"name": "vqgan", "connector_widths": widths, "quantizer": STUDY[name]})
    adapted = from_understanding(file_of(name))
    assert {k: v.shape for k, v in adapted.items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_stacked_attention_is_split_in_order() -> None:
    joint, bias, out = torch.arange(48.0).view(12, 4), torch.arange(12.0), torch.randn(4, 4)
    prefix = "_decoder._layers.0._attentions.1._multihead_attention"
    adapted = from_understanding(
        {
            f"{prefix}.in_proj_weight": joint,
            f"{prefix}.in_proj_bias": bias,
            f"{prefix}.out_proj.weight": out,
            "_decoder._layers.2._residuals.0._residual.5.bias": bias,
            "_decoder._resamples.0._conv.bias": bias[:3],
        }
    )
    for index, part in enumerate("qkv"):
        rows = slice(4 * index, 4 * index + 4)
        assert torch.equal(adapted[f"decoder.up.2.attn.1.{part}.weight"][:, :, 0, 0], joint[rows])
        assert torch.equal(adapted[f"decoder.up.2.attn.1.{part}.bias"], bias[rows])
    assert torch.equal(adapted["decoder.up.2.attn.1.proj_out.weight"][:, :, 0, 0], out)
    assert adapted["decoder.up.0.block.0.conv2.bias"] is bias
    assert torch.equal(adapted["decoder.up.2.upsample.conv.bias"], bias[:3])
    assert len(adapted) == 9


def test_llamagen_decoder_levels_are_turned_around() -> None:
    names = ["decoder.conv_blocks.0.res.2.norm1.weight", "decoder.conv_blocks.0.attn.0.q.weight",
             "decoder.conv_blocks.1.res.0.conv1.weight", "encoder.conv_blocks.1.downsample.conv.weight",
             "decoder.mid.1.k.bias", "quantize.codebook_used", "quant_conv.weight"]  # fmt: skip
    adapted = from_llamagen({name: torch.tensor(float(index)) for index, name in enumerate(names)})
    assert {name: tensor.item() for name, tensor in adapted.items()} == {
        "decoder.up.1.block.2.norm1.weight": 0.0,
        "decoder.up.1.attn.0.q.weight": 1.0,
        "decoder.up.0.block.0.conv1.weight": 2.0,
        "encoder.down.1.downsample.conv.weight": 3.0,
        "decoder.mid.attn_1.k.bias": 4.0,
        "quant_conv.weight": 6.0,
    }


def test_losses_of_taming_are_dropped_and_strangers_are_named() -> None:
    assert list(from_taming({"loss.discriminator.main.0.weight": 1, "quant_conv.bias": 2})) == [
        "quant_conv.bias"
    ]
    for name in ("_encoder._strange.weight", "_encoder._refine.0._unknown.weight", "other"):
        with pytest.raises(ValueError, match=name.split(".")[-2] if "." in name else name):
            from_understanding({name: torch.zeros(1)})
