"""The best evaluation of a run: which one it was, what is kept of it, and when to stop for want of a better one."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from common import distributed
from common.build import ConfigError
from storage.json_files import try_json
from training.checkpoint import BEST
from training.settings import TrainingSettings
from training.task import DecidingValue, Task
from training.tracker import METRICS_FILE, recorded

Measured = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class BestSoFar:
    """What a run knows of its evaluations. Checkpoints hold it: a resumed run decides like one that never stopped.

    Raises:
        ValueError: a stored number is none.
    """

    step: int | None = None  # of the best evaluation; None before the first one
    value: float | None = None  # that decided
    waited: int = 0  # evaluations since then, none of them better
    judged: int = 0  # step of the last evaluation

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            if not (number is None and name in ("step", "value")) and not isinstance(number, (int, float)):
                raise ValueError(f"{name} is {number!r}")

    def after(self, step: int, measured: Measured, deciding: DecidingValue) -> "BestSoFar":
        """The state after the evaluation of `step`, which counts once; a value that is missing or NaN is not better."""
        if step <= max(self.judged, deciding.since):
            return self
        value = measured.get(deciding.name, math.nan)
        if deciding.is_better(value, self.value):
            return BestSoFar(step=step, value=value, judged=step)
        # Nothing is waited for before there is anything to compare with.
        return replace(self, waited=self.waited + (self.step is not None), judged=step)


@dataclass(kw_only=True, eq=False)
class Judge:
    """Judges every evaluation: keeps the weights of the best one, and says when the run has waited long enough."""

    deciding: (
        DecidingValue | None
    )  # None judges nothing: the run neither stops early nor keeps its best weights
    patience: int | None  # `training.patience`
    folder: Path  # of the run
    keep: Callable[[int, Measured], None] | None  # writes `best/` on every process; None keeps nothing
    state: BestSoFar = field(default_factory=BestSoFar)

    @property
    def over(self) -> bool:
        """Whether the run ends early."""
        return self.patience is not None and self.state.waited >= self.patience

    def restore(self, info: Mapping[str, Any], step: int) -> None:
        """Take up what the checkpoint of `step` holds (`stored`), and what was measured after it was saved.

        Raises:
            ConfigError: it is damaged.
        """
        if self.deciding is None:
            return
        try:
            self.state = BestSoFar(**info.get("best", {}))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{self.folder}: 'best' in state.json of step {step} is damaged ({error})"
            ) from error
        if measured := recorded(self.folder / METRICS_FILE, step, "evaluate"):
            self.state = self.state.after(step, measured, self.deciding)

    def stored(self) -> dict[str, Any]:
        """What a checkpoint holds of the evaluations so far."""
        return {} if self.deciding is None else {"best": asdict(self.state)}

    def judge(self, step: int, measured: Measured) -> None:
        """Note the evaluation of `step`; every process calls it, and the main one decides for all."""
        if self.deciding is None:
            return
        self.state, keep = distributed.on_main(lambda: self._judged(step, measured))
        if keep:
            self.keep(step, {**measured, "decided_by": self.deciding.name})

    def _judged(self, step: int, measured: Measured) -> tuple[BestSoFar, bool]:
        state = self.state.after(step, measured, self.deciding)
        kept = self.kept()
        # A run that was killed in between has judged but not kept, or kept and not saved that it did.
        new = (kept.get("step"), kept.get(self.deciding.name)) != (state.step, state.value)
        return state, self.keep is not None and state.step == step and new

    def forget(self) -> None:
        """Remove weights that a run left which begins anew."""
        if self.keep is not None and self.kept():
            shutil.rmtree(self.folder / BEST)

    def kept(self) -> dict[str, Any]:
        """What was measured of the weights in `best/`, and their step; empty if there are none."""
        return try_json(self.folder / BEST / "metrics.json", step=int)

    def banner(self, every: int) -> dict[str, str]:
        """Lines for the start of a run."""
        if self.deciding is None:
            return {}
        since = f", from step {self.deciding.since} on" if self.deciding.since else ""
        rows = {"best": f"held-out {self.deciding} decides{since}"}
        if self.keep is not None:
            rows["best"] += f"; its weights go to {self.folder / BEST}"
        if self.patience is not None:
            rows["early stop"] = (
                f"after {self.patience} evaluations without a better one, one every {every} steps"
            )
        return rows

    def why_over(self) -> str:
        """Why the run ends early, as a clause."""
        state = self.state
        return (
            f"held-out {self.deciding.name} was {state.value:.4g} at step {state.step} and not better in the"
            f" {state.waited} evaluations since (training.patience={self.patience})"
        )

    def closing(self, measured: Measured) -> str:
        """Which weights of a finished run are better, and how to use them; `measured` by its last evaluation."""
        if self.keep is None:
            return ""
        kept, name, last = self.kept(), self.deciding.name, measured.get(self.deciding.name, math.nan)
        if not kept:
            return f"no weights are in {self.folder / BEST}: no evaluation was better than those before it was kept"
        value = kept.get(name, math.nan)
        if kept["step"] == self.state.judged:
            return f"the last evaluation is the best ({name} {value:.4g}): {self.folder / BEST} has the same weights"
        if not self.deciding.is_better(value, last):
            return f"{self.folder / BEST} has the weights of step {kept['step']}: {name} {value:.4g}, as at the end"
        better = f"{name} {value:.4g} at step {kept['step']}, {last:.4g} at the end"
        return f"better on held-out data: load {self.folder / BEST} ({better})"


def make_judge(
    task: Task, training: TrainingSettings, folder: Path, keep: Callable[[int, Measured], None]
) -> Judge:
    """The judge of a run, which `keep`s weights if `training.keep_best` says so.

    Raises:
        ConfigError: nothing is measured that could decide.
    """
    deciding = None
    if (key := training.needs_deciding_value) is not None:
        try:
            deciding = task.deciding_value()
        except ConfigError as error:
            raise ConfigError(f"training.{key}={getattr(training, key)}: {error}") from error
    kept = keep if training.keep_best else None
    return Judge(deciding=deciding, patience=training.patience, folder=folder, keep=kept)
