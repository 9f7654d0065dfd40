"""Cluster: tokens are nearest centroids of frozen features; a pixel decoder is all that learns."""

import pytest
import torch
from torch import nn

from modeling.quantizers import VectorQuantizer
from modeling.tokenizers.cluster import Cluster
from tests.modeling.tokenizers.test_vqkd import Upscaler


class Means(nn.Module):
    """A teacher: mean colours of 8 x 8 patches, mixed by frozen weights, with a dropout that would show."""

    width, grid = 4, 2

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1)
        nn.init.normal_(self.mix.weight, std=5.0)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images):
        return self.dropout(self.mix(nn.functional.avg_pool2d(images, 8)))


def make(pixel_decoder=None, **options):
    torch.manual_seed(0)
    quantizer = VectorQuantizer(codebook_size=8, code_dim=4, **options)
    nn.init.normal_(quantizer.embedding.weight)
    return Cluster(teacher=Means(), quantizer=quantizer, image_size=16, pixel_decoder=pixel_decoder)


@pytest.mark.parametrize("unit", [False, True])
def test_tokens_are_the_nearest_centroids(unit):
    model, images = make(use_l2_norm=unit).train(), torch.rand(5, 3, 2, 2)
    images = nn.functional.interpolate(images, scale_factor=8.0)
    features = model.teacher(images).flatten(2).transpose(1, 2)
    centroids = model.quantize.embedding.weight
    if unit:
        expected = nn.functional.cosine_similarity(features[:, :, None], centroids, dim=-1).argmax(dim=-1)
        centroids = nn.functional.normalize(centroids, dim=1)
    else:
        expected = torch.cdist(features, centroids).argmin(dim=-1)
    tokens = model.encode(images)
    assert torch.equal(tokens, expected) and len(tokens.unique()) > 1
    torch.testing.assert_close(model.decode(tokens).flatten(2).transpose(1, 2), centroids[expected])
    assert (model.num_tokens, model.codebook_size, model.bits_per_image) == (4, 8, 12.0)


def test_without_pixels_only_the_codes_learn():
    model = make().train()
    assert not model.predicts_pixels and not model.teacher.training and model.quantize.training
    output = model(torch.rand(2, 3, 16, 16))
    output.losses["quantizer_loss"].backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {"quantize.embedding.weight"}
    assert output.reconstructions.shape == (2, 4, 2, 2)


def test_with_a_pixel_decoder_it_alone_learns():
    model = make(Upscaler()).train()
    output = model(torch.rand(2, 3, 16, 16))
    assert output.reconstructions.shape == (2, 3, 16, 16) and output.losses["quantizer_loss"] == 0
    output.reconstructions.sum().backward()
    learned = {n for n, p in model.named_parameters() if p.grad is not None}
    assert learned == {"pixel_decoder.conv.weight", "pixel_decoder.conv.bias"}
    assert model.pixel_decoder.training and not model.teacher.dropout.training and not model.quantize.training


def test_codes_of_another_width_are_refused():
    with pytest.raises(ValueError, match="code_dim=3 must be the width of the teacher's features, 4"):
        Cluster(teacher=Means(), quantizer=VectorQuantizer(codebook_size=8, code_dim=3))
