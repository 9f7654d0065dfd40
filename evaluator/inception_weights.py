"""Where the weights of the Inception feature network come from, and whether they are the published ones."""

import os
import re
from pathlib import Path

import torch
from torch import nn

from common.home import at_home
from modeling.pretrained.downloads import direct_file
from storage.files import file_sha256
from storage.weights import CheckpointError, read_weights

ENVIRONMENT = "INCEPTION_WEIGHTS"
OFFICIAL_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
OFFICIAL_SIZE = "96 MB"
OFFICIAL_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
# The same bytes as pytorch-fid and torch-fidelity name them.
FILE_NAMES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")


def find_inception_weights(path: str | Path | None = None) -> Path:
    """The weight file: `path`, else `$INCEPTION_WEIGHTS`, else torch's hub folder, else downloaded into it.

    Raises:
        FileNotFoundError: a file that was named does not exist, or there is none and it cannot be downloaded.
    """
    for origin, named in (
        ("the given path", path),
        (f"${ENVIRONMENT}", at_home(os.environ.get(ENVIRONMENT))),
    ):
        if named:
            if not Path(named).is_file():
                raise FileNotFoundError(f"inception weights {named} ({origin}) do not exist")
            return Path(named)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in FILE_NAMES:
        if (folder / name).is_file():
            return folder / name
    try:
        return direct_file(OFFICIAL_URL)
    except ConnectionError as error:
        raise FileNotFoundError(
            f"the inception weights are on none of the known paths and cannot be downloaded"
            f" ({error.__cause__ or error}). Fetch {OFFICIAL_URL} elsewhere ({OFFICIAL_SIZE}, SHA-256"
            f" {OFFICIAL_SHA256}), and put it into {folder}, or name it in inception_weights or ${ENVIRONMENT}"
        ) from error


def sha256_of_weights(path: str | Path) -> str:
    """SHA-256 of a weight file, 64 hex digits.

    Raises:
        CheckpointError: the file's name ends in `-` and hex digits, and the hash starts with others.
    """
    found = file_sha256(path)
    promised = re.search(r"-([0-9a-f]{8,64})$", Path(path).stem)  # torch's downloads promise it so
    if promised and not found.startswith(promised[1]):
        raise CheckpointError(
            f"{path} is damaged: its name promises a SHA-256 that starts with {promised[1]},"
            f" but its content has {found}; delete it and fetch it again"
        )
    return found


def load_inception_weights(path: str | Path, network: nn.Module) -> None:
    """Load a weight file into the network: the same names and shapes, except counters of seen batches.

    Raises:
        FileNotFoundError: the file does not exist.
        CheckpointError: it is damaged or belongs to another network (torchvision's Inception, for instance).
    """
    state, wanted = read_weights(path), network.state_dict()
    for name, tensor in wanted.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros_like(tensor)  # in some published files only; evaluation ignores it
        elif name not in state:
            expected = f"expected the 2015 Inception of FID (see {OFFICIAL_URL})"
            raise CheckpointError(f"{path} lacks the entry {name!r}; {expected}")
        elif state[name].shape != tensor.shape:
            shapes = f"{list(state[name].shape)} instead of {list(tensor.shape)}"
            raise CheckpointError(f"{path}: entry {name!r} has shape {shapes}; it belongs to another network")
    surplus = sorted(state.keys() - wanted.keys())
    if surplus:
        raise CheckpointError(
            f"{path} holds the entry {surplus[0]!r}, which the 2015 Inception does not have"
        )
    network.load_state_dict(state, strict=True)
