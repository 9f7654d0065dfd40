"""Which number formats a device multiplies by itself; others it imitates, several times slower than float32."""

import torch

BF16_INSTRUCTIONS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # either of them, of torch.cpu


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 by itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    found = (getattr(torch.cpu, name, None) for name in BF16_INSTRUCTIONS)
    return device.type == "cpu" and any(test() for test in found if test is not None)


def has_fp16(device: torch.device) -> bool:
    """Whether the device multiplies float16 by itself."""
    if device.type != "cpu":
        return True
    test = getattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", None)
    return torch.backends.mkldnn.is_available() and test is not None and bool(test())


def is_imitated(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a CPU imitates this type of numbers, so that it saves memory and costs time."""
    has = {torch.bfloat16: has_bf16, torch.float16: has_fp16}.get(dtype)
    return device.type == "cpu" and has is not None and not has(device)
