"""Published files: from a local folder, from a cache, or downloaded into it.

The variables of huggingface_hub (HF_HUB_OFFLINE, cache folder, end point, token) apply.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from huggingface_hub import hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from common.console import one_line
from common.home import at_home
from modeling.pretrained.hub_cache import answered_with, cached_download, offline
from modeling.pretrained.nested_files import read_nested_weights
from modeling.pretrained.release import Release
from storage.fetching import FetchError, fetch
from storage.files import file_sha256
from storage.weights import INDEX, shard_names

WEIGHTS_VARIABLE = "TITOK_WEIGHTS"
HUB_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
HUB_WEIGHTS += ("pytorch_model.bin", "pytorch_model.bin.index.json")


class NotOnHub(FileNotFoundError):
    """The Hub can be reached, but lacks the repository or the file."""


def release_weights(release: Release) -> Path:
    """The weight file of a release: from the folder TITOK_WEIGHTS, else the Hub cache, else downloaded.

    Raises:
        OSError: it is in none of these and cannot be downloaded; the message says which file to put where.
    """
    found = _in_weights_folder(release)
    for repo, file in release.sources:  # every cache before any download
        found = found or _cached(repo, file)
    if found is not None:
        return found
    reason = "no file is published"
    if release.url:
        try:
            return direct_file(release.url, release.file)
        except OSError as error:
            reason = str(error)
    for repo, file in release.sources:
        try:
            return hub_file(repo, file)
        except NotOnHub as error:
            reason = str(error)  # the next source may have the weights
        except OSError as error:
            reason = str(error)
            break  # without a connection the next source fails too
    where = f"{release.file} from {release.origin}"
    if release.repo:
        url = hf_hub_url(release.repo, release.file)
        where = f"{url} (repository {release.repo}, file {release.file})"
    raise ConnectionError(
        f"weights of {release.name} are not on this machine and cannot be downloaded: {reason}. Get {where}, save it"
        f" as {release.file} in a folder of your choice and set {WEIGHTS_VARIABLE} to that folder"
    )


def _in_weights_folder(release: Release) -> Path | None:
    """The file in TITOK_WEIGHTS, or below it in a folder called like the repository or, converted, like the model."""
    places = [f"{release.name}/model.safetensors"]
    for repo, file in release.sources:
        places += [f"{repo}/{file}", f"{repo.split('/')[1]}/{file}"]
    return in_weights_folder([*places, str(release.file)], lambda place: is_file_of(release, place))


def in_weights_folder(
    places: Sequence[str], belongs: Callable[[Path], bool] = lambda place: True
) -> Path | None:
    """The first of some files below the folder TITOK_WEIGHTS, or None; FileNotFoundError: it names no folder."""
    folder = os.environ.get(WEIGHTS_VARIABLE)
    if not folder:
        return None
    root = Path(at_home(folder))
    if not root.is_dir():
        raise FileNotFoundError(f"{WEIGHTS_VARIABLE}={folder} is not a folder")
    return next(
        (root / place for place in places if (root / place).is_file() and belongs(root / place)), None
    )


def is_file_of(release: Release, path: Path) -> bool:
    """Whether a file with the published name is that of the release, by its entries."""
    return release.mark is None or path.name != release.file or release.mark in read_nested_weights(path)


def _cached(repo: str, file: str) -> Path | None:
    found = try_to_load_from_cache(repo, file)
    return Path(found) if isinstance(found, str) else None  # may be a marker: known to be missing


def hub_file(repo: str, file: str) -> Path:
    """A file of a Hub repository, from the cache or downloaded into it.

    Raises:
        NotOnHub: the repository or the file does not exist there.
        OSError: it is not in the cache, and the Hub cannot be reached or refuses.
    """
    try:
        return Path(cached_download(repo, file))
    except GatedRepoError as error:  # is a RepositoryNotFoundError, too
        where = hf_hub_url(repo, file).partition("/resolve/")[0]
        raise ConnectionError(
            f"{repo} is open only to those who accepted its terms: do so at {where}, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise NotOnHub(f"the Hub has no repository {repo}, or your token may not read it") from error
    except LocalEntryNotFoundError as error:
        raise ConnectionError(f"{repo}/{file} is not in the cache and {_unreachable(error)}") from error
    except EntryNotFoundError as error:
        raise NotOnHub(f"the Hub repository {repo} has no file {file}") from error
    except Exception as error:  # those of the client's network library share no base class over its versions
        raise ConnectionError(f"{repo}/{file} cannot be downloaded: {one_line(error)}") from error


def _unreachable(error: Exception) -> str:
    if offline():
        return "HF_HUB_OFFLINE forbids to fetch it"
    code = answered_with(error)
    return "the Hub cannot be reached" if code is None else f"the Hub answers with an error ({code})"


def hub_model(repo: str) -> tuple[Path, Path]:
    """Configuration and weights of a Hub repository with one model, shards included; errors as `hub_file`."""
    config = hub_file(repo, "config.json")
    for file in HUB_WEIGHTS:
        try:
            weights = hub_file(repo, file)
        except NotOnHub:
            continue
        for shard in shard_names(weights) if file.endswith(INDEX) else ():
            hub_file(repo, shard)
        return config, weights
    raise NotOnHub(f"the Hub repository {repo} has no weights: none of {', '.join(HUB_WEIGHTS)}")


def direct_file(url: str, name: str | None = None) -> Path:
    """A published file outside the Hub, in torch's hub folder, fetched if missing.

    Args:
        name: in the folder; None is the last part of the address. One that ends in `-` and eight or more hex digits
            promises the beginning of the content's SHA-256, as names of torch and torchvision do.

    Raises:
        ConnectionError: it cannot be fetched; the message says where it belongs.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    place = folder / (name or url.rsplit("/", 1)[1])
    if place.is_file():
        return place
    promised = re.search(r"-([0-9a-f]{8,64})$", place.stem)
    try:
        if offline():
            raise FetchError("HF_HUB_OFFLINE forbids to fetch it")
        return fetch(
            url, place, digest=file_sha256 if promised else None, expected=promised[1] if promised else ""
        )
    except FetchError as error:
        raise ConnectionError(
            f"{place} is missing and {url} cannot be downloaded ({one_line(error)}); fetch it elsewhere and put it"
            " there"
        ) from error
