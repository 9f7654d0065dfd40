"""What is measured, against what: the options of an evaluation, and what they name, opened and checked."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.images import PixelRules
from data.transforms import CROPS
from evaluator.evaluator import Evaluator
from evaluator.feature_store import Keep
from evaluator.image_files import open_images
from evaluator.image_selection import SelectedImages, spread
from evaluator.image_stream import ImageStream, Transform
from evaluator.metrics import METRICS, check_metrics, check_names, usual_metrics, with_parts
from evaluator.metrics.base import Metric
from evaluator.metrics.per_class import differing_classes
from evaluator.networks import Weights, load_networks, weight_files
from evaluator.outcome import Outcome
from evaluator.pairing import pair_by_name
from evaluator.protocol import PROTOCOLS
from evaluator.provenance import image_facts, pixel_warnings, sampler_facts, warnings_about
from evaluator.reference import Reference, image_reference, open_reference
from jobs.evaluation_report import PairPictures
from jobs.evaluation_weights import OWN_METRICS, with_weights
from jobs.measuring import ReconstructionMeasurement, batches, found, pass_through, tokenizer_facts
from jobs.options.evaluate import EvaluateOptions
from modeling.pipeline import load_tokenizer
from modeling.tokenizers.base import Tokenizer

ORDER = "order"  # of names, or of arrays, which have none


def crop_of(options: EvaluateOptions, tokenizer: Tokenizer | None) -> tuple[str, Transform | None]:
    """Description of the crop for the result, and the function that crops."""
    crop = options.crop or ("no" if tokenizer is None else "shorter_edge")
    if crop == "no":
        return "none", None
    size = options.image_size or tokenizer.image_size
    return f"{crop} {size}", partial(CROPS[crop], size=size)


def default_metrics(options: EvaluateOptions, reference: Reference | None) -> list[str]:
    """The usual metrics for which the reference holds what they compare with."""
    if options.tokenizer is not None:
        return [m.name for m in usual_metrics("reconstructions" if reference is None else "other_images")]
    if options.make_ref is not None:
        return [m.name for m in usual_metrics("samples") if m.in_references]

    def held(metric: Metric) -> bool:
        if reference is None or metric.compares == "nothing":
            return metric.compares == "nothing"
        if metric.in_references and reference.statistics:
            return metric.features in reference.statistics
        return reference.images is not None

    return [metric.name for metric in usual_metrics("samples") if held(metric)]


class Run:
    """One measurement: what the options name, opened."""

    def __init__(self, options: EvaluateOptions, device: torch.device) -> None:
        self.options, self.device = options, device
        self.tokenizer = tokenizer = (
            None
            if options.tokenizer is None
            else load_tokenizer(options.tokenizer, device, precision=options.precision)
        )
        if tokenizer is not None and tokenizer.needs_text:
            name = f"tokenizer={options.tokenizer}"
            raise ValueError(f"{name} decodes with captions; scripts/reconstruct.py measures it")
        self.crop, transform = crop_of(options, tokenizer)
        files = {"transform": transform, "rules": PixelRules(options.alpha, options.orientation)}
        self.samples = spread(open_images(found(options.samples), **files), options.max_images)
        if tokenizer is not None and self.samples.size != (tokenizer.image_size,) * 2:
            size = self.samples.size
            raise ValueError(f"{options.tokenizer} takes {tokenizer.image_size} pixels, images have {size}")
        self.reference = None
        if options.reference is not None:
            self.reference = open_reference(found(options.reference), **files)
            if not self.reference.statistics:
                self.reference.image_set = options.reference_set or self.reference.image_set
        metrics = options.metrics or default_metrics(options, self.reference)
        check_metrics(metrics)
        self.metrics = with_parts(metrics)
        self.protocol = options.protocol or ("adm" if tokenizer is None else "tokenizer")
        paired = any(METRICS[name].compares == "pairs" for name in self.metrics)
        self.paired_by = self._pair() if paired and tokenizer is None else None  # else pairs are made here
        if self.paired_by is None and self.reference is not None and not self.reference.statistics:
            self.reference.images = spread(self.reference.images, options.max_images)
        self.notes: list[str] = []
        self.pictures: PairPictures | None = None  # of the pairs that `measure` saw
        self._check()
        self._require_weights()

    def _pair(self) -> str:
        """Bring the reference images into the order of the samples; returns by what they were paired."""
        images = None if self.reference is None else self.reference.images
        count, some = self.samples.count, self.options.max_images is not None
        if images is None or images.count < count or (images.count > count and not some):
            held = f"the reference holds {0 if images is None else images.count} images"
            raise ValueError(f"paired metrics need an original for each of the {count} samples, {held}")
        if images.size != self.samples.size:
            own, theirs = ("{} x {}".format(*stream.size) for stream in (self.samples, images))
            raise ValueError(f"pairs have one size, but samples have {own} pixels, their originals {theirs}")
        if self.options.pairs == "name" and self.samples.names is not None and images.names is not None:
            pairing = pair_by_name(self.samples.names, images.names, some=some)
            if not np.array_equal(pairing.originals, np.arange(images.count)):
                chosen = "the originals of the samples"
                self.reference.images = SelectedImages(images, pairing.originals, chosen=chosen)
            return pairing.rule
        self.reference.images = spread(images, self.options.max_images)
        available = [(s.selection or {"of": s.count})["of"] for s in (self.samples, self.reference.images)]
        if available[0] != available[1]:
            held = " and ".join(map(str, available))
            raise ValueError(f"sets of {held} images cannot be paired by order; give names, or equal numbers")
        return ORDER

    def _check(self) -> None:
        """Refuse what cannot be measured before networks are loaded; usual metrics are left out, named ones not."""
        compared = [name for name in self.metrics if METRICS[name].compares != "nothing"]
        alone = self.tokenizer is None and self.reference is None  # else its originals are the reference
        if self.options.make_ref is None and alone and compared:
            raise ValueError(f"metrics {', '.join(compared)} need a reference")
        if self.reference is not None:
            sets = [m for name in self.metrics if (m := METRICS[name]).compares == "sets"]
            self.reference.require_statistics(metric.features for metric in sets if metric.in_references)
        reasons = {name: reason for name in self.metrics if (reason := self._impossible(METRICS[name]))}
        kept = tuple(name for name in self.metrics if name not in reasons)
        if reasons and (self.options.metrics or not kept):
            raise ValueError(f"metrics: {'; '.join(reasons.values())}")
        self.metrics, self.notes = kept, [f"left out: {reason}" for reason in reasons.values()]

    def _require_weights(self) -> None:
        """Refuse wrong names, then named metrics without weights; of the usual ones measure what is possible."""
        reference = self.reference
        image_set = "originals" if reference is None else reference.image_set
        check_names(self.metrics, image_set, reference is None or reference.same_count(self.samples.count))
        named = self.options.metrics is not None or self.options.make_ref is not None
        self.metrics, notes = with_weights(self.metrics, self.weights, named=named)
        if not notes:
            return
        images = self.tokenizer is not None if reference is None else reference.images is not None
        own = [m for m in OWN_METRICS if images and not self._impossible(METRICS[m])]
        self.metrics += tuple(own)
        if not self.metrics:
            raise FileNotFoundError(f"nothing can be measured; {'; '.join(notes)}; or give reference images")
        if own:
            notes.append(
                f"measured in their place: {', '.join(own)}, distances in a small space that needs no download;"
                " they are no FID and compare with no published number (docs/evaluation.md)"
            )
        self.notes += notes

    def _impossible(self, metric: Metric) -> str | None:
        """Why so few or so small images do not give a metric."""
        reference, settings = self.reference, PROTOCOLS[self.protocol]
        others = self.samples.count if reference is None else None  # originals, or nothing to compare with
        if reference is not None and metric.compares == "sets":
            stored = metric.in_references and metric.features in reference.statistics
            others = None if stored or reference.images is None else reference.images.count
        few = metric.impossible(self.samples.count, others, settings)
        if metric.by_class:
            own, them = self.samples, self.samples if reference is None else reference.images
            few = few or differing_classes(
                own.labels, them and them.labels, (own.classes, them and them.classes)
            )
        return few or metric.too_small(min(self.samples.size), self.options.quality)

    def evaluator(self) -> Evaluator:
        options, reference = self.options, self.reference
        originals = self.samples if reference is None else reference.images
        return Evaluator(
            networks=self.networks(),
            metrics=self.metrics,
            protocol=self.protocol,
            num_images=self.samples.count,
            reference=reference,
            device=self.device,
            truncate=options.truncate,
            quality=options.quality,
            keep_samples=self.keep(self.samples, reconstructed=self.tokenizer is not None),
            keep_originals=self.keep(originals),
            labels=(self.samples.labels, originals and originals.labels),
        )

    def keep(self, stream: ImageStream | None, reconstructed: bool = False) -> Keep | None:
        """Where features of images, or of their reconstructions, are kept."""
        options = self.options
        if options.features is None or stream is None:
            return None
        recipe = {"crop": self.crop, "alpha": options.alpha, "orientation": options.orientation}
        if reconstructed:
            made_by = tokenizer_facts(options.tokenizer, self.tokenizer, precision=options.precision)
            made_by.pop("name")  # its weights say more
            recipe["reconstructed"] = {**made_by, "truncate": options.truncate}
        return Keep(Path(options.features), stream, recipe)

    @property
    def weights(self) -> dict[str, Weights]:
        """Files of networks, as far as the options name them."""
        options = self.options
        return weight_files(
            inception=options.inception_weights, spaces=options.space_weights, lpips=options.lpips_weights
        )

    def networks(self) -> dict[str, Any]:
        precision = self.options.feature_precision
        return load_networks(self.metrics, self.weights, device=self.device, precision=precision)

    def measure(self, evaluator: Evaluator) -> Outcome:
        """Pass all images through, and the reference images if they have no statistics."""
        size = self.options.batch_size
        images = None if self.reference is None else self.reference.images
        codes = None if self.tokenizer is None else self.tokenizer.codebook_size
        measurement = ReconstructionMeasurement(evaluator, codebook_size=codes, device=self.device)
        if self.tokenizer is not None or self.paired_by is not None:
            self.pictures = PairPictures(self.options.pictures, self.samples.count)
        if self.tokenizer is not None:
            measurement.also = self.pictures.update
            measurement.reconstruct(self.tokenizer, self.samples, size)
        elif self.paired_by is not None:
            others = images.batches(size)
            for batch in batches(self.samples, size, "measuring"):
                originals = next(others).images
                evaluator.update_pairs(batch.images, originals, batch.positions)
                self.pictures.update(batch.images, originals, batch.positions)
                if evaluator.needs_reference_images:
                    evaluator.update_reference(originals, batch.positions)
        else:
            pass_through(evaluator.update, self.samples, size, "samples", evaluator.samples.todo())
        if evaluator.needs_reference_images and images is not None and self.paired_by is None:
            pass_through(evaluator.update_reference, images, size, "reference", evaluator.originals.todo())
        return measurement.outcome()

    def facts(self) -> dict[str, Any]:
        """Provenance of samples, tokenizer and reference, for the result."""
        facts: dict[str, Any] = {"samples": image_facts(self.samples), "crop": self.crop}
        if self.paired_by is not None:
            facts["paired_by"] = self.paired_by
        facts["sampler"] = sampler_facts(found(self.options.samples))
        if self.tokenizer is not None:
            precision = self.options.precision
            facts["tokenizer"] = tokenizer_facts(self.options.tokenizer, self.tokenizer, precision=precision)
        if self.reference is not None:
            facts["reference"] = self.reference.facts()
        elif self.tokenizer is not None:
            facts["reference"] = image_reference(self.samples, "originals").facts()
        return facts

    def describe_pixels(self, facts: dict[str, Any]) -> list[str]:
        """Add to `facts` how image files became pixels, which is known once all were read; returns warnings."""
        streams = {"samples": self.samples}
        if self.reference is not None and self.reference.images is not None:
            streams["reference"] = self.reference.images
        for key, stream in streams.items():
            facts[key] |= stream.pixel_facts()
        return [note for key in streams for note in pixel_warnings(facts[key])]

    @property
    def recipe(self) -> dict[str, str]:
        """How files become pixels."""
        rules = {"alpha": self.options.alpha, "orientation": self.options.orientation}
        return {"crop": self.crop} | (rules if self.samples.names is not None else {})  # arrays are pixels

    def warnings(self, facts: Mapping[str, Any]) -> list[str]:
        notes = list(self.notes)
        if self.paired_by == ORDER:
            notes.append(
                "samples and originals are paired by their order alone: whether they belong together was not checked"
            )
        return notes + warnings_about(
            facts["samples"],
            metrics=self.metrics,
            protocol=PROTOCOLS[self.protocol],
            has_statistics=self.samples.has_statistics,
            reference=facts.get("reference"),
            reconstructed=self.tokenizer is not None,
            recipe=self.recipe,
        )
