"""Checkpoints: every folder found under its name is complete.

Layout of a run folder:

    config.yaml              the resolved configuration
    model.safetensors        the result (averaged weights if the run keeps them)
    checkpoints/step-00001000/
        <module>.safetensors     one file per trained module and per running-statistics module
        ema.safetensors          averaged weights of `model`, if kept
        optimizers.pt            optimizer states (tensors and numbers only)
        <module>.shards/         instead, of a sharded module: a file per process (storage/shards.py)
        <module>.optimizer.shards/
        state.json               step, seed, global batch, identity of the model, evaluations so far
        config.yaml
    best/                        weights of the best evaluation (`training.keep_best`): a folder like that of a run
        model.safetensors        averaged weights if the run keeps them; model.shards/ of a sharded module
        metrics.json             what was measured, and its step
        config.yaml
"""

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from common import distributed
from common.build import ConfigError
from common.config import first_difference, read_yaml
from common.console import warn
from storage.files import atomic_folder, free_bytes, write_json, write_yaml
from storage.json_files import read_json
from storage.shards import local, read_shards, shard_shapes, sharded_as, write_shards
from storage.torch_files import load_torch
from storage.weights import SHARDS, CheckpointError, load_weights, read_weights, write_weights

State = Mapping[str, torch.Tensor]
PREFIX = "step-"
BEST = "best"
_FACTS = {"global_batch": int, "identity": dict, "seed": int}  # that a resumed run looks at


