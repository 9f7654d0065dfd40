"""Protocol of the metrics that tools disagree about.

Three protocols are quoted in papers. `adm`: the evaluator of arXiv:2105.05233, for generators. `torch-fidelity`:
the PyTorch tool of that name. `tokenizer`: the training-time evaluator of one-dimensional tokenizers
(arXiv:2406.07550), for reconstructions. FID and sFID are the same in all of them; the others differ.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ProtocolSettings:
    """One protocol."""

    name: str
    is_splits: int | None  # equal splits of the Inception Score; None = consecutive blocks
    is_order: str  # "stored", or "shuffled" by numpy's RandomState(2020)
    is_block: int | None  # images of a block; the last may have fewer
    neighbours: int = 3  # k of precision and recall
    half_distances: bool = False  # squared distances in float16 as ADM computes them
    kid_subsets: int = 100
    kid_subset_size: int = 1000

    def facts(self) -> dict[str, Any]:
        return asdict(self)


PROTOCOLS = {
    "adm": ProtocolSettings("adm", is_splits=None, is_order="stored", is_block=5000, half_distances=True),
    "torch-fidelity": ProtocolSettings("torch-fidelity", is_splits=10, is_order="shuffled", is_block=None),
    "tokenizer": ProtocolSettings("tokenizer", is_splits=1, is_order="stored", is_block=None),
}
