"""Token files of other programs, in and out: lines of JSON, and pairs of arrays.

`data.token_lines` and `data.token_arrays` describe the two layouts. The first is what the published RAR models were
trained from, with ten consecutive lines per image that was tokenized with ten crops; the second is LlamaGen's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from common import distributed
from common.console import progress, say, warn
from data.token_arrays import TokenArrays, save_arrays
from data.token_lines import TokenLines
from data.token_memmap import TokenHeader, TokenMemmap, TokenWriter, require_positive
from storage.files import atomic_file, atomic_folder
from storage.locks import one_at_a_time
from storage.rows import differences

TEN_CROPS = 10
_GROUPS_LOOKED_AT = 64  # of ten lines, to guess the crops
_ROWS = 512  # images that are exported at a time


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a file of another program does not say about its tokens."""

    codebook_size: int  # tokens are in 0..codebook_size-1
    crops: int | None = None  # versions of every image, lines that follow one another; None finds out
    num_classes: int = 1000  # classes are in 0..num_classes-1; their names are the numbers
    tokenizer: str = "unknown"  # name or folder of the tokenizer that made the tokens
    weight_hash: str = ""  # of its weights; empty means unknown
    image_size: int | None = None  # of the images it saw; None is that in the name of the folder, or 256
    num_images: int | None = None  # saves counting the lines of a file

    def __post_init__(self) -> None:
        for key in ("codebook_size", "crops", "num_classes", "image_size", "num_images"):
            if key in ("codebook_size", "num_classes") or getattr(self, key) is not None:
                require_positive(key, getattr(self, key))

    def header(self, *, num_images: int, crops: int, num_tokens: int, source: str) -> TokenHeader:
        return TokenHeader(
            num_images=num_images,
            crops=crops,
            num_tokens=num_tokens,
            codebook_size=self.codebook_size,
            tokenizer=self.tokenizer,
            weight_hash=self.weight_hash,
            image_size=self.image_size or 256,
            class_names=[str(label) for label in range(self.num_classes)],
            source=source,
        )

    def differences(self, header: TokenHeader) -> str:
        """'crops 1 instead of 10; ...' for what a header says otherwise, '' if there is nothing."""
        names = header.class_names
        numbered = names == [str(label) for label in range(len(names))]
        found = {**vars(header), "num_classes": len(names) if numbered else names}
        return differences(found, {key: value for key, value in vars(self).items() if value is not None})


