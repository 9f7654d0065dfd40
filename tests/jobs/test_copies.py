import json

import numpy as np
import pytest
from PIL import Image

from data.token_memmap import TokenHeader, TokenWriter
from jobs.copies import training_copies
from jobs.evaluate import evaluate
from jobs.options.evaluate import EvaluateOptions
from tests.evaluator.toy import ToyInception, put_in_place, toy_images, write_folder


@pytest.fixture
def training(tmp_path):
    """A token file of 12 images, two crops each."""
    header = TokenHeader(
        num_images=12, crops=2, num_tokens=5, codebook_size=64, tokenizer="toy", weight_hash="",
        image_size=16, class_names=["all"],
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 64, (12, 2, 5))
    path = tmp_path / "train.tokens"
    TokenWriter.create(path, header)
    writer = TokenWriter(path)
    writer.write(range(12), tokens, [0] * 12)
    writer.close()
    TokenWriter.finish(path)
    return path, tokens


def test_rows_that_training_has_seen_are_counted(tmp_path, training):
    path, tokens = training
    drawn = np.concatenate([tokens[[3, 3, 7], 1], (tokens[:2, 0] + 1) % 64])
    np.savez(tmp_path / "samples.npz", arr_0=toy_images(5), tokens=drawn)
    found = training_copies(tmp_path / "samples.npz", path)
    expected = {"rows": 5, "training_rows": 24, "copies": 3, "share": 0.6, "repeated": 1}
    assert found == {"training": str(path), **expected}
    assert training_copies(tmp_path, path) == found
    np.savez(tmp_path / "short.npz", arr_0=toy_images(5), tokens=drawn[:, :4])
    with pytest.raises(ValueError, match="4 tokens, those of training 5"):
        training_copies(tmp_path / "short.npz", path)
    np.savez(tmp_path / "none.npz", arr_0=toy_images(5))
    with pytest.raises(ValueError, match="holds no tokens"):
        training_copies(tmp_path / "none.npz", path)
    with pytest.raises(ValueError, match="holds no samples.npz"):
        training_copies(path, path)


def test_a_result_counts_copies_and_shows_the_closest_pairs(tmp_path, training, monkeypatch, capsys):
    put_in_place(monkeypatch, "inception", ToyInception())
    path, tokens = training
    real, fake = toy_images(60, seed=1), toy_images(20, seed=2)
    fake[7] = real[31]
    write_folder(tmp_path / "real", real)
    np.savez(tmp_path / "fake.npz", arr_0=fake, tokens=np.repeat(tokens[:5, 0], 4, axis=0))
    evaluate(
        EvaluateOptions(
            samples=str(tmp_path / "fake.npz"), reference=str(tmp_path / "real"), metrics=["authenticity"],
            training_tokens=str(path), output=str(tmp_path / "result.json"),
        )
    )  # fmt: skip
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["protocol"]["token_copies"]["copies"] == 20
    assert any("20 of 20 rows of tokens (100.0 %)" in note for note in result["warnings"])
    pairs = result["protocol"]["details"]["authenticity"]["closest_pairs"]
    assert (pairs[0]["sample"], pairs[0]["reference"], pairs[0]["distance"]) == (7, 31, 0.0)
    picture = np.array(Image.open(tmp_path / "result_authenticity.png"))
    assert picture.shape == (2 * 18 + 2, 16 * 18 + 2, 3)
    assert (picture[2:18, 2:18] == fake[7]).all() and (picture[20:36, 2:18] == real[31]).all()
