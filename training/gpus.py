"""Kinds of GPU that runs are planned for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """A kind of GPU: bytes of memory, and 10^12 dense operations per second by precision (0 = not there)."""

    memory: float
    bf16: float
    fp16: float
    tf32: float  # of float32 products with training.matmul_precision=high

    def peak(self, precision: str) -> float:
        """Operations per second of matrix products in a precision of `training.mixed_precision`."""
        return 1e12 * {"bf16": self.bf16, "fp16": self.fp16, "no": self.tf32}[precision]


# From the data sheets of NVIDIA (T4 2019, V100 2020, A100 2021, A10 2021, L4 and L40S 2023, H100 SXM 2023, H200 SXM
# 2024) and the white papers of GA102 and AD102; without sparsity, GB of 10^9 bytes. GPUs older than Ampere have no
# TF32: theirs is the rate of float32.
GPUS = {
    "t4": GPU(16e9, 0, 65, 8.1),
    "v100-32": GPU(32e9, 0, 125, 15.7),
    "rtx3090": GPU(24e9, 71, 71, 35.6),
    "rtx4090": GPU(24e9, 165.2, 165.2, 82.6),
    "a10": GPU(24e9, 125, 125, 62.5),
    "l4": GPU(24e9, 121, 121, 60),
    "l40s": GPU(48e9, 362, 362, 183),
    "a100-40": GPU(40e9, 312, 312, 156),
    "a100-80": GPU(80e9, 312, 312, 156),
    "h100": GPU(80e9, 989, 989, 494),
    "h200": GPU(141e9, 989, 989, 494),
}
