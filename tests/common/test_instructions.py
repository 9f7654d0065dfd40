import torch

from common import instructions

CPU = torch.device("cpu")


def test_instructions_are_looked_up(monkeypatch):
    for name in instructions.BF16_INSTRUCTIONS:
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not instructions.has_bf16(CPU) and instructions.is_imitated(torch.bfloat16, CPU)
    monkeypatch.setattr(torch.cpu, instructions.BF16_INSTRUCTIONS[0], lambda: True, raising=False)
    assert instructions.has_bf16(CPU) and not instructions.is_imitated(torch.bfloat16, CPU)
    for found in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda found=found: found)
        assert instructions.is_imitated(torch.float16, CPU) is not found
    assert not instructions.is_imitated(torch.float32, CPU)
    assert not instructions.is_imitated(torch.float16, torch.device("cuda"))
