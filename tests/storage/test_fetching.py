"""Files at an address arrive whole or not at all, whatever the server does; it is a real one, on this machine."""

import hashlib
import os
import subprocess
import sys
import threading
import time

import pytest

from common.config import REPOSITORY
from storage import fetching
from storage.fetching import FetchError, fetch
from storage.files import file_sha256
from tests.data.web_server import serve

CONTENT = bytes(range(256)) * 400
HASH = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def web(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_FIRST_PAUSE", 0.001)
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "served").mkdir()
    (tmp_path / "served/w.pth").write_bytes(CONTENT)
    with serve(tmp_path / "served") as (address, faults):
        yield f"{address}/w.pth", faults


@pytest.fixture
def place(tmp_path):
    return tmp_path / "cache/hub/w.pth"


def beside(place):
    return sorted(path.name for path in place.parent.iterdir())


def test_a_file_is_fetched_once_and_nothing_else_stays(web, place):
    url, faults = web
    assert fetch(url, place, digest=file_sha256, expected=HASH) == place
    assert place.read_bytes() == CONTENT and beside(place) == ["w.pth", "w.pth.lock"]
    asked = len(faults.requests)
    fetch(url, place)
    assert len(faults.requests) == asked


def test_cut_connections_and_busy_servers_are_gone_on_from(web, place):
    url, faults = web
    faults.cut_after = [1000, 20_000, 0, 5]
    faults.codes = [503, 429]
    fetch(url, place, digest=file_sha256, expected=HASH[:8])
    assert place.read_bytes() == CONTENT
    ranges = [span for _, span in faults.requests if span != "bytes=0-0"]
    assert "bytes=1000-" in ranges and "bytes=21000-" in ranges and "bytes=21005-" in ranges


def test_what_has_come_stays_for_the_next_try(web, place):
    url, faults = web
    faults.cut_after = [30_000, *[0] * 50]
    with pytest.raises(FetchError, match=r"w.pth cannot be fetched: .*30000 bytes are kept in .*w.pth.part"):
        fetch(url, place)
    assert not place.exists() and (place.parent / "w.pth.part").read_bytes() == CONTENT[:30_000]
    faults.cut_after, faults.requests = [], []
    fetch(url, place, digest=file_sha256, expected=HASH)
    assert place.read_bytes() == CONTENT
    assert [span for _, span in faults.requests if span != "bytes=0-0"] == ["bytes=30000-"]


def test_a_killed_process_leaves_what_has_come(web, place):
    url, faults = web
    faults.hold = threading.Event()
    process = _another(url, place)
    part = place.parent / "w.pth.part"
    while not (part.exists() and part.stat().st_size):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    faults.hold.set()
    faults.hold = None
    faults.requests.clear()
    fetch(url, place, digest=file_sha256, expected=HASH)
    assert place.read_bytes() == CONTENT and ("/w.pth", "bytes=1000-") in faults.requests


def test_of_several_processes_one_fetches_and_the_others_wait(web, place):
    url, faults = web
    faults.hold = threading.Event()
    process = _another(url, place)
    while not faults.downloads():
        assert process.poll() is None
        time.sleep(0.01)
    here = threading.Thread(target=fetch, args=(url, place))
    here.start()
    faults.hold.set()
    here.join()
    assert process.wait(120) == 0 and place.read_bytes() == CONTENT
    assert len(faults.downloads()) == 1


def _another(url, place):
    code = (
        f"from pathlib import Path; from storage.fetching import fetch; fetch({url!r}, Path({str(place)!r}))"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, env={**os.environ, "no_proxy": "*"})


def test_another_version_is_begun_anew(web, place, tmp_path):
    url, faults = web
    faults.cut_after = [30_000, *[0] * 50]
    with pytest.raises(FetchError):
        fetch(url, place)
    faults.cut_after, faults.etag = [], "2"
    (tmp_path / "served/w.pth").write_bytes(CONTENT[::-1])
    fetch(url, place)
    assert place.read_bytes() == CONTENT[::-1]


def test_a_server_without_ranges_is_read_from_the_beginning(web, place):
    url, faults = web
    faults.ranges, faults.cut_after = False, [30_000]
    fetch(url, place, digest=file_sha256, expected=HASH)
    assert place.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CONTENT[:-1] + b"x", f"its hash begins with .*, expected {HASH}"),
        (b"<!DOCTYPE html><html>log in</html>", "it is a web page, not the weights"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a git-lfs pointer"),
        (b"", "it is damaged: it is empty"),
    ],
)
def test_other_content_is_refused_and_not_kept(content, message, web, place, tmp_path):
    url, faults = web
    (tmp_path / "served/w.pth").write_bytes(content)
    if not content:  # has no first byte to ask for
        faults.ranges = False
    with pytest.raises(FetchError, match=f"w.pth did not give the file: {message}"):
        fetch(url, place, digest=file_sha256, expected=HASH)
    assert not place.exists() and "w.pth.part" not in beside(place)


def test_more_than_was_announced_is_refused(web, place, monkeypatch):
    url, _ = web
    monkeypatch.setattr(fetching, "read_from", lambda *_: iter([CONTENT, b"more"]))
    with pytest.raises(FetchError, match=f"has more than the {len(CONTENT)} bytes"):
        fetch(url, place)
    assert not place.exists()


def test_what_will_not_pass_is_said_at_once_in_one_line(web, place, tmp_path):
    url, faults = web
    for code, message in ((404, "does not exist"), (401, "may not be read"), (416, "cannot be read")):
        faults.always = code
        faults.requests.clear()
        with pytest.raises(FetchError, match=message) as caught:
            fetch(url, place)
        assert "\n" not in str(caught.value) and len(faults.requests) == 1
    with pytest.raises(FetchError, match="http://127.0.0.1:9/w cannot be fetched: .*refused"):
        fetch("http://127.0.0.1:9/w", place)
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match=r"file/hub cannot be written \(Not a directory\)|file/hub cannot"):
        fetch(url, tmp_path / "file/hub/w.pth")


def test_a_full_disk_keeps_what_has_come(web, place, monkeypatch):
    def full(*_):
        yield CONTENT[:500]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching, "read_from", full)
    with pytest.raises(FetchError, match="the disk of .* is full; what has come is kept"):
        fetch(web[0], place)
    assert (place.parent / "w.pth.part").stat().st_size == 500


def test_secrets_of_an_address_are_not_in_the_message(web, place):
    url, faults = web
    faults.always = 403
    with pytest.raises(FetchError, match="https://hub/w.pth may not be read") as caught:
        fetch("https://hub/w.pth", place, locate=lambda: (f"{url}?signature=secret", {}))
    assert "secret" not in str(caught.value)
