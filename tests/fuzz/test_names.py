"""Names that people, archives and servers give to files: none leads out of the folder where it belongs."""

import os
import re
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

from hypothesis import strategies as st

from common.braces import expand_braces
from common.config import find_file
from data.file_list import list_files
from data.shard_cache import ShardCache
from modeling.pretrained import hub_cache
from modeling.pretrained.model_names import _may_be_repository, open_model
from storage.remote_files import is_remote
from tests.fuzz.harness import Case, Reader, check
from tests.fuzz.mutations import texts

_PARTS = [
    "a",
    "b.tar",
    "..",
    ".",
    "",
    "~",
    "~nobody-here",
    "x" * 300,
    "é",
    "\0",
    "\n",
    "%2e%2e",
    "{0..3}",
    "{a,b}",
    "{",
    "}",
]
_PARTS += [
    "{0..999999999999}",
    "C:",
    "\\..\\..",
    "*",
    "?x=1",
    "#y",
    "-",
    "\udcff",
    "con",
    "a b",
    "$HOME",
    "org",
    "repo.v1",
    "--",
]
_paths = st.lists(st.sampled_from(_PARTS), min_size=1, max_size=4).map("/".join)
_urls = st.builds(
    lambda scheme, path: f"{scheme}://host/{path}",
    st.sampled_from(["https", "s3", "hf", "nowhere", ""]),
    _paths,
)
_names = st.one_of(
    _paths,
    _paths,
    _urls,
    texts(8),
    st.lists(st.sampled_from(["{", "}", "a,", "..", "0"]), max_size=40).map("".join),
)


def _read(folder: Path, argument: tuple[str, str]) -> None:
    what, name = argument
    if what == "cache":
        place = ShardCache(folder, 1.0).place(name)
        assert place.parent == folder and len(os.fsencode(place.name)) < 240 and "\0" not in place.name
        assert place.name not in (".", "..") and "/" not in place.name
        is_remote(name)
    elif what == "repository":
        if _may_be_repository(name):  # else nothing is asked of the Hub
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not {".", ".."} & set(name.split("/"))
        else:
            open_model(name)
    elif what == "hub":
        stored = []
        with (
            patch.object(hub_cache.constants, "HF_HUB_CACHE", str(folder)),
            patch.object(hub_cache, "fetch", lambda url, place, **_: stored.append(place)),
        ):
            for etag, commit in ((name, "0" * 40), ("a" * 64, name)):
                answer = SimpleNamespace(etag=etag, commit_hash=commit)
                hub_cache._fill_cache("org/repo", "model.safetensors", "https://host/x", answer)
        for place in stored:
            assert place.parent == folder / "models--org--repo" / "blobs" and re.fullmatch(
                "[0-9a-f]{64}", place.name
            )
    elif what == "braces":
        assert expand_braces(name)
    elif what == "files":
        list_files(folder / name.lstrip("/") if name.strip("/") else folder)
    else:
        find_file(name)


READER = Reader(
    "names",
    st.builds(
        lambda what, name: Case({"a": b"", "b.tar": b""}, (what, name)),
        st.sampled_from(["cache", "hub", "repository", "braces", "files", "file"]),
        _names,
    ),
    _read,
    named="",
)


def test_odd_names():
    check(READER)
