"""All metrics of a set of images from one pass over it, in any number of processes.

    evaluator = Evaluator(networks={"inception": load_inception(None, device=device)}, metrics=["fid", "is"],
                          reference=open_reference("VIRTUAL_imagenet256_labeled.npz"))
    for images, positions in open_images("samples").batches(64):
        evaluator.update(images, positions)
    print(evaluator.result())

Every image goes through each network once; what the metrics need is added to sums, which are reduced over processes at
the end. Only metrics that compare single images (KID, precision and recall) keep features, on disk.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from common import distributed
from common.images import to_float, to_uint8
from evaluator.copies import copy_facts
from evaluator.feature_store import Keep
from evaluator.image_set import ImageSet, Key
from evaluator.metrics import METRICS, check_metrics, check_names, result_name, with_parts
from evaluator.metrics.base import Detailed, Metric
from evaluator.metrics.image_quality import ImageQuality
from evaluator.networks import extractor_facts
from evaluator.outcome import Outcome, in_words
from evaluator.pixels import require_images
from evaluator.protocol import PROTOCOLS
from evaluator.reference import Reference


class Evaluator:
    """Feeds images to the metrics and computes them at the end.

    Args:
        networks: those that the metrics need, by name, see `evaluator.networks.NETWORKS`.
        protocol: a key of `evaluator.protocol.PROTOCOLS`.
        num_images: number of samples, checked at the end; required where the Inception Score has several splits.
        reference: what samples are compared with. Without one, `update_reference` or `update_pairs` supplies it.
        device: for the reductions.
        truncate: cut float images to 8 bit instead of rounding, to reproduce tools that do.
        quality: PSNR and SSIM as that tool computes them, a key of `image_quality.QUALITY_PROTOCOLS`; any but
            "rounded" converts images itself and ignores `truncate`.
        keep_samples: keep features of samples on disk, or take those of an earlier pass: give the images that
            `samples.todo()` names.
        keep_originals: the same for reference images, `originals.todo()`.
        labels: int64 [N] of samples and [M] of reference images by position, for metrics by class.

    Raises:
        ConfigError: a metric is unknown, or its name promises another reference.
        ValueError: a network is missing or is not the one that made the reference.
    """

    def __init__(
        self,
        *,
        networks: Mapping[str, Any],
        metrics: Sequence[str],
        protocol: str = "adm",
        num_images: int | None = None,
        reference: Reference | None = None,
        device: torch.device | str = "cpu",
        truncate: bool = False,
        quality: str = "rounded",
        keep_samples: Keep | None = None,
        keep_originals: Keep | None = None,
        labels: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    ) -> None:
        check_metrics(metrics)
        metrics = with_parts(metrics)
        self.metrics, self.settings = [METRICS[name] for name in metrics], PROTOCOLS[protocol]
        self.num_images, self.device, self.truncate = num_images, device, truncate
        self.reference = reference
        # Networks without `dims` compare pairs.
        self.extractors = {n: network for n, network in networks.items() if hasattr(network, "dims")}
        image_set = "originals" if reference is None else reference.image_set
        check_names(metrics, image_set, reference is None or reference.same_count(num_images))
        self._stored = {} if reference is None else reference.statistics
        compared = [m for m in self.metrics if m.compares == "sets"]
        self._check_networks({m.features for m in compared if m.in_references and m.features in self._stored})
        extractors = list(self.extractors.values())
        featured = [m for m in self.metrics if m.features]
        self.samples = ImageSet(
            extractors, featured, settings=self.settings, num_images=num_images, keep=keep_samples
        )
        measured = [m for m in compared if not (m.in_references and m.features in self._stored)]
        self._check_reference(measured)
        self.originals = ImageSet(
            extractors, measured, settings=self.settings, keep=keep_originals, reference=True
        )
        paired = [m for m in self.metrics if m.compares == "pairs"]
        self.quality = ImageQuality(paired, protocol=quality, networks=networks) if paired else None
        self._labels = labels
        self.details: dict[
            str, Any
        ] = {}  # what metrics say besides their numbers, by name; `outcome` fills it
        self._too_small: dict[str, str] = {}  # metrics of pairs that images of this size do not give, and why

    def _check_networks(self, kinds: set[str]) -> None:
        """Refuse statistics that other networks made."""
        for name, extractor in self.extractors.items():
            for kind in sorted(kinds & set(extractor.dims)):
                self.reference.require_network(
                    name, kind, extractor.weights_hash, bool(extractor.approximate)
                )
                found = len(self._stored[kind].mean)
                if found != extractor.dims[kind]:
                    raise ValueError(
                        f"reference {self.reference.source}: {kind} features have {found} numbers,"
                        f" expected {extractor.dims[kind]}"
                    )

    def _check_reference(self, measured: Sequence[Metric]) -> None:
        """Refuse a reference that lacks what metrics would have to measure of it."""
        if self.reference is not None:
            self.reference.require_statistics(m.features for m in measured if m.in_references)
        if measured and self.reference is not None and self.reference.images is None:
            needing = [m.name for m in METRICS.values() if m.compares == "sets" and not m.in_references]
            names = " and ".join(needing)
            raise ValueError(f"reference {self.reference.source} holds no images, which {names} need")

    @property
    def needs_reference_images(self) -> bool:
        return bool(self.originals.collectors)

    def update(self, images: torch.Tensor, positions: torch.Tensor | None = None) -> None:
        """Add samples of this process.

        Args:
            images: [B, 3, H, W], uint8, or float in [0, 1], which is rounded to 8 bit as files are.
            positions: int64 [B], number of each image in the whole set. Without them the processes take turns.

        Raises:
            ValueError: the shape or dtype is wrong, values are not in [0, 1] (half a level of 8 bits apart), or a
                position is given twice.
        """
        require_images(images, "samples")
        self.samples.update(self._as_stored(images), positions)

    def update_reference(self, images: torch.Tensor, positions: torch.Tensor | None = None) -> None:
        """Add reference images, as `update` takes samples."""
        require_images(images, "reference images")
        self.originals.update(self._as_stored(images), positions)

    def update_pairs(
        self, images: torch.Tensor, originals: torch.Tensor, positions: torch.Tensor | None = None
    ) -> None:
        """Add reconstructions with their originals, both as `update` takes images.

        Without a reference the originals are the reference.
        """
        require_images(originals, "originals")
        self.update(images, positions)
        if self.needs_reference_images and self.reference is None:
            self.update_reference(originals, positions)
        if self.quality is not None:
            self._leave_out_too_small(min(images.shape[2:]))
            exact = images if images.is_floating_point() else to_float(images)
            first = originals if originals.is_floating_point() else to_float(originals)
            # Float pairs reach PSNR and SSIM unrounded: the protocol of image quality stores them.
            cut = self.truncate and self.quality.protocol == "rounded"
            self.quality.update(first, to_float(self._as_stored(exact)) if cut else exact)

    def _leave_out_too_small(self, side: int) -> None:
        for metric in self.quality.metrics:
            if reason := metric.too_small(side, self.quality.protocol):
                self._too_small[metric.name] = reason
                self.quality.leave_out(metric)

    def _as_stored(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype == torch.uint8:
            return images
        if self.truncate:
            return (images.detach().float().clamp(0, 1) * 255).to(torch.uint8)  # a cast cuts
        return to_uint8(images)

    def result(self) -> dict[str, float]:
        """The metrics over all processes, all of which must call it.

        Biased ones carry the number of images in their names unless it is 50,000 (fid, fid_5k); spreads end in `_std`.

        Raises:
            ValueError: the number of samples is not `num_images`, or a metric cannot be computed.
        """
        return self.outcome().complete()

    def outcome(self) -> Outcome:
        """As `result`, but a metric that cannot be computed leaves the others alone."""
        count, _ = self.samples.counted()
        if self.num_images is not None and count != self.num_images:
            raise ValueError(f"{count} images were measured instead of {self.num_images}")
        own, failed = self.samples.results(self.device)
        others, missing = self._reference_results()
        pairs = None if self.quality is None else self.quality.result(self.device)
        small = {}
        for theirs in distributed.gather_objects(self._too_small):  # a process may have had no image
            small |= theirs

        def compute() -> tuple[Outcome, dict[str, Any]]:
            values, errors, details = {}, {}, {}
            for metric in self.metrics:
                if (
                    reason := small.get(metric.name)
                    or failed.get(metric.key)
                    or missing.get(metric.reference_key)
                ):
                    errors[metric.name] = reason
                    continue
                if absent := [p for p in metric.parts if result_name(p, count) not in values]:
                    errors[metric.name] = f"{', '.join(absent)} missing"
                    continue
                if metric.parts:  # which come before it
                    pair = [values[result_name(part, count)] for part in metric.parts], None
                else:
                    pair = (
                        pairs if metric.compares == "pairs" else own[metric.key],
                        others.get(metric.reference_key),
                    )
                known = {"labels": self._labels} if metric.by_class else {}
                try:
                    numbers = metric.compute(*pair, settings=self.settings, device=self.device, **known)
                except Exception as error:  # whatever it is: hours may have gone into the other metrics
                    errors[metric.name] = in_words(error)
                    continue
                if isinstance(numbers, Detailed):
                    numbers, details[metric.name] = numbers
                names = metric.result_names(count)
                values |= zip(names[: len(numbers)], numbers, strict=True)
            return Outcome(values, errors), details

        outcome, self.details = distributed.on_main(compute)
        return outcome

    def _reference_results(self) -> tuple[dict[Key, Any], dict[Key, str]]:
        # Stored, or of the images; what only the main process has is None elsewhere.
        stored = {m.reference_key: self._stored.get(m.features) for m in self.metrics if m.in_references}
        seen, _ = self.originals.counted()
        if self.needs_reference_images and seen < 2:
            reason = f"{seen} reference images were given, expected at least 2"
            return stored, dict.fromkeys(self.originals.collectors, reason)
        found, failed = self.originals.results(self.device)
        return {**stored, **found}, failed

    def facts(self) -> dict[str, Any]:
        """How the numbers came about: settings, networks, rounding, counts and fingerprints over all processes."""
        count, fingerprint = self.samples.counted()
        facts = {
            "protocol": self.settings.facts(),
            "extractors": extractor_facts(self.extractors),
            "rounding": "truncated" if self.truncate else "nearest",
            "images": count,
            "pixels_fingerprint": fingerprint,
        }
        seen, fingerprint = self.originals.counted()
        if seen:
            facts["reference_images"], facts["reference_fingerprint"] = seen, fingerprint
        contents = self.samples.contents()
        facts["copies"] = copy_facts(contents, self.originals.contents() if seen else None)
        if count and contents.brightest <= 1:
            facts["all_black"] = True
        for metric in self.metrics:
            facts |= metric.facts(self.settings, count, seen)
        if self.quality is not None:
            facts["image_quality"] = f"{self.quality.protocol} (per-image means)"
        return facts
