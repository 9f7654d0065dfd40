"""What samples are compared with: stored feature statistics, images, or both in one `.npz`.

The file layout is that of the ADM evaluator (arXiv:2105.05233): `mu` [2048] and `sigma` [2048, 2048] of the pooled
features, `mu_s`, `sigma_s` [2023] of the spatial ones, `arr_0` uint8 [N, H, W, 3]. Files written here also hold
`protocol`, a JSON text that says how the statistics came about, and `mu_<space>`, `sigma_<space>` of other features
(`evaluator.spaces`). Other tools ignore the additions. Published statistics of the spaces are read as they are, a file
or a folder of them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.images import PixelRules
from evaluator.image_files import ArrayImages, open_images
from evaluator.image_stream import ImageStream, Transform, digest_lines
from evaluator.moments import Statistics
from evaluator.published_statistics import PAIRS, moment_keys, published_files, space_of_file
from storage.arrays import ArrayFile, damage_named
from storage.files import file_sha256
from storage.json_files import parse_json
from storage.npz import Rows, write_npz

# Endings of `mu` and `sigma` by kind of features; other kinds have their names.
ENDINGS = {"pool": "", "spatial": "_s"}
FORMAT = 2
# Format 1 knew no spaces: its `dinov2` features are those that dgm-eval takes.
RENAMED = {1: {"dinov2": "dinov2_dgm"}, FORMAT: {}}
_PROTOCOL_BYTES = 1 << 26


def statistics_keys(kind: str) -> tuple[str, str]:
    """Names of mean and covariance of a kind of features in a file."""
    ending = ENDINGS.get(kind, f"_{kind}")
    return f"mu{ending}", f"sigma{ending}"


def _kinds(names: set[str]) -> list[str]:
    # A lone `mu` or `sigma` counts: the file is incomplete, and reading says so.
    endings = {name.removeprefix(key) for key in ("mu", "sigma") for name in names if name.startswith(key)}
    known = [kind for kind, ending in ENDINGS.items() if ending in endings]
    return known + sorted(e[1:] for e in endings - set(ENDINGS.values()) if e.startswith("_"))


@dataclass(kw_only=True)
class Reference:
    """Statistics, images, or both."""

    source: str  # path, or what else to call it
    sha256: str  # of the file; for images, of the description of the files
    statistics: dict[str, Statistics] = field(default_factory=dict)  # by kind of features: pool, spatial, ...
    images: ImageStream | None = None  # stored in the file, or the reference itself; None = statistics alone
    # How it was made; empty for foreign files and images.
    protocol: dict[str, Any] = field(default_factory=dict)
    # "training", "validation" or "originals" (of the measured reconstructions) if that was stated, "images" for images
    # without a statement, "unknown" for statistics without one.
    image_set: str = "unknown"

    def facts(self) -> dict[str, Any]:
        """For results: source, hash, number and size of images, and the protocol inside."""
        facts: dict[str, Any] = {
            "source": self.source,
            "sha256": self.sha256,
            "image_set": self.image_set,
            # How its numbers came about is known: a file of ours, or images that are measured now.
            "verified": bool(self.protocol) or not self.statistics,
            "statistics": sorted(self.statistics),
        }
        counts = [s.count for s in self.statistics.values() if s.count]
        made_of = self.protocol.get("images", {})
        facts["count"] = counts[0] if counts else None
        facts["height"], facts["width"] = made_of.get("height"), made_of.get("width")
        if self.images is not None:
            facts["height"], facts["width"] = self.images.size
            if self.statistics:
                facts["stored_images"] = self.images.count
            else:
                facts["count"], facts["lossy_files"] = self.images.count, self.images.lossy
        if self.protocol:
            facts["protocol"] = self.protocol
        return facts

    def same_count(self, num_images: int | None) -> bool:
        """Whether undescribed images may be those that `num_images` samples (None: unknown) were made of."""
        described = self.image_set != "images" or self.images is None
        return described or num_images in (None, self.images.count)

    def require_statistics(self, kinds: Iterable[str]) -> None:
        """Raise ValueError if this file of statistics lacks those of some kinds of features."""
        # Images stored beside statistics are only a part of what the statistics were made of.
        missing = [kind for kind in dict.fromkeys(kinds) if kind not in self.statistics]
        if self.statistics and missing:
            raise ValueError(f"reference {self.source} holds no statistics of {', '.join(missing)} features")

    def require_network(self, name: str, kind: str, weights_hash: str, approximate: bool) -> None:
        """Raise ValueError if another network, or precision, made the statistics than measures the samples."""
        recorded = self.protocol.get("extractors", {}).get(name)
        if not recorded:
            return
        if recorded["weights_hash"] != weights_hash:
            raise ValueError(
                f"reference {self.source}: its {kind} statistics were made with weights"
                f" {recorded['weights_hash'][:12]}, the samples are measured with {weights_hash[:12]}"
            )
        if bool(recorded["approximate"]) != approximate:
            words = {True: "reduced", False: "full"}
            raise ValueError(
                f"reference {self.source}: its {kind} statistics were made in {words[not approximate]} precision,"
                f" the samples are measured in {words[approximate]}; that alone moves a distance"
            )


def open_reference(
    path: str | Path, *, transform: Transform | None = None, rules: PixelRules | None = None
) -> Reference:
    """A reference at a path: an `.npz` with statistics, a folder of published ones, or images (see `open_images`).

    `transform` and `rules` are for the images of a reference that has no statistics.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: statistics are incomplete, of a wrong shape or not finite, or the images cannot be read.
    """
    place = Path(path)
    if files := published_files(place):
        statistics = {kind: values for file in files for kind, values in _read_statistics(file)[0].items()}
        digest = digest_lines([f"{file.name} {file_sha256(file)}" for file in files])
        return Reference(source=str(path), sha256=digest, statistics=statistics)
    if place.suffix == ".npz" and place.is_file():
        statistics, protocol, has_images = _read_statistics(place)
        if statistics:
            return Reference(
                source=str(path),
                sha256=file_sha256(place),
                statistics=statistics,
                images=ArrayImages(place) if has_images else None,
                protocol=protocol,
                image_set=protocol.get("image_set", "unknown"),
            )
    return image_reference(open_images(path, transform=transform, rules=rules))


def image_reference(images: ImageStream, image_set: str = "images") -> Reference:
    """Images as a reference, to be measured like the samples."""
    return Reference(source=images.source, sha256=images.digest(), images=images, image_set=image_set)


def _read_statistics(path: Path) -> tuple[dict[str, Statistics], dict[str, Any], bool]:
    with damage_named(f"reference {path} cannot be read"), ArrayFile(path) as arrays:
        held = set(arrays.names)
        protocol = _read_protocol(arrays.read("protocol", _PROTOCOL_BYTES)) if "protocol" in held else {}
        statistics = {}
        for kind, keys in _key_pairs(held, path).items():
            if not held.issuperset(keys):
                raise ValueError(f"it holds only one of {' and '.join(keys)}")
            mean, covariance = (_numbers(key, arrays.read(key)) for key in keys)
            check_moments(mean, covariance, keys)
            count = protocol.get("counts", {}).get(kind)
            kind = RENAMED[protocol.get("format", FORMAT)].get(kind, kind)
            statistics[kind] = Statistics(mean, covariance, count)
    return statistics, protocol, "arr_0" in held


def _key_pairs(held: set[str], path: Path) -> dict[str, tuple[str, str]]:
    """Names of means and covariances by kind of features."""
    pairs = {kind: statistics_keys(kind) for kind in _kinds(held)}
    if "pool" not in pairs and held.intersection(*map(set, PAIRS[1:])):
        pairs["pool"] = moment_keys(held)
    space = space_of_file(path.name)
    if space is not None and "pool" in pairs:
        pairs[space.features] = pairs.pop("pool")
    return pairs


def check_moments(mean: np.ndarray, covariance: np.ndarray, keys: tuple[str, str] = ("mu", "sigma")) -> None:
    """Raise ValueError unless these are a finite mean [d] and covariance [d, d]; `keys` are their names."""
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(
            f"{keys[0]} {list(mean.shape)} and {keys[1]} {list(covariance.shape)} are no mean [d] and covariance [d, d]"
        )
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{keys[0]} or {keys[1]} is not finite")


def _numbers(key: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{key} holds {array.dtype}, expected numbers")
    return np.asarray(array, dtype=np.float64)


def _read_protocol(text: np.ndarray) -> dict[str, Any]:
    protocol = parse_json(str(text))
    if not isinstance(protocol, dict) or protocol.get("format") not in RENAMED:
        raise ValueError(
            f"its protocol is of an unknown format, expected one of {', '.join(map(str, RENAMED))}"
        )
    for section in ("counts", "images", "extractors"):
        if not isinstance(protocol.get(section, {}), dict):
            raise ValueError(f"its protocol has no usable {section}")
    counts = protocol.get("counts", {}).values()
    if not all(count is None or type(count) is int and count > 0 for count in counts):
        raise ValueError(f"its protocol has the counts {list(counts)}")
    renamed = RENAMED[protocol["format"]]
    extractors = protocol.get("extractors", {})
    return {**protocol, "extractors": {renamed.get(name, name): about for name, about in extractors.items()}}


def write_reference(
    path: str | Path,
    statistics: Mapping[str, Statistics],
    protocol: Mapping[str, Any] | None,
    images: ImageStream | None = None,
    keep_images: int = 0,
) -> None:
    """Write a reference file, whole or not at all.

    Args:
        path: an `.npz`.
        statistics: by kind of features.
        protocol: how they came about: `image_set`, `images`, `extractors`, ...; stored with it: counts, format. None:
            nobody knows, and the file does not say.
        images: what they were made of.
        keep_images: number of these stored as `arr_0`, evenly spaced, for metrics that need images.

    Raises:
        ValueError: the suffix is another, or there is nothing to write.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"reference {path} must have the suffix .npz")
    if not statistics:
        raise ValueError(f"reference {path}: there are no statistics to write")
    arrays: dict[str, np.ndarray | Rows] = {}
    if protocol is not None:
        about = {**protocol, "format": FORMAT, "counts": {kind: s.count for kind, s in statistics.items()}}
        arrays["protocol"] = np.array(json.dumps(about))
    for kind, values in statistics.items():
        for key, array in zip(statistics_keys(kind), (values.mean, values.covariance), strict=True):
            arrays[key] = np.asarray(array, dtype=np.float64)
    if images is not None and keep_images:
        count = min(keep_images, images.count)
        # The first ones of a set in class order would all be of a few classes.
        chosen = [number * images.count // count for number in range(count)]
        rows = (image.permute(1, 2, 0).numpy() for image in images.images(chosen))
        arrays["arr_0"] = Rows((count, *images.size, 3), "uint8", rows)  # one image in memory at a time
    write_npz(path, arrays)
