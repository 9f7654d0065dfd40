"""TA-TiTok: released layouts, the decoder against a naive one, text, initialisation, errors."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling.factory import build_tokenizer
from modeling.quantizers import GaussianQuantizer, VectorQuantizer
from modeling.tokenizers import TATiTok, TiTok
from tests.conftest import TOKENIZER
from tests.parity import assert_layout, fill_module

SIZES = {"s": (512, 8, 8), "b": (768, 12, 12), "l": (1024, 24, 16)}
RELEASED = {
    "tatitok_bl32_vq": 390.801,
    "tatitok_bl64_vq": 390.882,
    "tatitok_bl128_vq": 391.046,
    "tatitok_bl32_vae": 390.202,
    "tatitok_bl64_vae": 390.284,
    "tatitok_sl128_vae": 330.275,
    "tatitok_bl64_vq_training": 390.882,
}


def released(name: str) -> TATiTok:
    """The released model `name`: sizes and tokens are spelled in it."""
    variant = name.split("_")[1]
    encoder, decoder = SIZES[variant[0]], SIZES[variant[1]]
    vq = VectorQuantizer(codebook_size=8192, code_dim=64, online_clustering=name.endswith("_training"))
    return TATiTok(
        quantizer=GaussianQuantizer(code_dim=16) if "vae" in name else vq,
        image_size=256,
        num_latent_tokens=int(variant[2:]),
        encoder_hidden_size=encoder[0],
        encoder_depth=encoder[1],
        encoder_num_heads=encoder[2],
        decoder_hidden_size=decoder[0],
        decoder_depth=decoder[1],
        decoder_num_heads=decoder[2],
        encoder_patch_size=16,
        decoder_patch_size=16,
    )


SMALL = dict(
    image_size=32,
    num_latent_tokens=5,
    encoder_hidden_size=32,
    encoder_depth=2,
    encoder_num_heads=2,
    decoder_hidden_size=48,
    decoder_depth=2,
    decoder_num_heads=3,
    encoder_patch_size=8,
    decoder_patch_size=16,
)


def small(quantizer: nn.Module | None = None, **options) -> TATiTok:
    """A model for 32x32 images with text of 7 positions and 20 channels."""
    quantizer = quantizer or VectorQuantizer(codebook_size=32, code_dim=6)
    return TATiTok(**{"quantizer": quantizer, **SMALL, "text_length": 7, "text_width": 20, **options})


def naive_decoder(state: dict[str, torch.Tensor], z: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """[B, C, 1, N], [B, 7, 20] -> [B, 3, 32, 32] with patches of 16 pixels and 3 heads, written out."""
    state = {name.removeprefix("decoder."): value for name, value in state.items()}
    width, heads = 48, 3

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}weight"].T + state[f"{name}bias"]

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    images = []
    for latents, words in zip(z[:, :, 0].transpose(1, 2), text, strict=True):
        rows = [state["class_embedding"][0] + state["positional_embedding"][0]]
        rows += [state["mask_token"][0, 0] + state["positional_embedding"][1 + i] for i in range(4)]
        rows += list(linear("decoder_embed.", latents) + state["latent_token_positional_embedding"])
        rows += list(linear("text_guidance_proj.", words) + state["text_guidance_positional_embedding"])
        x = norm("ln_pre", torch.stack(rows))
        for layer in range(2):
            here = f"transformer.{layer}."
            query, key, value = linear(f"{here}attn.in_proj_", norm(f"{here}ln_1", x)).split(width, -1)
            mixed = []
            for part in torch.arange(width).chunk(heads):
                scores = query[:, part] @ key[:, part].T / (width // heads) ** 0.5
                mixed.append(scores.softmax(-1) @ value[:, part])
            x = x + linear(f"{here}attn.out_proj.", torch.cat(mixed, -1))
            x = x + linear(f"{here}mlp.c_proj.", F.gelu(linear(f"{here}mlp.c_fc.", norm(f"{here}ln_2", x))))
        grid = norm("ln_post", x)[1:5].T.reshape(1, width, 2, 2)
        pixels = F.conv2d(grid, state["ffn.0.weight"], state["ffn.0.bias"])[
            0
        ]  # channels (row, column, colour)
        image = pixels.reshape(16, 16, 3, 2, 2).permute(2, 3, 0, 4, 1).reshape(1, 3, 32, 32)
        images.append(F.conv2d(image, state["conv_out.weight"], state["conv_out.bias"], padding=1))
    return torch.cat(images)


@pytest.mark.parametrize("name", RELEASED)
def test_state_dict_layout_and_size_of_released_models(name: str) -> None:
    with torch.device("meta"):
        model = released(name)
    assert_layout(model, name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(RELEASED[name], abs=5e-4)
    assert (model.text_length, model.text_width) == (77, 768) and model.needs_text


@torch.no_grad()
def test_decoder_equals_a_naive_one() -> None:
    model = fill_module(small()).eval()
    tokens, text = torch.randint(32, (2, 5)), torch.randn(2, 7, 20)
    images = model.decode(tokens, text)
    expected = naive_decoder(model.state_dict(), model.quantize.lookup(tokens), text)
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=1e-4)
    # The text matters, at every position and by its order.
    for changed in (text.flip(1), torch.cat([text[:, :-1], text[:, -1:] + 1], 1), text.flip(0)):
        assert (model.decode(tokens, changed) - images).abs().max() > 1e-3


@pytest.mark.parametrize("continuous", [False, True])
def test_encode_decode_and_forward_agree(continuous: bool) -> None:
    model = small(GaussianQuantizer(code_dim=4) if continuous else None).eval()
    images, text = torch.rand(3, 3, 32, 32), torch.randn(3, 7, 20)
    output = model(images, text=text)
    tokens = model.encode(images)
    assert torch.equal(tokens, output.quantized if continuous else output.tokens)
    assert tokens.shape == ((3, 4, 1, 5) if continuous else (3, 5))
    torch.testing.assert_close(model.decode(tokens, text), output.reconstructions, atol=1e-4, rtol=1e-4)
    assert output.reconstructions.shape == (3, 3, 32, 32)
    assert model.predicts_pixels and model.num_tokens == 5 and model.learns == "pixels"
    torch.testing.assert_close(
        model(images, text=text.flip(0)).quantized, output.quantized
    )  # encoder sees none


def test_encoder_side_is_that_of_titok() -> None:
    model, plain = small(), TiTok(quantizer=VectorQuantizer(codebook_size=32, code_dim=6), **SMALL)
    missing = plain.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys and all("text_guidance" in name for name in missing.unexpected_keys)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(model.encode(images), plain.encode(images)) and not plain.needs_text


def test_noise_and_bypass_reach_the_bottleneck() -> None:
    images, text, noise = torch.rand(2, 3, 32, 32), torch.randn(2, 7, 20), torch.randn(2, 4, 1, 5)
    output = small(GaussianQuantizer(code_dim=4))(images, noise, text=text)
    torch.testing.assert_close(output.quantized, output.posterior.sample(noise))
    model = small()
    output = model(images, bypass=torch.tensor([True, False]), text=text)
    torch.testing.assert_close(output.quantized[:1], model.encode_latents(images)[:1])
    torch.testing.assert_close(output.quantized[1:], model.quantize.lookup(output.tokens)[1:])


def test_every_parameter_gets_a_gradient_with_and_without_checkpointing() -> None:
    images, text = torch.rand(2, 3, 32, 32), torch.randn(2, 7, 20)
    plain, recomputed = small(), small(activation_checkpointing=True)
    recomputed.load_state_dict(plain.state_dict())
    for model in (plain, recomputed):
        output = model(images, text=text)
        (output.reconstructions.square().mean() + output.losses["quantizer_loss"]).backward()
    for (name, one), two in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert one.grad is not None and one.grad.abs().sum() > 0, name
        torch.testing.assert_close(two.grad, one.grad, msg=name)


def test_released_initialisation_leaves_the_decoder_as_torch_draws_it() -> None:
    torch.manual_seed(0)
    state = small(decoder_hidden_size=192, text_width=96, encoder_hidden_size=128).state_dict()
    assert state["encoder.transformer.0.mlp.c_fc.weight"].std().item() == pytest.approx(0.02, rel=0.05)
    assert not state["encoder.patch_embed.bias"].any()
    for name in ("text_guidance_proj", "transformer.1.mlp.c_proj", "ffn.0", "decoder_embed"):
        weight, bias = state[f"decoder.{name}.weight"], state[f"decoder.{name}.bias"]
        bound = weight[0].numel() ** -0.5  # Kaiming-uniform with a = sqrt(5)
        assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert bias.any() and bias.abs().max() <= bound, name
    joint = state["decoder.transformer.0.attn.in_proj_weight"]
    assert joint.std().item() == pytest.approx((2 / sum(joint.shape)) ** 0.5, rel=0.02)  # Xavier
    assert not state["decoder.transformer.0.attn.out_proj.bias"].any()
    positions = state["decoder.text_guidance_positional_embedding"]
    assert positions.std().item() == pytest.approx(192**-0.5, rel=0.1)


def test_fan_in_initialisation_covers_both_halves() -> None:
    torch.manual_seed(0)
    state = small(init="fan_in", text_width=96).state_dict()
    for name in (
        "encoder.transformer.0.mlp.c_fc",
        "decoder.transformer.0.mlp.c_fc",
        "decoder.text_guidance_proj",
    ):
        weight = state[f"{name}.weight"]
        assert weight.std().item() == pytest.approx(weight.shape[1] ** -0.5, rel=0.1)
        assert not state[f"{name}.bias"].any(), name


def test_built_from_a_section() -> None:
    model = build_tokenizer(TOKENIZER | {"name": "tatitok", "text_length": 3, "text_width": 4})
    assert isinstance(model, TATiTok) and (model.text_length, model.text_width) == (3, 4)
    with pytest.raises(ValueError, match="layout"):
        build_tokenizer(TOKENIZER | {"name": "tatitok", "layout": "single_stage"})


def test_missing_or_wrong_text_is_named() -> None:
    model, tokens, images = small(), torch.zeros(2, 5, dtype=torch.int64), torch.rand(2, 3, 32, 32)
    for call in (lambda text: model.decode(tokens, text), lambda text: model(images, text=text)):
        with pytest.raises(ValueError, match=r"\[2, 7, 20\] are missing"):
            call(None)
        for text in (torch.rand(1, 7, 20), torch.rand(2, 8, 20), torch.rand(2, 20)):
            with pytest.raises(ValueError, match=r"text must be float \[2, 7, 20\]"):
                call(text)
        with pytest.raises(ValueError, match="got int64"):
            call(torch.zeros(2, 7, 20, dtype=torch.int64))
    with pytest.raises(ValueError, match="text_width=0"):
        small(text_width=0)
    with pytest.raises(ValueError, match=r"\[B, 3, 32, 32\].*64"):
        model(torch.rand(2, 3, 64, 64), text=torch.rand(2, 7, 20))
