"""An index that came with a shard is used only if it could be one of the shard."""

import io
import json

import numpy as np
import pytest

from data.tar_index import _VERSION, read_published

SIZE = 10_240
COLUMNS = {name: [512, 1536] for name in ("offsets", "sizes", "labels", "caption_offsets")}
COLUMNS |= {name: [5, 6] for name in ("caption_sizes", "heights", "widths")}


def published(**changes):
    arrays = {name: np.array(values) for name, values in COLUMNS.items()}
    arrays |= {"stamp": np.array(json.dumps([_VERSION, SIZE, "", None])), "notes": np.array("{}")}
    arrays["names"] = np.array([b"a.jpg", b"b.jpg"])
    stream = io.BytesIO()
    np.savez(stream, **{**arrays, **{name: np.array(value) for name, value in changes.items()}})
    return read_published(stream.getvalue(), SIZE, None)


def test_a_sound_index_is_used():
    assert published().names.tolist() == [b"a.jpg", b"b.jpg"]
    assert published(labels=[-1, 3], caption_offsets=[-1, -1], caption_sizes=[0, 0]) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"offsets": [-1, 5]},
        {"sizes": [2**62, 1]},
        {"offsets": [2**62, 1]},
        {"caption_offsets": [2**63 - 1, 1]},
        {"caption_sizes": [-3, 1]},
        {"labels": [-2, 1]},
        {"offsets": [512]},
        {"names": [b"a.jpg"]},
        {"names": ["a.jpg", "b.jpg"]},
        {"sizes": [0.5, 1.5]},
        {"sizes": [[1, 2]]},
        {"notes": "[" * 20_000},
        {"notes": '{"left_out": {"reason": [1]}}'},
        {"stamp": "[" * 1000},
    ],
)
def test_an_unsound_index_is_made_anew(changes):
    assert published(**changes) is None
