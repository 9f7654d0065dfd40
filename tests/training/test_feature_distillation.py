"""VQ-KD's task: loss, held-out cosine, pictures, learning, and what does not fit."""

import numpy as np
import pytest
import torch
from torch import nn

from common.build import ConfigError
from data.source import Source
from modeling.losses.distillation import feature_cosine
from tests.evaluator.processes import in_two_processes, needs_fork
from tests.modeling.tokenizers.test_vqkd import SMALL, Upscaler, small
from training.randomness import ExampleRandom
from training.settings import OptimizerSettings
from training.task import StepContext
from training.tasks.feature_distillation import FeatureDistillationTask, false_colours
from training.tasks.tokenizer import TokenizerSetup
from training.tokenizer_settings import TokenizerLossSettings


class Colours(nn.Module):
    """A teacher: five mixtures of the mean colours of 8 x 8 patches."""

    def __init__(self, patch=8):
        super().__init__()
        torch.manual_seed(5)
        self.mix, self.patch = nn.Conv2d(3, 5, 1), patch

    def forward(self, images):
        return self.mix(nn.functional.avg_pool2d(images, self.patch))


class Noise(Source):
    """Seven images of large squares."""

    class_names, item_key, item_shape = ("a",), "images", (3, 32, 32)
    labels = np.zeros(7, dtype=np.int64)

    def load(self, index, rng):
        pixels = np.random.default_rng(index).integers(0, 256, (3, 4, 4), dtype=np.uint8)
        return torch.from_numpy(pixels).repeat_interleave(8, -1).repeat_interleave(8, -2), 0


def make(tokenizer=None, teacher=None, **losses):
    setup = TokenizerSetup(
        tokenizer=tokenizer or small(),
        validation=Noise(),
        losses=TokenizerLossSettings(**losses),
        optimizer=OptimizerSettings(),
        batch_size=3,
    )
    return FeatureDistillationTask(setup, teacher=teacher or Colours())


def held_out():
    return torch.stack([Noise().load(i, None)[0] for i in range(7)]).float() / 255


def context(task):
    modules = task.modules
    random = ExampleRandom(seed=0, positions=torch.arange(7))
    return StepContext(step=0, modules=modules, raw=modules, random=random, device=torch.device("cpu"))


def test_loss_is_cosine_distance_plus_weighted_commitment():
    task = make(quantizer_weight=0.5)
    model = task.modules["model"].eval()
    model.quantize.embedding.initted.fill_(1)
    images = held_out()
    (phase,) = task.phases()
    output = model(images)  # with the codes as they are before the step moves them
    total, scalars = phase.loss({"images": images}, context(task))
    distance = 1 - feature_cosine(output.reconstructions, task.teacher(images)).mean()
    expected = distance + 0.5 * output.losses["commitment_loss"]
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(scalars["feature_loss"], distance)
    assert scalars["quantizer_loss"] == 0.5 * scalars["commitment_loss"] and scalars["total_loss"] is total


def test_it_learns():
    task = make()
    model = task.modules["model"].train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    before = task.evaluate(model.eval(), torch.device("cpu"))
    for _ in range(40):
        model.train()
        total, _ = task.feature_loss({"images": held_out()}, context(task))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    after = task.evaluate(model.eval(), torch.device("cpu"))
    assert after["feature_cosine"] > before["feature_cosine"] + 0.2 and after["feature_cosine"] > 0.8
    assert all(p.grad is None for p in task.teacher.parameters())


def test_held_out_cosine_is_the_mean_over_all_tokens_and_images():
    task = make()
    model, images = task.modules["model"].eval(), held_out()
    measured = task.evaluate(model, torch.device("cpu"))
    tokens = model.encode(images)
    expected = feature_cosine(model.decode(tokens), task.teacher(images)).mean()
    assert measured["feature_cosine"] == pytest.approx(expected.item(), abs=1e-6)
    assert measured["images"] == 7 and measured["codebook_usage"] == len(tokens.unique()) / 16


@needs_fork
def test_two_processes_measure_what_one_does(tmp_path):
    def measure():
        task = make()
        return task.evaluate(task.modules["model"].eval(), torch.device("cpu"))

    alone = measure()

    def work(rank):
        assert measure() == pytest.approx(alone)

    in_two_processes(work, tmp_path)


def test_pictures_show_all_held_out_images():
    task = make()
    pictures = {p.name: p.image for p in task.preview(task.modules["model"].eval(), torch.device("cpu"))}
    assert pictures.keys() == {"features", "feature_images"}
    assert all(p.shape[0] == 3 and p.min() >= 0 and p.max() <= 1 for p in pictures.values())


def test_false_colours_are_the_same_for_the_same_direction():
    torch.manual_seed(0)
    features = torch.randn(3, 8, 4, 4)
    first, second = false_colours(features, 3 * features)
    torch.testing.assert_close(first, second)
    assert first.shape == (3, 3, 4, 4) and (first.flatten(2).std(dim=2) > 0.1).all()
    _, other = false_colours(features, -features)
    assert (other - first).abs().mean() > 0.2


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"predicts features \[3, 32, 32\]"):
        make(small(pixel_decoder=Upscaler()))
    with pytest.raises(ConfigError, match=r"features \[5, 4, 4\] .* the teacher gives \[5, 2, 2\]"):
        make(teacher=Colours(16))
    with pytest.raises(ConfigError, match=r"features \[6, 4, 4\]"):
        make(small(feature_channels=SMALL["feature_channels"] + 1))
