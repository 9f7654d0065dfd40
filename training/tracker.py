"""Numbers over time: metrics.jsonl always, TensorBoard and wandb as optional mirrors."""

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from common import distributed
from common.build import ConfigError
from common.console import say

METRICS_FILE = "metrics.jsonl"


class Meters:
    """Running means of scalars, kept on the device until somebody asks."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, torch.Tensor | float]) -> None:
        """Add one observation of each scalar; no synchronisation with the device."""
        for name, value in scalars.items():
            tensor = value.detach().float() if isinstance(value, torch.Tensor) else torch.tensor(float(value))
            self.sums[name] = self.sums[name] + tensor if name in self.sums else tensor.clone()
            self.counts[name] = self.counts.get(name, 0) + 1

    def take(self, device: torch.device) -> dict[str, float]:
        """Means since the last call, averaged over processes; starts anew."""
        if not self.sums:
            return {}
        names = sorted(self.sums)
        means = torch.stack([self.sums[n].to(device) / self.counts[n] for n in names])
        means = distributed.all_reduce_mean(means).tolist()
        self.sums, self.counts = {}, {}
        return dict(zip(names, means, strict=True))


class Tracker:
    """Writes records on the main process.

    Args:
        folder: run folder.
        mirrors: any of "tensorboard", "wandb".
        project, name, config: what mirrors show.
        step: records after this step are dropped, so that a resumed run continues its own curve.

    Raises:
        ConfigError: a mirror's package is not installed.
    """

    def __init__(self, folder: Path, *, mirrors: list[str], project: str, name: str, config: dict, step: int):
        for mirror in mirrors:
            if importlib.util.find_spec(mirror) is None:
                raise ConfigError(f"experiment.trackers: {mirror} is not installed; `pip install {mirror}`")
        self.path = Path(folder) / METRICS_FILE
        self.board = self.wandb = self.file = None
        if not distributed.is_main():
            return
        kept = [r for r in read_metrics(self.path) if r["step"] <= step] if step else []
        self.file = self.path.open("w", buffering=1)
        for record in kept:
            self.file.write(json.dumps(record) + "\n")
        if "tensorboard" in mirrors:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)
        if "wandb" in mirrors:
            import wandb

            offline = not (
                os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") or wandb.api.api_key
            )
            if offline:
                say(
                    "wandb: no API key found, the run is recorded offline (upload it later with `wandb sync`)"
                )
            self.wandb = wandb.init(
                project=project,
                name=name,
                config=config,
                dir=str(folder),
                mode="offline" if offline else None,
            )

    def log(self, step: int, kind: str, scalars: Mapping[str, float]) -> None:
        """Record scalars under `kind` (train, evaluate) at a step."""
        if self.file is None:
            return
        self.file.write(json.dumps({"step": step, "kind": kind, **scalars}) + "\n")
        if self.board is not None:
            for name, value in scalars.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)
        if self.wandb is not None:
            self.wandb.log({f"{kind}/{name}": value for name, value in scalars.items()}, step=step)

    def picture(self, step: int, name: str, image: torch.Tensor) -> None:
        """Mirror a picture [3, H, W] in [0, 1]; the file itself is written by the trainer."""
        if self.board is not None:
            self.board.add_image(name, image, step)
        if self.wandb is not None:
            import wandb

            self.wandb.log({name: wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Flush and end all mirrors."""
        for sink in (self.file, self.board):
            if sink is not None:
                sink.close()
        if self.wandb is not None:
            self.wandb.finish()


def read_metrics(path: str | Path) -> list[dict]:
    """The records of a metrics.jsonl, oldest first; a last line cut short by a kill is left out."""
    records = []
    if Path(path).is_file():
        for line in Path(path).read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return records
