"""Shared by the jobs that measure images: data sets as streams, progress bars, reconstructions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from common.config import find_file
from common.console import progress
from common.images import to_float
from data.loaders import eval_loader
from data.still import Part, still_source
from evaluator.codebook_usage import CodebookUsage
from evaluator.evaluator import Evaluator
from evaluator.float_rfid import FloatRFID
from evaluator.image_stream import ImageBatch, ImageStream, digest_lines
from evaluator.outcome import Outcome, in_words
from modeling.pipeline import decode, encode
from modeling.tokenizers.base import Tokenizer
from storage.weights import weight_hash


def found(path: str) -> str:
    """A path as given or relative to the repository, or a brace pattern; raises FileNotFoundError."""
    return path if "{" in path else str(find_file(path, "images"))


def batches(
    stream: ImageStream, batch_size: int, title: str, positions: Sequence[int] | None = None
) -> Iterator[ImageBatch]:
    """This process's share of the images, or those at `positions`, with a progress bar."""
    total = len(stream.share() if positions is None else positions)
    bar = progress(None, title, total=total, unit="image")
    for batch in stream.batches(batch_size, positions):
        yield batch
        bar.update(len(batch.images))
    bar.close()


def pass_through(
    update: Callable[[torch.Tensor, torch.Tensor], None],
    stream: ImageStream,
    batch_size: int,
    title: str,
    positions: Sequence[int] | None = None,
) -> None:
    """Give this process's share of the images, or those at `positions`, with their positions, to `update`."""
    for batch in batches(stream, batch_size, title, positions):
        update(*batch)


def tokenizer_facts(
    name: str, tokenizer: Tokenizer, image_size: int | None = None, precision: str = "float32"
) -> dict[str, Any]:
    """Name, weights and rate of a tokenizer, for a result; its precision unless that is float32."""
    # Only convolutional tokenizers take other sizes; their tokens grow with the number of pixels.
    share = 1 if image_size is None else (image_size / tokenizer.image_size) ** 2
    bits = tokenizer.bits_per_image
    return {
        "name": name,
        "weight_hash": weight_hash(tokenizer),
        "tokens_per_image": round(tokenizer.num_tokens * share),
        "bits_per_image": None if bits is None else bits * share,
        **({} if precision == "float32" else {"precision": precision}),
    }


class SourceImages(ImageStream):
    """The images of a data section without random augmentation, opened by `data.still.still_source`.

    An image that cannot be read raises ValueError, because a metric of fewer images has another value.
    """

    def __init__(
        self, section: Mapping[str, Any] | None, *, split: str, config: Mapping[str, Any], **fixed: Any
    ) -> None:
        self.data = still_source(section, split=split, config=config, **fixed)
        section = section or config["data"][split]
        self.source = " ".join(str(section[key]) for key in ("name", "path") if key in section)
        self.count, self.size = len(self.data), tuple(self.data.item_shape[1:])
        self.labels = np.asarray(self.data.labels, dtype=np.int64)

    def images(self, positions: Sequence[int]) -> Iterator[torch.Tensor]:
        for batch in eval_loader(Part(self.data, np.asarray(positions)), batch_size=32):
            if batch["skipped"]:
                raise ValueError(f"{self.source}: {batch['skipped'][0]} cannot be read")
            yield from batch["images"]

    def pixel_facts(self) -> dict[str, Any]:
        """How files became pixels; transparent and turned ones are not counted."""
        return {} if self.data.rules is None else asdict(self.data.rules)

    def digest(self) -> str:
        """SHA-256 of the labels and class names; pixels are in the fingerprint of a result."""
        return digest_lines([self.source, *self.data.class_names, *map(str, self.labels)])


class ReconstructionMeasurement:
    """All that is measured of reconstructions in one pass: metrics, rFID on float images, use of the codebook.

    Without `codebook_size` (continuous tokenizers), the use of codes is not counted.
    """

    def __init__(
        self,
        evaluator: Evaluator | None,
        *,
        float_rfid: FloatRFID | None = None,
        codebook_size: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.evaluator, self.rfid, self.device = evaluator, float_rfid, device
        self.usage = None if codebook_size is None else CodebookUsage(codebook_size)
        self.also: Callable[..., None] | None = None  # is given the results, originals and positions, too

    def update(
        self,
        results: torch.Tensor,
        originals: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor | None = None,
    ) -> None:
        """Add reconstructions with their originals, both [B, 3, H, W] in [0, 1], tokens, and positions int64 [B]."""
        if self.evaluator is not None:
            self.evaluator.update_pairs(results, originals, positions)
        if self.rfid is not None:
            self.rfid.update_pairs(results, originals)
        if self.also is not None:
            self.also(results, originals, positions)
        if self.usage is not None:
            self.usage.update(tokens)

    def reconstruct(
        self,
        tokenizer: Tokenizer,
        stream: ImageStream,
        batch_size: int,
        text: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Reconstruct all images and add them; `text` gives embeddings [B, L, C] for positions int64 [B]."""
        for images, positions in batches(stream, batch_size, "reconstructing"):
            originals = to_float(images.to(self.device))
            tokens = encode(tokenizer, originals)
            results = decode(tokenizer, tokens, None if text is None else text(positions))
            self.update(results, originals, tokens, positions)

    def result(self) -> dict[str, float]:
        """All values by name, over all processes; raises ValueError if a metric cannot be computed."""
        return self.outcome().complete()

    def outcome(self) -> Outcome:
        """As `result`, but a metric that cannot be computed leaves the others alone."""
        values, errors = Outcome({}, {}) if self.evaluator is None else self.evaluator.outcome()
        if self.rfid is not None:
            try:
                values |= self.rfid.result()
            except ValueError as error:  # the same on all processes
                errors["rfid"] = in_words(error)
        return Outcome(values | ({} if self.usage is None else self.usage.result(self.device)), errors)

    def facts(self) -> dict[str, Any]:
        """How the numbers came about."""
        return self.evaluator.facts() | ({} if self.rfid is None else self.rfid.facts())
