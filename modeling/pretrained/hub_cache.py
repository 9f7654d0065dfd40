"""Files of the Hugging Face Hub in the cache of huggingface_hub, put there in a way that survives cut connections.

huggingface_hub keeps its cache, asks the Hub what a file is, and knows tokens and end points. Content of large files
is fetched by `storage.fetching`, because newer releases of huggingface_hub throw away what has come when a download
ends in an error. Its variables (HF_HUB_OFFLINE, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN) apply.
"""

import re
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.file_download import HfFileMetadata, repo_folder_name
from huggingface_hub.utils import build_hf_headers

from storage.fetching import Address, FetchError, fetch
from storage.files import file_sha256

_TRIES = 4
_FIRST_PAUSE = 1.0  # seconds before the second try; doubled each time


def cached_download(repo: str, file: str) -> str:
    """Path in the cache of a file of a Hub repository, fetched if it is missing or the Hub has a newer one.

    Raises:
        FetchError: it cannot be fetched or stored; or is not what the Hub says.
        Exception: errors of huggingface_hub, which share no base class over its versions.
    """
    url = hf_hub_url(repo, file)
    try:
        found = None if offline() else _ask(url)
    except _Unreachable:  # hf_hub_download would try again for half a minute before it says so
        return hf_hub_download(repo, file, local_files_only=True)
    known = found is not None and found.etag and found.commit_hash
    if known:
        _fill_cache(repo, file, url, found)
    try:
        return hf_hub_download(repo, file)
    except OSError:  # some releases write to a read-only cache even if it has the file
        place = _folder(repo) / "snapshots" / str(found.commit_hash) / file if known else None
        if place is None or not place.exists():
            raise
        return str(place)


def offline() -> bool:
    """Whether HF_HUB_OFFLINE, or TRANSFORMERS_OFFLINE, forbids connections."""
    return bool(constants.HF_HUB_OFFLINE)


def answered_with(error: BaseException | None) -> int | None:
    """The status of the Hub's answer that led to an error, if there was one."""
    while error is not None:
        if (code := getattr(getattr(error, "response", None), "status_code", None)) is not None:
            return int(code)
        error = error.__cause__
    return None


class _Unreachable(Exception):
    """No connection was made at all: the name is not known, or nobody answers at the address."""


def _no_connection(error: BaseException | None) -> bool:
    while error is not None:
        # Of the client's network library, which is another one in newer releases.
        named = type(error).__name__ in ("ConnectError", "ConnectTimeout", "NewConnectionError")
        if named or isinstance(error, (socket.gaierror, ConnectionRefusedError)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _ask(url: str) -> HfFileMetadata | None:
    """What the Hub says of a file; None if it says nothing, which `hf_hub_download` explains or does without.

    Raises:
        _Unreachable: no connection was made.
    """
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
        try:
            return get_hf_file_metadata(url)
        except Exception as error:  # no such file, no permission, no connection
            code = answered_with(error) or 0
            if not code and _no_connection(error):
                raise _Unreachable from error
            if code < 500 and code not in (408, 425, 429):  # it will be the same the next time
                return None
    return None


def _folder(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _fill_cache(repo: str, file: str, url: str, found: HfFileMetadata) -> None:
    """Put the content of a large file where `hf_hub_download` finds it."""
    etag, commit = str(found.etag), str(found.commit_hash)
    for name in (etag, commit):  # both become names of files
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise FetchError(
                f"{url}: the Hub's answer names its content {name!r}, which is no name of a file there"
            )
    if not re.fullmatch("[0-9a-f]{64}", etag):
        return  # a small file, kept in git
    folder = _folder(repo)
    if not (folder / "snapshots" / commit / file).exists():
        fetch(
            url,
            folder / "blobs" / etag,
            digest=file_sha256,  # by which the Hub names large files
            expected=etag,
            locate=lambda: _address(url, get_hf_file_metadata(url)),
        )


def _address(url: str, found: HfFileMetadata) -> Address:
    """Where the content is; a token is for the Hub alone, and not for the hosts that it leads to."""
    location = found.location or url
    same = urlsplit(location).netloc == urlsplit(url).netloc
    headers = {name: value for name, value in build_hf_headers().items() if same or name == "user-agent"}
    return location, headers
