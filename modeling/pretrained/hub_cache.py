"""Files of the Hugging Face Hub in the cache of huggingface_hub, put there in a way that survives cut connections.

huggingface_hub keeps its cache, asks the Hub what a file is, and knows tokens and end points; the content itself is
fetched by `storage.fetching`, because newer releases of huggingface_hub throw away what has come when a download
ends in an error. Its variables (HF_HUB_OFFLINE, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN) apply.
"""

import re
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import HfFileMetadata, repo_folder_name
from huggingface_hub.utils import build_hf_headers

from storage.fetching import Address, FetchError, fetch, git_hash, sha256

# How the Hub names content: by its SHA-256 if it is large, else as git does.
_DIGESTS = {64: sha256, 40: git_hash}


def cached_download(repo: str, file: str) -> str:
    """Path in the cache of a file of a Hub repository, fetched if it is missing or the Hub has a newer one.

    Raises:
        FetchError: it cannot be fetched or stored; or is not what the Hub says.
        Exception: errors of huggingface_hub, which share no base class over its versions.
    """
    if not offline():
        _fill_cache(repo, file)
    return hf_hub_download(repo, file)


def offline() -> bool:
    """Whether HF_HUB_OFFLINE, or TRANSFORMERS_OFFLINE, forbids connections."""
    return bool(constants.HF_HUB_OFFLINE)


def _fill_cache(repo: str, file: str) -> None:
    """Fetch the content of a file, which `hf_hub_download` then finds; does nothing where it alone knows what to do."""
    url = hf_hub_url(repo, file)
    try:
        found = get_hf_file_metadata(url)
    except Exception:  # no connection, no such file, no permission: its message is the better one
        return
    etag, commit = str(found.etag or ""), str(found.commit_hash or "")
    if not etag or not commit:
        return
    for name in (etag, commit):  # both become names of files
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise FetchError(
                f"{url}: the Hub's answer names its content {name!r}, which is no name of a file there"
            )
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    pointer = folder / "snapshots" / commit / file
    if pointer.exists():
        return
    fetch(
        url,
        folder / "blobs" / etag,
        digest=_DIGESTS.get(len(etag)) if re.fullmatch("[0-9a-f]+", etag) else None,
        expected=etag,
        locate=lambda: _address(url, get_hf_file_metadata(url)),
    )


def _address(url: str, found: HfFileMetadata) -> Address:
    """Where the content is; a token is for the Hub alone, and not for the hosts that it leads to."""
    location = found.location or url
    same = urlsplit(location).netloc == urlsplit(url).netloc
    headers = {name: value for name, value in build_hf_headers().items() if same or name == "user-agent"}
    return location, headers
