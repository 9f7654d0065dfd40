"""Options of `jobs/convert_tokens.py`."""

from dataclasses import dataclass

from common.config import option


@dataclass(kw_only=True)
class ConvertTokensOptions:
    """What to convert into what; the options after `overwrite` apply to imports."""

    input: str = option(help=".jsonl, .tokens, or a folder of array pairs")
    output: str = option(help=".tokens, .jsonl, or a folder")
    overwrite: bool = option(False, "replace a file that holds other tokens")
    codebook_size: int | None = option(None, "tokens are in 0..codebook_size-1; required to import")
    crops: int | None = option(None, "lines per image; null = 10 if every ten lines share a class, else 1")
    num_classes: int = option(1000, "classes are in 0..num_classes-1")
    tokenizer: str = option("unknown", "name or folder of the tokenizer that made the tokens")
    weight_hash: str = option("", "hash of its weights; empty = unknown")
    image_size: int | None = option(None, "side of its images; null = as in the folder's name, or 256")
    num_images: int | None = option(None, "number of images, to skip counting lines")
