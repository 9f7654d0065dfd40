"""Downloads from a server on this machine that speaks as the Hub does, through huggingface_hub's own cache."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from common.config import REPOSITORY
from modeling.factory import build_tokenizer
from modeling.pipeline import load_tokenizer
from modeling.pretrained import downloads, hub_cache
from modeling.pretrained.catalog import RELEASES
from modeling.pretrained.downloads import NotOnHub, direct_file, hub_file, release_weights
from storage.weights import CheckpointError, read_weights
from tests.conftest import TOKENIZER
from tests.data.web_server import serve as serve_files
from tests.modeling.pretrained.hub_stand_in import Hub, serve
from tests.parity import fill_module

CONTENT = bytes(range(256)) * 400
HASH = hashlib.sha256(CONTENT).hexdigest()
REPO, FILE = "people/model", "weights.bin"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)  # here and in huggingface_hub
    monkeypatch.delenv(downloads.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: "hf_secret", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    stand_in = Hub()
    stand_in.files[REPO, FILE] = CONTENT
    stand_in.files[REPO, "config.json"] = b"{}"
    with serve(stand_in) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield stand_in


def partial(tmp_path):
    return tmp_path / f"cache/models--people--model/blobs/{HASH}.part"


def test_a_file_goes_into_the_cache_of_huggingface_hub_once(hub, tmp_path):
    path = hub_file(REPO, FILE)
    assert path.read_bytes() == CONTENT and path.is_relative_to(
        tmp_path / "cache/models--people--model/snapshots"
    )
    assert path.resolve().name == HASH
    assert hub_file(REPO, "config.json").read_bytes() == b"{}"
    assert hub_file(REPO, FILE) == path and hub.contents() == ["bytes=0-"]
    # A token is for the Hub, not for the hosts that it leads to.
    assert "Bearer hf_secret" in hub.tokens["hub"] and hub.tokens["other"] == {None}


def test_cut_connections_are_gone_on_from_and_busy_hubs_asked_again(hub):
    hub.cut_after, hub.busy = [1000, 0, 50_000], [503, 503, 429]
    assert hub_file(REPO, FILE).read_bytes() == CONTENT
    assert hub.contents() == ["bytes=0-", "bytes=1000-", "bytes=1000-", "bytes=51000-"]


def test_what_has_come_stays_for_the_next_try(hub, tmp_path):
    hub.cut_after = [30_000, *[0] * 50]
    with pytest.raises(
        ConnectionError, match=r"people/model/weights.bin cannot be downloaded: .* 30000 bytes"
    ) as caught:
        hub_file(REPO, FILE)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert partial(tmp_path).read_bytes() == CONTENT[:30_000]
    hub.cut_after, hub.requests = [], []
    assert hub_file(REPO, FILE).read_bytes() == CONTENT and hub.contents() == ["bytes=30000-"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-1] + b"x", f"its hash begins with .*, expected {HASH}"),
        (CONTENT[:-1], f"its hash begins with .*, expected {HASH}"),
        (b"<html>log in</html>", "it is a web page, not the weights"),
    ],
)
def test_other_content_than_the_hub_promised_is_refused(content, message, hub, tmp_path):
    hub.instead = content
    with pytest.raises(ConnectionError, match=f"did not give the file: {message}"):
        hub_file(REPO, FILE)
    assert not partial(tmp_path).exists() and not list((tmp_path / "cache").rglob("snapshots/*/*"))
    hub.instead = None
    assert hub_file(REPO, FILE).read_bytes() == CONTENT


def test_what_will_not_pass_is_one_line(hub):
    for repo, file, kind, message in (
        (
            "people/none",
            FILE,
            NotOnHub,
            "the Hub has no repository people/none, or your token may not read it",
        ),
        (REPO, "none.bin", NotOnHub, "the Hub repository people/model has no file none.bin"),
    ):
        with pytest.raises(kind, match=message):
            hub_file(repo, file)
    hub.gated.add(REPO)
    with pytest.raises(
        ConnectionError, match="model is open only to those who accepted its terms: do so at http"
    ):
        hub_file(REPO, FILE)
    hub.gated.clear()
    hub.busy = [500] * 100
    with pytest.raises(ConnectionError, match=r"not in the cache and the Hub answers with an error \(500\)$"):
        hub_file(REPO, FILE)
    hub.busy, hub.web_page = [], True
    with pytest.raises(
        ConnectionError, match="people/model/weights.bin is not in the cache and the Hub cannot be"
    ):
        hub_file(REPO, FILE)


def test_offline_and_unreachable_say_what_to_put_where(hub, monkeypatch):
    address = constants.ENDPOINT
    for offline, reason in (
        (True, "HF_HUB_OFFLINE forbids to fetch it"),
        (False, "the Hub cannot be reached"),
    ):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        if not offline:
            template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            address = "http://127.0.0.1:9"
        with pytest.raises(ConnectionError) as caught:
            release_weights(RELEASES["magvit2-256"])
        text = str(caught.value)
        what = "TencentARC/Open-MAGVIT2-Tokenizer-256-resolution/imagenet_256_L.ckpt"
        # Some releases of huggingface_hub pass on the error of their network library.
        assert f"{what} is not in the cache and {reason}" in text or (
            not offline and f"{what} cannot be downloaded: " in text
        )
        for part in (
            f"Get {address}/TencentARC/Open-MAGVIT2-Tokenizer-256-resolution/resolve/main/imagenet_256_L.ckpt",
            "set TITOK_WEIGHTS to that folder",
        ):
            assert part in text
        assert "\n" not in text


def test_without_a_connection_one_try_is_enough(hub, monkeypatch):
    asked, waits = [], []
    ask = hub_cache.get_hf_file_metadata
    monkeypatch.setattr(hub_cache, "get_hf_file_metadata", lambda url: asked.append(url) or ask(url))
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    )
    with pytest.raises(ConnectionError, match="is not in the cache and the Hub cannot be reached"):
        hub_file(REPO, FILE)
    assert len(asked) == 1 and waits == []  # newer releases of the client wait for half a minute


def test_a_cache_that_cannot_be_written_serves_what_it_has(hub, tmp_path, monkeypatch):
    path = hub_file(REPO, FILE)

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(os, "makedirs", refuse)
    assert hub_file(REPO, FILE) == path
    hub.files[REPO, "other.bin"] = CONTENT[::-1]
    with pytest.raises(
        ConnectionError, match=r"other.bin cannot be stored: .*blobs cannot be written \(Read-only"
    ):
        hub_file(REPO, "other.bin")


@pytest.mark.parametrize(
    ("commit", "etag"), [("../../../../x", None), ("5" * 40, "../../../../x"), ("/x", None)]
)
def test_names_of_the_hub_that_lead_elsewhere_are_refused(commit, etag, hub, tmp_path):
    hub.commit, hub.etag = commit, etag
    for file in (FILE, "config.json"):
        with pytest.raises(ConnectionError, match="names its content '.*x', which is no name of a file"):
            hub_file(REPO, file)
    assert not (tmp_path / "x").exists() and not Path("/x").exists()


def test_sharded_repositories_come_whole_and_only_from_themselves(hub, tmp_path):
    model = fill_module(build_tokenizer(TOKENIZER))
    state = list(model.state_dict().items())
    parts = {"a.safetensors": dict(state[::2]), "b.safetensors": dict(state[1::2])}
    for name, part in parts.items():
        hub.files[REPO, name] = save({key: tensor.contiguous() for key, tensor in part.items()})
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    hub.files[REPO, "model.safetensors.index.json"] = json.dumps(index).encode()
    hub.files[REPO, "config.json"] = json.dumps({"tokenizer": TOKENIZER}).encode()
    loaded = load_tokenizer(REPO)
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in state)
    for name in ("../b.safetensors", "/etc/b.safetensors", "..", "x/b.safetensors", "..\\b.safetensors", 3):
        index["weight_map"][state[0][0]] = name
        hub.files[REPO, "model.safetensors.index.json"] = json.dumps(index).encode()
        hub.commit = hashlib.sha1(str(name).encode()).hexdigest()  # another version
        with pytest.raises(
            CheckpointError, match="names the shard .*, expected the name of a file beside it"
        ):
            load_tokenizer(REPO)
        path = tmp_path / "local.index.json"
        path.write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match="names the shard"):
            read_weights(path)
    with pytest.raises(NotOnHub, match="no file config.json"):
        hub.files = {("people/empty", "x.bin"): b"x"}
        load_tokenizer("people/empty")


def test_files_outside_the_hub_are_checked_by_their_names_and_kept(hub, tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    for name in (f"net-{HASH[:8]}.pth", "net-00000000.pth", "plain.pth"):
        (served / name).write_bytes(CONTENT)
    with serve_files(served) as (address, faults):
        faults.cut_after, faults.codes = [1000], [503]
        for name, url in ((None, f"{address}/net-{HASH[:8]}.pth"), ("heads.pth", f"{address}/plain.pth")):
            path = direct_file(url, name)
            assert path == tmp_path / "torch/checkpoints" / (name or url.rpartition("/")[2])
            assert path.read_bytes() == CONTENT
            asked = len(faults.requests)
            assert direct_file(url, name) == path and len(faults.requests) == asked
        with pytest.raises(
            ConnectionError, match="net-00000000.pth did not give the file: its hash begins with"
        ):
            direct_file(f"{address}/net-00000000.pth")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        asked = len(faults.requests)
        with pytest.raises(ConnectionError) as caught:
            direct_file(f"{address}/more.pth")
        place = tmp_path / "torch/checkpoints/more.pth"
        assert str(caught.value) == (
            f"{place} is missing and {address}/more.pth cannot be downloaded"
            " (HF_HUB_OFFLINE forbids to fetch it); fetch it elsewhere and put it there"
        )
        assert len(faults.requests) == asked


def test_the_end_point_of_the_environment_is_asked(hub, tmp_path):
    """In a process of its own, since huggingface_hub reads its variables when it is imported."""
    code = (
        "from modeling.pretrained.downloads import hub_file; print(hub_file('people/model', 'weights.bin'))"
    )
    environment = {**os.environ, "HF_ENDPOINT": constants.ENDPOINT, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == CONTENT
