"""All metrics of a set of images from one pass over it, in any number of processes.

    evaluator = Evaluator(extractors={"inception": load_inception(None, device=device)}, metrics=["fid", "is"],
                          reference=open_reference("VIRTUAL_imagenet256_labeled.npz"))
    for images, positions in open_images("samples").batches(64):
        evaluator.update(images, positions)
    print(evaluator.result())

Every image goes through each network once; what the metrics need of it is added to sums, which are reduced over
processes at the end. Only KID and precision/recall keep features, on disk.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from common import distributed
from common.images import to_float, to_uint8
from evaluator import protocol as protocols
from evaluator.feature_store import FeatureStore
from evaluator.metrics.fid import frechet_distance
from evaluator.metrics.image_quality import ImageQuality
from evaluator.metrics.inception_score import InceptionScore
from evaluator.metrics.kid import kernel_distance
from evaluator.metrics.precision_recall import precision_recall
from evaluator.moments import Moments
from evaluator.reference import Reference, Statistics

# Metric -> kind of features whose Gaussian it compares.
FRECHET = {"fid": "pool", "rfid": "pool", "gfid": "pool", "sfid": "spatial", "fd_dinov2": "dinov2"}
WITH_FEATURES = ("kid", "precision_recall")


class Extractor(Protocol):
    """A network: images uint8 [B, 3, H, W] to a named tuple of features [B, dims[name]]."""

    weights_hash: str
    approximate: bool
    dims: Mapping[str, int]

    def __call__(self, images: torch.Tensor) -> Any:
        """Features of a batch."""


class ImageSet:
    """What is known about one set of images: how many, which, and their features.

    Args:
        extractors: networks that it goes through.
        moments: kinds of features of which mean and covariance are taken.
        store: whether pooled features are kept.
        score: Inception Score to be fed, or None.
    """

    def __init__(
        self,
        extractors: Sequence[Extractor],
        *,
        moments: Sequence[str] = (),
        store: bool = False,
        score: InceptionScore | None = None,
    ) -> None:
        needed = {*moments, *(["pool"] if store else []), *(["logits"] if score is not None else [])}
        self._extractors = [e for e in extractors if needed & set(e.dims)]
        dims = {name: dim for e in self._extractors for name, dim in e.dims.items()}
        missing = sorted(needed - set(dims))
        if missing:
            raise ValueError(
                f"features {', '.join(missing)} are needed, but no network that gives them was passed"
            )
        self.moments = {kind: Moments(dims[kind]) for kind in moments}
        self.store = FeatureStore(dims["pool"]) if store else None
        self.score = score
        self._seen = np.zeros(0, dtype=np.uint8)
        self._fingerprint = 0
        self._next = distributed.rank()

    def update(self, images: torch.Tensor, positions: torch.Tensor | None = None) -> None:
        """Add uint8 images [B, 3, H, W] at positions int64 [B]; without these every process numbers its own."""
        if positions is None:
            positions = self._next + distributed.world_size() * torch.arange(len(images))
            self._next += distributed.world_size() * len(images)
        self._remember(images, positions)
        for extractor in self._extractors:
            features = extractor(images)
            for kind in extractor.dims:
                if kind in self.moments:
                    self.moments[kind].update(getattr(features, kind))
            if "pool" in extractor.dims and self.store is not None:
                self.store.update(features.pool, positions)
            if "logits" in extractor.dims and self.score is not None:
                self.score.update(features.logits, positions)

    def _remember(self, images: torch.Tensor, positions: torch.Tensor) -> None:
        numbers = positions.cpu().numpy()
        if len(numbers) != len(images) or (len(numbers) and numbers.min() < 0):
            raise ValueError(f"{len(numbers)} positions for {len(images)} images, expected one >= 0 for each")
        if len(numbers) and numbers.max() >= len(self._seen):
            self._seen = np.pad(self._seen, (0, 2 * int(numbers.max()) + 64 - len(self._seen)))
        if self._seen[numbers].any() or len(set(numbers.tolist())) < len(numbers):
            raise ValueError("an image position was given twice; every image counts once")
        self._seen[numbers] = 1
        for number, image in zip(numbers, images.cpu(), strict=True):
            content = int(number).to_bytes(8, "little") + image.contiguous().numpy().tobytes()
            self._fingerprint += int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")

    def counted(self) -> tuple[int, str]:
        """Number of images and a fingerprint of their pixels and positions, over all processes.

        Raises:
            ValueError: two processes had the same position.
        """
        everyone = distributed.gather_objects((np.flatnonzero(self._seen), self._fingerprint))
        positions = np.concatenate([p for p, _ in everyone])
        if len(np.unique(positions)) < len(positions):
            repeated = len(positions) - len(np.unique(positions))
            raise ValueError(
                f"{repeated} images were given to more than one process; every image counts once"
            )
        return len(positions), f"{sum(f for _, f in everyone) % 2**64:016x}"

    def statistics(self, device: torch.device | str = "cpu") -> dict[str, Statistics]:
        """Mean and covariance of every kind of features, over all processes."""
        result = {}
        for kind, moments in self.moments.items():
            total = moments.reduced(device)
            result[kind] = Statistics(total.mean.numpy(), total.covariance.numpy(), total.count)
        return result


class Evaluator:
    """Feeds images to the metrics and computes them at the end.

    Args:
        extractors: networks by name, those that the metrics need: "inception", "dinov2".
        metrics: names, see `evaluator.protocol.METRICS`.
        protocol: adm, torch-fidelity or tokenizer, see `evaluator.protocol.PROTOCOLS`.
        num_images: number of samples, checked at the end; required where the Inception Score has several splits.
        reference: what samples are compared with. Without one, `update_reference` or `update_pairs` supplies it.
        lpips: network for the metric lpips, see `evaluator.metrics.image_quality.ImageQuality`.
        device: of the reductions.
        truncate: cut float images to 8 bit instead of rounding, to reproduce tools that do.
        quality: PSNR and SSIM as that tool computes them, a key of `evaluator.metrics.image_quality.PROTOCOLS`; any
            but "rounded" converts images itself and ignores `truncate`.

    Raises:
        ConfigError: unknown or wrongly named metrics.
        ValueError: a network is missing or is not the one that made the reference.
    """

    def __init__(
        self,
        *,
        extractors: Mapping[str, Extractor],
        metrics: Sequence[str],
        protocol: str = "adm",
        num_images: int | None = None,
        reference: Reference | None = None,
        lpips: torch.nn.Module | None = None,
        device: torch.device | str = "cpu",
        truncate: bool = False,
        quality: str = "rounded",
    ) -> None:
        protocols.check_metrics(metrics)
        self.metrics, self.protocol = tuple(metrics), protocols.PROTOCOLS[protocol]
        self.num_images, self.device, self.truncate = num_images, device, truncate
        self.reference, self.extractors = reference, dict(extractors)
        undescribed = (
            reference is not None and reference.image_set == "images" and reference.images is not None
        )
        same = not undescribed or num_images is None or num_images == reference.images.count
        protocols.check_names(metrics, "originals" if reference is None else reference.image_set, same)
        if "lpips" in metrics and lpips is None:
            raise ValueError("metric lpips needs its network")
        kinds = list(dict.fromkeys(FRECHET[m] for m in metrics if m in FRECHET))
        stored = {} if reference is None else reference.statistics
        self._check_networks([k for k in kinds if k in stored])
        store = any(m in WITH_FEATURES for m in metrics)
        networks = list(self.extractors.values())
        score = self._score() if "is" in metrics else None
        self.samples = ImageSet(networks, moments=kinds, store=store, score=score)
        missing = [k for k in kinds if k not in stored]
        if missing and stored:
            # Images stored beside statistics are only a part of what the statistics were made of.
            raise ValueError(
                f"reference {reference.source} holds no statistics of {', '.join(missing)} features"
            )
        if store and reference is not None and reference.images is None:
            raise ValueError(
                f"reference {reference.source} holds no images, which kid and precision_recall need"
            )
        self.originals = ImageSet(networks, moments=missing, store=store)
        paired = any(m in protocols.PAIR_METRICS for m in metrics)
        lpips = lpips if "lpips" in metrics else None
        self.quality = ImageQuality(protocol=quality, lpips=lpips) if paired else None

    def _check_networks(self, kinds: Sequence[str]) -> None:
        for kind in kinds:
            for extractor in self.extractors.values():
                if kind in extractor.dims:
                    self.reference.require_network(kind, extractor.weights_hash, extractor.approximate)
                    found = len(self.reference.statistics[kind].mean)
                    if found != extractor.dims[kind]:
                        raise ValueError(
                            f"reference {self.reference.source}: {kind} features have {found} numbers,"
                            f" expected {extractor.dims[kind]}"
                        )

    def _score(self) -> InceptionScore:
        rule = self.protocol
        classes = next((e.dims["logits"] for e in self.extractors.values() if "logits" in e.dims), 1008)
        return InceptionScore(
            splits=rule.is_splits,
            order=rule.is_order,
            block=rule.is_block,
            num_images=self.num_images,
            num_classes=classes,
        )

    @property
    def needs_reference_images(self) -> bool:
        """Whether images of the reference have to be passed to `update_reference`."""
        return bool(self.originals.moments) or self.originals.store is not None

    def update(self, images: torch.Tensor, positions: torch.Tensor | None = None) -> None:
        """Add samples of this process.

        Args:
            images: [B, 3, H, W], uint8, or float in [0, 1], which is rounded to 8 bit as files are.
            positions: int64 [B], number of each image in the whole set. Without them the processes take turns.

        Raises:
            ValueError: another shape or type, values that are not finite, or a position given twice.
        """
        self.samples.update(self._stored(images), positions)

    def update_reference(self, images: torch.Tensor, positions: torch.Tensor | None = None) -> None:
        """Add reference images, as `update` takes samples."""
        self.originals.update(self._stored(images), positions)

    def update_pairs(
        self, images: torch.Tensor, originals: torch.Tensor, positions: torch.Tensor | None = None
    ) -> None:
        """Add reconstructions with their originals (both as `update` takes images), for paired metrics; without a
        reference the originals are the reference."""
        self.update(images, positions)
        if self.needs_reference_images and self.reference is None:
            self.update_reference(originals, positions)
        if self.quality is not None:
            exact = images if images.is_floating_point() else to_float(images)
            first = originals if originals.is_floating_point() else to_float(originals)
            cut = self.truncate and self.quality.protocol == "rounded"
            self.quality.update(first, to_float(self._stored(exact)) if cut else exact)

    def _stored(self, images: torch.Tensor) -> torch.Tensor:
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {list(images.shape)}, expected [B, 3, H, W]")
        if images.dtype == torch.uint8:
            return images
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}, expected uint8, or float in [0, 1]")
        if not torch.isfinite(images).all():
            raise ValueError("images hold values that are not finite")
        if self.truncate:
            return (images.detach().float().clamp(0, 1) * 255).to(torch.uint8)
        return to_uint8(images)

    def result(self) -> dict[str, float]:
        """The metrics over all processes, all of which must call it; biased ones carry the number of images in
        their names unless it is 50,000 (fid, fid_5k), spreads end in `_std`.

        Raises:
            ValueError: the number of samples is not `num_images`, the reference is missing, or there are too few
                images for a metric.
        """
        count, _ = self.samples.counted()
        if self.num_images is not None and count != self.num_images:
            raise ValueError(f"{count} images were measured instead of {self.num_images}")
        score = None if self.samples.score is None else self.samples.score.result(self.device)
        own, others = self.samples.statistics(self.device), self._reference_statistics()
        features = [
            s.store.gathered() if s.store is not None else None for s in (self.samples, self.originals)
        ]
        measured = {} if self.quality is None else self.quality.result(self.device)

        def compute() -> dict[str, float]:
            values = {}
            for metric in self.metrics:
                name = protocols.result_name(metric, count)
                if metric in FRECHET:
                    values[name] = _distance(others[FRECHET[metric]], own[FRECHET[metric]])
                elif metric == "is":
                    values[name], values[f"{name}_std"] = score
                elif metric == "kid":
                    values |= self._kid(*features)
                elif metric == "precision_recall":
                    values |= self._precision_recall(*features)
                else:
                    values[metric] = measured[metric]
            return values

        return _once(compute)

    def _reference_statistics(self) -> dict[str, Statistics]:
        """Stored ones and those of the reference images seen; on every process."""
        seen, _ = self.originals.counted()
        if self.needs_reference_images and seen < 2:
            raise ValueError(f"{seen} reference images were given, expected at least 2")
        stored = {} if self.reference is None else self.reference.statistics
        return {**stored, **self.originals.statistics(self.device)}

    def _kid(self, own: torch.Tensor, others: torch.Tensor) -> dict[str, float]:
        rule = self.protocol
        size = min(rule.kid_subset_size, len(own), len(others))
        return dict(
            zip(
                ("kid", "kid_std"),
                kernel_distance(own, others, subsets=rule.kid_subsets, subset_size=size),
                strict=True,
            )
        )

    def _precision_recall(self, own: torch.Tensor, others: torch.Tensor) -> dict[str, float]:
        rule = "adm_float16" if self.protocol.half_distances else "float32"
        found = precision_recall(
            own, others, neighbours=self.protocol.neighbours, rule=rule, device=self.device
        )
        return {"precision": found.precision, "recall": found.recall}

    def facts(self) -> dict[str, Any]:
        """How the numbers came about: settings, networks, rounding, counts and fingerprints (of all processes)."""
        count, fingerprint = self.samples.counted()
        facts = {
            "protocol": self.protocol.facts(),
            "extractors": extractor_facts(self.extractors),
            "rounding": "truncated" if self.truncate else "nearest",
            "images": count,
            "pixels_fingerprint": fingerprint,
        }
        seen, fingerprint = self.originals.counted()
        if seen:
            facts["reference_images"], facts["reference_fingerprint"] = seen, fingerprint
        if "kid" in self.metrics:
            facts["kid_subset_size"] = min(self.protocol.kid_subset_size, count, seen)
        if self.quality is not None:
            facts["image_quality"] = f"{self.quality.protocol} (per-image means)"
        return facts


def extractor_facts(extractors: Mapping[str, Extractor]) -> dict[str, Any]:
    """Hash of the weights of every network, whether it runs in reduced precision, and whether it is the published
    one where that is known."""
    facts: dict[str, Any] = {}
    for name, extractor in extractors.items():
        facts[name] = {"weights_hash": extractor.weights_hash, "approximate": bool(extractor.approximate)}
        for key in ("precision", "official"):
            if hasattr(extractor, key):
                facts[name][key] = getattr(extractor, key)
    return facts


def _distance(reference: Statistics, own: Statistics) -> float:
    return frechet_distance(
        reference.mean,
        reference.covariance,
        own.mean,
        own.covariance,
        count1=reference.count,
        count2=own.count,
    )


def _once(compute: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What the main process computes, or its error, on all processes: nobody waits for one that failed."""
    value, error = None, None
    if distributed.is_main():
        try:
            value = compute()
        except Exception as caught:  # raised again below, on every process
            error = caught
    value, error = distributed.gather_objects((value, error))[0]
    if error is not None:
        raise error
    return value
