"""JSON of ours that somebody has touched: checkpoints, samples, indexes, records, model configurations."""

import json
from pathlib import Path

from hypothesis import strategies as st

from data.sample_index import _head
from data.shard_cache import ShardCache
from evaluator.provenance import sampler_facts
from modeling.pretrained.model_names import _read_json
from storage.json_files import read_json
from storage.rows import differences, read_facts
from tests.fuzz.harness import Case, Reader, check
from tests.fuzz.mutations import damaged, garbage, values
from training.checkpoint import CheckpointFolder
from training.tracker import read_metrics

URL = "https://host/shard.tar"
_FACTS = {
    "step": 20,
    "seed": 1,
    "global_batch": 8,
    "identity": {"tokenizer": {"name": "titok", "depth": 2}},
    "size": 1000,
    "etag": "x",
    "stamp": "abc",
    "num_tokens": 6,
    "codebook_size": 48,
    "seconds_per_image": 0.1,
    "images": [{"tokens": [1, 2], "label": 3}],
    "loss": 2.0,
    "psnr": 20.0,
    "count": 4,
    "png": True,
    "npz": True,
}
_SPECIAL = [
    b"[" * 5000,
    b'{"a":' * 5000,
    b'{"seed": ' + b"9" * 5000 + b"}",
    b"",
    b"null",
    b"[]",
    b"\xff\xfe",
    b"NaN",
]
_SPECIAL += [
    b'{"images": [1]}',
    b'{"images": [{"tokens": 3}]}',
    b'{"seed": 1, "seed": 2}',
    b'{"num_tokens": 1e999}',
]


def _touched(changes: dict, lost: list[str]) -> bytes:
    facts = {k: v for k, v in {**_FACTS, **changes}.items() if k not in lost}
    return json.dumps(facts).encode()


_facts = st.builds(
    _touched,
    st.dictionaries(st.sampled_from(sorted(_FACTS)), values, max_size=2),
    st.lists(st.sampled_from(sorted(_FACTS)), max_size=1),
)
_files = st.one_of(_facts, _facts, damaged(_facts), st.sampled_from(_SPECIAL), garbage)
INFO = {k: _FACTS[k] for k in ("seed", "global_batch", "identity")}
# Where a file lies, by what reads it.
PLACES = {
    "checkpoint": "checkpoints/step-00000020/state.json",
    "samples": "samples.json",
    "facts": "facts.json",
    "index": "index.json",
    "records": "metrics.jsonl",
    "config": "config.json",
    "summary": "metrics.json",
    "version": ShardCache(Path("."), 1.0).place(URL).name + ".json",
}


def _read(folder: Path, what: str) -> None:
    path = folder / PLACES[what]
    if what == "checkpoint":
        CheckpointFolder(folder, keep=1).require_same_run(20, INFO)
    elif what == "samples":
        sampler_facts(folder)
    elif what == "facts":
        differences(read_facts(path) or {}, _FACTS)
    elif what == "index":
        _head(folder).get("stamp")
    elif what == "records":
        read_metrics(path)
    elif what == "config":
        _read_json(path)
    elif what == "summary":
        read_json(path, loss=(int, float), psnr=(int, float))
    else:
        ShardCache(folder, 1.0).known_version(URL)


READER = Reader(
    "json",
    st.builds(
        lambda what, content, more: Case(
            {PLACES[what]: content + (b"\n" + more if what == "records" else b"")}, what
        ),
        st.sampled_from(["checkpoint", "checkpoint", "config", "summary", *PLACES]),
        _files,
        _files,
    ),
    _read,
    named="inside",
)


def test_json_of_ours():
    check(READER)
