"""Settings whose value is `auto`: precision, workers and micro-batch that suit the machine, and why.

Values that a recipe or the command line gives are kept; those that do not suit the machine are named. A resumed run
keeps what it was begun with, as far as the machine can, so that its numbers do not change.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from common import distributed
from common.build import ConfigError
from common.console import duration, one_line, say, warn
from common.cores import loading_workers, warn_of_workers
from common.instructions import has_bf16
from training.checkpoint import CheckpointFolder
from training.machine import free_memory, operations_per_second
from training.memory_plan import Plan
from training.run_lengths import in_steps
from training.settings import TrainingSettings
from training.task import Task
from training.unloaded import Run

AUTO = "auto"
FASTER = 1.5  # bfloat16 pays on a CPU above this ratio to float32: casting costs too
USED = {"cuda": 0.9, "cpu": 0.7}  # share of the free memory that a micro-batch may fill
LARGE_MODEL = (
    20_000_000  # parameters; smaller models fit anywhere, and estimating takes longer than their first step
)


def settle(run: Run, accelerator: Accelerator) -> None:
    """Replace the values `auto` of `run.training`, the same on every process, and say what was chosen.

    Raises:
        ConfigError: the global batch cannot be divided, or not even one example fits into memory.
    """
    device, before = accelerator.device, run.training
    chosen = distributed.on_main(lambda: _chosen(run, device))
    run.training = replace(before, **chosen)
    accelerator.gradient_accumulation_steps = run.training.gradient_accumulation_steps
    torch.manual_seed(run.experiment.seed)  # again: measuring may have drawn numbers


def _chosen(run: Run, device: torch.device) -> dict[str, Any]:
    before, stored = run.training, _stored(Path(run.experiment.output_dir))
    chosen: dict[str, Any] = {}
    if before.mixed_precision == AUTO:
        chosen["mixed_precision"] = _precision(before, device, stored.get("mixed_precision"))
    elif device.type == "cpu":
        _warn_of_slow_precision(before.mixed_precision, device)
    if before.num_workers == AUTO:
        chosen["num_workers"] = _workers(device)
    else:
        warn_of_workers("training.num_workers", before.num_workers, device.type)
    known = replace(before, **chosen)
    if before.per_gpu_batch_size == AUTO:
        chosen |= _micro_batch(run, known, device, stored)
    elif before.global_batch_size is not None:
        chosen["gradient_accumulation_steps"] = _accumulation(known)
    return chosen


def _stored(folder: Path) -> Mapping[str, Any]:
    """Section `training` of the newest checkpoint; empty without one."""
    return CheckpointFolder(folder, keep=1).newest_config().get("training", {})


def _say(key: str, value: object, why: str) -> None:
    say(f"training.{key}=auto: {value}, {why}")


# ---- precision -----------------------------------------------------------------------------------------------------


def _precision(training: TrainingSettings, device: torch.device, stored: str | None) -> str:
    best, why = best_precision(device, training.matmul_precision, sharded=training.sharding != "none")
    if stored in ("no", "bf16", "fp16") and stored != best:
        if stored == "no" or (stored == "bf16" and has_bf16(device)) or device.type == "cuda":
            best, why = stored, "as the run was begun"
        else:
            warn(
                f"this run was trained in {stored} so far, and continues in {best}: {why}; its numbers change"
            )
    _say("mixed_precision", best, why)
    return best


def best_precision(device: torch.device, matmul_precision: str, *, sharded: bool = False) -> tuple[str, str]:
    """A value of `training.mixed_precision` for the device, and the reason."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if has_bf16(device):
            return "bf16", f"which {name} multiplies at full speed"
        if sharded:
            return "no", f"because {name} has no bfloat16, and sharding does not work with float16"
        return "fp16", f"because {name} has no bfloat16"
    if not has_bf16(device):
        return "no", "because this device has no instructions for bfloat16"
    if matmul_precision == "medium":
        return "no", "because training.matmul_precision=medium uses bfloat16 inside of products already"
    ratio = _speed_ratio(device, torch.bfloat16)
    if ratio >= FASTER:
        return "bf16", f"whose products are {ratio:.1f} times as fast as those of float32 here"
    return "no", f"because bfloat16 is no faster here ({ratio:.1f} times the speed of float32)"


def _speed_ratio(device: torch.device, dtype: torch.dtype) -> float:
    return operations_per_second(device, dtype) / operations_per_second(device, torch.float32)


def _warn_of_slow_precision(precision: str, device: torch.device) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if dtype is None:
        return
    ratio = _speed_ratio(device, dtype)
    if ratio < 1 / FASTER:
        warn(
            f"training.mixed_precision={precision}: a matrix product takes {1 / ratio:.1f} times as long as in float32"
            " on this CPU; write training.mixed_precision=auto, or no"
        )