class CheckpointFolder:
    """The `checkpoints` folder of the run in `root`.

    Keeps the newest `keep` checkpoints, and those at multiples of `milestone_every` (0 = none).
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

    def newest_config(self) -> dict:
        """The configuration that the newest checkpoint was made with; empty without one."""
        path = self.path(steps[-1]) / "config.yaml" if (steps := self.steps()) else None
        return read_yaml(path) if path is not None and path.is_file() else {}

    def path(self, step: int) -> Path:
        return self.folder / f"{PREFIX}{step:08d}"

    def require_same_run(self, step: int, now: Mapping[str, Any]) -> None:
        """Raise ConfigError if another run (model or seed) wrote the checkpoint; warn of another global batch.

        `now` is the `info` that `save` would get.
        """
        info, advice = self.load_info(step, **_FACTS), "choose another experiment.output_dir"
        if info["global_batch"] != now["global_batch"]:
            was = info["global_batch"]
            warn(f"the global batch was {was} and is now {now['global_batch']}; data order changes")
        for section in info["identity"] | now["identity"]:
            was, is_now = info["identity"].get(section), now["identity"].get(section)
            if difference := first_difference(was, is_now, section):
                raise ConfigError(f"{self.path(step)} was trained with another model: {difference}; {advice}")
        if info["seed"] != now["seed"]:
            raise ConfigError(
                f"experiment.seed={now['seed']}, but {self.folder.parent} was begun with {info['seed']}; {advice}"
            )

    def save(
        self,
        step: int,
        states: Mapping[str, State],
        optimizers: Any,
        info: dict,
        shards: Mapping[str, State] | None = None,
    ) -> Path:
        """Write one checkpoint, then remove the oldest ones beyond `keep`; every process calls it, and waits.

        Args:
            states: {file stem: state dict}; the main process writes its own, and its `optimizers`.
            info: JSON-able facts; `config` in it is stored as YAML.
            shards: {file stem: state dict} of sharded tensors, which all processes write together.

        Raises:
            CheckpointError: the disk is full or not writable, or a number is not finite. Earlier checkpoints stay.
        """
        target, facts = self.path(step), {"step": step, **{k: v for k, v in info.items() if k != "config"}}

        def rest(folder: Path) -> None:
            torch.save(optimizers, folder / "optimizers.pt")
            write_yaml(folder / "config.yaml", info["config"])
            write_json(folder / "state.json", facts)

        self._write(target, step, states, shards or {}, rest)
        distributed.on_main(self._prune)  # after the new one is whole
        return target

    def save_best(
        self,
        step: int,
        states: Mapping[str, State],
        shards: Mapping[str, State],
        config: dict,
        measured: dict,
    ) -> None:
        """Replace `best/` by the weights of `step` and what was `measured` of them; calls and errors as for `save`."""

        def rest(folder: Path) -> None:
            write_yaml(folder / "config.yaml", config)
            write_json(folder / "metrics.json", {"step": step, **measured})

        self._write(self.folder.parent / BEST, step, states, shards, rest)

    def _write(
        self,
        target: Path,
        step: int,
        states: Mapping[str, State],
        shards: Mapping[str, State],
        rest: Callable[[Path], None],
    ) -> None:
        """Write weights, and on the main process the `rest`, to a folder that is there as a whole or not at all."""
        self._require_savable(step, states, shards)
        try:
            with ExitStack() as stack:
                # The main process makes the folder, which is removed when this block fails anywhere, ...
                folder = distributed.on_main(lambda: stack.enter_context(atomic_folder(target)))
                for stem, state in shards.items():
                    write_shards(folder / f"{stem}{SHARDS}", state)

                def finish() -> None:
                    for stem, state in states.items():
                        write_weights(folder / f"{stem}.safetensors", state)
                    rest(folder)
                    stack.close()  # ... and renamed when it is whole

                distributed.on_main(finish)
        except (OSError, RuntimeError) as error:
            # torch.save reports a full disk as a RuntimeError that does not say so.
            guess = "is the disk full? " if isinstance(error, RuntimeError) else ""
            reason = f"{guess}{error}; {self._last()}"
            raise CheckpointError(f"cannot save checkpoint {target}: {reason}") from error

    def _require_savable(self, step: int, states: Mapping[str, State], shards: Mapping[str, State]) -> None:
        """Raise CheckpointError, on all processes alike, if a number is not finite or shards do not fit on the disk."""
        # A run must not be able to resume from NaN.
        problem = distributed.on_main(lambda: _not_finite(step, states) or self._no_room(step, shards))
        if shards:
            problem = next(
                filter(None, [problem, *distributed.gather_objects(_not_finite(step, shards))]), None
            )
        if problem is not None:
            raise CheckpointError(f"{problem}; it is not saved, {self._last()}")

    def _no_room(self, step: int, shards: Mapping[str, State]) -> str | None:
        size = sum(t.numel() * t.element_size() for state in shards.values() for t in state.values())
        if free_bytes(self.folder) < size:
            return f"step {step}: {self.folder} has no room for a checkpoint of {size / 2**20:.0f} MiB"
        return None

    def _last(self) -> str:
        steps = self.steps()
        return f"the last complete one is {self.path(steps[-1])}" if steps else "there is no earlier one"

    def _prune(self) -> None:
        milestones = {s for s in self.steps() if self.milestone_every and s % self.milestone_every == 0}
        ordinary = [s for s in self.steps() if s not in milestones]
        for step in ordinary[: -self.keep]:
            shutil.rmtree(self.path(step))

    def load_info(self, step: int, **types: type) -> dict:
        """Facts stored with a checkpoint; raises CheckpointError if state.json is missing or damaged.

        `types` are those of facts that must be there.
        """
        path = self.path(step) / "state.json"
        try:
            return read_json(path, **types)
        except (OSError, ValueError) as error:
            raise self._unusable(path, error) from error

    def load_module(self, step: int, stem: str, module: torch.nn.Module) -> None:
        """Load one module of a checkpoint; every name and shape must match. Of a sharded one reads its part only."""
        path = self.path(step) / f"{stem}.safetensors"
        if (shards := path.with_suffix(SHARDS)).is_dir():
            path = shards
        try:
            load_weights(path, module, read=lambda path: sharded_as(module, read_weights(path)))
        except (CheckpointError, FileNotFoundError) as error:
            raise self._unusable(path, error) from error

    def shard_names(self, step: int, stem: str) -> set[str]:
        """Names of the tensors in shards of a checkpoint."""
        path = self.path(step) / f"{stem}{SHARDS}"
        try:
            return set(shard_shapes(path))
        except (OSError, ValueError, SafetensorError) as error:
            raise self._unusable(path, error) from error

    def load_shards(self, step: int, stem: str, tensors: State) -> None:
        """Read tensors from shards in place, each process its part; every name must be there with its shape."""
        path = self.path(step) / f"{stem}{SHARDS}"
        try:
            read_shards(path, tensors)
        except (OSError, ValueError) as error:
            raise self._unusable(path, error) from error

    def load_optimizers(self, step: int) -> Any:
        """Optimizer states, read without unpickling objects, and only where they are used: copy what you keep."""
        path = self.path(step) / "optimizers.pt"
        try:
            # Mapped into memory: the processes of a node share one copy, which is the system's cache of the file.
            return load_torch(path)
        except Exception as error:  # torch.load raises many kinds for damaged files
            raise self._unusable(path, str(error).split(". ")[0]) from error

    def _unusable(self, path: Path, reason: object) -> CheckpointError:
        reason = str(reason).split("\n")[0]
        earlier = [s for s in self.steps() if self.path(s) < path.parent]
        way = f"from {self.path(earlier[-1]).name}" if earlier else "anew"
        return CheckpointError(
            f"{path} cannot be used ({reason}); remove {path.parent} to begin {way},"
            " or choose another experiment.output_dir"
        )


def _not_finite(step: int, states: Mapping[str, State]) -> str | None:
    for stem, state in states.items():
        for name, tensor in state.items():
            if not local(tensor).isfinite().all():
                return f"step {step}: {name!r} of {stem} is not finite"
    return None
