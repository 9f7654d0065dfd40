"""What a run reports: banner, progress line, skipped samples, broken numbers."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from common import distributed
from common.build import ConfigError
from common.console import Clock, banner, count, duration, warn
from common.cores import cores
from storage.shards import local
from training.settings import ExperimentSettings, TrainingSettings

WORTH_SAYING = 600.0  # seconds of a run
FEWEST_JUDGED = 1000  # samples: one unreadable sample in the first batch must not stop a run


def announce(
    experiment: ExperimentSettings,
    training: TrainingSettings,
    modules: Mapping[str, nn.Module],
    *,
    step: int,
    examples: int,
    device: torch.device,
    more: Mapping[str, str],
) -> None:
    """Print the settings of a run, `more` lines by name, its number of examples and the sizes of its modules."""
    processes, batch = distributed.world_size(), training.global_batch
    rows: dict[str, object] = {
        "output": experiment.output_dir,
        "device": f"{processes} x {device_name(device)}, precision {training.mixed_precision}",
        "batch": f"{training.per_gpu_batch_size} per process x {processes} processes x "
        f"{training.gradient_accumulation_steps} accumulated = {batch}",
        "examples": f"{examples}, {training.max_steps * batch / examples:.1f} epochs",
        "steps": f"{step} done of {training.max_steps}",
    }
    if training.sharding != "none":
        rows["sharding"] = training.sharding
    rows |= more
    for name, module in modules.items():
        for child, part in module.named_children():
            rows[f"{name}.{child}"] = f"{count(sum(p.numel() for p in part.parameters()))} parameters"
        rows[name] = f"{count(sum(p.numel() for p in module.parameters()))} parameters in all"
    banner(experiment.name, rows)


def device_name(device: torch.device) -> str:
    """'cuda (NVIDIA A100-SXM4-80GB)', 'cpu (2 cores)'."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({cores()} cores)"


class Progress:
    """Speed of a run over the last window, without the pauses for evaluation, previews and checkpoints."""

    def __init__(self, total: int, step: int, global_batch: int, device: torch.device):
        self.total, self.last_step, self.global_batch, self.device = total, step, global_batch, device
        self.clock, self.paused = Clock(), 0.0
        self.waited = 0.0  # seconds spent waiting for data in this window
        self.windows = 0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time of a block out of the throughput."""
        clock = Clock()
        yield
        self.paused += clock.lap()

    def lap(self, step: int) -> dict[str, float]:
        steps = step - self.last_step
        seconds = max(self.clock.lap() - self.paused, 1e-9)
        speed = {
            "seconds_per_step": seconds / steps,
            "images_per_second": steps * self.global_batch / seconds / distributed.world_size(),
            "data_fraction": self.waited / seconds,  # share of time spent waiting for data
        }
        self.last_step, self.paused, self.waited = step, 0.0, 0.0
        self.windows += 1
        return speed

    def line(self, step: int, scalars: dict[str, float], rate: float) -> str:
        width = len(str(self.total))
        parts = [
            f"step {step:>{width}}/{self.total} {100 * step / self.total:5.1f}%",
            f"loss {scalars['total_loss']:.4f}",
            f"lr {rate:.1e}",
            f"gnorm {scalars.get('gradient_norm/model', float('nan')):.2f}",
            f"data {100 * scalars['data_fraction']:2.0f}%",
            f"{scalars['images_per_second']:5.0f} img/s/process",
        ]
        if self.device.type == "cuda":
            parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        parts.append(f"eta {duration((self.total - step) * scalars['seconds_per_step'])}")
        return " | ".join(parts) + self._whole_run(scalars["seconds_per_step"])

    def _whole_run(self, seconds: float) -> str:
        """A second line, once: the first window has the first step in it, which is slower than others."""
        if self.windows != 2 or seconds * self.total < WORTH_SAYING:
            return ""
        processes = distributed.world_size()
        return (
            f"\nat this speed the {self.total} steps of the whole run take {duration(seconds * self.total)} on"
            f" {processes} x {self.device.type}, {seconds:.3g} s each, evaluations and checkpoints not counted"
        )


class SkippedSamples:
    """Counts unreadable samples, names each once, and stops the run above a share `limit` of all samples read."""

    def __init__(self, limit: float):
        self.limit, self.names, self.fresh = limit, set(), []
        self.read = self.count = 0

    def add(self, names: Iterable[str], read: int) -> None:
        """Note the samples skipped while `read` others were delivered."""
        self.read += read
        for name in names:
            self.count += 1
            if name not in self.names:
                self.names.add(name)
                self.fresh.append(name)

    def report(self) -> None:
        """Name new ones of all processes; raises ConfigError if the share is above the limit."""
        gathered = distributed.gather_objects((self.fresh, self.count, self.read))
        self.fresh = []
        for name in sorted({n for names, _, _ in gathered for n in names}):
            warn(f"skipped {name}")
        count, read = sum(c for _, c, _ in gathered), sum(r for _, _, r in gathered)
        if count > self.limit * max(count + read, FEWEST_JUDGED):
            raise ConfigError(
                f"{count} of {count + read} samples could not be read, more than training.max_skipped={self.limit:g};"
                " the warnings above name them"
            )


def require_finite(wrong: Mapping[str, int], modules: Mapping[str, nn.Module]) -> None:
    """Raise ConfigError if scalars were not finite (`wrong`: in which step first); names the first broken tensor."""
    if wrong:
        step = min(wrong.values())
        names = ", ".join(name for name, first in wrong.items() if first == step)
        raise ConfigError(
            f"step {step}: {names} is not finite{first_broken(modules)}; checkpoints from before are untouched. Try a"
            " lower optimizer.learning_rate, a longer warm-up, gradient clipping, or bf16 in place of fp16"
        )


def first_broken(modules: Mapping[str, nn.Module]) -> str:
    """The first parameter or buffer that is not finite, as a clause of a message."""
    for name, module in modules.items():
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not local(tensor).isfinite().all():
                return f" (by now, tensor {name}.{key} {list(tensor.shape)} is not finite)"
    return " (all weights still are: the input, the loss or a gradient broke)"
