"""Processes and devices of a training run."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from common import distributed
from common.build import ConfigError
from common.launch import require_joined
from training.settings import ExperimentSettings, TrainingSettings


def start(training: TrainingSettings, experiment: ExperimentSettings) -> Accelerator:
    """Join the process group, set the precision of products, seed initialisation; call it before building modules."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ConfigError(
            "Accelerate is configured for FSDP, which is not used here; start without it (torchrun, or accelerate"
            " launch --multi_gpu) and set training.sharding=full"
        )
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(
        # Without a GPU, Accelerate joins several processes only if told to use the CPU.
        cpu=several and not torch.cuda.is_available(),
        mixed_precision="no",  # training/precision.py; Accelerate has one loss scale for all modules
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        kwargs_handlers=[
            DistributedDataParallelKwargs(gradient_as_bucket_view=True),  # no second copy
            InitProcessGroupKwargs(timeout=timedelta(minutes=training.timeout_minutes)),
        ],
    )
    require_joined(accelerator.num_processes)
    distributed.watch_peers()
    torch.set_float32_matmul_precision(training.matmul_precision)
    torch.backends.cudnn.allow_tf32 = training.matmul_precision != "highest"
    _choose_kernels(training.deterministic)
    if accelerator.device.type == "cpu":
        # On CPUs the fused attention kernel is the slow one for the short sequences of 1-D tokenizers (measured:
        # 149 -> 337 images/s at 49 tokens with matmul_precision=medium); this switch covers the CPU kernel too.
        torch.backends.cuda.enable_flash_sdp(False)
    torch.manual_seed(experiment.seed)  # the same on every process
    return accelerator


def _choose_kernels(deterministic: bool) -> None:
    # Training has batches of one shape, so it pays to time the kernels of a convolution once and keep the fastest.
    # Which one wins can differ from run to run, and with it the last bits.
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
