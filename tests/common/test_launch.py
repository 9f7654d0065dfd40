"""Joining the processes of a launcher."""

import pytest

from common.build import ConfigError
from common.launch import processes


def test_one_process_works_without_a_launcher(engine):
    with processes() as device:
        assert device.type in ("cpu", "cuda")


def test_a_launcher_that_started_one_of_several_processes_is_refused(engine, monkeypatch):
    """`accelerate launch --cpu --num_processes 2` does: every machine would write the same files by itself."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # by itself, a setting of some clusters
    with processes():
        pass
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(ConfigError, match="has started a single process"), processes():
        pass
