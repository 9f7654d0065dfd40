"""Token files from and to the formats of other programs."""

from pathlib import Path

from common.config import find_file
from common.console import Clock, banner, count, duration, say
from data.token_exchange import ImportOptions, export_jsonl, export_npy, import_jsonl, import_npy
from data.token_memmap import TokenHeader, TokenMemmap
from jobs.options.convert_tokens import ConvertTokensOptions
from storage.locks import reserved_file, reserved_folder


def kind(path: Path) -> str:
    """'tokens', 'jsonl' or 'folder', by the name; raises ValueError for another suffix."""
    if path.is_dir() or not path.suffix:
        return "folder"
    if path.suffix not in (".tokens", ".jsonl"):
        raise ValueError(f"{path}: suffix {path.suffix!r} must be .tokens or .jsonl, or {path.name} a folder")
    return path.suffix[1:]


def convert(options: ConvertTokensOptions, source: Path, output: Path) -> TokenHeader:
    """Convert `source` into `output`; returns the header of the token file.

    Raises:
        ValueError: neither or both are token files, codebook_size is missing, or the content is wrong.
    """
    kinds = (kind(source), kind(output))
    if kinds == ("tokens", "jsonl"):
        return export_jsonl(source, output, overwrite=options.overwrite)
    if kinds == ("tokens", "folder"):
        return export_npy(source, output)
    if kinds not in (("jsonl", "tokens"), ("folder", "tokens")):
        names = f"input={options.input} and output={options.output}"
        raise ValueError(f"{names}: exactly one of them must be a .tokens file")
    if options.codebook_size is None:
        raise ValueError(f"codebook_size is required: {source} does not hold it")
    keys = ("codebook_size", "crops", "num_classes", "tokenizer", "weight_hash", "image_size", "num_images")
    settings = ImportOptions(**{key: getattr(options, key) for key in keys})
    load = import_jsonl if kinds[0] == "jsonl" else import_npy
    return load(source, output, settings, overwrite=options.overwrite)


def convert_tokens(options: ConvertTokensOptions) -> None:
    """Convert a file or folder and print what it holds."""
    source, output = find_file(options.input, "input"), Path(options.output)
    before = output.stat().st_mtime_ns if output.is_file() else None  # a finished file is not written again
    banner("Converting tokens", {"input": source, "output": output})
    clock, reserved = Clock(), reserved_folder if kind(output) == "folder" else reserved_file
    with reserved(output):
        header = convert(options, source, output)
    seconds = clock.lap()
    if before is not None and output.stat().st_mtime_ns == before:
        say(f"{output} already holds these {header.num_images} images; nothing to do")
        return
    images = len(TokenMemmap(path=source if kind(source) == "tokens" else output))
    rate = count(images * header.crops / max(seconds, 1e-9))
    size = f", {output.stat().st_size / 1e6:.1f} MB" if output.is_file() else ""
    shape = f"{images} images x {header.crops} crops x {header.num_tokens} tokens"
    say(f"{shape} in {duration(seconds)} ({rate} crops/s){size}: {output}")
