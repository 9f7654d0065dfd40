"""What a data set holds as this code reads it: numbers, reasons and a contact sheet."""

import io
from collections.abc import Mapping
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.console import Clock, banner, duration, progress, say
from common.image_rows import named_rows
from common.images import PixelRules, to_float
from data.file_list import FileList, ImageFile, find_files
from data.inspection import Examples, Inspection, evenly_spaced
from data.source import Source
from data.still import still_source
from jobs.inspection_page import page, rows
from jobs.options.inspect_data import InspectOptions
from storage.files import save_png, write_json, write_text
from storage.image_lists import LIST_SUFFIXES
from storage.image_tree import find_images
from storage.left_out import LeftOut
from storage.locks import reserved_folder
from storage.remote_files import is_remote

OWN_SIZE = 256  # of data sets that are drawn, not read


def inspect_data(options: InspectOptions) -> None:
    """Decode every image once, print what was found, and write it to the folder."""
    clock = Clock()
    if options.output is None:
        _inspect(options, clock)
        return
    with reserved_folder(options.output):
        inspection, result = _inspect(options, clock)
        folder = Path(options.output)
        sheet = inspection.contact_sheet()
        if sheet is not None:
            save_png(folder / "contact_sheet.png", named_rows(to_float(sheet[0]), sheet[1]))
        write_json(folder / "inspection.json", result)
        write_text(folder / "inspection.md", page(result, with_sheet=sheet is not None))
        say(f"see {folder}/inspection.md, inspection.json" + (" and contact_sheet.png" if sheet else ""))


def _inspect(options: InspectOptions, clock: Clock) -> tuple[Inspection, dict[str, Any]]:
    examples, what = open_examples(options)
    indices = evenly_spaced(examples.count, options.max_images)
    inspection = Inspection(examples, indices)
    for _ in progress(inspection.look(options.workers), "inspecting", total=len(indices), unit="image"):
        pass
    result = {"data": what, **inspection.result()}
    banner("Data", rows(result))
    say(f"{len(indices):,} images in {duration(clock.lap())}")
    return inspection, result


def open_examples(options: InspectOptions) -> tuple[Examples, Any]:
    """The images that the options name, and what they are for the result.

    Raises:
        FileNotFoundError, ValueError: there are none.
    """
    data = options.data
    if isinstance(data, Mapping):
        section = section_of(data, options.split)
        return from_source(_opened(section)), section
    rules = PixelRules(options.alpha, options.orientation)
    if isinstance(data, list) or is_remote(data) or _is_parquet(data):
        section = {"path": data, "alpha": rules.alpha, "orientation": rules.orientation}
        if _is_parquet(data[0] if isinstance(data, list) else data):
            section["name"] = "parquet"
        else:  # an index of remote shards is kept in the cache, none beside files that are only looked at
            section |= {"name": "webdataset", "keep_index": not isinstance(data, list)}
        return from_source(_opened(section)), data
    if Path(data).is_file() and data.lower().endswith(LIST_SUFFIXES):
        section = {"name": "image_list", "path": data, "alpha": rules.alpha, "orientation": rules.orientation}
        return from_source(_opened(section)), data
    if _is_glob(data):
        return from_files(_matching(data), rules, by_folder=False), data
    return from_files(find_files(data), rules), data


def section_of(data: Mapping[str, Any], split: str) -> Mapping[str, Any]:
    """The section of images in the data of a recipe; a section itself as it is. Raises ValueError for tokens alone."""
    for section in (data, data.get(split), data.get("images")):
        if isinstance(section, Mapping) and "name" in section:
            return section
    held = ", ".join(sorted(data)) or "nothing"
    raise ValueError(f"data holds no images of {split}: expected a section with a name, found {held}")


def _opened(section: Mapping[str, Any]) -> Source:
    return still_source(section, split="data", config={}, image_size=section.get("image_size") or OWN_SIZE)


def _is_parquet(path: str) -> bool:
    return path.endswith(".parquet") or (
        Path(path).is_dir() and any(Path(path).rglob("*.parquet")) and not find_images(path).files
    )


def _is_glob(path: str) -> bool:
    return any(mark in path for mark in "*?[") and not Path(path).exists()


def _matching(pattern: str) -> FileList:
    found = sorted(path for path in glob(pattern, recursive=True) if Path(path).is_file())
    if not found:
        raise FileNotFoundError(f"no file fits data={pattern}")
    return FileList([ImageFile(path, Path(path)) for path in found], LeftOut(), LeftOut())


def from_files(found: FileList, rules: PixelRules, by_folder: bool = True) -> Examples:
    """Files in folders or shards, with the labels of the shards; or with their first folder, if all lie in one."""
    files = found.files
    samples = [file.sample for file in files if file.sample is not None]
    labels, names = None, []
    if samples:
        known = [-1 if sample.label is None else sample.label for sample in samples]
        if max(known) >= 0:
            labels, names = np.array(known, dtype=np.int64), [str(n) for n in range(max(known) + 1)]
    elif by_folder and all("/" in file.name for file in files):
        folders = [file.name.partition("/")[0] for file in files]
        names = sorted(set(folders))
        labels = np.searchsorted(names, folders).astype(np.int64)
    return Examples(
        count=len(files),
        file=lambda index: (files[index].name, files[index].content()),
        caption=lambda index: files[index].caption(),
        labels=labels,
        class_names=names,
        left_out=found.left_out,
        unlabelled=found.unlabelled,
        rules=rules,
    )


def from_source(source: Source) -> Examples:
    """The examples of a data set; raises ValueError for tokens."""
    has_files = source.rules is not None

    def drawn(index: int) -> tuple[str, bytes]:
        pixels, _ = source.load(index, np.random.default_rng(0))
        file = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(file, "PNG")
        return f"{type(source).__name__} {index}", file.getvalue()

    return Examples(
        count=len(source),
        file=source.file if has_files else drawn,
        caption=lambda index: source.captions([index])[0] if source.has_captions else None,
        labels=np.asarray(source.labels),
        class_names=source.class_names,
        left_out=source.left_out,
        rules=source.rules or PixelRules(),
    )
