"""Weight files: safetensors, what torch saves, indexes of shards; and pickles that would do something."""

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from modeling.pretrained.nested_files import read_nested_weights
from storage.shards import write_shards
from storage.weights import load_weights, read_weights, weight_names
from tests.fuzz.harness import Case, Reader, check
from tests.fuzz.mutations import NUMBERS, bits, damage, damaged, edits, garbage, numbers, values
from training.checkpoint import CheckpointFolder

_STATE = {
    "encoder.weight": torch.arange(6.0).reshape(2, 3),
    "encoder.bias": torch.ones(2),
    "steps": torch.tensor(3),
}
_WRAPPED = [
    _STATE,
    OrderedDict(_STATE),
    {"model": _STATE, "ema": {f"module.{k}": v for k, v in _STATE.items()}, "epoch": 3},
    {"state_dict": {f"_orig_mod.{k}": v for k, v in _STATE.items()}, "optimizer": {"state": [1, 2]}},
    {
        "half": torch.ones(3).half(),
        "bfloat": torch.ones(3).bfloat16(),
        "view": torch.arange(9).reshape(3, 3).t(),
    },
    {"state_dict": {"a": 1}},
    {"nested": {"deeper": _STATE}},
    [torch.ones(2)],
    torch.ones(2),
    {},
    {1: torch.ones(2)},
    {"model": _STATE, "callbacks": {"x": (None, 1.5, "text", True)}},
]


class _Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def _named(module: str, name: str, *arguments: Any) -> bytes:
    """A pickle that calls module.name, which need not exist here."""
    body = b"".join(pickle.dumps(a, 2)[2:-1] for a in arguments)
    return b"\x80\x02" + f"c{module}\n{name}\n".encode() + b"(" + body + b"tR."


_CALLS = [
    ("os", "system", "touch ../marker"),
    ("posix", "system", "touch ../marker"),
    ("builtins", "exec", "open('../marker', 'w')"),
    ("builtins", "eval", "open('../marker', 'w')"),
    ("__builtin__", "eval", "open('../marker', 'w')"),
    ("builtins", "open", "../marker", "w"),
    ("builtins", "getattr", "x", "y"),
    ("builtins", "bytearray", 1 << 60),
    ("io", "open", "../marker", "w"),
    ("pathlib", "Path.touch", "../marker"),
    ("subprocess", "Popen", "touch ../marker"),
    ("torch", "load", "../marker"),
    ("torch.serialization", "load", "../marker"),
    ("torch.hub", "load_state_dict_from_url", "file:///etc/passwd"),
    ("torch._utils", "_rebuild_tensor_v2", 1, 2),
    ("torch.storage", "_load_from_bytes", b"x"),
    ("torch", "zeros", 1 << 50),
    ("torch", "Tensor", 1 << 50),
    ("torch.FloatStorage", "__new__", 3),
    ("numpy.core.multiarray", "_reconstruct", 3),
    ("numpy", "load", "../marker"),
    ("collections", "OrderedDict", 3),
    ("collections", "Counter", "aab"),
    ("_codecs", "encode", "x" * 10, "latin1"),
    ("pytorch_lightning.callbacks", "ModelCheckpoint", "x"),
    ("omegaconf.dictconfig", "DictConfig", 1),
    ("argparse", "Namespace"),
    ("nowhere", "nothing"),
    ("a b", "c"),
    ("", ""),
]


