"""A long step says that it is alive; nothing else does, and the thread ends with its block."""

import threading
import time

from common import distributed
from training.heartbeat import Heartbeat


def wait_for(what, seconds=20.0):
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.005)
    assert what()


def test_a_long_step_is_told_of_more_and_more_rarely(monkeypatch):
    said = []
    monkeypatch.setattr("training.heartbeat.say", lambda text: said.append((time.monotonic(), text)))
    with Heartbeat(patience=0.05) as heartbeat:
        with heartbeat.during("step 7"):
            wait_for(lambda: len(said) >= 3)
        assert all("step 7 has been running for" in text for _, text in said)
        assert said[2][0] - said[1][0] > said[1][0] - said[0][0], "the time between lines doubles"
        count = len(said)
        for _ in range(3):
            with heartbeat.during("step 8"):
                pass
        with heartbeat.during("step 9"):
            wait_for(lambda: len(said) > count)
        assert "step 9" in said[count][1], "short steps are not mentioned, and the next long one is at once"
    assert not heartbeat.thread.is_alive()


def test_only_the_main_process_has_a_thread(monkeypatch):
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    before = threading.active_count()
    with Heartbeat(patience=0.01) as heartbeat, heartbeat.during("step 1"):
        assert threading.active_count() == before