# ---- workers -------------------------------------------------------------------------------------------------------


def _workers(device: torch.device) -> int:
    workers, why = loading_workers(device.type)
    _say("num_workers", workers, why)
    return workers


# ---- batch ---------------------------------------------------------------------------------------------------------


def _accumulation(training: TrainingSettings) -> int:
    """Micro-batches per update that make the global batch."""
    processes, given = distributed.world_size(), training.gradient_accumulation_steps
    at_once = training.per_gpu_batch_size * processes
    steps, left = divmod(training.global_batch_size, at_once)
    if left or not steps:
        raise ConfigError(
            f"training.global_batch_size={training.global_batch_size} is no multiple of training.per_gpu_batch_size="
            f"{training.per_gpu_batch_size} x {processes} processes; expected per_gpu_batch_size=auto, or a divisor"
        )
    if given not in (1, steps):
        raise ConfigError(
            f"training.gradient_accumulation_steps={given}, but training.global_batch_size="
            f"{training.global_batch_size} with {at_once} examples at once needs {steps}; leave it out"
        )
    return steps


def _micro_batch(
    run: Run, training: TrainingSettings, device: torch.device, stored: Mapping[str, Any]
) -> dict[str, int]:
    processes = distributed.world_size()
    share, left = divmod(training.global_batch_size, processes)
    if left or not share:
        raise ConfigError(
            f"training.global_batch_size={training.global_batch_size} cannot be divided by {processes} processes"
        )
    plan, free = _plan(run, training, device), free_memory(device)
    if free is None:
        batch, why = share, "because this device does not say how much memory is free"
    else:
        room = USED.get(device.type, 0.7) * free
        most = min(share, plan.largest_batch(room))
        if most < 1:
            raise ConfigError(
                f"a micro-batch of one example takes about {plan.total(1) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are"
                f" free; set activation_checkpointing=true in the model's section, or train a smaller one"
            )
        batch = max(b for b in range(1, most + 1) if share % b == 0)
        was = stored.get("per_gpu_batch_size")
        if isinstance(was, int) and was <= most and share % was == 0:
            batch = was
        why = f"about {plan.total(batch) / 1e9:.1f} GB of {free / 1e9:.1f} GB that are free"
    steps = share // batch
    _say(
        "per_gpu_batch_size",
        batch,
        f"{why}; x {processes} processes x {steps} accumulated = the global batch",
    )
    if isinstance(was := stored.get("per_gpu_batch_size"), int) and was != batch:
        warn(
            f"this run had micro-batches of {was} so far, and continues with {batch} and the same global batch: sums"
            " are rounded otherwise, and statistics of a micro-batch (codebooks, batch norms) are of fewer or more"
        )
    _say_time(plan, training, batch * steps, device)
    return {"per_gpu_batch_size": batch, "gradient_accumulation_steps": steps}


def _plan(run: Run, training: TrainingSettings, device: torch.device) -> Plan:
    settled = replace(in_steps(run, training.max_steps), training=training)
    processes = distributed.world_size()
    plan = Plan(settled, processes=processes, sharding=training.sharding, like_gpu=device.type == "cuda")
    try:
        plan.activations(1)
    except RuntimeError as error:
        raise ConfigError(
            f"the memory of this model cannot be estimated ({one_line(error)[:200]}); give"
            " training.per_gpu_batch_size as a number"
        ) from error
    return plan


def _say_time(plan: Plan, training: TrainingSettings, examples: int, device: torch.device) -> None:
    """How long the run takes at least: its operations at the speed of one product, measured here."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(training.mixed_precision, torch.float32)
    seconds = plan.flops(examples) / operations_per_second(device, dtype)
    say(
        f"time: at least {seconds:.2g} s per step and {duration(seconds * training.max_steps)} in all, by the"
        " operations alone; the progress lines say what it really takes"
    )


def warn_of_batch(run: Run, task: Task, device: torch.device) -> None:
    """Name a micro-batch that the memory of this machine's CPU cannot hold; before training, with `task` loaded.

    On a GPU the first step ends with an error that says so. A CPU swaps, or its system ends the process.
    """
    numbers = sum(p.numel() for module in task.modules.values() for p in module.parameters())
    free = free_memory(device) if device.type == "cpu" else None
    if free is None or numbers < LARGE_MODEL or not distributed.is_main():
        return
    try:
        plan = _plan(run, run.training, device)
    except ConfigError:  # a model that cannot be estimated may still be trained
        return
    batch = run.training.per_gpu_batch_size
    needed = plan.total(batch) - plan.held.parameters - plan.held.frozen  # these are there already
    if needed > free:
        warn(
            f"training.per_gpu_batch_size={batch} takes about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free;"
            f" write training.per_gpu_batch_size=auto training.global_batch_size={run.training.global_batch}, which"
            " keeps the batch by accumulation"
        )
