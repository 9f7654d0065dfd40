"""What the training of all tokenizers shares: codebook health, measuring held-out images, pictures."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from common import distributed
from common.images import enlarge, grid, to_float
from data.loaders import eval_loader
from data.source import Source
from data.stream import EvalStream
from evaluator.codebook_usage import CodebookUsage
from modeling.pretrained.text import TextEncoder, class_captions
from modeling.tokenizers.base import Tokenizer, TokenizerOutput
from training.codebook_health import CodebookHealth
from training.evaluation import ReconstructionEvaluator, TokenizerEvaluation
from training.settings import OptimizerSettings
from training.task import Batch, Picture, Scalars, StepContext, Task

PREVIEW_IMAGES = 64
PREVIEW_SIDE = 96  # pixels; smaller images are enlarged towards this size for people


class TokenizerTask(Task):
    """Base of the tasks that train a tokenizer.

    Args:
        tokenizer: what is trained.
        validation: held-out images.
        optimizer: settings of its optimizer.
        batch_size, num_workers: of the evaluation.
        evaluator: measures reconstructions of held-out images.
        text: encodes captions for a tokenizer that needs them; images without captions get one of their class.
        class_names: of the training images.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        validation: Source,
        optimizer: OptimizerSettings,
        batch_size: int,
        num_workers: int = 0,
        evaluator: ReconstructionEvaluator | None = None,
        text: TextEncoder | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        self.validation, self.batch_size, self.num_workers = validation, batch_size, num_workers
        self.evaluator, self.text, self.class_names = evaluator, text, class_names
        self.modules: dict[str, nn.Module] = {"model": tokenizer}
        self.optimizers = {"model": optimizer}
        self.health = CodebookHealth(tokenizer.codebook_size) if tokenizer.is_discrete else None
        self.state: dict[str, nn.Module] = {"codebook_health": self.health} if self.health else {}

    @abstractmethod
    def reconstruct(
        self, model: nn.Module, tokens: torch.Tensor, text: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Images [B, 3, H, W] of tokens; `text` as from `text_of`."""

    def text_of(self, batch: Batch, class_names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Keyword argument with the text embeddings of a batch, for tokenizers that need them; else empty."""
        if self.text is None:
            return {}
        captions = batch.get("captions")
        if captions is None:
            captions = class_captions([class_names[label] for label in batch["labels"].tolist()])
        return {"text": self.text.encode(captions)}

    def codebook_scalars(self, output: TokenizerOutput, context: StepContext) -> Scalars:
        """Health of the codebook after a training forward; nothing for a continuous tokenizer."""
        if self.health is None:
            return {}
        revived = getattr(getattr(context.raw["model"], "quantize", None), "revived", None)
        return self.health.update(output.tokens, revived)

    def warnings(self, step: int, scalars: Mapping[str, float]) -> list[str]:
        """A collapse of the codebook."""
        found = self.health.warning(step, scalars) if self.health else None
        return [found] if found else []

    def evaluate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """The settings' metrics and codebook usage over all held-out images, each process its share."""
        maker = self.evaluator or ReconstructionEvaluator(TokenizerEvaluation(), device)
        evaluator = maker.start()
        usage = CodebookUsage(model.codebook_size) if model.is_discrete else None
        for batch in self._held_out(device):
            tokens = model.encode(batch["images"])
            images = self.reconstruct(model, tokens, self.text_of(batch, self.validation.class_names))
            evaluator.update_pairs(images, batch["images"], batch["positions"])
            if usage:
                usage.update(tokens)
        measured = evaluator.result() | {"images": float(evaluator.samples.counted()[0])}
        return measured | (usage.result(device) if usage else {})

    def _held_out(self, device: torch.device) -> Iterator[Batch]:
        loader = eval_loader(
            self.validation,
            batch_size=self.batch_size,
            num_processes=distributed.world_size(),
            process_index=distributed.rank(),
            num_workers=self.num_workers,
        )
        for batch in loader:
            yield {**batch, "images": to_float(batch["images"].to(device))}

    def preview(self, model: nn.Module, device: torch.device) -> list[Picture]:
        """Held-out images above their reconstructions, evenly chosen over the validation set."""
        count = min(PREVIEW_IMAGES, len(self.validation))
        indices = [i * len(self.validation) // count for i in range(count)]
        batch = EvalStream(self.validation).__getitems__(indices)
        images = to_float(batch["images"].to(device))
        text = self.text_of(batch, self.validation.class_names)
        parts = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            tokens = model.encode(images[part])
            parts.append(self.reconstruct(model, tokens, {k: v[part] for k, v in text.items()}))
        return [Picture(name="reconstructions", image=side_by_side(images, torch.cat(parts)))]


def side_by_side(images: torch.Tensor, reconstructions: torch.Tensor, columns: int = 8) -> torch.Tensor:
    """Rows of originals, each above the row of its reconstructions: both [B, 3, H, W] -> [3, h, w]."""
    factor = max(1, PREVIEW_SIDE // images.shape[-1])
    images, reconstructions = images.clamp(0, 1).cpu(), reconstructions.clamp(0, 1).cpu()
    rows = []
    for start in range(0, len(images), columns):
        for part in (images, reconstructions):
            row = part[start : start + columns]
            missing = row.new_ones(columns - len(row), *row.shape[1:])
            rows.append(torch.cat([row, missing]))
    return grid(enlarge(torch.cat(rows), factor), columns)
