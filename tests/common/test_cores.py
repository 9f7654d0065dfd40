"""Cores that a process may use, by what the kernel says of the machine and of its container, and what they are for."""

import os

import pytest

from common import cores


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 16),
        ({"cpu.max": "max 100000"}, 16),
        ({"cpu.max": "250000 100000"}, 2),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "6400000 100000"}, 16),
        ({"cpu__cpu.cfs_quota_us": "400000", "cpu__cpu.cfs_period_us": "100000"}, 4),
        ({"cpu__cpu.cfs_quota_us": "-1", "cpu__cpu.cfs_period_us": "100000"}, 16),
    ],
)
def test_cores(container, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    container(files)
    assert cores.cores() == expected


@pytest.mark.parametrize(
    ("number", "processes", "cpu", "gpu"),
    [(2, 1, 0, 1), (8, 1, 2, 7), (64, 1, 4, 12), (64, 8, 2, 7), (1, 1, 0, 0)],
)
def test_workers(monkeypatch, number, processes, cpu, gpu):
    monkeypatch.setattr(cores, "cores", lambda: number)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert cores.loading_workers("cpu")[0] == cpu and cores.loading_workers("cuda")[0] == gpu


def test_too_many_workers_are_named(monkeypatch, capsys):
    monkeypatch.setattr(cores, "cores", lambda: 4)
    cores.warn_of_workers("num_workers", 3, "cpu")
    assert capsys.readouterr().err == ""
    cores.warn_of_workers("num_workers", 4, "cpu")
    assert "num_workers=4 in each of 1 processes is more than the 4 cores" in capsys.readouterr().err
