"""Data sets without random augmentation, for tokenizing and measuring, whole or in part."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import distributed
from common.build import build, choose
from common.console import progress
from common.cores import loading_workers, warn_of_workers
from data import DATASETS
from data.loaders import eval_loader
from data.source import Source
from data.stream import Batch


class Part(Source):
    """The examples ``indices`` int64 [n] of a source."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices
        self.class_names, self.item_key = source.class_names, source.item_key
        self.item_shape = source.item_shape
        self.labels = np.asarray(source.labels)[indices]
        self.has_captions, self.rules = source.has_captions, source.rules

    def load(self, index: int, rng: np.random.Generator) -> tuple[Tensor, int]:
        return self._source.load(int(self._indices[index]), rng)

    def load_many(self, indices: Sequence[int], rngs: Sequence[np.random.Generator]) -> Tensor:
        return self._source.load_many([int(self._indices[i]) for i in indices], rngs)

    def file(self, index: int) -> tuple[str, bytes]:
        return self._source.file(int(self._indices[index]))

    def captions(self, indices: Sequence[int]) -> list[str]:
        return self._source.captions([int(self._indices[i]) for i in indices])


def evenly_chosen(source: Source, count: int) -> Part:
    """`count` examples at even distances, in order."""
    return Part(source, np.arange(count) * len(source) // count)


def loading_options(options: Any) -> dict[str, Any]:
    """`batch_size`, `num_workers` and `max_skipped` of a job's options, for `share_batches`; `auto` is replaced.

    More workers than cores are named. Batches do not depend on the number of workers.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loading = {key: getattr(options, key) for key in ("batch_size", "num_workers", "max_skipped")}
    if loading["num_workers"] == "auto":
        loading["num_workers"] = loading_workers(device)[0]
    else:
        warn_of_workers("num_workers", loading["num_workers"], device)
    return loading


def share_batches(
    source: Source, title: str, *, batch_size: int, num_workers: int, max_skipped: float
) -> Iterator[Batch]:
    """This process's share of a source (`data.loaders.eval_loader`), with a progress bar.

    Raises:
        ValueError: more than the fraction `max_skipped` of the share cannot be read.
    """
    rank, processes = distributed.rank(), distributed.world_size()
    count = (rank + 1) * len(source) // processes - rank * len(source) // processes
    loader = eval_loader(
        source,
        batch_size=batch_size,
        num_processes=processes,
        process_index=rank,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    skipped: list[str] = []
    bar = progress(None, title, total=count, unit="image")
    for batch in loader:
        skipped += batch["skipped"]
        if len(skipped) > max_skipped * count:
            raise ValueError(
                f"{len(skipped)} of {count} images cannot be read, more than max_skipped={max_skipped:g}"
                f" allows: {', '.join(skipped[:3])}"
            )
        yield batch
        bar.update(len(batch["positions"]) + len(batch["skipped"]))
    bar.close()


def still_source(
    section: Mapping[str, Any] | None, *, split: str, config: Mapping[str, Any], **fixed: Any
) -> Source:
    """The data set of a section, or of a tokenizer's own run, with every random transform off; says what it leaves out.

    Args:
        section: name and options of a data set; None takes `data.<split>` of `config`, the tokenizer's run.
        **fixed: options in place of what the section says, if the data set has them; `image_size` at least.

    Raises:
        ConfigError: the section is wrong.
        ValueError: there is no section, or it describes no images.
    """
    kind = "data"
    if section is None:
        kind = f"data.{split}"
        section = (config.get("data") or {}).get(split)
        if not isinstance(section, Mapping):
            raise ValueError(f"the tokenizer's run has no section {kind}; say data.name=... and its options")
    builder, options = choose(kind, DATASETS, section)
    accepted = inspect.signature(builder).parameters
    if "image_size" not in accepted:
        raise ValueError(f"{kind}.name={section['name']!r} holds no images")
    for name, parameter in accepted.items():
        if name.startswith("random_"):
            options[name] = type(parameter.default)(0)  # False or 0.0
    options |= {name: value for name, value in fixed.items() if name in accepted}
    source = build(kind, DATASETS, {"name": section["name"], **options})
    source.left_out.warn(str(options.get("path", kind)))
    return source
