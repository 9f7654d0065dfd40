"""Numbers over time: metrics.jsonl always, TensorBoard and wandb as optional mirrors."""

import importlib.util
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import torch

from common import distributed
from common.build import ConfigError
from common.console import say
from storage.files import write_text
from storage.json_files import parse_json
from training.settings import ExperimentSettings

METRICS_FILE = "metrics.jsonl"
WANDB_ID_FILE = "wandb_id.txt"


class Meters:
    """Scalars of many steps, kept on the device until `take`: no step waits for it."""

    def __init__(self) -> None:
        self.values: dict[str, list[tuple[int, torch.Tensor]]] = {}

    def add(self, step: int, scalars: Mapping[str, torch.Tensor | float]) -> None:
        for name, value in scalars.items():
            tensor = value.detach().float() if isinstance(value, torch.Tensor) else torch.tensor(float(value))
            self.values.setdefault(name, []).append((step, tensor))

    def take(self, device: torch.device) -> tuple[dict[str, float], dict[str, int]]:
        """Means since the last call over steps and processes; and of broken scalars the first step not finite."""
        values, self.values = dict(sorted(self.values.items())), {}  # one order on every process
        if not values:
            return {}, {}
        # One reduction for all scalars, and one wait for the device.
        flat = torch.stack([tensor.to(device) for series in values.values() for _, tensor in series])
        parts = distributed.all_reduce_mean(flat).cpu().split([len(series) for series in values.values()])
        means, wrong = {}, {}
        for (name, series), numbers in zip(values.items(), parts, strict=True):
            means[name] = float(numbers.mean())
            if not numbers.isfinite().all():
                wrong[name] = series[int(numbers.isfinite().logical_not().nonzero()[0])][0]
        return means, wrong


class Tracker:
    """Writes records on the main process; drops those after `step`, so that a resumed run continues its curve.

    Raises:
        ConfigError: the package of a mirror in `experiment.trackers` is not installed.
    """

    def __init__(self, folder: Path, experiment: ExperimentSettings, *, config: dict, step: int) -> None:
        for mirror in experiment.trackers:
            if importlib.util.find_spec(mirror) is None:
                raise ConfigError(f"experiment.trackers: {mirror} is not installed; `pip install {mirror}`")
        self.path = Path(folder) / METRICS_FILE
        self.board = self.wandb = self.file = None
        distributed.on_main(lambda: self._open(folder, experiment, config, step))  # mirrors may take long

    def _open(self, folder: Path, experiment: ExperimentSettings, config: dict, step: int) -> None:
        kept = [r for r in read_metrics(self.path) if r["step"] <= step] if step else []
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.file = self.path.open("ab", buffering=0)  # nothing is left in a buffer when the disk is full
        if "tensorboard" in experiment.trackers:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step or None)
        if "wandb" in experiment.trackers:
            import wandb

            known = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE") or wandb.api.api_key
            if not known:
                say(
                    "wandb: no API key found, the run is recorded offline (upload it later with `wandb sync`)"
                )
            about = {"project": experiment.project, "name": experiment.name, "config": config}
            # One run of wandb for one run folder, over all restarts; parts recorded offline have the same id.
            about |= {"id": _wandb_id(folder), "resume": "allow"}
            self.wandb = wandb.init(**about, dir=str(folder), mode=None if known else "offline")

    def log(self, step: int, kind: str, scalars: Mapping[str, float]) -> None:
        """Record scalars under `kind` (train, evaluate); raises OSError that names the file if the disk is full."""
        if self.file is None:
            return
        record = json.dumps({"step": step, "kind": kind, **scalars}) + "\n"
        try:
            self.file.write(record.encode())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        if self.board is not None:
            for name, value in scalars.items():
                self.board.add_scalar(f"{kind}/{name}", value, step)
        if self.wandb is not None:
            self.wandb.log({f"{kind}/{name}": value for name, value in scalars.items()}, step=step)

    def recorded(self, step: int, kind: str) -> dict[str, float] | None:
        """The scalars that were recorded after `step` under `kind`, if there are any."""
        return recorded(self.path, step, kind)

    def picture(self, step: int, name: str, image: torch.Tensor) -> None:
        """Mirror a picture [3, H, W] in [0, 1]."""
        if self.board is not None:
            self.board.add_image(name, image, step)
        if self.wandb is not None:
            import wandb

            self.wandb.log({name: wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Flush and end the file and its mirrors."""
        for sink in (self.file, self.board):
            if sink is not None:
                sink.close()
        if self.wandb is not None:
            self.wandb.finish()


def _wandb_id(folder: Path) -> str:
    path = folder / WANDB_ID_FILE
    if not path.is_file():
        write_text(path, secrets.token_hex(8))
    return path.read_text().strip()


def recorded(path: Path, step: int, kind: str) -> dict[str, float] | None:
    """The scalars in a metrics.jsonl that were recorded after `step` under `kind`, if there are any."""
    for record in read_metrics(path):
        if (record["step"], record["kind"]) == (step, kind):
            return {name: value for name, value in record.items() if name not in ("step", "kind")}
    return None


def read_metrics(path: str | Path) -> list[dict]:
    """Records of a metrics.jsonl, oldest first."""
    records = []
    if Path(path).is_file():
        for line in Path(path).read_text(errors="replace").splitlines():
            try:
                record = parse_json(line)
            except ValueError:  # a last line cut short by a kill
                continue
            if isinstance(record, dict) and isinstance(record.get("step"), int) and "kind" in record:
                records.append(record)
    return records
