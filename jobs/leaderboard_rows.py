"""Rows of a leaderboard, read from result files with all that makes them comparable."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.config import find_file
from evaluator.result_names import direction, networks_behind, same_family
from storage.json_files import read_json, try_json

# What a record says of one model or one run, and what was found; all else must be equal.
_OWN = (
    "samples",
    "sampler",
    "tokenizer",
    "reference",
    "extractors",
    "protocol",
    "details",
    "copies",
    "images",
)
_OWN += (
    "pixels_fingerprint",
    "reference_fingerprint",
    "all_black",
    "paired_by",
    "captions",
    "crop",
    "rounding",
)
_OWN += ("reference_images", "token_copies")
# Settings of a comparison that change no number of another row.
_FREE = ("output", "tokenizers", "train", "batch_size", "num_workers")


@dataclass
class Row:
    """One measured model."""

    name: str
    source: str
    values: dict[str, float]
    required: dict[str, Any]  # what rows of a group share, present or not
    shared: dict[str, Any]  # what they share if both have it: networks, settings of single metrics
    trained_on: dict[str, str] = field(
        default_factory=dict
    )  # networks the model learnt from, and who says so
    notes: list[str] = field(default_factory=list)


@dataclass
class Group:
    """Rows that may be compared; `differences` are to the group before it that is closest."""

    rows: list[Row]
    shared: dict[str, Any]
    differences: list[str] = field(default_factory=list)
    rank: str | None = None
    unranked: list[str] = field(default_factory=list)


def result_files(paths: Sequence[str]) -> Iterator[Path]:
    """The files named, and in folders all JSON files that are results; raises FileNotFoundError, ValueError."""
    if not paths:
        raise ValueError("results=[] names no file or folder")
    seen: set[Path] = set()
    for name in paths:
        path = find_file(name, "result")
        found = (
            [path] if path.is_file() else sorted(p for p in path.rglob("*.json") if _is_result(try_json(p)))
        )
        if not found:
            raise ValueError(f"{name} holds no result file of evaluate, reproduce or compare")
        for file in found:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def _is_result(content: Mapping[str, Any]) -> bool:
    single = isinstance(content.get("metrics"), Mapping) and isinstance(content.get("protocol"), Mapping)
    return single or (isinstance(content.get("rows"), list) and isinstance(content.get("settings"), Mapping))


def read_rows(path: Path) -> list[Row]:
    """The rows of a result file; raises ValueError if it is none."""
    content = read_json(path)
    if not _is_result(content):
        raise ValueError(f"{path} is no result: expected metrics and protocol, or settings and rows")
    if "rows" in content:
        return [
            _compared(path, content["settings"], row) for row in content["rows"] if isinstance(row, Mapping)
        ]
    facts = content["protocol"]
    name = path.parent.name if path.stem == "result" and path.parent.name else path.stem
    row = Row(name, str(path), _numbers(content["metrics"]), required_facts(facts), shared_facts(facts))
    row.trained_on = trained_on(facts)
    errors, warnings = content.get("errors") or {}, content.get("warnings") or []
    row.notes = [f"{metric} could not be computed" for metric in errors]
    row.notes += [f"{len(warnings)} warnings in its file"] if warnings else []
    return [row]


def _compared(path: Path, settings: Mapping[str, Any], values: Mapping[str, Any]) -> Row:
    """A row of `compare_tokenizers`, whose protocol are its settings."""
    required = {f"compare: {key}": value for key, value in settings.items() if key not in _FREE}
    required["images"] = values.get("held_out_images")
    numbers = {name: value for name, value in _numbers(values).items() if direction(name)}
    row = Row(str(values.get("name", path.parent.name)), str(path), numbers, required, {})
    if teacher := values.get("teacher"):
        found = [
            n for n in {n for name in numbers for n in networks_behind(name)} if same_family(n, str(teacher))
        ]
        row.trained_on = dict.fromkeys(found, f"teacher {teacher}")
    return row


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def _section(facts: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return found if isinstance(found := facts.get(key), Mapping) else {}


def required_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What two rows must have in common whatever was measured."""
    samples, reference = _section(facts, "samples"), _section(facts, "reference")
    size = f"{samples.get('height')} x {samples.get('width')} pixels" if samples else None
    return {
        "images": facts.get("images"),
        "resolution": size,
        "crop": facts.get("crop"),
        "rounding": facts.get("rounding"),
        "alpha": samples.get("alpha"),
        "orientation": samples.get("orientation"),
        "reference": reference.get("sha256"),
        "kind of reference": reference.get("image_set"),
        "reference images": reference.get("count"),
        **{f"protocol {key}": value for key, value in _section(facts, "protocol").items()},
    }


def shared_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What two rows must have in common if both have it: networks, and what single metrics say of themselves."""
    found = {key: value for key, value in facts.items() if key not in _OWN}
    for name, network in _section(facts, "extractors").items():
        found |= {f"network {name}: {key}": value for key, value in network.items()}
    tokenizer = _section(facts, "tokenizer")
    return found | ({"precision of the model": tokenizer.get("precision", "float32")} if tokenizer else {})


def trained_on(facts: Mapping[str, Any]) -> dict[str, str]:
    """Networks that measured this model and that it learnt from, by the hashes and names in the record."""
    found: dict[str, str] = {}
    models = [_section(facts, "tokenizer"), _section(facts, "sampler")]
    hashes = {model.get(key) for model in models for key in ("weight_hash", "tokenizer", "generator")} - {
        None
    }
    teachers = [str(name) for model in models for name in model.get("trained_on") or ()]
    networks = {**_section(facts, "extractors"), "lpips": {}}
    for network, about in networks.items():
        if about.get("weights_hash") in hashes:
            found[network] = "it is the model's own tokenizer"
        for teacher in teachers:
            if same_family(network, teacher):
                found[network] = f"trained with {teacher}"
    return found
