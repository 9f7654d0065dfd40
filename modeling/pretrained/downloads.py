"""Weight files of others: in a folder of this machine, in the cache of huggingface_hub, or downloaded into it once.

HF_HUB_OFFLINE=1 and the other variables of huggingface_hub (cache folder, end point, token) have their usual meaning.
"""

import os
from pathlib import Path

from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from common.config import one_line
from modeling.pretrained.catalog import Release

WEIGHTS_VARIABLE = "TITOK_WEIGHTS"


class NotOnHub(FileNotFoundError):
    """The Hub can be reached, but has no such repository, or no such file in it."""


def release_weights(release: Release) -> Path:
    """The weight file of a release: from the folder TITOK_WEIGHTS, else the Hub cache, else downloaded.

    Raises:
        OSError: it is nowhere and cannot be downloaded; the message says what to put where.
    """
    found = _in_weights_folder(release)
    for repo, file in release.sources:
        found = found or _cached(repo, file)
    if found is not None:
        return found
    reason = "no file is published"
    for repo, file in release.sources:
        try:
            return hub_file(repo, file)
        except NotOnHub as error:
            reason = str(error)  # the same weights may lie elsewhere
        except OSError as error:
            reason = str(error)
            break  # without a connection the next place cannot be reached either
    where = f"{release.file} from {release.origin}"
    if release.repo:
        url = hf_hub_url(release.repo, release.file)
        where = f"{url} (repository {release.repo}, file {release.file})"
    raise ConnectionError(
        f"weights of {release.name} are not on this machine and cannot be downloaded: {reason}. Get"
        f" {where} and put it as {release.file} into a folder that the environment variable {WEIGHTS_VARIABLE} names"
    )


def _in_weights_folder(release: Release) -> Path | None:
    """TITOK_WEIGHTS/file, with the repository or its last part in front, or a converted folder of our name."""
    folder = os.environ.get(WEIGHTS_VARIABLE)
    if not folder:
        return None
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{WEIGHTS_VARIABLE}={folder} is not a folder")
    places = [root / str(release.file), root / release.name / "model.safetensors"]
    for repo, file in release.sources:
        places += [root / repo / file, root / repo.split("/")[1] / file]
    return next((place for place in places if place.is_file()), None)


def _cached(repo: str, file: str) -> Path | None:
    found = try_to_load_from_cache(repo, file)
    return Path(found) if isinstance(found, str) else None


def hub_file(repo: str, file: str) -> Path:
    """A file of a Hub repository, from the cache or downloaded into it.

    Raises:
        NotOnHub: the repository or the file does not exist there.
        OSError: it is not in the cache, and the Hub cannot be reached or refuses.
    """
    try:
        return Path(hf_hub_download(repo, file))
    except RepositoryNotFoundError as error:
        raise NotOnHub(
            f"the Hub has no repository {repo} that may be read without (or with your) token"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{repo}/{file} is not in the local cache and the Hub cannot be reached (no connection, or"
            " HF_HUB_OFFLINE is set)"
        ) from error
    except EntryNotFoundError as error:
        raise NotOnHub(f"the Hub repository {repo} has no file {file}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ConnectionError(f"{repo}/{file} cannot be downloaded: {one_line(error)}") from error


def hub_model(repo: str) -> tuple[Path, Path]:
    """Configuration and weights of a Hub repository that holds one model.

    Raises:
        OSError: see `hub_file`; both files must be there, safetensors are preferred.
    """
    config = hub_file(repo, "config.json")
    try:
        return config, hub_file(repo, "model.safetensors")
    except NotOnHub:
        return config, hub_file(repo, "pytorch_model.bin")
