"""What of the Hugging Face Hub's protocol downloading a file needs, with the faults that the real one shows.

Files lie on two hosts as at the Hub: the Hub answers for small ones itself, and leads to another host for large ones,
whose address is signed and whose SHA-256 and size it knows.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "5" * 40


class Hub:
    """Contents by (repository, file), and what goes wrong."""

    def __init__(self) -> None:
        self.files: dict[tuple[str, str], bytes] = {}
        self.gated: set[str] = set()
        self.busy: list[int] = []  # codes of the Hub's next answers
        self.cut_after: list[int] = []  # bytes of the next contents after which the connection ends
        self.instead: bytes | None = None  # what the other host sends
        self.web_page = False  # a portal answers in the Hub's place
        self.commit, self.etag = COMMIT, None
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        self.tokens: dict[str, set[str | None]] = {"hub": set(), "other": set()}

    def contents(self) -> list[str]:
        """Ranges of large files that were asked for, but for their first byte, which only tells the version."""
        return [span for _, path, span in self.requests if path.startswith("/cdn/") and span != "bytes=0-0"]


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """Address of the Hub, for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, span = self.path.split("?")[0], self.headers.get("Range", "")
            hub.requests.append((self.command, path, span))
            host = "other" if path.startswith("/cdn/") else "hub"
            hub.tokens[host].add(self.headers.get("Authorization"))
            if hub.web_page:
                self._answer(200, b"<!DOCTYPE html><html>log in</html>", {})
            elif host == "other":
                self._content(path.removeprefix("/cdn/"), span)
            elif hub.busy:
                self._answer(hub.busy.pop(0), b"", {})
            else:
                repo, _, file = path[1:].partition("/resolve/main/")
                self._resolve(repo, file)

        do_HEAD = do_GET

        def _resolve(self, repo: str, file: str) -> None:
            content = hub.files.get((repo, file))
            if repo in hub.gated:
                self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
            elif not any(repo == known for known, _ in hub.files):
                self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
            elif content is None:
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": hub.commit})
            elif file.endswith(".json"):
                etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                self._answer(200, content, {"X-Repo-Commit": hub.commit, "ETag": f'"{hub.etag or etag}"'})
            else:
                digest = hashlib.sha256(content).hexdigest()
                headers = {"X-Linked-Etag": f'"{hub.etag or digest}"', "X-Linked-Size": str(len(content))}
                headers |= {"Location": f"{other}/cdn/{repo}/{file}?signature=secret"}
                self._answer(302, b"", {"X-Repo-Commit": hub.commit, **headers})

        def _content(self, path: str, span: str) -> None:
            owner, name, file = path.split("/", 2)
            whole = hub.files[f"{owner}/{name}", file] if hub.instead is None else hub.instead
            start, _, end = span.removeprefix("bytes=").partition("-")
            part = whole[int(start or 0) : int(end) + 1 if end else None]
            headers = {"ETag": '"other-tag"', "Content-Type": "application/octet-stream"}
            if span:
                headers["Content-Range"] = f"bytes {start}-{int(start) + len(part) - 1}/{len(whole)}"
            self._answer(206 if span else 200, part, headers, cut=span != "bytes=0-0")

        def _answer(self, code: int, content: bytes, headers: dict[str, str], cut: bool = False) -> None:
            self.send_response(code)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: hub.cut_after.pop(0)] if cut and hub.cut_after else content)

        def log_message(self, *_: object) -> None:
            pass

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    other = f"http://localhost:{servers[1].server_port}"
    for server in servers:
        server.daemon_threads = True
        options = {"poll_interval": 0.01}
        threading.Thread(target=server.serve_forever, kwargs=options, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{servers[0].server_port}"
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
