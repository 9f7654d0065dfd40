import json
import pickle

import numpy as np
import pytest

from evaluator.published_statistics import read_pickle, space_of_file
from evaluator.reference import open_reference
from evaluator.spaces import SPACES
from jobs.convert_reference import convert_reference
from jobs.options.convert_reference import ConvertReferenceOptions
from tests.parity import golden


def published(pair=("mu", "sigma")):
    """Arrays by published file name."""
    arrays = golden("fdr_spaces")
    found = {}
    for name, space in SPACES.items():
        key = name if name in ("inception", "convnext") else f"{name}_cls"
        values = (arrays[f"{key}_mu"], arrays[f"{key}_sigma"])
        found[space.published] = {**dict(zip(pair, values, strict=True)), "avg_mu": np.zeros(3)}
    return found


def test_files_are_read_as_they_are(tmp_path):
    for name, arrays in published(("ref_mu", "ref_sigma")).items():
        np.savez(tmp_path / name, **arrays)
    expected = published()
    whole = open_reference(tmp_path)
    assert list(whole.statistics) == [space.features for space in SPACES.values()]
    for space in SPACES.values():
        for statistics in (whole.statistics, open_reference(tmp_path / space.published).statistics):
            np.testing.assert_array_equal(statistics[space.features].mean, expected[space.published]["mu"])
    assert not whole.facts()["verified"] and len(whole.sha256) == 64
    assert space_of_file("stats/vit_large_patch14_clip_224_openai_in256_t256_stats").name == "clip"
    assert space_of_file("vit_large_patch14_clip_224_openai_in256_t224_stats.npz") is None  # other pixels
    (tmp_path / SPACES["mae"].published).unlink()
    with pytest.raises(ValueError, match="holds no statistics of mae features"):
        open_reference(tmp_path).require_statistics(["pool", "mae"])


@pytest.mark.parametrize("protocol", (2, 4))
def test_a_pickle_becomes_a_reference(tmp_path, capsys, protocol):
    content = published() | {"other_stats.npz": {"mu": np.zeros(2)}}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    options = ConvertReferenceOptions(input=str(tmp_path / "a.pkl"), output=str(tmp_path / "ref.npz"))
    convert_reference(options)
    assert "enough for fdr6: yes" in capsys.readouterr().out
    statistics = open_reference(tmp_path / "ref.npz").statistics
    for space in SPACES.values():
        np.testing.assert_array_equal(
            statistics[space.features].covariance, content[space.published]["sigma"]
        )
    with np.load(tmp_path / "ref.npz") as arrays:
        assert {"mu", "sigma", "mu_mae", "sigma_siglip"} < set(arrays.files) and "protocol" not in arrays
    (tmp_path / "a.pkl").write_bytes(
        pickle.dumps({SPACES["mae"].published: content[SPACES["mae"].published]})
    )
    convert_reference(options)
    assert "no, inception, convnext, dinov2, siglip, clip missing" in capsys.readouterr().out


def test_other_pickles_are_refused(tmp_path):
    for content, reason in (
        ({"x.npz": {}}, "holds no statistics of a space: x.npz"),
        ({SPACES["mae"].published: {"mu": np.zeros(2)}}, "holds no arrays mu and sigma"),
        ({SPACES["mae"].published: {"mu": np.zeros(2), "sigma": np.eye(3)}}, "space mae: mu"),
    ):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=reason):
            options = ConvertReferenceOptions(input=str(tmp_path / "a.pkl"), output=str(tmp_path / "r.npz"))
            convert_reference(options)
    assert not (tmp_path / "r.npz").exists()
    with pytest.raises(FileNotFoundError):
        read_pickle(tmp_path / "absent.pkl")


def test_older_references_keep_what_their_numbers_are(tmp_path):
    """Before there were spaces, `dinov2` was what dgm-eval takes."""
    about = {"format": 1, "counts": {"dinov2": 9}, "extractors": {"dinov2": {"weights_hash": "a"}}}
    moments = {"mu_dinov2": np.zeros(3), "sigma_dinov2": np.eye(3)}
    np.savez(tmp_path / "old.npz", protocol=json.dumps(about), **moments)
    reference = open_reference(tmp_path / "old.npz")
    assert list(reference.statistics) == ["dinov2_dgm"] and reference.statistics["dinov2_dgm"].count == 9
    assert list(reference.protocol["extractors"]) == ["dinov2_dgm"]
    np.savez(tmp_path / "foreign.npz", **moments)
    assert list(open_reference(tmp_path / "foreign.npz").statistics) == ["dinov2"]
