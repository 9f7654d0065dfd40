"""A teacher that is trained as a classifier of the given images, in place of a downloaded one."""

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
from modeling.pretrained.teachers import build_network, colour_statistics, prepared
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
    """Train a network of timm on the labels of `source`, for `steps` updates on the CPU.

    Raises:
        ValueError: timm does not know the name, or the published head has fewer rows than `source` has classes.
    """
    with torch.random.fork_rng(devices=[]):  # initial weights depend on the seed alone
        torch.manual_seed(seed)
        network = build_network(name, input_size).train()
        classes = len(source.class_names)
        if network.num_classes < classes:
            known = network.num_classes
            raise ValueError(f"teacher {name} tells {known} classes apart, the images have {classes}")
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.05)

        def scale(step: int) -> float:  # 50 steps of warm-up, cosine to 0
            return min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
        loader, bar = train_loader(source, seed=seed, batch_size=batch_size), range(steps)
        colours = colour_statistics(network)
        for _, batch in zip(progress(bar, "training the teacher", unit="step"), loader, strict=False):
            # The head keeps its published size; rows beyond the classes stay unused.
            logits = network(prepared(to_float(batch["images"]), *colours, input_size))[:, :classes]
            loss = F.cross_entropy(logits, batch["labels"], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def classification_accuracy(network: nn.Module, source: Source, *, input_size: int) -> float:
    """Share of the images, in 0..1, whose label has the largest logit among the classes of `source`."""
    right, classes, colours = 0, len(source.class_names), colour_statistics(network)
    for batch in eval_loader(source, batch_size=64):
        logits = network(prepared(to_float(batch["images"]), *colours, input_size))[:, :classes]
        right += int((logits.argmax(dim=-1) == batch["labels"]).sum())
    return right / len(source)


def write_teacher(path: Path, teacher: Mapping[str, Any], data: Mapping[str, Any], steps: int) -> None:
    """Train a teacher and write its weights to `path`, and its accuracy on held-out images as JSON beside them.

    `teacher` is the section of a run with `name` and `input_size`; `data` has the sections train and validation.
    """
    learnt, held_out = (build(f"data.{split}", DATASETS, data[split]) for split in ("train", "validation"))
    learnt.left_out.warn("data.train")
    held_out.left_out.warn("data.validation")
    size = teacher.get("input_size") or learnt.item_shape[-1]
    network = train_teacher(teacher["name"], learnt, input_size=size, steps=steps)
    accuracy = classification_accuracy(network, held_out, input_size=size)
    write_json(path.with_suffix(".json"), {"steps": steps, "accuracy": accuracy})
    write_weights(path, network.state_dict())  # last: this file says that the teacher is finished
    say(f"teacher {teacher['name']}: {accuracy:.0%} of {len(held_out)} held-out images classified correctly")
