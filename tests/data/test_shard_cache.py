"""Remote shards: fetched once and whole, resumed, bounded, shared, and named when they cannot be had."""

import errno
import os
import random
import signal
import threading
import time
from pathlib import Path

import fsspec
import pytest

from data import shard_cache
from data.shard_cache import ShardCache
from storage import remote_files
from storage.remote_files import RemoteError, is_remote, require_readable
from tests.data.web_server import serve


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(shard_cache, "_FIRST_PAUSE", 0.0)
    monkeypatch.setattr(shard_cache, "_POLL", 0.01)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "server"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.tar").write_bytes(os.urandom(10_000) + bytes([number]) * 40_000)
    return folder


@pytest.fixture
def web(files):
    with serve(files) as (address, faults):
        yield address, faults


def content(cache: ShardCache, url: str) -> bytes:
    file = cache.open(url)
    try:
        return os.pread(file, 10**6, 0)
    finally:
        os.close(file)


def whole(folder: Path) -> list[str]:
    return sorted(p.name.partition("-")[2] for p in folder.glob("*.tar"))


def test_a_shard_is_fetched_once(tmp_path, files, web):
    address, faults = web
    cache = ShardCache(tmp_path / "cache", 1)
    for _ in range(2):
        assert content(cache, f"{address}/1.tar") == (files / "1.tar").read_bytes()
    assert faults.requests == [("/1.tar", "bytes=0-0"), ("/1.tar", "bytes=0-")]
    assert content(cache, f"{address}/1.tar?signature=2") == (files / "1.tar").read_bytes()
    assert whole(tmp_path / "cache") == ["1.tar", "1.tar"]


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_other_protocols_go_through_fsspec(tmp_path, files, protocol):
    url = f"file://{files}/2.tar"
    if protocol == "memory":
        url = "memory://bucket/2.tar"
        fsspec.filesystem("memory").pipe_file("/bucket/2.tar", (files / "2.tar").read_bytes())
    cache = ShardCache(tmp_path / "cache", 1)
    part = cache.place(url).with_name(f"{cache.place(url).name}.part")
    version = remote_files.version_of(url)
    part.parent.mkdir()
    shard_cache.write_json(part.with_suffix(".json"), {"size": version.size, "etag": version.etag})
    part.write_bytes((files / "2.tar").read_bytes()[:12_345])  # of an interrupted download
    assert content(cache, url) == (files / "2.tar").read_bytes()
    with pytest.raises(RemoteError, match="3.zip does not exist"):
        cache.open(url.replace("2.tar", "3.zip"))


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_is_resumed_where_it_ended(tmp_path, files, web, ranges):
    address, faults = web
    faults.ranges, faults.cut_after = ranges, [20_000, 30_000 if not ranges else 10_000]
    assert content(ShardCache(tmp_path / "cache", 1), f"{address}/1.tar") == (files / "1.tar").read_bytes()
    assert [span for _, span in faults.downloads()] == ["bytes=0-", "bytes=20000-", "bytes=30000-"]


def test_a_server_in_trouble_is_asked_again_and_at_last_named(tmp_path, files, web):
    address, faults = web
    faults.codes = [503, 429, 500]
    cache = ShardCache(tmp_path / "cache", 1)
    assert content(cache, f"{address}/1.tar") == (files / "1.tar").read_bytes()
    faults.always = 503
    with pytest.raises(RemoteError, match=rf"shard {address}/2.tar cannot be fetched: .*503.* \(6 tries\)"):
        cache.open(f"{address}/2.tar")
    faults.requests.clear()
    for code, reason in ((404, "does not exist"), (403, "may not be read"), (400, "cannot be read")):
        faults.always = code
        with pytest.raises(RemoteError, match=rf"{address}/2.tar {reason} \({code}"):
            cache.open(f"{address}/2.tar")
    assert len(faults.requests) == 3  # what another try cannot change is not tried again
    nowhere = "http://127.0.0.1:9/x.tar"
    with pytest.raises(RemoteError, match=f"shard {nowhere} cannot be fetched: .*refused"):
        cache.open(nowhere)


def test_another_version_is_fetched_anew_but_not_under_an_index(tmp_path, files, web):
    address, faults = web
    url, cache = f"{address}/1.tar", ShardCache(tmp_path / "cache", 1)
    faults.cut_after, faults.codes = [20_000], []
    faults.always = None
    place = cache.place(url)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shard_cache, "_TRIES", 1)
        faults.cut_after = [20_000, 0]
        with pytest.raises(RemoteError, match="the connection ended after 20000 of 50000 bytes"):
            cache.open(url)
    assert place.with_name(f"{place.name}.part").stat().st_size == 20_000
    (files / "1.tar").write_bytes(os.urandom(45_000))
    faults.etag = "2"
    assert content(cache, url) == (files / "1.tar").read_bytes()
    place.with_name(f"{place.name}.index").touch()
    assert content(cache, url) == (files / "1.tar").read_bytes()
    place.unlink()  # evicted
    assert content(cache, url) == (files / "1.tar").read_bytes()
    place.unlink()
    faults.etag = "3"
    with pytest.raises(
        RemoteError, match=f"{url} changed since it was indexed: 45000 bytes then, 45000 now; remove"
    ):
        cache.open(url)