def import_jsonl(path: Path, output: Path, options: ImportOptions, *, overwrite: bool = False) -> TokenHeader:
    """Turn lines of JSON into a token file; resumes an interrupted import and does nothing if it is done.

    Args:
        path: lines of {"class_id": int, "tokens": [N ints]}.
        overwrite: replace a file of other tokens.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line is not as described (names file and line), lines of one image have different classes, their
            number does not fit `crops` or `num_images`, or `output` holds other tokens.
        OSError: the disk is full.
    """
    path, output = Path(path), Path(output)
    lines = TokenLines(path, codebook_size=options.codebook_size, num_classes=options.num_classes)
    stamp = _stamp(path)
    found = _already(output, stamp, options, overwrite)
    if found is not None:
        return found
    images, crops = options.num_images, options.crops
    if images is None or crops is None:
        count = lines.count()
        crops = crops or guess_crops(lines, count)
        if count % crops or images not in (None, count // crops):
            expected = f"num_images={images} x {crops}" if images else f"a multiple of crops={crops}"
            raise ValueError(f"{path} has {count} lines, expected {expected}")
        images = count // crops
    header = options.header(num_images=images, crops=crops, num_tokens=lines.num_tokens, source=stamp)
    return _fill(output, header, lambda missing: _jsonl_rows(lines, header, missing), lambda: _stamp(path))


def guess_crops(lines: TokenLines, count: int) -> int:
    """10 if the number of lines is a multiple of ten and ten that follow one another share their class, else 1.

    Looks at the first and last ten and some between. Single crops that are sorted by class can look the same; then
    ten images of a class count as one, which changes what an epoch is and nothing else.
    """
    groups = count // TEN_CROPS
    looked_at = np.unique(np.linspace(0, groups - 1, min(groups, _GROUPS_LOOKED_AT)).astype(int)).tolist()
    alike = (len(set(lines.classes(TEN_CROPS * g, TEN_CROPS * (g + 1)))) == 1 for g in looked_at)
    crops = TEN_CROPS if count and count % TEN_CROPS == 0 and all(alike) else 1
    taken = f"taken as {count // crops} images x {crops} crops"
    say(f"{lines.path} has {count} lines: {taken} (crops=... says otherwise)")
    return crops


def _jsonl_rows(lines: TokenLines, header: TokenHeader, missing: np.ndarray) -> Iterator[tuple]:
    row, crops = int(missing[0]), header.crops
    for labels, tokens in lines.blocks(start=row * crops, group=crops):
        labels = labels.reshape(-1, crops)
        other = labels != labels[:, :1]
        if other.any():
            image, crop = np.argwhere(other)[0].tolist()
            line = (row + image) * crops + 1
            raise ValueError(
                f"{lines.path}: line {line + crop} has class_id={labels[image, crop]}, but line {line}, of the same"
                f" image with crops={crops}, has {labels[image, 0]}"
            )
        rows = np.arange(row, row + len(labels))
        row += len(labels)
        if row > header.num_images:
            raise ValueError(f"{lines.path} has more lines than num_images={header.num_images} x {crops}")
        yield rows, tokens.reshape(len(labels), crops, -1), labels[:, 0]
    if row < header.num_images:
        raise ValueError(
            f"{lines.path} ends after {row * crops} lines, expected num_images={header.num_images} x {crops}"
        )


def export_jsonl(tokens: Path, output: Path, *, overwrite: bool = False) -> TokenHeader:
    """Turn a token file into lines of JSON, a line per crop; images that were never tokenized are left out.

    Raises:
        FileNotFoundError, ValueError: as `TokenMemmap`; ValueError also if `output` exists.
        OSError: the disk is full.
    """
    source, output = TokenMemmap(path=tokens), Path(output)
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists; overwrite=true replaces it")
    with atomic_file(output) as temporary, open(temporary, "w", encoding="ascii") as file:
        for crops, labels in _images(source):
            file.writelines(
                f'{{"class_id": {label}, "tokens": {row}}}\n'
                for rows, label in zip(crops.tolist(), labels.tolist(), strict=True)
                for row in rows
            )
    return source.header


def import_npy(root: Path, output: Path, options: ImportOptions, *, overwrite: bool = False) -> TokenHeader:
    """Turn a folder of array pairs (`TokenArrays`) into a token file; resumes and raises as `import_jsonl`."""
    arrays, output = TokenArrays(root), Path(output)
    if options.image_size is None:
        options = replace(options, image_size=arrays.image_size)
    stamp = _stamp(*arrays.folders)
    found = _already(output, stamp, options, overwrite)
    if found is not None:
        return found
    images, shape = arrays.count(), arrays.shape()
    if options.num_images not in (None, images) or options.crops not in (None, shape[0]):
        given = {k: getattr(options, k) for k in ("num_images", "crops")}
        expected = ", ".join(f"{k}={value}" for k, value in given.items() if value)
        raise ValueError(f"{arrays.root} has {images} images with {shape[0]} crops, expected {expected}")
    header = options.header(num_images=images, crops=shape[0], num_tokens=shape[1], source=stamp)
    limits = {"codebook_size": options.codebook_size, "num_classes": options.num_classes}
    rows = partial(arrays.blocks, shape=shape, **limits)
    return _fill(output, header, rows, lambda: _stamp(*arrays.folders))


def export_npy(tokens: Path, root: Path) -> TokenHeader:
    """Turn a token file into array pairs in ``<root>/imagenet<image_size>_codes`` and ``_labels``.

    Raises:
        FileNotFoundError, ValueError, OSError: as `export_jsonl`.
    """
    source, root = TokenMemmap(path=tokens), Path(root)
    folders = [root / f"imagenet{source.header.image_size}_{kind}" for kind in ("codes", "labels")]
    for folder in folders:
        if folder.exists():
            raise ValueError(f"{folder} exists; remove it first")
    number = 0
    with atomic_folder(folders[0]) as codes, atomic_folder(folders[1]) as classes:
        for crops, labels in _images(source):
            for image, label in zip(crops, labels, strict=True):
                save_arrays((codes, classes), number, image, label)
                number += 1
    return source.header


def _images(source: TokenMemmap) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Crops [k, crops, N] and labels [k] of a token file, in pieces."""
    if len(source) < source.header.num_images:
        left_out = source.header.num_images - len(source)
        warn(f"{left_out} images of {source.path} were never tokenized: left out")
    bar = progress(None, "exporting", total=len(source), unit="image")
    for start in range(0, len(source), _ROWS):
        stop = min(start + _ROWS, len(source))
        yield source.all_crops(start, stop), np.asarray(source.labels[start:stop])
        bar.update(stop - start)
    bar.close()


def _fill(
    output: Path, header: TokenHeader, rows: Callable[[np.ndarray], Iterator[tuple]], stamp: Callable[[], str]
) -> TokenHeader:
    """Write what `rows(missing rows)` yields; what an interrupted import has written is kept."""
    with one_at_a_time(output):  # several trainings may need the same import
        if output.exists() and TokenWriter.unfinished(output) is None and _header(output) == header:
            return header
        _write_rows(output, header, rows, stamp)
    return header


def _header(output: Path) -> TokenHeader | None:
    try:
        return TokenMemmap(path=output).header
    except ValueError:  # damaged, or no token file at all
        return None


def _write_rows(
    output: Path, header: TokenHeader, rows: Callable[[np.ndarray], Iterator[tuple]], stamp: Callable[[], str]
) -> None:
    TokenWriter.create(output, header)
    writer = TokenWriter(output)
    try:
        missing = writer.missing_rows()
        bar = progress(None, "importing", total=len(missing) * header.crops, unit="crop")
        for numbers, tokens, labels in rows(missing) if len(missing) else ():
            writer.write(numbers, tokens, labels)
            bar.update(len(numbers) * header.crops)
        bar.close()
        if stamp() != header.source:
            raise ValueError(f"the source of {output} changed while it was imported; import it again")
    except ValueError:
        TokenWriter.discard(output)  # the input is wrong; its rows must not be continued from
        raise
    finally:
        writer.close()
    TokenWriter.finish(output)


def _stamp(*paths: Path) -> str:
    """Tells whether files are still the same, or folders have still the same members."""
    return "; ".join(f"{path.stat().st_size} bytes, {path.stat().st_mtime_ns} ns" for path in paths)


def _already(output: Path, stamp: str, options: ImportOptions, overwrite: bool) -> TokenHeader | None:
    """Header of the token file if it is there already and what an import would give."""
    if not output.exists():
        return None
    try:
        header = TokenMemmap(path=output).header
    except ValueError:  # damaged, or no token file at all
        if overwrite:
            return None
        raise
    other = options.differences(header)
    if not other and header.source == stamp:
        return header
    if not overwrite:
        other = other or "another source, or it has changed"
        raise ValueError(f"{output} holds other tokens ({other}); overwrite=true replaces it")
    return None


def open_tokens(
    path: Path, *, random_crop: bool = True, imported: Path | None = None, **options: object
) -> TokenMemmap:
    """Open tokens for training, whoever wrote them.

    A token file is opened as it is, and options are not looked at. Lines of JSON (``.jsonl``), or a folder of array
    pairs, are imported once: by the main process, while the others wait, into ``<path>.tokens``. Later calls reuse that
    file as long as size and time of the source and the options are the same; all processes must see the same files.

    Args:
        imported: file to import to, for sources in folders that cannot be written.
        options: of `ImportOptions`; codebook_size is required for an import.

    Raises:
        FileNotFoundError: no such file.
        ValueError: as `import_jsonl`; on every process if the import fails on the main one.
    """
    path = Path(path)
    if not path.is_dir() and path.suffix != ".jsonl":
        return TokenMemmap(path=path, random_crop=random_crop)
    if options.get("codebook_size") is None:
        raise ValueError(f"codebook_size must be given to import {path}")
    settings = ImportOptions(**options)
    imported = Path(imported) if imported else path.with_name(f"{path.name}.tokens")

    def work() -> None:
        # An import of an earlier state of the source is replaced; other token files are not.
        overwrite = imported.exists() and TokenMemmap(path=imported).header.source != ""
        load = import_npy if path.is_dir() else import_jsonl
        load(path, imported, settings, overwrite=overwrite)

    distributed.on_main(work)
    return TokenMemmap(path=imported, random_crop=random_crop)
