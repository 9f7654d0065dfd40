"""What runs measure while they train, by the same evaluator that measures their results."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import distributed
from common.build import ConfigError
from common.images import to_uint8
from evaluator.evaluator import Evaluator
from evaluator.networks import load_networks, network_of, weight_files
from evaluator.reference import Reference, open_reference
from modeling.pretrained.perceptual_weights import lpips_weights
from modeling.sampling.draw import draw, numbers_needed
from modeling.sampling.noise import sample_uniforms
from modeling.tokenizers.base import Tokenizer
from training.evaluation_settings import GeneratorEvaluation, TokenizerEvaluation


@dataclass
class ReconstructionEvaluator:
    """Makes a fresh evaluator of reconstructions for every evaluation; networks are loaded once."""

    settings: TokenizerEvaluation
    device: torch.device

    def __post_init__(self) -> None:
        weights = {"inception": self.settings.inception, "lpips": self.settings.lpips_path}
        if not weights["lpips"] and "lpips" in map(network_of, self.settings.metrics):
            weights["lpips"] = _download_lpips()
        self.networks = load_networks(self.settings.metrics, weights, device=self.device)

    def start(self) -> Evaluator:
        metrics = self.settings.metrics
        return Evaluator(networks=self.networks, metrics=metrics, protocol="tokenizer", device=self.device)


def _download_lpips() -> list[str]:
    try:
        return lpips_weights()
    except ConnectionError as error:
        raise ValueError(
            f"evaluation.metrics: {error}. Put the files on this machine and name them in evaluation.lpips_path, or"
            " leave lpips out"
        ) from error


class SampleEvaluator:
    """Draws class-balanced samples, always with the same random numbers, and measures them.

    `sampling` holds the settings of the generator's kind; `seed` and `batch_size` are for sampling.
    """

    def __init__(
        self,
        settings: GeneratorEvaluation,
        *,
        tokenizer: Tokenizer,
        sampling: Any,
        seed: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self.settings, self.tokenizer, self.sampling = settings, tokenizer, sampling
        self.seed, self.batch_size, self.device = seed, batch_size, device
        weights = weight_files(inception=settings.inception, spaces=settings.space_weights)
        self.networks = load_networks(settings.metrics, weights, device=device)
        path = settings.reference
        self.reference: Reference | None = open_reference(Path(path)) if path else None
        if self.reference is not None and not self.reference.statistics:
            what = "holds images, not statistics; make some with scripts/evaluate.py"
            raise ConfigError(f"evaluation.reference={path} {what}")
        self._start()  # whatever does not fit shows now and not at the first evaluation

    def _start(self) -> Evaluator:
        return Evaluator(
            networks=self.networks,
            metrics=self.settings.metrics,
            protocol="tokenizer",  # the Inception Score of one split, which few samples suffice for
            reference=self.reference,
            device=self.device,
        )

    def measure(self, generator: nn.Module) -> dict[str, float]:
        """Metrics of the samples of all processes; called on every one."""
        evaluator, settings = self._start(), self.settings
        # Samples depend on their positions alone, not on the number of processes.
        mine = torch.arange(distributed.rank(), settings.num_samples, distributed.world_size())
        count = numbers_needed(generator, self.sampling)
        for positions in mine.split(self.batch_size):
            labels = (positions % generator.num_classes).to(self.device)  # as many of every class
            uniforms = sample_uniforms(self.seed, positions, count)
            tokens = draw(generator, labels, uniforms, self.sampling)
            images = to_uint8(self.tokenizer.decode(tokens))
            evaluator.update(images, positions)
        return evaluator.outcome().with_warnings()
