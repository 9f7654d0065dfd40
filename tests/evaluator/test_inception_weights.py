import hashlib

import pytest
import torch
from torch import nn

from evaluator.inception_weights import (
    ENVIRONMENT,
    FILE_NAMES,
    OFFICIAL_SHA256,
    OFFICIAL_URL,
    find_inception_weights,
    load_inception_weights,
    sha256_of_weights,
)
from modeling.pretrained import downloads
from storage.fetching import FetchError
from storage.weights import CheckpointError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub folder and no network."""

    def refuse(*arguments, **options):
        raise FetchError("no route")

    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(downloads, "fetch", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_path_then_variable_then_hub_folder(hub, tmp_path, monkeypatch):
    for name in reversed(FILE_NAMES):  # either name will do; the first one wins
        (hub / name).write_bytes(b"weights")
        assert find_inception_weights() == hub / name
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "variable.pth"))
    with pytest.raises(FileNotFoundError, match=r"variable\.pth \(\$INCEPTION_WEIGHTS\) do not exist"):
        find_inception_weights()
    (tmp_path / "variable.pth").write_bytes(b"weights")
    assert find_inception_weights() == tmp_path / "variable.pth"
    (tmp_path / "path.pth").write_bytes(b"weights")
    assert find_inception_weights(tmp_path / "path.pth") == tmp_path / "path.pth"
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth \(the given path\) do not exist"):
        find_inception_weights(tmp_path / "nowhere.pth")


def test_offline_says_what_to_fetch_and_how_to_check_it(hub):
    with pytest.raises(FileNotFoundError) as caught:
        find_inception_weights()
    assert OFFICIAL_URL in str(caught.value) and OFFICIAL_SHA256 in str(caught.value)


def test_download_is_checked_against_the_hash_and_kept(hub, monkeypatch):
    calls = []

    def fetch(url, path, digest, expected):
        calls.append((url, expected))
        path.touch()
        return path

    monkeypatch.setattr(downloads, "fetch", fetch)
    assert find_inception_weights() == find_inception_weights() == hub / FILE_NAMES[0]
    assert calls == [(OFFICIAL_URL, OFFICIAL_SHA256[:8])]


def test_file_names_promise_a_hash(tmp_path):
    content = bytes(range(256)) * 8192  # more than is read at a time
    digest = hashlib.sha256(content).hexdigest()
    for name in ("plain.pth", f"net-{digest[:8]}.pth"):
        (tmp_path / name).write_bytes(content)
        assert sha256_of_weights(tmp_path / name) == digest
    (tmp_path / FILE_NAMES[1]).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"damaged.*starts with 6726825d.*{digest}"):
        sha256_of_weights(tmp_path / FILE_NAMES[1])


def test_counters_of_batches_may_be_there_or_not(tmp_path):
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    state = {name: torch.rand_like(tensor.float()) for name, tensor in network.state_dict().items()}
    state["1.num_batches_tracked"] = torch.tensor(7)
    for left_out in ((), ("1.num_batches_tracked",)):
        torch.save({name: t for name, t in state.items() if name not in left_out}, tmp_path / "w.pth")
        fresh = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
        load_inception_weights(tmp_path / "w.pth", fresh)
        assert torch.equal(fresh[1].running_var, state["1.running_var"])
        assert torch.equal(fresh[0].weight, state["0.weight"]) and fresh[1].num_batches_tracked == 0


def test_another_network_is_refused_by_name_and_shape(tmp_path):
    network = nn.Conv2d(2, 3, 1)
    path = tmp_path / "w.pth"
    torch.save({"weight": torch.ones(3, 2, 1, 1)}, path)
    with pytest.raises(CheckpointError, match="lacks the entry 'bias'"):
        load_inception_weights(path, network)
    torch.save({"weight": torch.ones(3, 2, 1, 3), "bias": torch.ones(3)}, path)
    with pytest.raises(CheckpointError, match=r"'weight' has shape \[3, 2, 1, 3\] instead of \[3, 2, 1, 1\]"):
        load_inception_weights(path, network)
    torch.save({"weight": torch.ones(3, 2, 1, 1), "bias": torch.ones(3), "AuxLogits": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="holds the entry 'AuxLogits'"):
        load_inception_weights(path, network)
