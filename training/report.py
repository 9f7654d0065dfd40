"""Progress line, skipped samples, curves and small JSON files of a run."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from common import distributed
from common.build import ConfigError
from common.console import Clock, banner, count, duration, warn
from training.settings import ExperimentSettings, TrainingSettings
from training.tracker import METRICS_FILE, read_metrics

# The share of unreadable samples is judged over at least so many, lest one in the first batch stops a run.
FEWEST_JUDGED = 1000
# Scalars that curves leave out: they describe the machine and not the training.
NOT_DRAWN = ("step", "kind", "images", "data_fraction", "seconds_per_step", "images_per_second")


def announce(
    experiment: ExperimentSettings,
    training: TrainingSettings,
    modules: Mapping[str, nn.Module],
    *,
    step: int,
    examples: int,
    device: torch.device,
) -> None:
    """Show what a run is about to do.

    Args:
        experiment, training: settings.
        modules: what is trained, for the number of parameters.
        step: updates already done.
        examples: size of the training set.
        device: of this process.
    """
    processes, batch = distributed.world_size(), training.global_batch
    rows: dict[str, object] = {
        "output": experiment.output_dir,
        "device": f"{processes} x {device.type}, precision {training.mixed_precision}",
        "batch": f"{training.per_gpu_batch_size} per process x {processes} processes x "
        f"{training.gradient_accumulation_steps} accumulated = {batch}",
        "examples": f"{examples}, {training.max_steps * batch / examples:.1f} epochs",
        "steps": f"{step} done of {training.max_steps}",
    }
    for name, module in modules.items():
        for child, part in module.named_children():
            rows[f"{name}.{child}"] = f"{count(sum(p.numel() for p in part.parameters()))} parameters"
        rows[name] = f"{count(sum(p.numel() for p in module.parameters()))} parameters in all"
    banner(experiment.name, rows)


class Progress:
    """Speed of a run over the last window, without the pauses for evaluation, previews and checkpoints.

    Attributes:
        waited: seconds spent waiting for data in this window.
    """

    def __init__(self, total: int, step: int, global_batch: int, device: torch.device):
        self.total, self.last_step, self.global_batch, self.device = total, step, global_batch, device
        self.clock, self.paused, self.waited = Clock(), 0.0, 0.0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time of a block out of the throughput."""
        clock = Clock()
        yield
        self.paused += clock.lap()

    def lap(self, step: int) -> dict[str, float]:
        """Seconds per step, images per second and process, share of time spent waiting for data."""
        steps = step - self.last_step
        seconds = max(self.clock.lap() - self.paused, 1e-9)
        speed = {
            "seconds_per_step": seconds / steps,
            "images_per_second": steps * self.global_batch / seconds / distributed.world_size(),
            "data_fraction": self.waited / seconds,
        }
        self.last_step, self.paused, self.waited = step, 0.0, 0.0
        return speed

    def line(self, step: int, scalars: dict[str, float], rate: float) -> str:
        """The aligned line people watch."""
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
        return " | ".join(parts)


class SkippedSamples:
    """Counts unreadable samples, names each once, and stops the run when there are too many.

    Args:
        limit: largest tolerated share of all samples read.
    """

    def __init__(self, limit: float):
        self.limit, self.names, self.fresh = limit, set(), []
        self.read = self.count = 0

    def add(self, names: Iterable[str], read: int) -> None:
        """Note the samples skipped while `read` good ones were delivered."""
        self.read += read
        for name in names:
            self.count += 1
            if name not in self.names:
                self.names.add(name)
                self.fresh.append(name)

    def report(self) -> None:
        """Name new ones (of all processes).

        Raises:
            ConfigError: more than `limit` of what was read (or of 1000 samples, if that is more) is unreadable.
        """
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


def draw_curves(folders: dict[str, Path], output: Path) -> bool:
    """One panel per scalar that changes over time; several runs side by side.

    Args:
        folders: {title: run folder}.
        output: PNG to write.

    Returns:
        False if there is nothing to draw.
    """
    panels = []
    for title, folder in folders.items():
        series: dict[str, list[tuple[int, float]]] = {}
        for record in read_metrics(Path(folder) / METRICS_FILE):
            for name, value in record.items():
                if name not in NOT_DRAWN and isinstance(value, (int, float)):
                    series.setdefault(f"{record['kind']}/{name}", []).append((record["step"], value))
        panels += [
            (f"{title}: {n}", p)
            for n, p in sorted(series.items())
            if len(p) > 1 and len({v for _, v in p}) > 1
        ]
    if not panels:
        return False
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    for i, (name, points) in enumerate(panels):
        axis = figure.add_subplot(rows, columns, i + 1)
        axis.plot(*zip(*points, strict=True), linewidth=1)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        values = [value for _, value in points]
        if min(values) > 0 and max(values) > 20 * min(values):  # a tall start would flatten all that follows
            axis.set_yscale("log")
    figure.savefig(output, dpi=110)
    return True


def require_finite(wrong: Mapping[str, int], modules: Mapping[str, nn.Module]) -> None:
    """Stop a run whose numbers broke down.

    Args:
        wrong: scalars that were not finite, with the step in which each was so first.
        modules: what is trained, searched for the tensor that broke.

    Raises:
        ConfigError: there are any; the message names the first step, its scalars and the first broken tensor.
    """
    if wrong:
        step = min(wrong.values())
        names = ", ".join(name for name, first in wrong.items() if first == step)
        raise ConfigError(
            f"step {step}: {names} is not finite{first_broken(modules)}; checkpoints from before are untouched. Try a"
            " lower optimizer.learning_rate, a longer warm-up, gradient clipping, or bf16 in place of fp16"
        )


def first_broken(modules: Mapping[str, nn.Module]) -> str:
    """The first parameter or buffer that is not finite, as a clause of a message; empty if all of them are."""
    for name, module in modules.items():
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                return f" (by now, tensor {name}.{key} {list(tensor.shape)} is not finite)"
    return " (all weights still are: the input, the loss or a gradient broke)"
