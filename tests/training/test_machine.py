"""Memory that a process may use, by what the kernel says of the machine and of its container."""

import torch

from training import machine

CPU = torch.device("cpu")


def test_memory_is_what_the_container_leaves_divided_by_its_processes(container, monkeypatch):
    container({"memory.max": "4000000", "memory.current": "1000000"})
    assert machine.free_memory(CPU) == 3_000_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert machine.free_memory(CPU) == 1_000_000
    assert machine.free_memory(torch.device("meta")) is None


def test_a_product_has_a_speed():
    assert machine.operations_per_second(CPU, torch.float32) > 1e8
