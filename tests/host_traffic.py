"""Sees what passes between the host and the device: reads, which wait for all work so far, and copies."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "item", "nonzero", "_unique2", "masked_select")
MADE_HERE = ("lift_fresh",)  # a tensor of Python numbers
HOST = "cpu"


class HostTraffic(TorchDispatchMode):
    """Names the operations within: `found` has all that read from the device or bring something to it.

    `waits` has those at which the host waits for the device: reads of its tensors, copies from it, and copies to it
    unless they are `non_blocking`. Boolean masks as indices count as reads. The device is every other than the CPU, so
    without a GPU tensors are fake or on the meta device; on the CPU, `found` has all reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function._overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        # Numbers, tensors without dimensions on the host, are handed over with the call.
        devices = {tensor.device.type for tensor in given if tensor.ndim or tensor.device.type != HOST}
        masked = name.startswith("index") and any(tensor.dtype == torch.bool for tensor in given[1:])
        crosses = len(devices | {tensor.device.type for tensor in made}) > 1
        if name == "_to_copy":
            crosses = len({tensor.device.type for tensor in (*given, *made)}) > 1
        if name in (*READS, *MADE_HERE) or masked or crosses:
            self.found.append(str(function))
        fed = crosses and all(tensor.device.type != HOST for tensor in made)
        read = (name in READS or masked) and any(tensor.device.type != HOST for tensor in given)
        if read or (crosses and not (fed and kwargs.get("non_blocking"))):
            self.waits.append(str(function))
        return result
