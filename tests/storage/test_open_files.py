"""Files stay open between reads, a bounded number of them, safely for threads and forked processes."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from storage.open_files import OpenFiles


@pytest.fixture
def paths(tmp_path):
    for number in range(10):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 100)
    return [str(tmp_path / str(number)) for number in range(10)]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_file_is_opened_once_and_few_stay_open(paths):
    opened = []
    files = OpenFiles(4, lambda path: opened.append(path) or os.open(path, os.O_RDONLY))
    before = descriptors()
    for _ in range(3):
        assert [files.read(path, 7, 2)[0] for path in paths[:4]] == [0, 1, 2, 3]
    assert opened == paths[:4] and descriptors() == before + 4
    files.read(paths[0], 0, 1)
    files.read(paths[9], 0, 1)  # closes the one that was not read for longest
    files.read(paths[0], 0, 1)
    files.read(paths[1], 0, 1)
    assert opened == [*paths[:4], paths[9], paths[1]] and descriptors() == before + 4
    again = pickle.loads(pickle.dumps(OpenFiles(2)))
    assert again.read(paths[5], 0, 3) == b"\5\5\5"
    files.close()
    assert descriptors() == before + 1
    with pytest.raises(FileNotFoundError):
        files.read(paths[0] + "x", 0, 1)


def test_a_descriptor_that_has_become_invalid_is_replaced(paths, tmp_path):
    opened = []

    def opener(path):
        opened.append(path)
        return os.open(tmp_path if len(opened) == 1 else path, os.O_RDONLY)  # a folder cannot be read

    assert OpenFiles(4, opener).read(paths[3], 0, 2) == b"\3\3" and len(opened) == 2
    with pytest.raises(IsADirectoryError):
        OpenFiles(4).read(str(tmp_path), 0, 1)


def test_threads_share_the_files(paths):
    files, draws = OpenFiles(2), np.random.default_rng(0).integers(0, 10, 2000)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: files.read(paths[n], 99, 1)[0], draws)) == draws.tolist()


def test_a_forked_process_opens_its_own(paths):
    files = OpenFiles(4)
    files.read(paths[1], 0, 1)
    files._lock.acquire()  # as when another thread of the parent is inside
    child = os.fork()
    if child == 0:
        os._exit(files.read(paths[1], 0, 1)[0])
    files._lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert files.read(paths[1], 0, 1) == b"\1"
