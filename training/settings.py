"""Settings shared by every training run; the dataclass fields are the YAML keys."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from common import ranks
from common.build import ConfigError
from common.config import option
from common.shares import Steps, is_before


@dataclass(kw_only=True)
class ExperimentSettings:
    """Name, folder and seed of a run."""

    name: str = option("run", "name shown by trackers")
    output_dir: str = option(help="run folder: checkpoints, weights, pictures, metrics")
    seed: int = option(42, "fixes initialisation, data order, augmentation and noise")
    project: str = option("image-tokenization", "wandb project")
    trackers: list[str] = option([], "mirrors of metrics.jsonl: tensorboard, wandb")

    def __post_init__(self) -> None:
        for name in self.trackers:
            if name not in ("tensorboard", "wandb"):
                raise ConfigError(f"experiment.trackers={name!r} is unknown; choose from tensorboard, wandb")


@dataclass(kw_only=True)
class OptimizerSettings:
    """AdamW (arXiv:1711.05101), optionally Muon for the matrices of transformer blocks."""

    learning_rate: float = option(1e-4, "peak learning rate")
    beta1: float = option(0.9)
    beta2: float = option(0.999)
    epsilon: float = option(1e-8)
    muon_learning_rate: float | None = option(
        None, "peak rate of Muon for the matrices of transformer blocks; null = AdamW everywhere"
    )
    weight_decay: float = option(1e-4, "not applied to norms, biases, embeddings and learned tokens")
    weight_decay_end: float | None = option(
        None, "weight decay of the last update, reached along half a cosine; null = constant"
    )

    def __post_init__(self) -> None:
        for key in ("weight_decay", "weight_decay_end"):
            value = getattr(self, key)
            if value is not None and not value >= 0:  # also refuses NaN
                raise ConfigError(f"optimizer.{key}={value} must not be negative")


@dataclass(kw_only=True)
class ScheduleSettings:
    """Linear warm-up, then one of four shapes (training/schedules.py)."""

    name: Literal["cosine", "constant", "linear", "steps"] = option(
        "cosine", "linear: a plateau, then a straight line to end_lr; steps: a factor at every drop"
    )
    warmup_steps: Steps = option(0, "steps from the start to the peak learning rate")
    warmup_start: float = option(0.0, "share of the peak with which the warm-up begins")
    end_lr: float = option(0.0, "learning rate at the last step of a cosine or a line")
    plateau: float = option(0.05, "linear: share of the steps after warm-up that stay at the peak")
    drop_steps: list[Steps] = option([], "steps: updates after which the rate drops")
    drop_factor: float = option(0.1, "steps: factor at every drop")

    def __post_init__(self) -> None:
        if is_before(self.warmup_steps, 0):
            raise ConfigError(f"schedule.warmup_steps={self.warmup_steps} must not be negative")
        if not 0 <= self.warmup_start <= 1 or not 0 <= self.plateau < 1:
            raise ConfigError(
                f"schedule.warmup_start={self.warmup_start} must be in [0, 1], and"
                f" schedule.plateau={self.plateau} in [0, 1)"
            )
        if bool(self.drop_steps) != (self.name == "steps"):
            raise ConfigError(
                f"schedule.drop_steps={self.drop_steps} belong to schedule.name='steps', which needs them;"
                f" the name is {self.name!r}"
            )
        falls = any(old == new or is_before(new, old) for old, new in pairwise(self.drop_steps))
        if falls or not 0 < self.drop_factor <= 1:
            raise ConfigError(
                f"schedule.drop_steps={self.drop_steps} must rise, and"
                f" schedule.drop_factor={self.drop_factor} be in (0, 1]"
            )


@dataclass(kw_only=True)
class TrainingSettings:
    """The loop: length, batch, precision, and how often to log, look, evaluate and save (0 = never)."""

    max_steps: int = option(help="number of optimizer updates")
    per_gpu_batch_size: int | Literal["auto"] = option(
        32, "examples per process and micro-batch; auto = as many as fit, needs global_batch_size"
    )
    gradient_accumulation_steps: int = option(1, "micro-batches per update; follows from global_batch_size")
    global_batch_size: int | None = option(
        None,
        "examples per update, kept on any number of processes by accumulation; null = what the others make",
    )
    mixed_precision: Literal["no", "fp16", "bf16", "auto"] = option(
        "no", "auto = the one that is fastest on this machine"
    )
    sharding: Literal["none", "full", "hybrid"] = option(
        "none", "of the model over processes (FSDP2); hybrid: within every node, with a copy on each"
    )
    max_grad_norm: float | None = option(1.0, "global L2 norm of the gradient is clipped to this; null = off")
    ema_decay: float | None = option(None, "moving average of the weights; it becomes the final model")
    compile: bool | Literal["auto"] = option(False, "torch.compile; auto = where a compiler is found")
    matmul_precision: Literal["highest", "high", "medium"] = option(
        "high",
        "of float32 matrix products: highest = exact, high = TF32 on GPUs, medium = bfloat16 inside where faster",
    )
    deterministic: bool = option(
        False,
        "on GPUs: only kernels that give the same bits in every run; slower, and an operation without one is refused",
    )
    num_workers: int | Literal["auto"] = option(
        4, "data loading processes per training process; auto = by the machine's cores"
    )
    log_every: int = option(50)
    preview_every: int = option(5000)
    evaluate_every: int = option(50000)
    save_every: int = option(50000)
    keep_checkpoints: int = option(2, "newest checkpoints to keep")
    milestone_every: int = option(0, "checkpoints at multiples of this are never deleted; 0 = none")
    timeout_minutes: float = option(
        60.0, "a process that lets the others wait for so long has failed; saving and previews do not count"
    )
    patience: int | None = option(
        None, "evaluations without a better held-out value after which the run stops; null = runs to the end"
    )
    keep_best: bool = option(False, "keep the weights of the best evaluation, in best/ of the run folder")
    max_skipped: float = option(0.01, "share of unreadable samples at which the run stops")

    def __post_init__(self) -> None:
        for key in ("max_steps", "per_gpu_batch_size", "gradient_accumulation_steps", "keep_checkpoints"):
            if getattr(self, key) != "auto" and getattr(self, key) < 1:
                raise ConfigError(f"training.{key}={getattr(self, key)} must be at least 1")
        if self.per_gpu_batch_size == "auto" and self.global_batch_size is None:
            raise ConfigError("training.per_gpu_batch_size=auto needs training.global_batch_size")
        if self.global_batch_size is not None and self.global_batch_size < 1:
            raise ConfigError(f"training.global_batch_size={self.global_batch_size} must be at least 1")
        if not self.timeout_minutes > 0:
            raise ConfigError(f"training.timeout_minutes={self.timeout_minutes} must be positive")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"training.patience={self.patience} must be at least 1, or null")
        if (key := self.needs_deciding_value) and self.evaluate_every < 1:
            raise ConfigError(
                f"training.{key}={getattr(self, key)} needs evaluations;"
                f" training.evaluate_every={self.evaluate_every} must be at least 1"
            )
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"training.ema_decay={self.ema_decay} must be in [0, 1)")

    @property
    def needs_deciding_value(self) -> str | None:
        """The option, if one is set, for which a held-out value must tell the best evaluation."""
        return "patience" if self.patience is not None else "keep_best" if self.keep_best else None

    def due(self, every: int, step: int) -> bool:
        """Whether what happens every `every` steps (0 = never) and at the end happens after `step`."""
        return step >= self.max_steps or (every > 0 and step % every == 0)

    @property
    def global_batch(self) -> int:
        """Examples per update over all processes."""
        return self.per_gpu_batch_size * self.gradient_accumulation_steps * ranks.world_size()
