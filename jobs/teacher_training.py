"""A small teacher, trained as a classifier of the images at hand, for use without a downloaded one."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from common.build import build
from common.console import progress, say
from common.images import to_float
from data import DATASETS
from data.loaders import eval_loader, train_loader
from data.source import Source
from modeling.pretrained.teachers import build_network, prepared
from storage.files import write_json
from storage.weights import write_weights


def train_teacher(
    name: str,
    source: Source,
    *,
    input_size: int,
    steps: int,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> nn.Module:
    """Train a network of timm on the labels of `source`: AdamW, cosine schedule to 0, on the CPU.

    Args:
        name: of timm.
        source: images with labels.
        input_size: side of the images that the network is given.
        steps: updates; the seed fixes them.

    Returns:
        The network with the head it was published with; rows beyond the classes of `source` stay unused.

    Raises:
        ValueError: timm does not know the name, or the head has fewer rows than `source` has classes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(name, input_size).train()
        classes = len(source.class_names)
        if network.num_classes < classes:
            raise ValueError(
                f"teacher {name} tells {network.num_classes} classes apart, the images have {classes}"
            )
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.05)
        shape = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        )
        loader = train_loader(source, seed=seed, batch_size=batch_size)
        for _, batch in zip(
            progress(range(steps), "training the teacher", unit="step"), loader, strict=False
        ):
            logits = network(prepared(to_float(batch["images"]), network, input_size))[:, :classes]
            loss = F.cross_entropy(logits, batch["labels"], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            shape.step()
    return network.eval()


@torch.inference_mode()
def classification_accuracy(network: nn.Module, source: Source, *, input_size: int) -> float:
    """Share of the images whose label has the largest logit among the classes of `source`."""
    right, classes = 0, len(source.class_names)
    for batch in eval_loader(source, batch_size=64):
        logits = network(prepared(to_float(batch["images"]), network, input_size))[:, :classes]
        right += int((logits.argmax(dim=-1) == batch["labels"]).sum())
    return right / len(source)


def write_teacher(path: Path, teacher: Mapping[str, Any], data: Mapping[str, Any], steps: int) -> None:
    """Train a teacher and write its weights, and its accuracy on held-out images as JSON beside them.

    Args:
        path: `.safetensors` file.
        teacher: section of a run: `name` of timm, `input_size`.
        data: sections `train` and `validation` of a run.
        steps: updates.

    Raises:
        OSError: a file cannot be written.
        ValueError: see `train_teacher`.
    """
    learnt, held_out = (build(f"data.{split}", DATASETS, data[split]) for split in ("train", "validation"))
    size = teacher.get("input_size") or learnt.item_shape[-1]
    network = train_teacher(teacher["name"], learnt, input_size=size, steps=steps)
    accuracy = classification_accuracy(network, held_out, input_size=size)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_suffix(".json"), {"steps": steps, "accuracy": accuracy})
    write_weights(path, network.state_dict())
    say(f"teacher {teacher['name']}: {accuracy:.0%} of {len(held_out)} held-out images classified correctly")
