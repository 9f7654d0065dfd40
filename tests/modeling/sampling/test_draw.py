import pytest
import torch

from modeling.generators import RAR, MaskGIT
from modeling.generators.base import Generator
from modeling.sampling.autoregressive import sample
from modeling.sampling.draw import draw, numbers_needed, settings_type
from modeling.sampling.masked import sample_masked
from modeling.sampling.noise import SampleNoise, generator_uniforms, sample_uniforms
from modeling.sampling.settings import MaskedSamplingSettings, SamplingSettings
from tests.modeling.generators.masked_models import BERT_TINY
from tests.modeling.generators.test_rar import TINY
from tests.parity import filled

MASKED = MaskedSamplingSettings(num_steps=5, temperature=2.0)


@pytest.fixture(scope="module")
def rar() -> RAR:
    return filled(lambda: RAR(**TINY))


@pytest.fixture(scope="module")
def maskgit() -> MaskGIT:
    return filled(lambda: MaskGIT(**BERT_TINY))


class Neither(Generator):
    """A kind of generator without sampler."""

    kind = "neither"


def test_settings_follow_the_kind_of_generator(rar, maskgit):
    assert settings_type(rar) is SamplingSettings
    assert settings_type(maskgit) is MaskedSamplingSettings
    with pytest.raises(
        ValueError,
        match="cannot sample from a Neither: its kind is 'neither', expected autoregressive or masked",
    ):
        settings_type(Neither(codebook_size=2, num_classes=0, num_tokens=1))


def test_settings_of_the_other_kind_are_refused(rar, maskgit):
    labels, uniforms = torch.tensor([0]), torch.zeros(1, 16)
    with pytest.raises(ValueError, match="a RAR takes SamplingSettings, not MaskedSamplingSettings"):
        draw(rar, labels, uniforms, MASKED)
    with pytest.raises(ValueError, match="a MaskGIT takes MaskedSamplingSettings, not SamplingSettings"):
        draw(maskgit, labels, uniforms, SamplingSettings())


def test_numbers_needed(rar, maskgit):
    assert numbers_needed(rar, SamplingSettings()) == 16
    assert numbers_needed(rar, SamplingSettings(temperature=0)) == 0
    assert numbers_needed(maskgit, MASKED) == 5 * 2 * 16
    assert numbers_needed(maskgit, MaskedSamplingSettings(temperature=0)) == 0


def test_drawing_equals_the_samplers(rar, maskgit):
    labels, seen = torch.tensor([3, 10, 0]), []
    uniforms, settings = sample_uniforms(1, range(3), 16), SamplingSettings()
    drawn = draw(rar, labels, uniforms, settings, lambda *step: seen.append(step))
    assert torch.equal(drawn, sample(rar, labels, uniforms=uniforms, **vars(settings)))
    assert seen[-1] == (16, 16)
    uniforms = sample_uniforms(1, range(3), 160)
    drawn = draw(maskgit, labels, uniforms, MASKED, lambda *step: seen.append(step))
    noise = SampleNoise(uniforms.view(3, 5, 2, 16))
    assert torch.equal(drawn, sample_masked(maskgit, labels, noise=noise, **vars(MASKED)))
    assert seen[-1] == (5, 5)


def test_temperature_zero_needs_no_numbers(rar, maskgit):
    labels = torch.tensor([3, 10])
    for model, settings in (
        (rar, SamplingSettings(temperature=0)),
        (maskgit, MaskedSamplingSettings(temperature=0)),
    ):
        drawn = draw(model, labels, None, settings)
        assert torch.equal(draw(model, labels, torch.zeros(2, 0), settings), drawn)


def test_labels_and_uniforms_are_checked(rar, maskgit):
    for model, settings, count in ((rar, SamplingSettings(), 16), (maskgit, MASKED, 160)):
        for label in (-1, 11):
            with pytest.raises(ValueError, match=f"label {label} is out of range; choose 0 ... 10"):
                draw(model, torch.tensor([1, label]), torch.zeros(2, count), settings)
        with pytest.raises(ValueError, match=rf"\[2, 15\], expected \[2, {count}\]"):
            draw(model, torch.tensor([1, 2]), torch.zeros(2, 15), settings)
        with pytest.raises(ValueError, match=rf"shape None, expected \[2, {count}\]"):
            draw(model, torch.tensor([1, 2]), None, settings)


def test_generator_uniforms_belong_to_their_sample():
    def fresh(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = generator_uniforms(fresh(1, 2, 3), 40)
    assert together.shape == (3, 40) and together.dtype == torch.float64
    assert torch.equal(generator_uniforms(fresh(3), 40)[0], together[2])
    generators = fresh(1)
    parts = [generator_uniforms(generators, 20) for _ in range(2)]
    assert torch.equal(torch.cat(parts, dim=1)[0], together[0])
    with pytest.raises(ValueError, match="generators are empty"):
        generator_uniforms([], 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        (
            {"guidance_schedule": "cosine"},
            "guidance_schedule='cosine' is unknown; choose constant, linear, power",
        ),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0 must not be negative"),
        ({"guidance_power": -1.0}, "guidance_power=-1.0 must not be negative"),
        ({"temperature": float("nan")}, "temperature=nan must not be negative"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        MaskedSamplingSettings(**change)


@pytest.mark.parametrize("key", ["guidance_scale", "guidance_power", "temperature"])
def test_negative_settings_of_autoregressive_sampling_are_named(key):
    with pytest.raises(ValueError, match=f"{key}=-1.0 must not be negative"):
        SamplingSettings(**{key: -1.0})
