"""A linear probe of the latents and codes of a tokenizer, as a result file."""

from typing import Any

import numpy as np
import torch

from common import distributed
from common.console import banner, say
from common.images import to_float
from common.launch import processes
from evaluator.feature_store import FeatureStore
from evaluator.linear_probe import linear_probe
from evaluator.provenance import image_facts
from jobs.measuring import SourceImages, batches, tokenizer_facts
from jobs.options.linear_probe import ProbeOptions
from modeling.pipeline import load_tokenizer
from modeling.tokenizers.base import Tokenizer
from storage.files import check_output_file, write_json
from storage.locks import reserved_file


@torch.inference_mode()
def mean_features(tokenizer: Tokenizer, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Means over tokens [B, C] of images [B, 3, S, S] in [0, 1]: `latents` if they are known, and `quantized`."""
    output = tokenizer(images)
    found = {"latents": output.latents, "quantized": output.quantized}
    return {name: x.float().flatten(2).mean(dim=2) for name, x in found.items() if x is not None}


def features_of(
    tokenizer: Tokenizer, images: SourceImages, batch_size: int, device: torch.device, title: str
) -> dict[str, torch.Tensor | None]:
    """Features [N, C] of all images by position on the main process, None on the others."""
    stores: dict[str, FeatureStore] = {}
    for batch in batches(images, batch_size, title):
        for name, rows in mean_features(tokenizer, to_float(batch.images.to(device))).items():
            stores.setdefault(name, FeatureStore(rows.shape[1])).update(rows, batch.positions)
    # A process may have no image.
    dims = {name: dim for own in distributed.gather_objects({n: s.dim for n, s in stores.items()})
            for name, dim in own.items()}  # fmt: skip
    return {name: stores.get(name, FeatureStore(dim)).result(device) for name, dim in dims.items()}


def probe_tokenizer(options: ProbeOptions) -> None:
    """Probe, print, and write the result.

    Raises:
        ValueError: the tokenizer decodes with captions, or the two sections have other classes.
    """
    with processes() as device:
        distributed.on_main(lambda: check_output_file(options.output, begins=b"{"))
        with reserved_file(options.output):
            tokenizer = load_tokenizer(options.tokenizer, device)
            if tokenizer.needs_text:
                raise ValueError(
                    f"tokenizer={options.tokenizer} decodes with captions, which a probe has not"
                )
            sets = [
                SourceImages(section, split="train", config={}, image_size=tokenizer.image_size)
                for section in (options.data.train, options.data.validation)
            ]
            names = [images.data.class_names for images in sets]
            if names[0] != names[1]:
                raise ValueError(
                    f"data.train has classes {names[0][:3]} ..., data.validation {names[1][:3]} ..."
                )
            banner("Linear probe", {"tokenizer": options.tokenizer, "images": [s.count for s in sets]})
            train, test = (
                features_of(tokenizer, images, options.batch_size, device, title)
                for images, title in zip(sets, ("training images", "held-out images"), strict=True)
            )
            facts = {"tokenizer": tokenizer_facts(options.tokenizer, tokenizer)}
            facts |= {"train": image_facts(sets[0]), "validation": image_facts(sets[1])}
            distributed.on_main(lambda: _solve(options, train, test, [s.labels for s in sets], facts))


def _solve(
    options: ProbeOptions,
    train: dict[str, torch.Tensor],
    test: dict[str, torch.Tensor],
    labels: list[np.ndarray],
    facts: dict[str, Any],
) -> None:
    # What a classifier reaches that always names the most frequent class of the training images.
    chance = float((labels[1] == np.bincount(labels[0]).argmax()).mean())
    own, others = (torch.from_numpy(values) for values in labels)
    probes = []
    for name in train:
        for decay in options.decays:
            found = linear_probe(train[name], own, test[name], others, decay=decay)
            probes.append({"features": name, "decay": decay, **found._asdict()})
            say(f"{name}, decay {decay:g}: {100 * found.test_accuracy:.1f} % of held-out images")
    say(f"most frequent class: {100 * chance:.1f} %")
    write_json(options.output, {"probes": probes, "most_frequent_class": chance, "protocol": facts})
