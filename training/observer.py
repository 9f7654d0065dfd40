"""What a run measures and draws of itself: held-out metrics and pictures."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from common import distributed
from common.console import say, warn
from storage.files import save_png
from training.best import Judge
from training.compiler import eagerly
from training.curves import read_curves
from training.settings import TrainingSettings
from training.sharding import ShardedModel
from training.task import Task
from training.tracker import Tracker


@dataclass(kw_only=True, eq=False)
class Observer:
    """Evaluates and draws the model; every process calls it after the same steps."""

    task: Task
    model: nn.Module  # the module to evaluate
    device: torch.device
    folder: Path  # of the run
    tracker: Tracker
    training: TrainingSettings
    sharded: ShardedModel | None  # gathers the module
    judge: Judge  # of evaluations
    measured: dict[str, float] | None = None  # by the last evaluation
    _told: bool = False  # that the model memorises

    def due(self, step: int) -> bool:
        """Whether there is something to measure or draw after `step`."""
        return any(
            self.training.due(e, step) for e in (self.training.evaluate_every, self.training.preview_every)
        )

    @torch.no_grad()
    def look(self, step: int, *, resumed: bool) -> None:
        """Measure and draw what is due after `step`; of a run that `resumed` there, what may be missing."""
        evaluate = self.training.due(self.training.evaluate_every, step)
        preview = self.training.due(self.training.preview_every, step)
        if resumed and evaluate:
            self.measured = distributed.on_main(lambda: self.tracker.recorded(step, "evaluate"))
            evaluate = self.measured is None
            if self.measured is not None:
                self.judge.judge(step, self.measured)  # once more: it may not be in the checkpoint yet
        if not evaluate and not preview and not self.judge.over:
            return
        model = self.sharded.whole(self.model) if self.sharded else self.model.eval()
        with eagerly():
            if evaluate:
                self._evaluate(step, model)
            if preview or self.judge.over:  # the last look
                distributed.on_main(lambda: self._preview(step, model))

    def _evaluate(self, step: int, model: nn.Module) -> None:
        measured = self.task.evaluate(model, self.device)
        self.tracker.log(step, "evaluate", measured)
        say(f"step {step:>6} evaluate | " + " | ".join(f"{n} {v:.4g}" for n, v in measured.items()))
        self.measured = measured
        self.judge.judge(step, measured)
        if distributed.is_main() and not (self._told or self.judge.over or step >= self.training.max_steps):
            text = read_curves(self.folder).over_fitting()  # at the end it is said once more
            if text is not None:
                self._told = True
                warn(text)

    def _preview(self, step: int, model: nn.Module) -> None:
        for picture in self.task.preview(model, self.device):
            save_png(self.folder / "previews" / f"{picture.name}-{step:08d}.png", picture.image)
            save_png(self.folder / f"{picture.name}.png", picture.image)
            self.tracker.picture(step, picture.name, picture.image)
