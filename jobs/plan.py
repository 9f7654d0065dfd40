"""Memory and time of a training run on paper: what it needs on a number of GPUs, before any of them is there."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from common.build import ConfigError
from common.config import load_settings, merge_arguments
from common.console import count, duration
from jobs.options.plan import PlanOptions
from training.generator_settings import GeneratorRun
from training.gpus import GPUS
from training.memory_plan import Plan, usable
from training.run_lengths import in_steps
from training.tokenizer_settings import TokenizerRun

GB = 1e9


@dataclass(frozen=True)
class Estimate:
    """What one combination of recipe and machines comes to."""

    plan: Plan
    options: PlanOptions
    micro_batch: int  # examples per GPU and forward pass; 0: not even one fits
    accumulation: int
    largest: int  # micro-batch

    @property
    def global_batch(self) -> int:
        """Examples per update."""
        return self.micro_batch * self.accumulation * self.options.gpus

    @property
    def fits(self) -> bool:
        """Whether the micro-batch is within the memory of a GPU."""
        return 0 < self.micro_batch <= self.largest

    @property
    def step_flops(self) -> float:
        """Operations per GPU and update."""
        return self.accumulation * self.plan.flops(self.micro_batch)

    @property
    def step_seconds(self) -> float:
        """Of an update, at the assumed utilisation."""
        peak = GPUS[self.options.gpu].peak(self.plan.run.training.mixed_precision)
        return self.step_flops / (peak * self.options.utilisation)

    @property
    def images_per_second(self) -> float:
        """Of all GPUs."""
        return self.global_batch / self.step_seconds


def estimate(run: TokenizerRun | GeneratorRun, options: PlanOptions, plan: Plan | None = None) -> Estimate:
    """The estimate of a run; `plan` may be its plan for other GPUs, whose measurements are used again.

    A global batch that is asked for is split into the largest micro-batches that divide it and are not above that of
    the recipe nor above what fits.

    Raises:
        ConfigError: the GPU lacks the precision, or the sizes of the run are not known.
    """
    precision = options.precision or run.training.mixed_precision
    if precision == "auto":
        precision = "bf16" if GPUS[options.gpu].bf16 else "fp16"
    training = replace(run.training, mixed_precision=precision)
    run = replace(in_steps(run, training.max_steps), training=training)
    if not GPUS[options.gpu].peak(training.mixed_precision):
        raise ConfigError(f"gpu={options.gpu} has no {training.mixed_precision}; use precision=fp16")
    sharding = options.sharding or training.sharding
    plan = (plan or Plan(run)).spread(options.gpus, sharding)
    largest = plan.largest_batch(usable(GPUS[options.gpu]))
    micro, accumulation = training.per_gpu_batch_size, training.gradient_accumulation_steps
    whole = options.global_batch or training.global_batch_size
    if whole is not None:
        share = max(1, whole // options.gpus)
        most = min(share, largest, *(() if micro == "auto" else (micro,)))
        micro = max((b for b in range(1, most + 1) if share % b == 0), default=1)
        accumulation = math.ceil(share / micro)
    return Estimate(plan, options, micro, accumulation, largest)


def plan(arguments: Sequence[str]) -> Iterator[str]:
    """Lines of the estimate for the arguments of a training program and those of `PlanOptions`.

    Raises:
        ConfigError, FileNotFoundError: as the training program, or as `estimate`.
    """
    own = {field.name for field in fields(PlanOptions)}
    mine = [a for a in arguments if a.lstrip("-").partition("=")[0] in own]
    rest = [a for a in arguments if a not in mine]
    tree = merge_arguments(rest)
    kinds = [kind for key, kind in (("tokenizer", TokenizerRun), ("generator", GeneratorRun)) if key in tree]
    if not kinds:
        raise ConfigError("no run is given; write config=FILE with a tokenizer or a generator")
    options, run = load_settings(PlanOptions, mine), load_settings(kinds[-1], rest)
    yield from lines(estimate(run, options))


def lines(found: Estimate) -> Iterator[str]:
    """An estimate as aligned lines."""
    plan, options, training = found.plan, found.options, found.plan.run.training
    rows: dict[str, str] = {
        "run": f"{plan.run.experiment.name}, {options.gpus} x {options.gpu}, precision {training.mixed_precision},"
        f" sharding {plan.sharding}",
    }
    rows |= {f"parameters of {name}": count(number) for name, number in plan.parameters.items()}
    rows |= _memory(found) | _time(found)
    width = max(map(len, rows))
    return (f"{name:<{width}}  {value}" for name, value in rows.items())


def _memory(found: Estimate) -> dict[str, str]:
    plan, held, batch = found.plan, found.plan.held, found.micro_batch
    room, gpu = usable(GPUS[found.options.gpu]), found.options.gpu
    per_example = plan.activations(batch + 1) - plan.activations(batch)
    parts = {
        "weights": held.parameters,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "averaged weights": held.average,
        "frozen networks": held.frozen,
        "gathered blocks": held.gathered,
    }
    rows = {f"{name} per GPU": f"{size / GB:8.2f} GB" for name, size in parts.items() if size}
    rows["activations per GPU"] = (
        f"{plan.activations(batch) / GB:8.2f} GB for a micro-batch of {batch}, {per_example / GB:.3f} GB per example"
    )
    total = plan.total(batch)
    rows["in all per GPU"] = (
        f"{total / GB:8.2f} GB of {room / GB:.1f} GB usable: {'fits' if found.fits else 'DOES NOT FIT'}"
    )
    rows["largest micro-batch"] = (
        f"{found.largest}" if found.largest else f"none: a single example is too much for {gpu}"
    )
    rows["checkpoint"] = f"{plan.checkpoint / GB:.2f} GB, every {plan.run.training.save_every} steps"
    return rows


def _time(found: Estimate) -> dict[str, str]:
    plan, options, steps = found.plan, found.options, found.plan.run.training.max_steps
    speed, seconds, batch = found.images_per_second, found.step_seconds, found.global_batch
    hours = steps * seconds / 3600
    tokens = "tokens" in plan.unloaded.shapes
    size = 1000 * options.image_kilobytes
    if tokens:  # 16 bits where they are enough (data/token_memmap.py)
        size = plan.unloaded.tokens * (2 if plan.unloaded.task.generator.codebook_size <= 2**16 else 4)
    return {
        "global batch": f"{found.micro_batch} per GPU x {options.gpus} x {found.accumulation} accumulated = {batch}",
        "steps per epoch": f"{options.examples / batch:.0f} of {options.examples} examples; {steps} steps are"
        f" {steps * batch / options.examples:.1f} epochs",
        "operations per step": f"{found.step_flops / 1e12:.1f} x 10^12 per GPU",
        "time per step": f"{seconds:.2f} s at {options.utilisation:.0%} of the peak;"
        f" {duration(3600 * hours)} in all, {hours * options.gpus:,.0f} GPU hours",
        "from storage": f"{speed:,.0f} images/s, {speed * plan.unloaded.tokens:,.0f} tokens/s,"
        f" {speed * size / 1e6:,.1f} MB/s as {'tokens' if tokens else 'images'}",
    }