@cache
def _saved(number: int, new_format: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(_WRAPPED[number], stream, _use_new_zipfile_serialization=new_format)
    return stream.getvalue()


@cache
def _members(number: int) -> tuple[tuple[str, bytes], ...]:
    with zipfile.ZipFile(io.BytesIO(_saved(number))) as archive:
        return tuple((info.filename, archive.read(info)) for info in archive.infolist())


def _zip(
    number: int, pickled: bytes | None, lost: int, method: int, storage: bytes | None, edits: bytes
) -> bytes:
    """What torch saves, with another pickle, another storage, a member less, or compressed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for i, (name, content) in enumerate(_members(number)):
            if name.endswith("data.pkl") and pickled is not None:
                content = pickled
            elif "/data/" in name and storage is not None:
                content = storage
            if i != lost:
                archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, method)
    return stream.getvalue()


_calls = st.sampled_from([_named(*call) for call in _CALLS])
_good_pickle = st.sampled_from(range(len(_WRAPPED))).map(
    lambda n: next(c for k, c in _members(n) if k.endswith(".pkl"))
)
_deep = st.sampled_from(
    [b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", b"\x80\x02" + b"(" * 5000 + b"l" * 5000 + b"."]
)
_memo = st.sampled_from(
    [
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b".",
        b"\x80\x02r\xff\xff\xff\xff.",
        b"\x80\x02\x8b" + struct.pack("<I", 2**31 - 1),
    ]
)
_pickles = st.one_of(_calls, damaged(_calls), damaged(_good_pickle), _deep, _memo)
_zips = st.builds(
    _zip,
    st.sampled_from(range(len(_WRAPPED))),
    st.none() | _pickles,
    st.sampled_from([-1, -1, -1, -1, 0, 1, 2]),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.none() | st.none() | bits(40),
    st.just(b""),
)
_sound = st.sampled_from(range(0, 5)).map(_saved)  # those with a state dict where every reader looks
_torch = st.one_of(
    *[_sound] * 4,
    st.sampled_from(range(len(_WRAPPED))).map(_saved),
    _zips,
    damaged(_zips),
    damaged(st.sampled_from(range(len(_WRAPPED))).map(lambda n: _saved(n, False))),
    _pickles,
    garbage,
)


def _header(changes: dict, length: int | None, extra: bytes) -> bytes:
    """A safetensors file, its header changed."""
    good = save(_STATE, metadata={"format": "pt"})
    size = struct.unpack("<Q", good[:8])[0]
    entries = {**json.loads(good[8 : 8 + size]), **changes}
    text = json.dumps(entries).encode() + extra
    return struct.pack("<Q", (len(text) if length is None else length) % 2**64) + text + good[8 + size :]


_entry = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I64", "BF16", "F8_E4M3", "F4", "BOOL", "C64", "X", 3]),
        "shape": st.lists(st.sampled_from([n for n in NUMBERS if n >= 0]), max_size=3),
        "data_offsets": st.lists(numbers.map(abs) | st.sampled_from([0, 24, 32]), min_size=1, max_size=3),
    }
)
_names = st.sampled_from(
    ["encoder.weight", "encoder.bias", "steps", "more", "__metadata__", "", "../x", "a\x00b"]
)
_safetensors = st.builds(
    _header,
    st.dictionaries(_names, _entry | values, max_size=1),
    st.none() | st.none() | st.sampled_from(NUMBERS),
    st.sampled_from([b"", b"", b"   ", b"[" * 5000, b"\xff"]),
)
_good_safetensors = st.just(save({f"module.{k}": v for k, v in _STATE.items()}))
_odd_files = [b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"", b"\x00" * 8, b"\xff" * 8]
_odd_files += [struct.pack("<Q", 6) + b"[" * 6, struct.pack("<Q", 50_000) + b'{"a":' * 10_000]
_tensors = st.one_of(
    _good_safetensors,
    _good_safetensors,
    _safetensors,
    damaged(_good_safetensors),
    garbage,
    st.sampled_from(_odd_files),
)
_index_names = st.sampled_from(
    ["one.safetensors", "two.bin", "../one.safetensors", "/etc/passwd", "", ".", "..", "x\0y", 3, None, ["a"]]
)
_index = st.one_of(
    st.dictionaries(st.sampled_from(["a", "b"]), _index_names, max_size=2).map(
        lambda m: json.dumps({"weight_map": m})
    ),
    values.map(lambda v: json.dumps({"weight_map": v})),
    st.sampled_from(
        [
            "[" * 5000,
            "null",
            "{}",
            '{"weight_map": {"a": "one.safetensors"}}',
            '{"weight_map": {"a": "two.bin"}}',
        ]
    ),
).map(str.encode)


def _read(folder: Path, name: str) -> None:
    path = folder / name
    read_weights(path)
    weight_names(path)


def _read_nested(folder: Path, name: str) -> None:
    read_nested_weights(folder / name)


def _read_optimizers(folder: Path, _: object) -> None:
    CheckpointFolder(folder, keep=1).load_optimizers(20)


SAFETENSORS = Reader(
    "safetensors", _tensors.map(lambda content: Case({"x.safetensors": content}, "x.safetensors")), _read
)
TORCH = Reader(
    "torch_files",
    st.builds(
        lambda content, name: Case({name: content}, name),
        _torch,
        st.sampled_from(["x.bin", "x.pt", "x.ckpt"]),
    ),
    _read,
)
NESTED = Reader("nested_files", _torch.map(lambda content: Case({"x.ckpt": content}, "x.ckpt")), _read_nested)
INDEX = Reader(
    "weight_index",
    st.builds(
        lambda index, one, two: Case(
            {"x.index.json": index, "one.safetensors": one, "two.bin": two}, "x.index.json"
        ),
        _index,
        _good_safetensors | _tensors,
        st.just(_saved(0)) | _torch,
    ),
    _read,
)
OPTIMIZERS = Reader(
    "optimizers",
    _torch.map(lambda content: Case({"checkpoints/step-00000020/optimizers.pt": content})),
    _read_optimizers,
)


@cache
def _sharded() -> tuple[str, bytes]:
    """Name and content of the file of a module that one process wrote."""
    with TemporaryDirectory() as folder:
        write_shards(Path(folder), nn.Linear(3, 2).state_dict())
        path = next(Path(folder).glob("*.safetensors"))
        return path.name, path.read_bytes()


def _read_shards(folder: Path, _: object) -> None:
    load_weights(folder / "x.shards", nn.Linear(3, 2))


SHARDS = Reader(
    "shards",
    st.one_of(*[st.just([])] * 2, edits, edits, edits).map(
        lambda edits: Case({f"x.shards/{_sharded()[0]}": damage(_sharded()[1], edits)})
    ),
    _read_shards,
)


def test_folders_of_shards():
    check(SHARDS)


def test_safetensors():
    check(SAFETENSORS)


def test_files_of_torch():
    check(TORCH)


def test_training_files_of_others():
    check(NESTED)


def test_indexes_of_shards():
    check(INDEX)


def test_optimizer_states():
    check(OPTIMIZERS)
