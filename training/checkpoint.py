"""Checkpoints: written to a temporary folder, then renamed, so that whatever is found under its name is complete.

Layout of a run folder:

    config.yaml              the resolved configuration
    model.safetensors        the result (averaged weights if the run keeps them)
    checkpoints/step-00001000/
        <module>.safetensors     one file per trained module and per running-statistics module
        ema.safetensors          averaged weights of `model`, if kept
        optimizers.pt            optimizer states (tensors and numbers only)
        state.json               step, seed, elapsed time
        config.yaml
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from common.build import ConfigError
from storage.files import write_yaml
from storage.weights import CheckpointError, load_weights

PREFIX = "step-"


def save_weights(
    path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a state dict as safetensors through a temporary file in the same folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in state.items()},
            temporary,
            metadata=dict(metadata or {}),
        )
        mask = os.umask(0)  # safetensors makes files that only their owner can read; follow the umask instead
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


class CheckpointFolder:
    """The `checkpoints` folder of one run.

    Args:
        root: the run folder.
        keep: number of newest checkpoints to keep.
        milestone_every: checkpoints at multiples of this step are never removed (0 = none).
    """

    def __init__(self, root: Path, *, keep: int, milestone_every: int = 0):
        self.folder = Path(root) / "checkpoints"
        self.keep, self.milestone_every = keep, milestone_every

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        if not self.folder.is_dir():
            return []
        names = (p.name.removeprefix(PREFIX) for p in self.folder.glob(f"{PREFIX}*") if p.is_dir())
        return sorted(int(n) for n in names if n.isdigit())

    def path(self, step: int) -> Path:
        """Folder of the checkpoint at `step`."""
        return self.folder / f"{PREFIX}{step:08d}"

    def save(
        self, step: int, states: Mapping[str, Mapping[str, torch.Tensor]], optimizers: Any, info: dict
    ) -> Path:
        """Write one checkpoint, then remove the oldest ones beyond `keep`.

        Args:
            states: {file stem: state dict}.
            optimizers: nested dict of tensors and numbers.
            info: JSON-able facts; `config` in it is stored as YAML.

        Raises:
            CheckpointError: the disk is full or not writable, or a number is not finite. Earlier checkpoints are
                untouched.
        """
        target, temporary = self.path(step), self.folder / f".{PREFIX}{step:08d}.part"
        for stem, state in states.items():
            for name, tensor in state.items():
                if not tensor.isfinite().all():
                    raise CheckpointError(
                        f"step {step}: {name!r} of {stem} is not finite; it is not saved, {self._last()}"
                    )
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            for stem, state in states.items():
                save_weights(temporary / f"{stem}.safetensors", state)
            torch.save(optimizers, temporary / "optimizers.pt")
            write_yaml(temporary / "config.yaml", info["config"])
            facts = {"step": step, **{k: v for k, v in info.items() if k != "config"}}
            (temporary / "state.json").write_text(json.dumps(facts, indent=1) + "\n")
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
        except (OSError, RuntimeError, CheckpointError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            # What torch.save says about a full disk is a riddle.
            guess = "is the disk full? " if isinstance(error, RuntimeError) else ""
            reason = f"{guess}{error}; {self._last()}"
            raise CheckpointError(f"cannot save checkpoint {target}: {reason}") from error
        self._prune()
        return target

    def _last(self) -> str:
        steps = self.steps()
        return f"the last complete one is {self.path(steps[-1])}" if steps else "there is no earlier one"

    def _prune(self) -> None:
        milestones = {s for s in self.steps() if self.milestone_every and s % self.milestone_every == 0}
        ordinary = [s for s in self.steps() if s not in milestones]
        for step in ordinary[: -self.keep]:
            shutil.rmtree(self.path(step))

    def load_info(self, step: int) -> dict:
        """Facts stored with a checkpoint.

        Raises:
            CheckpointError: state.json is missing or damaged.
        """
        path = self.path(step) / "state.json"
        try:
            return json.loads(path.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise self._unusable(path, error) from error

    def load_module(self, step: int, stem: str, module: torch.nn.Module) -> None:
        """Load one module of a checkpoint strictly (see `load_weights`)."""
        path = self.path(step) / f"{stem}.safetensors"
        try:
            load_weights(path, module)
        except (CheckpointError, FileNotFoundError) as error:
            raise self._unusable(path, error) from error

    def load_optimizers(self, step: int) -> Any:
        """Optimizer states, read without unpickling objects."""
        path = self.path(step) / "optimizers.pt"
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise self._unusable(path, str(error).split(". ")[0]) from error

    def _unusable(self, path: Path, reason: object) -> CheckpointError:
        reason = str(reason).split("\n")[0]
        earlier = [s for s in self.steps() if self.path(s) < path.parent]
        way = f"from {self.path(earlier[-1]).name}" if earlier else "anew"
        return CheckpointError(
            f"{path} cannot be used ({reason}); remove {path.parent} to begin {way},"
            " or choose another experiment.output_dir"
        )


def require_space(folder: Path, needed: int) -> None:
    """Refuse to start when the disk has less room than one checkpoint needs.

    Raises:
        ConfigError: fewer than `needed` bytes are free; the message says how many.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"experiment.output_dir={folder}: {free / 2**20:.0f} MiB free,"
            f" but a checkpoint needs {needed / 2**20:.0f} MiB ({os.strerror(errno.ENOSPC).lower()})"
        )