def test_the_least_recently_used_shard_goes_but_never_one_in_use(tmp_path, web, monkeypatch):
    address, _ = web
    cache = ShardCache(tmp_path / "cache", 160_000 / 1e9)  # three shards of 50,000 bytes
    urls = [f"{address}/{number}.tar" for number in range(6)]

    def use(number: int, when: int) -> int:
        file = cache.open(urls[number])
        os.utime(cache.place(urls[number]), (when, when))
        return file

    reader = use(0, 1)
    for number in (1, 2):
        os.close(use(number, 1 + number))
    os.close(use(1, 10))
    os.close(use(3, 11))
    assert whole(tmp_path / "cache") == ["0.tar", "1.tar", "3.tar"]  # 2 was used before 1, and 0 is open
    assert os.pread(reader, 10**6, 49_999) == b"\0"
    os.close(reader)
    os.close(use(4, 12))
    assert whole(tmp_path / "cache") == ["1.tar", "3.tar", "4.tar"]
    held = [use(number, 20) for number in (1, 3, 4)]
    monkeypatch.setattr(shard_cache, "_PATIENCE", 0.0)
    with pytest.raises(RemoteError, match=r"cache_gigabytes=0.00016 has no room for .*-5.tar .*are in use"):
        cache.open(urls[5])
    cache.fetch(urls[5], wait=False)  # in the background nothing is waited for
    for file in held:
        os.close(file)
    os.close(cache.open(urls[5]))
    assert len(whole(tmp_path / "cache")) == 3


def test_a_shard_that_lost_its_room_is_waited_for(tmp_path, web):
    address, _ = web
    cache = ShardCache(tmp_path / "cache", 60_000 / 1e9)
    reader = cache.open(f"{address}/0.tar")
    threading.Timer(0.3, os.close, (reader,)).start()
    os.close(cache.open(f"{address}/1.tar"))
    assert whole(tmp_path / "cache") == ["1.tar"]


def test_processes_that_wait_for_room_let_go_of_their_own(tmp_path, files, web):
    """Each holds what the other one's shard would take the place of."""
    address, _ = web
    cache = ShardCache(tmp_path / "cache", 110_000 / 1e9)  # two shards
    children = []
    for number in (0, 1):
        children.append(os.fork())
        if children[-1] == 0:
            cache.read(f"{address}/{number}.tar", 0, 1)
            (tmp_path / f"holds{number}").touch()
            _until((tmp_path / f"holds{1 - number}").exists)
            got = cache.read(f"{address}/{number + 2}.tar", 0, 10**6)
            os._exit(0 if got == (files / f"{number + 2}.tar").read_bytes() else 1)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]


def test_unfinished_shards_count_with_their_whole_size_and_go_when_abandoned(tmp_path, web, monkeypatch):
    address, faults = web
    cache = ShardCache(tmp_path / "cache", 120_000 / 1e9)
    monkeypatch.setattr(shard_cache, "_TRIES", 1)
    faults.cut_after = [100]
    with pytest.raises(RemoteError, match="ended after 100"):
        cache.open(f"{address}/0.tar")
    os.close(cache.open(f"{address}/1.tar"))
    assert list((tmp_path / "cache").glob("*.part"))
    os.close(cache.open(f"{address}/2.tar"))  # 150,000 bytes with the unfinished one, which is the oldest
    assert whole(tmp_path / "cache") == ["1.tar", "2.tar"] and not list((tmp_path / "cache").glob("*.part"))


def test_processes_share_one_download_and_a_killed_one_blocks_nobody(tmp_path, files, web):
    address, faults = web
    url, cache = f"{address}/1.tar", ShardCache(tmp_path / "cache", 1)
    faults.hold = threading.Event()
    first = os.fork()
    if first == 0:
        os.close(cache.open(url))
        os._exit(0)
    part = cache.place(url).with_name(f"{cache.place(url).name}.part")
    _until(lambda: part.exists() and part.stat().st_size == 1000)
    others = []
    for _ in range(3):
        others.append(os.fork())
        if others[-1] == 0:
            os._exit(0 if content(cache, url) == (files / "1.tar").read_bytes() else 1)
    cache.fetch(url, wait=False)  # returns at once, since another is at it
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    _until(lambda: len(faults.downloads()) == 2)
    faults.hold.set()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in others] == [0, 0, 0]
    assert [span for _, span in faults.downloads()] == ["bytes=0-", "bytes=1000-"]


