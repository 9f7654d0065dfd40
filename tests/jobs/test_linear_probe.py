import json

import pytest
import torch

from evaluator.linear_probe import linear_probe
from jobs.linear_probe import mean_features, probe_tokenizer
from jobs.measuring import SourceImages
from jobs.options.linear_probe import ProbeOptions
from modeling.pipeline import load_tokenizer
from training.tokenizer_settings import ImageData

SMALL = {"name": "openmoji", "skin_tones": False, "categories": ["Flags", "Symbols"]}
DATA = ImageData(train={**SMALL, "split": "validation"}, validation={**SMALL, "split": "validation"})
TOKENIZER = "assets/models/titok_openmoji"


def test_latents_and_codes_are_probed(tmp_path, capsys):
    options = ProbeOptions(tokenizer=TOKENIZER, data=DATA, decays=[0.1], output=str(tmp_path / "probe.json"))
    probe_tokenizer(options)
    result = json.loads((tmp_path / "probe.json").read_text())
    tokenizer = load_tokenizer(TOKENIZER, "cpu")
    images = SourceImages(DATA.train, split="train", config={}, image_size=tokenizer.image_size)
    pixels = torch.stack(list(images.images(range(images.count)))).float() / 255
    features, labels = mean_features(tokenizer, pixels), torch.from_numpy(images.labels)
    assert list(features) == ["latents", "quantized"]
    for probe, (name, rows) in zip(result["probes"], features.items(), strict=True):
        expected = linear_probe(rows, labels, rows, labels, decay=0.1)
        assert probe["features"] == name and probe["train_loss"] == pytest.approx(
            expected.train_loss, rel=1e-4
        )
        assert probe["train_accuracy"] > result["most_frequent_class"]
    assert result["protocol"]["tokenizer"]["weight_hash"]
    assert "most frequent class" in capsys.readouterr().out


def test_wrong_options_are_refused(tmp_path):
    with pytest.raises(ValueError, match="decays="):
        ProbeOptions(tokenizer=TOKENIZER, decays=[])
    other = ImageData(train=DATA.train, validation={**DATA.train, "categories": ["Flags", "Objects"]})
    with pytest.raises(ValueError, match="classes"):
        probe_tokenizer(ProbeOptions(tokenizer=TOKENIZER, data=other, output=str(tmp_path / "probe.json")))
