"""Files at an URL: their version, and their bytes from any place on.

`http` and `https` are read by the standard library, everything else by fsspec: `hf://` by huggingface_hub, `s3://` by
s3fs, `gs://` by gcsfs, and so on, with credentials from where these look for them.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import fsspec
from fsspec.core import split_protocol, url_to_fs
from fsspec.registry import known_implementations

_BLOCK = 1 << 22
_SILENCE = 60.0  # seconds without a byte, after which a connection counts as broken
# Parts of the names of exceptions by which libraries say that the reader may not read; they share no base class.
_REFUSALS = ("Credential", "Permission", "Forbidden", "AccessDenied", "Gated")


class RemoteError(ValueError):
    """A remote file cannot be read, now or later; the message names it."""


@dataclass(frozen=True)
class Version:
    """What tells that a remote file is still the same: bytes, and what its server says of its content."""

    size: int
    etag: str


def is_remote(path: str) -> bool:
    """Whether a path is an URL."""
    return split_protocol(path)[0] is not None


def require_readable(url: str) -> None:
    """Raise RemoteError, with the command that installs it, if the package for the URL's protocol is missing."""
    protocol = split_protocol(url)[0]
    if protocol in ("http", "https"):
        return
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        package = known_implementations[protocol]["class"].split(".")[0]
        raise RemoteError(f"{url}: {protocol}:// needs a package; pip install {package}") from error
    except ValueError as error:
        known = "s3, gs, https, hf, or another protocol of fsspec"
        raise RemoteError(f"{url}: {protocol}:// is not known; expected {known}") from error


def version_of(url: str, headers: Mapping[str, str] | None = None) -> Version:
    """Size and tag of a remote file; raises RemoteError for good, and anything else if another try may help.

    `headers` are for http and https, such as an authorization; they stay with the host of `url`.
    """
    if _is_http(url):
        with _request(
            url, "bytes=0-0", headers
        ) as response:  # signed addresses are for GET alone, so no HEAD
            size = response.headers.get("Content-Range", "").rpartition("/")[2]
            size = size if response.status == 206 else response.headers.get("Content-Length", "")
            if not size.isdigit():
                raise RemoteError(f"{url}: its server does not say how many bytes it has")
            return Version(int(size), _tag(response))
    with _refusals_named(url):
        system, path = url_to_fs(url)
        system.invalidate_cache()  # what another run saw is of no interest
        return Version(int(system.info(path)["size"]), str(system.checksum(path)))


def read_from(
    url: str, start: int, version: Version, headers: Mapping[str, str] | None = None
) -> Iterator[bytes]:
    """Bytes of a remote file from `start` on, in blocks; errors as `version_of`, and when it is another version."""
    if _is_http(url):
        with _request(url, f"bytes={start}-", headers) as response:
            if _tag(response) != version.etag:
                raise RemoteError(f"{url} changed while it was fetched; fetch it again")
            left = start if response.status == 200 else 0  # the server knows no ranges
            while left and (block := response.read(min(left, _BLOCK))):
                left -= len(block)
            while block := response.read1(_BLOCK):  # what has come, so that a killed process loses little
                yield block
        return
    with _refusals_named(url):
        system, path = url_to_fs(url)
        with system.open(path, "rb", block_size=_BLOCK) as file:
            file.seek(start)
            while block := file.read(_BLOCK):
                yield block


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _request(url: str, span: str, headers: Mapping[str, str] | None = None) -> urllib.request.addinfourl:
    request = urllib.request.Request(url, headers={"Range": span, "Accept-Encoding": "identity"})
    for name, value in (headers or {}).items():
        request.add_unredirected_header(name, value)  # whoever a redirect leads to must not learn them
    try:
        return urllib.request.urlopen(request, timeout=_SILENCE)
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise RemoteError(f"{url} does not exist ({error.code} {error.reason})") from error
        if error.code in (401, 403):
            raise RemoteError(f"{url} may not be read ({error.code} {error.reason})") from error
        if error.code < 500 and error.code not in (408, 425, 429):
            raise RemoteError(f"{url} cannot be read ({error.code} {error.reason})") from error
        raise


def _tag(response: urllib.request.addinfourl) -> str:
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


class _refusals_named:
    """Turns what a library raises for good into a RemoteError that names the URL."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise RemoteError(f"{self._url} does not exist") from error
        if error is not None and any(word in kind.__name__ for word in _REFUSALS):
            where = "credentials are taken from where its fsspec package looks for them"
            raise RemoteError(f"{self._url} may not be read: {error} ({where})") from error