@pytest.mark.slow
def test_processes_killed_at_random_leave_whole_shards_within_the_bound(tmp_path, files, web):
    """Six processes read six shards through a cache of four; connections end early, and thirty processes are killed."""
    address, faults = web
    contents = [(files / f"{number}.tar").read_bytes() for number in range(6)]
    limit = 4.2 * 50_000
    deadline, running, killed, draws = time.monotonic() + 160, {}, 0, random.Random(0)

    def read(seed: int) -> int:
        cache, choose = ShardCache(tmp_path / "cache", limit / 1e9, open_shards=2), random.Random(seed)
        for _ in range(100):
            number = choose.randrange(6)
            if choose.random() < 0.2:
                cache.expect([f"{address}/{n}.tar" for n in choose.sample(range(6), 2)])
            if cache.read(f"{address}/{number}.tar", 0, 10**6) != contents[number]:
                return 1
        return 0

    while running or killed < 30:
        assert time.monotonic() < deadline
        while killed < 30 and len(running) < 6:
            seed = draws.randrange(10**9)
            child = os.fork()
            if child == 0:
                try:
                    os._exit(read(seed))
                except BaseException as error:
                    os.write(2, f"{error}\n".encode())
                    os._exit(2)
            running[child] = None
        time.sleep(draws.random() * 0.1)
        faults.cut_after.append(draws.randrange(50_000))
        if killed < 30 and draws.random() < 0.5:
            os.kill(draws.choice([*running]), signal.SIGKILL)
            killed += 1
        if (tmp_path / "cache").is_dir():
            with shard_cache.exclusive(tmp_path / "cache/.room.lock"):
                held = [_size(p) for p in (tmp_path / "cache").iterdir() if p.suffix in (".tar", ".part")]
            assert sum(held) <= limit
        for child in [*running]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)
                del running[child]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # an unfinished one without room
        return 0


def _until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_shards_that_are_expected_come_in_the_background(tmp_path, web):
    address, faults = web
    cache = ShardCache(tmp_path / "cache", 1)
    urls = [f"{address}/{number}.tar" for number in range(5)]
    cache.expect(urls[:2], [f"{address}/missing.tar", *urls[2:]])
    _until(lambda: len(whole(tmp_path / "cache")) == 5)
    assert {path for path, _ in faults.downloads()[:2]} == {"/0.tar", "/1.tar"}  # the first group first
    cache.expect(urls)
    assert len(faults.downloads()) == 5


def test_a_server_that_sends_too_much_or_no_size_is_named(tmp_path, files, web, monkeypatch):
    address, _ = web
    cache = ShardCache(tmp_path / "cache", 1)
    with monkeypatch.context() as patched:
        patched.setattr(shard_cache, "read_from", lambda *args: iter([bytes(60_000)]))
        with pytest.raises(
            RemoteError, match="1.tar has more than the 50000 bytes that its server announced"
        ):
            cache.open(f"{address}/1.tar")
    assert content(cache, f"{address}/1.tar") == (files / "1.tar").read_bytes()


def test_a_full_disk_is_named(tmp_path, web, monkeypatch):
    address, _ = web

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shard_cache.os, "write", full)
    with pytest.raises(
        RemoteError, match=f"the disk is full while shard {address}/1.tar is fetched; lower cache_gig"
    ):
        ShardCache(tmp_path / "cache", 1).open(f"{address}/1.tar")


def test_a_long_download_says_how_far_it_is(tmp_path, web, monkeypatch, capsys):
    address, _ = web
    monkeypatch.setattr(shard_cache, "_FIRST_NOTICE", 0.0)
    monkeypatch.setattr(remote_files, "_BLOCK", 10_000)
    os.close(ShardCache(tmp_path / "cache", 1).open(f"{address}/1.tar"))
    assert f"fetching {address}/1.tar: " in capsys.readouterr().out


def test_missing_packages_and_credentials_are_named(tmp_path, monkeypatch):
    assert is_remote("s3://a/b.tar") and not is_remote("/a/b.tar") and not is_remote("a{0..1}.tar")

    def missing(protocol):
        raise ImportError("Install s3fs to access S3")

    with monkeypatch.context() as patched:
        patched.setattr(fsspec, "get_filesystem_class", missing)
        with pytest.raises(RemoteError, match="s3://bucket/a.tar: s3:// needs a package; pip install s3fs"):
            require_readable("s3://bucket/a.tar")
    with pytest.raises(RemoteError, match="xyz://a.tar: xyz:// is not known; expected s3, gs, https, hf"):
        require_readable("xyz://a.tar")

    class NoCredentialsError(Exception):
        pass

    def refused(self, path):
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", refused)
    with pytest.raises(
        RemoteError, match="memory://bucket/a.tar may not be read: Unable to locate credentials"
    ):
        ShardCache(tmp_path, 1).open("memory://bucket/a.tar")


@pytest.mark.parametrize(
    "name", ["x" * 300 + ".tar", "..", "a\0b.tar", "\udcff.tar", "é" * 200, "a\nb.tar", ""]
)
def test_names_of_servers_stay_in_the_folder(tmp_path, name):
    place = ShardCache(tmp_path, 1.0).place(f"https://host/folder/{name}")
    assert place.parent == tmp_path and len(os.fsencode(f"{place.name}.index")) <= 255
    place.touch()
    assert [p.name for p in tmp_path.iterdir()] == [place.name] and place.name.isprintable()
