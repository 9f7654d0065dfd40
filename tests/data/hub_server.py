"""What of the Hugging Face Hub's protocol reading a data set needs: its files, their sizes, and parts of them."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "5" * 40


class Hub:
    """One data set; `revisions` gives the folder of its files by the name of the revision."""

    def __init__(self, dataset: str, revisions: dict[str, Path]) -> None:
        self.dataset, self.revisions = dataset, {**revisions}
        self.gated = False
        self.cut_after: list[int] = []  # bytes of the next parts after which the connection ends
        self.requests: list[str] = []


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """Address of the server, for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0].replace("%2F", "/")
            hub.requests.append(path)
            name = re.escape(hub.dataset)
            if found := re.fullmatch(rf"/api/datasets/{name}(?:/revision/(.+))?", path):
                self._facts(found.group(1) or "main")
            elif found := re.fullmatch(rf"/api/datasets/{name}/tree/([^/]+)/(.+)", path):
                folder = self._folder(found.group(1))
                inside = (folder / found.group(2)).iterdir()
                self._json(
                    [self._info(folder, f.relative_to(folder).as_posix()) for f in inside if f.is_file()]
                )
            elif found := re.fullmatch(rf"/datasets/{name}/resolve/([^/]+)/(.+)", path):
                self._file(*found.groups())
            else:
                self._error(404, "RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
            revision = self.path.rpartition("/paths-info/")[2].replace("%2F", "/")
            folder = self._folder(revision)
            paths = (
                json.loads(asked)["paths"] if asked.startswith("{") else re.findall(r"paths=([^&]+)", asked)
            )
            paths = [path.replace("%2F", "/") for path in paths]
            self._json([self._info(folder, p) for p in paths if (folder / p).is_file()])

        def _folder(self, revision: str) -> Path | None:
            return next(iter(hub.revisions.values())) if revision == COMMIT else hub.revisions.get(revision)

        def _facts(self, revision: str) -> None:
            folder = self._folder(revision)
            if folder is None:
                self._error(404, "RevisionNotFound")
                return
            files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
            siblings = [{"rfilename": file} for file in files]
            self._json({"id": hub.dataset, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []})

        def _info(self, folder: Path, path: str) -> dict:
            return {"type": "file", "path": path, "size": (folder / path).stat().st_size, "oid": "1" * 40}

        def _file(self, revision: str, path: str) -> None:
            if hub.gated:
                self._error(403, "GatedRepo")
                return
            content = (self._folder(revision) / path).read_bytes()
            start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = content[int(start) : int(end) + 1 if end else None]
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(part[: hub.cut_after.pop(0)] if hub.cut_after else part)

        def _json(self, value: object) -> None:
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _error(self, code: int, what: str) -> None:
            self.send_response(code)
            self.send_header("X-Error-Code", what)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
