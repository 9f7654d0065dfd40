"""VQ-KD: released layout and values, other image sizes, what a pixel decoder freezes."""

import pytest
import torch
from torch import nn

from modeling.pretrained.loading import load_tokenizer
from modeling.pretrained.vqgan_formats import from_beit
from modeling.quantizers import QUANTIZERS
from modeling.tokenizers.vqkd import VQKD, GridTransformer
from tests.parity import assert_close, fill_module, fill_values, filled, golden, manifest, state_layout

SMALL = {
    "feature_channels": 5,
    "image_size": 32,
    "patch_size": 8,
    **{
        f"{side}_{k}": v
        for side in ("encoder", "decoder")
        for k, v in (("hidden_size", 16), ("num_heads", 2))
    },
    "encoder_depth": 2,
}


def released(feature_channels=512):
    quantizer = QUANTIZERS["spherical_vq"](codebook_size=8192, code_dim=32)
    return VQKD(quantizer=quantizer, feature_channels=feature_channels)


def small(quantizer="spherical_vq", **options):
    torch.manual_seed(0)
    part = QUANTIZERS[quantizer](codebook_size=16, code_dim=4)
    return VQKD(quantizer=part, **SMALL | options)


class Upscaler(nn.Module):
    """The least that can be a pixel decoder."""

    upscale = 8

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 3 * 64, 1)

    @property
    def last_layer(self):
        return self.conv.weight

    def forward(self, codes):
        return nn.functional.pixel_shuffle(self.conv(codes), 8)


@pytest.mark.parametrize(("name", "width"), [("clip", 512), ("dino", 768)])
def test_layout_is_that_of_the_released_files(name, width):
    with torch.device("meta"):
        own = state_layout(released(width))
    wanted = manifest(f"beitv2_vqkd_1x768x12_{name}")
    assert len(own) < len(wanted) and list(own.items()) == list(from_beit(wanted).items())


def test_values_equal_the_released_model():
    data = golden("ut_vqkd_model")
    model = filled(released)
    weight = model.quantize.embedding.weight
    weight.copy_(nn.functional.normalize(weight, dim=1))
    images = torch.from_numpy(data["image_u8"]).permute(2, 0, 1)[None].float() / 255
    rows = list(range(0, 196, 7))
    with torch.no_grad():
        latents = model.encode_latents(images)
    tokens = model.encode(images)
    features = model.decode(tokens)[0].flatten(1).t()
    for value, name in ((latents[0].flatten(1).t()[rows], "pre_quant"), (features[rows], "features")):
        assert_close(value, data[name], atol=2e-4 * float(data[name].std()) + 1e-5)
    assert (tokens.view(14, 14).numpy() == data["indices"]).all()
    assert_close(features.norm(dim=1), data["feature_norms"], rtol=1e-4, atol=1e-4)
    assert not model.predicts_pixels and model.num_tokens == 196 and model.bits_per_image == 196 * 13


def test_a_released_file_loads_without_what_it_holds_besides(tmp_path):
    model = small()
    state = {k: fill_values(k, v) for k, v in model.state_dict().items()}
    extra = {
        "quantize.cluster_size": torch.ones(16),
        "quantize.embedding.cluster_size": torch.ones(16),
        "quantize.embedding.embed_avg": torch.ones(16, 4),
        "teacher_model.visual.proj": torch.ones(2),
    }
    torch.save({"model": state | extra, "epoch": 3}, tmp_path / "vqkd.pth")
    quantizer = {"name": "spherical_vq", "codebook_size": 16, "code_dim": 4}
    section = {"name": "vqkd", **SMALL, "quantizer": quantizer}
    loaded = load_tokenizer(tmp_path / "vqkd.pth", config={"tokenizer": section, "format": "beit_vqkd"})
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_forward_agrees_with_encode_and_decode_and_gradient_reaches_the_encoder():
    model = small().train()
    images = torch.rand(3, 3, 32, 32)
    model(images)  # starts the codes
    model.eval()
    output = model(images)
    assert torch.equal(output.tokens, model.encode(images)) and output.tokens.shape == (3, 16)
    torch.testing.assert_close(output.reconstructions, model.decode(output.tokens))
    torch.testing.assert_close(model.decode(output.tokens), model.decode(output.tokens.view(3, 4, 4)))
    assert output.reconstructions.shape == (3, 5, 4, 4)
    output.reconstructions.square().sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {"quantize.embedding.weight"}
    assert model.encoder.blocks[0].attn.q_bias.grad.abs().sum() > 0
    recomputed = small(activation_checkpointing=True)
    recomputed.load_state_dict(model.state_dict())
    recomputed.eval()(images).reconstructions.square().sum().backward()
    weight = recomputed.encoder.blocks[1].mlp.fc1.weight
    torch.testing.assert_close(weight.grad, model.encoder.blocks[1].mlp.fc1.weight.grad)


