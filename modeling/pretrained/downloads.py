"""Published weight files: from a local folder, from the cache of huggingface_hub, or downloaded into it.

The variables of huggingface_hub (HF_HUB_OFFLINE, cache folder, end point, token) apply.
"""

import os
from pathlib import Path

from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from common.config import one_line
from common.home import at_home
from modeling.pretrained.nested_files import read_nested_weights
from modeling.pretrained.release import Release

WEIGHTS_VARIABLE = "TITOK_WEIGHTS"


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
    folder = os.environ.get(WEIGHTS_VARIABLE)
    if not folder:
        return None
    root = Path(at_home(folder))
    if not root.is_dir():
        raise FileNotFoundError(f"{WEIGHTS_VARIABLE}={folder} is not a folder")
    places = [root / release.name / "model.safetensors"]
    for repo, file in release.sources:
        places += [root / repo / file, root / repo.split("/")[1] / file]
    places.append(root / str(release.file))
    return next((place for place in places if place.is_file() and is_file_of(release, place)), None)


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
        return Path(hf_hub_download(repo, file))
    except RepositoryNotFoundError as error:
        raise NotOnHub(f"the Hub has no repository {repo}, or your token may not read it") from error
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{repo}/{file} is not in the cache and the Hub cannot be reached (or HF_HUB_OFFLINE is set)"
        ) from error
    except EntryNotFoundError as error:
        raise NotOnHub(f"the Hub repository {repo} has no file {file}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ConnectionError(f"{repo}/{file} cannot be downloaded: {one_line(error)}") from error


def hub_model(repo: str) -> tuple[Path, Path]:
    """Configuration and weights of a Hub repository with one model; errors as `hub_file`."""
    config = hub_file(repo, "config.json")
    try:
        return config, hub_file(repo, "model.safetensors")
    except NotOnHub:
        return config, hub_file(repo, "pytorch_model.bin")
