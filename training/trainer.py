"""The one training loop: any task, any number of processes, exact resume."""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import torch
from accelerate import Accelerator
from torch import nn

from common import distributed
from common.build import ConfigError
from common.console import Clock, say, warn
from common.images import to_float
from data.loaders import train_loader
from data.source import Source
from data.stream import Batch
from storage.files import require_space, write_json, write_yaml
from storage.weights import write_weights
from training.best import make_judge
from training.checkpoint import CheckpointFolder
from training.compiler import compile_by_units, use_compile
from training.curves import draw_curves, read_curves
from training.ema import EMA
from training.heartbeat import Heartbeat
from training.observer import Observer
from training.optim import build_optimizer
from training.precision import Precision
from training.randomness import ExampleRandom, seed_step
from training.report import Progress, SkippedSamples, announce, require_finite
from training.schedules import learning_rate, weight_decay
from training.settings import ExperimentSettings, ScheduleSettings, TrainingSettings
from training.sharding import ShardedModel, is_sharded, use_sharding
from training.state import RunState, gathered_state
from training.stop import StopRequest
from training.task import Phase, StepContext, Task
from training.tracker import Meters, Tracker

# Sections that decide what the weights mean: a run does not continue a checkpoint that differs in them.
IDENTITY_SECTIONS = ("tokenizer", "generator")


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Runs a task from its newest checkpoint, or from the start, to `training.max_steps`."""

    task: Task
    source: Source  # training examples
    accelerator: Accelerator  # from `training.accelerator.start`
    experiment: ExperimentSettings
    training: TrainingSettings
    schedule: ScheduleSettings
    config: dict  # resolved, stored with the weights

    def __post_init__(self) -> None:
        training, task, self.device = self.training, self.task, self.accelerator.device
        self.folder = Path(self.experiment.output_dir)
        self.checkpoints = CheckpointFolder(
            self.folder, keep=training.keep_checkpoints, milestone_every=training.milestone_every
        )
        self.phases: list[Phase] = task.phases()
        self.precision = Precision(training.mixed_precision, self.device)
        self.meters, self.skipped = Meters(), SkippedSamples(training.max_skipped)
        self.stop = StopRequest(self._last_checkpoint)
        self.sharded: ShardedModel | None = None
        self.judge = make_judge(task, training, self.folder, self._keep_best)

    @property
    def model(self) -> nn.Module:
        """The module to evaluate: averaged weights if the run keeps them."""
        return self.ema.module if self.ema else self.raw["model"]

    def fit(self) -> None:
        """Train to the end; does nothing if the run is finished.

        Raises:
            ConfigError, CheckpointError: the run folder cannot be used; before any training.
            SystemExit: after a stop signal, with a checkpoint saved.
        """
        step = distributed.on_main(self._first_step)  # listings of a network disk may differ
        if step is None:
            say(f"{self.folder} is finished ({self._how_it_ended()}); nothing to do")
            return
        self.judge.state = distributed.on_main(lambda: self.judge.state)
        self._prepare(step)
        examples = len(self.source)
        announce(
            self.experiment,
            self.training,
            self.raw,
            step=step,
            examples=examples,
            device=self.device,
            more=self.judge.banner(self.training.evaluate_every),
        )
        self.tracker = Tracker(self.folder, self.experiment, config=self.config, step=step)
        self.observer = Observer(
            task=self.task,
            model=self.model,
            device=self.device,
            folder=self.folder,
            tracker=self.tracker,
            training=self.training,
            sharded=self.sharded,
            judge=self.judge,
        )
        progress = Progress(self.training.max_steps, step, self.training.global_batch, self.device)
        with self.stop, Heartbeat() as self.heartbeat:
            self._train(step, progress)
        self._finish()

    def _train(self, step: int, progress: Progress) -> None:
        self.stop.step = self.saved = step
        if step:  # it was saved before it was looked at
            self._look(step, resumed=True)
            if self.stop.agreed(now=True):
                self._leave(step)
        batches = self._batches(step)
        while step < self.training.max_steps and not self.judge.over:
            rates = self._follow_schedules(step)
            seed_step(self.experiment.seed, step)  # no generator state is carried over steps: exact resume
            with self.heartbeat.during(f"step {step + 1}"):
                self._update(step, batches, progress)
            step += 1
            self.stop.step = step
            self._after_step(step, rates, progress)
        if step < self.training.max_steps:
            say(f"stopped early after step {step}: {self.judge.why_over()}")

    def _how_it_ended(self) -> str:
        if self.judge.over and (step := self.checkpoints.steps()[-1]) < self.training.max_steps:
            return f"stopped early after step {step}: {self.judge.why_over()}; with more patience it goes on"
        return f"{self.training.max_steps} steps"

    # ---- preparation -------------------------------------------------------------------------------------------

    def _first_step(self) -> int | None:
        """Step of the newest checkpoint, 0 without one; None if the run is finished."""
        steps, result = self.checkpoints.steps(), self.folder / "model.safetensors"
        if steps:
            self.checkpoints.require_same_run(steps[-1], self._info())
        elif result.is_file():
            raise ConfigError(f"{result} has no checkpoint beside it; choose another experiment.output_dir")
        if not steps:
            return 0
        self.judge.restore(self.checkpoints.load_info(steps[-1]), steps[-1])
        ended = steps[-1] >= self.training.max_steps or self.judge.over
        return None if ended and result.is_file() else steps[-1]

    def _prepare(self, step: int) -> None:
        """Restore the checkpoint of `step` (0: there is none), hand modules and optimizers to Accelerate."""
        task, training = self.task, self.training
        size = sum(p.numel() * p.element_size() for m in task.modules.values() for p in m.parameters())
        # 5: weights, averaged weights, two moments, and the final export; the best weights, new and old
        needed, key = (7 if training.keep_best else 5) * size, "experiment.output_dir"
        distributed.on_main(lambda: require_space(self.folder, needed, "a checkpoint", key=key))
        self.raw = dict(task.modules)
        if use_sharding(training, task):
            self.sharded = ShardedModel(self.raw["model"], training, self.device)
        for module in (*self.raw.values(), *task.state.values()):
            if not is_sharded(module):
                module.to(self.device)
        decay, model = training.ema_decay, self.raw["model"]
        copied = self.sharded.with_tensors(model.state_dict()) if self.sharded else model
        self.ema = EMA(copied, decay) if decay is not None else None
        distributed.on_main(lambda: write_yaml(self.folder / "config.yaml", self.config))
        if not step:  # of a run that was killed before its first checkpoint
            distributed.on_main(self.judge.forget)
        if use_compile(training.compile, self.device):
            for module in self.raw.values():
                compile_by_units(module)
        self.modules, self.optimizers = {}, {}
        for name, module in self.raw.items():  # after sharding, which replaces parameters
            self.precision.cast(name, module)
            self.optimizers[name] = build_optimizer(module, task.optimizers[name])
            self.modules[name] = module if is_sharded(module) else self.accelerator.prepare_model(module)
        averaged = {"ema": self.ema.module} if self.ema else {}
        self.state = RunState({**self.raw, **task.state, **averaged}, self.optimizers)
        if step:
            self.precision.load(self.state.load(self.checkpoints, step))

    def _info(self) -> dict:
        identity = {s: self.config[s] for s in IDENTITY_SECTIONS if s in self.config}
        facts = {"seed": self.experiment.seed, "global_batch": self.training.global_batch}
        return facts | {"identity": identity, "config": self.config}

    # ---- one step ----------------------------------------------------------------------------------------------

    def _batches(self, step: int) -> Iterator[Batch]:
        return iter(
            train_loader(
                self.source,
                seed=self.experiment.seed,
                batch_size=self.training.per_gpu_batch_size,
                accumulation=self.training.gradient_accumulation_steps,
                num_processes=distributed.world_size(),
                process_index=distributed.rank(),
                start_step=step,
                num_workers=self.training.num_workers,
                pin_memory=self.device.type == "cuda",
            )
        )

    def _follow_schedules(self, step: int) -> dict[str, float]:
        rates = {}
        for phase in self.phases:
            # A phase that starts late has a warm-up and a schedule of its own.
            own, total = max(0, step - phase.start), self.training.max_steps - phase.start
            settings = self.task.optimizers[phase.module]
            peak, base = settings.learning_rate, self.task.optimizers["model"].learning_rate
            rate = learning_rate(own, peak=peak, base=base, settings=self.schedule, total=total)
            decay = weight_decay(own, settings=settings, total=total)
            for group in self.optimizers[phase.module].param_groups:
                group["lr"] = rate * group["ratio"]
                group["weight_decay"] = decay if group["decays"] else 0.0
            rates[phase.module] = rate
        return rates

    def _update(self, step: int, batches: Iterator[Batch], progress: Progress) -> None:
        """One optimizer update of every active phase, over all accumulated micro-batches."""
        for module in self.modules.values():
            module.train()
        for _ in range(self.training.gradient_accumulation_steps):
            clock = Clock()
            batch = self._to_device(next(batches))
            progress.waited += clock.lap()
            context = StepContext(
                step=step,
                modules=self.modules,
                raw=self.raw,
                random=ExampleRandom(self.experiment.seed, batch["positions"]),
                device=self.device,
            )
            # All modules at once: DDP then synchronises gradients in the last micro-batch only.
            with self.accelerator.accumulate(*self.modules.values()):
                for phase in self.phases:
                    if step >= phase.start:
                        self._run_phase(phase, batch, context)

    def _run_phase(self, phase: Phase, batch: Batch, context: StepContext) -> None:
        name, settings = phase.module, self.training
        loss, scalars = phase.loss(batch, context)
        self.precision.backward(name, loss / settings.gradient_accumulation_steps)
        if self.accelerator.sync_gradients:  # the last micro-batch
            module, optimizer, number = self.modules[name], self.optimizers[name], context.step + 1
            scalars = scalars | self.precision.update(name, module, optimizer, number, settings.max_grad_norm)
            optimizer.zero_grad()
        self.meters.add(context.step + 1, scalars)

    def _to_device(self, batch: Batch) -> Batch:
        self.skipped.add(batch.pop("skipped"), len(batch["positions"]))
        for key, value in batch.items():
            # Random numbers are drawn and captions made on the CPU; reading these back would wait for the device.
            if torch.is_tensor(value) and key not in ("positions", "labels"):
                batch[key] = value.to(self.device, non_blocking=True)
        if "images" in batch:  # uint8 until here: a quarter of the transfer
            batch["images"] = to_float(batch["images"])
        return batch

    # ---- after a step: fixed order -----------------------------------------------------------------------------

    def _after_step(self, step: int, rates: dict[str, float], progress: Progress) -> None:
        if self.ema:
            self.ema.update(self.raw["model"], step)  # before anything below measures or saves it
        settings = self.training
        if step == 1 or settings.due(settings.log_every, step):
            self._log(step, rates, progress)
        save, look = settings.due(settings.save_every, step), self.observer.due(step)
        stop = self.stop.agreed(now=save or look)  # the same answer on every process, or saving would hang
        with progress.pause():
            if save or stop:
                self._save(step)
            if look and not stop:  # a run that was stopped looks when it resumes
                self._look(step)
                stop = self.stop.agreed(now=True)
                if (stop or self.judge.over) and self.saved != step:
                    self._save(step)
        if stop:
            self._leave(step)

    def _leave(self, step: int) -> NoReturn:
        say(f"stopped by signal {self.stop.signal} after step {step}; run the same command again to resume")
        sys.exit(self.stop.exit_code)

    def _look(self, step: int, resumed: bool = False) -> None:
        look = partial(self.observer.look, step, resumed=resumed)
        self.stop.aside("the evaluation", look, saved=self.saved == step)

    def _last_checkpoint(self) -> str:
        return f"the last checkpoint is step {self.saved}" if self.saved else "there is no checkpoint yet"

    def _log(self, step: int, rates: dict[str, float], progress: Progress) -> None:
        scalars, wrong = self.meters.take(self.device)
        self.skipped.report()
        require_finite(wrong, self.raw)
        scalars |= self.precision.report()
        scalars |= {f"learning_rate/{name}": rate for name, rate in rates.items()}
        scalars |= progress.lap(step)
        self.tracker.log(step, "train", scalars)
        say(progress.line(step, scalars, rates["model"]))
        for text in self.task.warnings(step, scalars):
            warn(text)

    def _save(self, step: int) -> None:
        info = self._info() | self.judge.stored()
        self.state.save(self.checkpoints, step, info, self.precision.state())
        self.saved = step

    def _keep_best(self, step: int, measured: Mapping[str, float]) -> None:
        self.state.save_best(self.checkpoints, step, self.config, measured)

    def _finish(self) -> None:
        state = gathered_state(self.model)

        def write() -> None:
            write_json(self.folder / "metrics.json", self.observer.measured)
            draw_curves({self.experiment.name: self.folder}, self.folder / "curves.png")
            write_weights(self.folder / "model.safetensors", state)  # last: it marks a finished run
            self.tracker.close()

        distributed.on_main(write)
        say(f"finished: load {self.folder} as a model (model.safetensors and config.yaml)")
        if text := distributed.on_main(lambda: self.judge.closing(self.observer.measured)):
            say(text)
        if text := distributed.on_main(lambda: read_curves(self.folder).over_fitting()):
            warn(text)
