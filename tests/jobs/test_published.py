import numpy as np
import pytest
import torch

from data.transforms import CROPS
from evaluator.codebook_usage import CodebookUsage
from evaluator.evaluator import Evaluator
from evaluator.float_rfid import FloatRFID
from evaluator.metrics import check_metrics, result_name
from evaluator.metrics.image_quality import QUALITY_PROTOCOLS, ImageQuality
from evaluator.outcome import Outcome
from jobs.options.reproduce import REFERENCE
from jobs.published import (
    FAMILIES,
    OTHER_SIZES,
    TABLE,
    Family,
    conclude,
    family_measurement,
    family_of,
    known_differences,
    published_at,
)
from modeling.pretrained.catalog import RELEASES
from tests.evaluator.toy import ToyFloat, ToyInception, tensor, toy_images


def test_every_family_is_measured_by_what_there_is():
    for family in [Family(), *FAMILIES.values()]:
        assert (
            family.crop in CROPS and family.quality in QUALITY_PROTOCOLS and set(family.metrics) <= set(TABLE)
        )
        check_metrics(family.metrics)
        assert ("rfid" in family.on_stored) != family.float_rfid
    tokenizers = [name for name, release in RELEASES.items() if release.kind == "tokenizer"]
    assert set(FAMILIES) <= {name.partition("-")[0] for name in tokenizers}
    crops = {name: family_of(name).crop for name in tokenizers}
    assert crops["llamagen-vq16"] == "adm" and crops["titok-l32"] == "shorter_edge"
    assert crops["magvit2-pretrain-16384"] == crops["magvit2-ar-b-tokenizer"] == "bilinear"
    assert crops["ibq-1024"] == crops["ibq-ar-b-tokenizer"] == "bilinear_aliased"
    assert [family_of(n).quality for n in ("titok-l32", "ibq-1024")] == ["rounded", "seed_voken"]


def test_published_figures_belong_to_a_size():
    small = RELEASES["magvit2-128"]
    assert published_at(small, None)["rfid"] == 1.18
    assert published_at(small, 256) == {"rfid": 0.34, "psnr": 26.19} and published_at(small, 512) == {}
    for name, size in OTHER_SIZES:
        assert RELEASES[name].section["image_size"] != size
    values, facts = {"rfid": 0.5, "psnr": 26.0}, {"extractors": {}, "images": 50_000}
    rows = conclude(Outcome(values, {}), facts, [], small, 256)["comparison"]
    assert [row["difference"] for row in rows] == pytest.approx([0.16, -0.19])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("titok-ll32-vae", "the mean of the latent distribution"),
        ("tatitok-bl32-vq", "class names"),
        ("ibq-16384", "another library"),
    ],
)
def test_kinds_of_tokenizers_have_reasons_of_their_own(name, reason):
    facts = {"captions": "A photo of a tench." if "tatitok" in name else None, "extractors": {}}
    values = {result_name("rfid", 50_000): RELEASES[name].metrics["rfid"] + 1}
    result = conclude(Outcome(values, {}), {**facts, "images": 50_000}, ["seen"], RELEASES[name])
    assert result["comparison"][0]["difference"] == pytest.approx(1)
    reasons = result["may_explain"]
    assert reasons[0] == "seen" and sum(reason in text for text in reasons) == 1
    for plain in ("titok-l32", "magvit2-256"):
        assert not any(reason in text for text in known_differences(RELEASES[plain], {"captions": None}))


def test_only_some_authors_cut_their_pixels():
    facts = {"reference": {"source": REFERENCE}, "samples": {}}
    notes = known_differences(RELEASES["rar-b"], facts)
    assert any("cut them" in note for note in notes) and not any("not called" in note for note in notes)
    assert any("cut them" in n for n in known_differences(RELEASES["magvit2-ar-b"], facts))
    assert not any("cut" in n for n in known_differences(RELEASES["openmoji-rar"], facts))


class Distance(torch.nn.Module):
    """In the place of LPIPS."""

    def forward(self, images, reconstructions):
        return (images - reconstructions).abs().mean((1, 2, 3), keepdim=True)


def pairs():
    originals = tensor(toy_images(20)).float() / 255
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(0))
    return originals, (originals + 0.05 * noise).clamp(0, 1), torch.arange(20)


def test_the_usual_family_is_measured_by_the_usual_evaluator():
    originals, results, positions = pairs()
    measurement = family_measurement(Family(), networks={"inception": ToyInception()}, codebook_size=40)
    usual = Evaluator(networks={"inception": ToyInception()}, metrics=Family().metrics, protocol="tokenizer")
    measurement.update(results, originals, positions[:, None], positions)
    usual.update_pairs(results, originals, positions)
    usage = CodebookUsage(40)
    usage.update(positions)
    assert measurement.result() == usual.result() | usage.result("cpu")
    assert measurement.facts() == usual.facts() and set(measurement.result()) >= {"rfid_20", "is_20", "psnr"}


def test_the_tool_of_open_magvit2_sees_floats_and_cuts_pixels():
    originals, results, positions = pairs()
    measurement = family_measurement(
        FAMILIES["magvit2"], networks={"lpips": Distance().eval()}, float_network=ToyFloat()
    )
    rfid, quality = FloatRFID(extractor=ToyFloat()), ImageQuality(protocol="seed_voken")
    for half in (positions[:10], positions[10:]):
        measurement.update(results[half], originals[half], positions[half, None], half)
    rfid.update_pairs(results, originals)
    quality.update(originals, results)
    expected = rfid.result() | {key: quality.result()[key] for key in ("psnr", "ssim")}
    expected["lpips"] = float(Distance()(originals, results).mean())
    assert measurement.result() == pytest.approx(expected, rel=1e-5)
    facts = measurement.facts()
    assert facts["image_quality"].startswith("seed_voken") and "half-pixel" in facts["rfid"]
    assert facts["images"] == 20 and facts["extractors"]["inception"]["weights_hash"] == "toy"
    assert np.isfinite(list(expected.values())).all()
