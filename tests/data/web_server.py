"""A web server for tests, with ranges, and with the faults that real ones show."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Faults:
    """What goes wrong with the next requests, and what was asked for."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []  # path and range
        self.cut_after: list[int] = []  # bytes of the next answers after which the connection ends
        self.codes: list[int] = []  # of the next answers
        self.always: int | None = None  # code of all answers
        self.ranges = True
        self.etag = "1"
        self.extra = b""  # sent after what was announced
        self.hold: threading.Event | None = None  # answers wait for it after their first bytes

    def downloads(self) -> list[tuple[str, str]]:
        """Requests for more than the first byte, which only asks for the version."""
        return [r for r in self.requests if r[1] != "bytes=0-0"]


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, Faults]]:
    """(address, faults) of a server of the files in a folder."""
    faults = Faults()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            faults.requests.append((self.path, asked))
            path = folder / self.path.split("?")[0].lstrip("/")
            code = faults.always or (faults.codes.pop(0) if faults.codes else None)
            if code is None and not path.is_file():
                code = 404
            if code is not None:
                self.send_error(code)
                return
            content = path.read_bytes()
            start, _, end = asked.removeprefix("bytes=").partition("-")
            part = content[int(start) : int(end) + 1 if end else None] if faults.ranges and asked else content
            self.send_response(206 if faults.ranges and asked else 200)
            self.send_header("ETag", faults.etag)
            self.send_header("Content-Length", str(len(part)))
            if faults.ranges:
                self.send_header("Content-Range", f"bytes {start}-{end or len(content) - 1}/{len(content)}")
            self.end_headers()
            if asked != "bytes=0-0" and faults.hold is not None:
                self.wfile.write(part[:1000])
                self.wfile.flush()
                faults.hold.wait(60)
                part = part[1000:]
            if asked != "bytes=0-0" and faults.cut_after:
                part = part[: faults.cut_after.pop(0)]
            self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", faults
    finally:
        server.shutdown()
        server.server_close()