def cubic_at(x, count):
    """The table 0, 1, ..., count - 1 at place x, by the cubic convolution kernel with a = -3/4."""
    total, left = 0.0, int(x // 1)
    for place in range(left - 1, left + 3):
        t, value = abs(x - place), min(max(place, 0), count - 1)
        near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
        total += value * (near if t <= 1 else far)
    return total


def test_other_sizes_interpolate_positions_and_keep_rows_and_columns_apart():
    part = GridTransformer(
        in_channels=3,
        patch_size=8,
        position_grid=8,
        hidden_size=2,
        depth=1,
        num_heads=1,
        activation_checkpointing=False,
    )
    rows = torch.arange(8.0)[:, None].expand(8, 8)
    part.pos_embed.data[0, 1:] = torch.stack([rows, rows.t()], dim=-1).flatten(0, 1)
    assert part.positions(8, 8) is part.pos_embed
    table = part.positions(12, 14)[0, 1:].unflatten(0, (12, 14))
    row, column = table.unbind(dim=-1)
    assert (row - row[:, :1]).abs().max() < 1e-5 and (column - column[:1]).abs().max() < 1e-5
    # Scales are (12 + 0.1) / 8 and (14 + 0.1) / 8; the plain 12 / 8 would be off by up to 0.05.
    for i in range(2, 10):
        assert row[i, 0].item() == pytest.approx(cubic_at((i + 0.5) * 8 / 12.1 - 0.5, 8), abs=1e-4)
        assert column[0, i].item() == pytest.approx(cubic_at((i + 0.5) * 8 / 14.1 - 0.5, 8), abs=1e-4)
    model = small()
    tokens = model.eval().encode(torch.rand(1, 3, 48, 64))
    assert tokens.shape == (1, 48) and model.decode(tokens.view(1, 6, 8)).shape == (1, 5, 6, 8)
    with pytest.raises(ValueError, match="48 tokens do not form a square"):
        model.decode(tokens)
    with pytest.raises(ValueError, match="multiples of 8, got"):
        model.encode(torch.rand(1, 3, 30, 32))


def test_a_larger_image_size_keeps_the_table_of_positions():
    model = small(image_size=48, position_grid=4)
    assert model.num_tokens == 36 and model.encoder.pos_embed.shape == (1, 17, 16)
    assert model.eval().decode(model.encode(torch.rand(1, 3, 48, 48))).shape == (1, 5, 6, 6)


def test_initial_branches_shrink_with_depth():
    std = [b.mlp.fc2.weight.std().item() for b in small(encoder_depth=3).encoder.blocks]
    assert std == pytest.approx([0.02 / (2 * n) ** 0.5 for n in (1, 2, 3)], rel=0.08)


def test_a_pixel_decoder_freezes_the_codes():
    plain = fill_module(small())
    plain.quantize.embedding.initted.fill_(1)
    model = small(pixel_decoder=Upscaler())
    model.load_state_dict(plain.state_dict(), strict=False)
    assert model.predicts_pixels and model.last_layer is model.pixel_decoder.conv.weight
    model.train()
    assert model.pixel_decoder.training and not model.quantize.training and not model.encoder.training
    images, before = torch.rand(2, 3, 32, 32), model.quantize.embedding.weight.clone()
    output = model(images)
    assert output.reconstructions.shape == images.shape and output.losses["quantizer_loss"] == 0
    assert torch.equal(output.tokens, plain.encode(images))
    torch.testing.assert_close(output.reconstructions, model.decode(output.tokens))
    output.reconstructions.sum().backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained == {"pixel_decoder.conv.weight", "pixel_decoder.conv.bias"}
    assert torch.equal(model.quantize.embedding.weight, before)
    assert plain.last_layer is None


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="makes images of 32 pixels .* image_size=64"):
        small(image_size=64, patch_size=16, pixel_decoder=Upscaler())
    with pytest.raises(ValueError, match="multiple of patch_size"):
        small(image_size=33)
    with pytest.raises(ValueError, match="a Gaussian bottleneck has none"):
        VQKD(quantizer=QUANTIZERS["vae"](code_dim=4), **SMALL)
