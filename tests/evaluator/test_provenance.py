import json

import numpy as np
import pytest

from evaluator.protocol import PROTOCOLS
from evaluator.provenance import (
    image_facts,
    in_class_order,
    network_warnings,
    sampler_facts,
    warnings_about,
)
from tests.evaluator.toy import MemoryImages, tensor, toy_images

SAMPLES = {"source": "a.npz", "digest": "1", "count": 50_000, "height": 256, "width": 256, "lossy_files": 0}
REFERENCE = {
    "source": "r.npz",
    "sha256": "2",
    "verified": True,
    "height": 256,
    "width": 256,
    "lossy_files": 0,
}


def notes(samples=None, metrics=("fid", "is"), protocol="adm", reference=REFERENCE, **options):
    return warnings_about(
        {**SAMPLES, **(samples or {})},
        metrics=metrics,
        protocol=PROTOCOLS[protocol],
        reference=reference,
        **options,
    )


def test_a_clean_measurement_has_nothing_to_say():
    assert notes() == [] and notes(reference=None) == []


@pytest.mark.parametrize(
    "given, message",
    [
        ({"samples": {"count": 5000}}, "5000 images instead of 50000: fid, is"),
        ({"samples": {"lossy_files": 3}}, "3 samples are JPEG"),
        ({"has_statistics": True}, "a.npz is a reference file"),
        ({"samples": {"source": "x/VIRTUAL_imagenet256_labeled.npz"}}, "named like a reference file"),
        ({"samples": {"labels": {"in_class_order": True}}}, "class order"),
        ({"reference": {**REFERENCE, "verified": False}}, "unverified recipe"),
        (
            {"reference": {**REFERENCE, "lossy_files": 2, "image_set": "images"}},
            "2 reference images are JPEG",
        ),
        ({"samples": {"digest": "2"}}, "same files"),
        (
            {
                "recipe": {"crop": "adm 256"},
                "reference": {**REFERENCE, "protocol": {"crop": "shorter_edge 256"}},
            },
            "crop of the samples is 'adm 256', that of reference r.npz is 'shorter_edge 256'",
        ),
        (
            {"samples": {"count": 50_000}, "reference": {**REFERENCE, "count": 2000}},
            "fid: 2000 images span 1999 of 2048 dimensions at most",
        ),
        ({"samples": {"height": 128, "width": 128}}, "128 x 128 pixels, the reference 256 x 256"),
        (
            {"metrics": ("precision_recall",), "reference": {**REFERENCE, "stored_images": 50}},
            "50 reference images",
        ),
    ],
)
def test_each_pitfall_is_named_and_nothing_else(given, message):
    (note,) = notes(**given)
    assert message in note


def test_what_does_not_matter_is_not_warned_about():
    ordered = {"labels": {"in_class_order": True}}
    assert notes(ordered, protocol="torch-fidelity") == notes(ordered, protocol="tokenizer") == []
    assert notes(ordered, metrics=("fid",)) == []
    assert notes({"count": 10}, metrics=("psnr", "kid", "precision_recall")) == []
    assert notes({"digest": "2"}, reconstructed=True) == []  # reconstructions against their originals
    for crop in ("none", "adm 256"):
        assert notes(recipe={"crop": "adm 256"}, reference={**REFERENCE, "protocol": {"crop": crop}}) == []
    assert notes({"lossy_files": 9}, reconstructed=True) == []  # originals are what they are
    assert notes(reference={**REFERENCE, "lossy_files": 9, "image_set": "originals"}) == []
    assert notes(reference={**REFERENCE, "height": None}) == []
    assert notes(metrics=("precision_recall",), reference={**REFERENCE, "stored_images": 10_000}) == []


def test_sampler_settings_are_found_beside_the_samples(tmp_path):
    assert sampler_facts(tmp_path) == {}
    facts = {"seed": 3, "guidance_scale": 4.0, "classes": list(range(1000)), "generator": "ab12"}
    (tmp_path / "samples.json").write_text(json.dumps(facts))
    np.savez(tmp_path / "samples.npz", tokens=np.zeros((4, 32), np.int64))
    for path in (tmp_path, tmp_path / "samples.npz"):
        found = sampler_facts(path)
        assert found["seed"] == 3 and found["generator"] == "ab12" and found["classes"] == "1000 values"
        assert found["tokens_per_image"] == 32 and "bits_per_image" not in found
    (tmp_path / "samples.json").write_text(json.dumps({"num_tokens": 64, "codebook_size": 4096}))
    found = sampler_facts(tmp_path)
    assert (found["tokens_per_image"], found["bits_per_image"]) == (64, 768.0)


def test_reconstruction_reports_and_broken_ones(tmp_path):
    report = {"mean": {"psnr": 20.0}, "images": [{"image": "a", "tokens": [1, 2, 3]}] * 30}
    (tmp_path / "reconstructions.json").write_text(json.dumps(report))
    found = sampler_facts(tmp_path)
    assert (
        found["mean"] == {"psnr": 20.0} and found["images"] == "30 values" and found["tokens_per_image"] == 3
    )
    (tmp_path / "reconstructions.json").write_text("{")
    assert sampler_facts(tmp_path) == {}


def test_image_facts_tell_the_balance_of_labels():
    stream = MemoryImages(tensor(toy_images(6)))
    assert "labels" not in image_facts(stream)
    stream.labels = np.array([0, 0, 0, 4, 4, 9])
    facts = image_facts(stream)
    assert facts["labels"] == {
        "classes": 3,
        "fewest_images": 1,
        "most_images": 3,
        "in_class_order": True,
    }
    assert (facts["count"], facts["height"], facts["width"], len(facts["digest"])) == (6, 16, 16, 64)
    assert json.loads(json.dumps(facts)) == facts


def test_class_order():
    assert in_class_order(np.array([0, 0, 1, 2]))
    for labels in ([0, 1, 0, 1], [3, 3, 3], [1, 0], [5], []):
        assert not in_class_order(np.array(labels, dtype=np.int64))


def test_networks_that_are_not_the_published_ones_are_named():
    good = {"weights_hash": "a", "approximate": False, "official": True}
    unknown = {"weights_hash": "b", "approximate": False}
    assert network_warnings({"inception": good, "dinov2": unknown}) == []
    first, second = network_warnings({"inception": {**good, "official": False, "approximate": True}})
    assert "inception are not the published file" in first and "reduced precision" in second
