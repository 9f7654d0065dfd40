"""Images as people have them (archives, folders, parquet files) to the tar shards that the recipes read."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.console import Clock, banner, count, duration, progress, say, warn
from common.workers import in_processes
from data.packing.find_originals import Found, examples, find_originals
from data.packing.imagenet_labels import synset_in
from data.packing.originals import Originals
from data.packing.pack_shards import PackSettings, ShardRecord, pack_shard
from data.packing.shard_plan import PROBE, ShardPlan
from data.parquet_facts import Columns
from data.source import CorruptSample
from jobs.options.prepare_data import PrepareOptions
from storage.files import file_sha256, require_space
from storage.locks import reserved_folder

# With these, full ImageNet has the 321 and 50 shards that the recipes name.
PER_SHARD = {"train": 4000, "validation": 1000}
SHORT = {"train": "train", "validation": "val"}


def prepare_data(options: PrepareOptions) -> None:
    """Find the images, say what will be done, pack what is missing, and write a manifest per split."""
    with reserved_folder(options.output):
        clock = Clock()
        say(f"looking for images in {options.input}")
        columns = Columns(options.image_column, options.label_column, options.caption_column)
        places = {key: getattr(options, key) for key in ("train", "validation", "annotations")}
        found = find_originals(options.input, columns=columns, **places)
        plans = [_plan(options, found, split) for split in found.splits]
        workers = options.workers or os.cpu_count() or 1
        for plan in plans:
            plan.find_finished(overwrite=options.overwrite)
            if options.verify:
                _verify(plan, workers)
        _announce(options, found, plans, workers, clock.lap())
        needed = sum(plan.bytes_needed() for plan in plans)
        require_space(Path(options.output), needed, "the shards", "output")
        for plan in plans:
            _pack(plan, workers)


def _plan(options: PrepareOptions, found: Found, split: str) -> ShardPlan:
    images = found.splits[split]
    name = options.name or ("imagenet" if _is_imagenet(images) else _name_of(options.input))
    if not re.fullmatch(r"[\w.+=-]+", name):
        raise ValueError(f"name={name!r} must consist of letters, digits, '_', '-' and '.'")
    classes = tuple(found.names.get(key) or key for key in images.classes)
    return ShardPlan(
        split=split,
        images=images,
        folder=Path(options.output),
        prefix=f"{name}-{SHORT[split]}",
        per_shard=options.images_per_shard or PER_SHARD[split],
        seed=options.seed if split == "train" else None,
        settings=PackSettings(classes, options.json, options.check == "pixels"),
    )


def _is_imagenet(images: Originals) -> bool:
    if images.rows is None:
        return images.synsets
    try:
        return synset_in(images.read(0).name) is not None
    except (OSError, CorruptSample):
        return False


def _name_of(place: str) -> str:
    path = Path(place)
    name = path.stem if path.suffix in (".tar", ".parquet") else path.resolve().name
    return re.sub(r"[^\w.+=-]+", "-", name).strip("-") or "images"


def _announce(
    options: PrepareOptions, found: Found, plans: list[ShardPlan], workers: int, seconds: float
) -> None:
    rows: dict[str, object] = {"input": options.input, "output": options.output}
    for plan in plans:
        images, finished = plan.images, f", {len(plan.records)} finished" if plan.records else ""
        classes = f"{len(images.classes)} classes" if images.classes else "no labels"
        rows[plan.split] = f"{len(images):,} images, {classes}, {_size(images.total_bytes())}: {images.what}"
        rows[f"{plan.split} shards"] = f"{plan.shards} of {plan.per_shard:,} images{finished}: {plan.pattern}"
    if found.annotations:
        rows["labels from"] = ", ".join(found.annotations)
    rows["found in"] = duration(seconds)
    unfinished = [plan for plan in plans if plan.missing()]
    if unfinished:
        images = sum(len(plan.missing()) * min(plan.per_shard, len(plan.images)) for plan in unfinished)
        total = _seconds_per_image(unfinished[0]) * images / workers
        rows["disk"] = f"{_size(sum(plan.bytes_needed() for plan in plans))} more"
        rows["time"] = f"about {duration(total)} with {workers} workers, by a few images"
    banner("Preparing data", rows)
    for plan in plans:
        plan.images.left_out.warn(plan.images.what)
        for text in plan.count_warnings():
            warn(f"{plan.split}: {text}")


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _seconds_per_image(plan: ShardPlan) -> float:
    """Packs a few images into a shard that is thrown away."""
    few = examples(plan.images, 64)
    with tempfile.TemporaryDirectory(dir=plan.folder, prefix=PROBE) as folder:
        clock = Clock()
        pack_shard(Path(folder) / "probe.tar", plan.images.take(few), plan.settings)
        return clock.elapsed() / len(few)


@dataclass(frozen=True)
class _Task:
    number: int
    path: Path
    images: Originals
    settings: PackSettings


def _pack_one(task: _Task, stopped: Callable[[], bool]) -> tuple[int, ShardRecord]:
    return task.number, pack_shard(task.path, task.images, task.settings, stopped)


def _verify(plan: ShardPlan, workers: int) -> None:
    """Forget the shards whose content is not what was written."""
    numbers = sorted(plan.records)
    with ThreadPoolExecutor(workers) as pool:  # hashing holds no lock of Python
        hashes = pool.map(file_sha256, map(plan.shard, numbers))
        found = list(progress(hashes, f"verifying {plan.split}", total=len(numbers), unit="shard"))
    for number, sha256 in zip(numbers, found, strict=True):
        if sha256 != plan.records[number].sha256:
            warn(f"{plan.shard(number)} is not what was written (another SHA-256); it is made anew")
            del plan.records[number]


def _pack(plan: ShardPlan, workers: int) -> None:
    missing, clock = plan.missing(), Clock()
    if not missing and plan.manifest.is_file():
        say(f"{plan.split}: the shards that {plan.manifest} describes are there; nothing to do")
        return
    plan.begin()
    bar = progress(None, f"packing {plan.split}", total=len(plan.images), unit="image")
    bar.update(sum(record.images + len(record.damaged) for record in plan.records.values()))
    packed = 0
    tasks = (_Task(number, plan.shard(number), plan.part(number), plan.settings) for number in missing)
    try:
        with closing(in_processes(_pack_one, tasks, min(workers, len(missing)))) as results:
            for number, record in results:
                plan.add(number, record)
                packed += record.images
                bar.update(record.images + len(record.damaged))
    finally:
        bar.close()
        plan.remove_unfinished()
    _report(plan, plan.finish())
    seconds = max(clock.elapsed(), 1e-9)
    say(f"{plan.split}: {packed:,} images in {duration(seconds)} ({count(packed / seconds)} images/s)")
    say(f"{plan.split}: {plan.pattern}, described by {plan.manifest}")


def _report(plan: ShardPlan, manifest: Mapping[str, Any]) -> None:
    """What is damaged or odd; the manifest holds all names."""
    for what, key in (("damaged and left out", "damaged_and_left_out"), ("kept", "odd_and_kept")):
        for reason, names in manifest[key].items():
            some = ", ".join(names[:3] + (["..."] if len(names) > 3 else []))
            warn(f"{plan.split}: {len(names)} {what}, {reason}: {some}")
    for text in manifest["warnings"]:
        warn(f"{plan.split}: {text}")
