"""What the jobs that measure images share: data sets as streams, progress bars, reconstructions."""

from collections.abc import Callable, Iterator, Mapping
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
from modeling.pipeline import decode, encode
from modeling.tokenizers.base import Tokenizer
from storage.weights import weight_hash


def found(path: str) -> str:
    """A path as given or relative to the repository; brace patterns as they are.

    Raises:
        FileNotFoundError: it does not exist.
    """
    return path if "{" in path else str(find_file(path, "images"))


def batches(stream: ImageStream, batch_size: int, title: str) -> Iterator[ImageBatch]:
    """This process's share of the images, with a progress bar."""
    bar = progress(None, title, total=len(stream.share()), unit="image")
    for batch in stream.batches(batch_size):
        yield batch
        bar.update(len(batch.images))
    bar.close()


def pass_through(
    update: Callable[[torch.Tensor, torch.Tensor], None], stream: ImageStream, batch_size: int, title: str
) -> None:
    """Give this process's share of the images, with their positions, to `update`."""
    for batch in batches(stream, batch_size, title):
        update(*batch)


def tokenizer_facts(name: str, tokenizer: Tokenizer, image_size: int | None = None) -> dict[str, Any]:
    """Name and weights of a tokenizer for a result, and what it makes of an image of its own or another size."""
    # Convolutional tokenizers alone take other sizes; they make as many more tokens as there are pixels.
    share = 1 if image_size is None else (image_size / tokenizer.image_size) ** 2
    bits = tokenizer.bits_per_image
    return {
        "name": name,
        "weight_hash": weight_hash(tokenizer),
        "tokens_per_image": round(tokenizer.num_tokens * share),
        "bits_per_image": None if bits is None else bits * share,
    }


class SourceImages(ImageStream):
    """The images of a data section without random augmentation; one that cannot be read is an error here.

    Args:
        section: name and options of a data set; None takes the run's `data.<split>` section.
        split, config, fixed: see `data.still.still_source`.
    """

    def __init__(
        self, section: Mapping[str, Any] | None, *, split: str, config: Mapping[str, Any], **fixed: Any
    ) -> None:
        self.data = still_source(section, split=split, config=config, **fixed)
        section = section or config["data"][split]
        self.source = " ".join(str(section[key]) for key in ("name", "path") if key in section)
        self.count, self.size = len(self.data), tuple(self.data.item_shape[1:])
        self.labels = np.asarray(self.data.labels, dtype=np.int64)

    def images(self, positions: range) -> Iterator[torch.Tensor]:
        """See `ImageStream.images`."""
        for batch in eval_loader(Part(self.data, np.asarray(positions)), batch_size=32):
            if batch["skipped"]:
                raise ValueError(f"{self.source}: {batch['skipped'][0]} cannot be read")
            yield from batch["images"]

    def digest(self) -> str:
        """SHA-256 of the labels and class names; pixels are in the fingerprint of a result."""
        return digest_lines([self.source, *self.data.class_names, *map(str, self.labels)])


class ReconstructionMeasurement:
    """Everything that is measured of reconstructions in one pass.

    Args:
        evaluator: of all metrics but the following; None for none.
        float_rfid: rFID of images that are not stored as 8 bit.
        codebook_size: number of codes whose use is counted; None for continuous tokenizers.
        device: where sums over processes are made.
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
        if self.usage is not None:
            self.usage.update(tokens)

    def reconstruct(
        self,
        tokenizer: Tokenizer,
        stream: ImageStream,
        batch_size: int,
        text: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Pass all images through a tokenizer and add what comes out.

        Args:
            text: for a tokenizer whose decoder reads text, embeddings [B, L, C] at positions int64 [B].
        """
        for images, positions in batches(stream, batch_size, "reconstructing"):
            originals = to_float(images.to(self.device))
            tokens = encode(tokenizer, originals)
            results = decode(tokenizer, tokens, None if text is None else text(positions))
            self.update(results, originals, tokens, positions)

    def result(self) -> dict[str, float]:
        """All values by name, over all processes."""
        values = {} if self.evaluator is None else self.evaluator.result()
        values |= {} if self.rfid is None else self.rfid.result()
        return values | ({} if self.usage is None else self.usage.result(self.device))

    def facts(self) -> dict[str, Any]:
        """How the numbers came about."""
        return self.evaluator.facts() | ({} if self.rfid is None else self.rfid.facts())
