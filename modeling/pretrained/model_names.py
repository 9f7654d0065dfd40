"""All ways to name a model; `open_model` finds its configuration and weights.

    titok-l32                              a name of the catalog
    runs/titok, runs/titok/checkpoints/... a run or checkpoint folder (config.yaml), also one of the original project
    exported/titok                         config.json and model.safetensors: ours, or of the original
    tokenizer_titok_l32.bin                a weight file: configuration beside it or given, or named as published
    configs/infer/titok_l32.yaml           a configuration of the original that names its weight files
    organisation/repository                on the Hugging Face Hub
    {"weights": FILE, "tokenizer": {...}}  the parts themselves

A name of the catalog comes before a path, an existing path before a Hub repository.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.build import ConfigError, nearest
from common.config import REPOSITORY, find_file
from compat.models import generator_section, is_original, sampling_section, tokenizer_section, weight_file
from modeling.pretrained.catalog import RELEASES, release_of_section, releases_of_file
from modeling.pretrained.downloads import hub_model, is_file_of, release_weights
from modeling.pretrained.release import Release, imagenet_classes
from modeling.pretrained.run_folder import (
    CONFIG,
    MODEL_SECTIONS,
    ModelFiles,
    check_keys,
    newest_weights,
    open_run,
    read_model_yaml,
)
from storage.json_files import read_json
from storage.weights import INDEX, weight_names

ModelName = str | Path | Mapping[str, Any]

HUB_CONFIG = "config.json"
LOCAL_FOLDERS = ("runs", "assets", "configs")  # never organisations of the Hub, though they may not exist yet
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
# Entries of the original's files that our models lack: a counting buffer of old transformers releases, and the usage
# statistics of codebooks, which only training reads.
DROP = ("*.position_ids", "quantize.embed_prob")
TEXT_ENTRY = "decoder.text_guidance_proj.weight"  # only TA-TiTok has it


def open_model(
    name: ModelName, kind: str | None = None, config: str | Path | Mapping[str, Any] | None = None
) -> ModelFiles:
    """Find configuration and weights of a model, downloading them if they are only on the Hub.

    Args:
        name: see the module's documentation.
        kind: "tokenizer" or "generator" if a configuration describes both; None lets the weights decide.
        config: configuration, ours or the original's, of a local weight file or folder that has none. Its key `format`
            says how to read a file of another project (`loading.FORMATS`).

    Raises:
        FileNotFoundError: nothing has this name; the message says what was looked for.
        ConnectionError: the download fails.
        ValueError: the configuration cannot be read, has an unknown key, or describes another kind of model.
    """
    if isinstance(name, Mapping):
        return _from_parts(name)
    name = str(name)
    path = _existing(name)
    if config is not None:
        if path is None:
            raise FileNotFoundError(f"config is given, but {name} is not a local file or folder")
        weights = path if path.is_file() else newest_weights(path)
        return _describe(name, weights, _read(config), kind)
    if name in RELEASES:
        return _from_release(RELEASES[name], kind)
    if path is not None:
        return _from_path(name, path, kind)
    if _may_be_repository(name):
        try:
            found, weights = hub_model(name)
        except OSError as error:
            raise type(error)(
                f"{name} is no file or folder here, and as a Hub repository: {error}"
            ) from error
        return _describe(name, weights, _read(found), kind)
    hint = nearest(name, list(RELEASES))
    raise FileNotFoundError(
        f"{kind or 'model'} {name} does not exist as file, folder or released model{hint}"
    )


def shown_name(name: ModelName) -> str:
    """A model's name as text; the weight file for a model given by its parts."""
    return str(name["weights"] if isinstance(name, Mapping) else name)


def _existing(name: str) -> Path | None:
    try:
        return find_file(name)
    except FileNotFoundError:
        return None


def _may_be_repository(name: str) -> bool:
    """Whether a name that is no local path may be on the Hub: not if its first part is (usually) a folder here."""
    first, _, last = name.partition("/")
    if first in LOCAL_FOLDERS or last in (".", "..") or not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return False
    return _existing(first) is None


def _from_release(release: Release, kind: str | None) -> ModelFiles:
    if kind not in (None, release.kind):
        raise ValueError(f"{release.name} is a {release.kind}, not a {kind}")
    if release.folder:
        found = open_run(REPOSITORY / release.folder)
        return ModelFiles(name=release.name, config=found.config, weights=found.weights)
    return ModelFiles(release.name, release.config, release_weights(release), DROP, release.format)


def _from_parts(parts: Mapping[str, Any]) -> ModelFiles:
    sections = [key for key in MODEL_SECTIONS if isinstance(parts.get(key), Mapping)]
    weights = parts.get("weights")
    if not isinstance(weights, (str, Path)) or len(sections) != 1:
        raise ConfigError(
            f"a model given by its parts needs `weights`, a file, and one section of {', '.join(MODEL_SECTIONS)};"
            f" found {', '.join(parts) or 'nothing'}"
        )
    config = {key: value for key, value in parts.items() if key != "weights"}
    check_keys(config, f"model {weights}")
    if isinstance(origin := config.get("tokens"), Mapping):
        config["tokens"] = dict(origin)
    elif sections == ["generator"]:
        config["tokens"] = _origin(config["generator"], None)
    return ModelFiles(str(weights), config, _find_weights(str(weights), REPOSITORY), DROP)


def _from_path(name: str, path: Path, kind: str | None) -> ModelFiles:
    if path.is_file() and path.suffix in CONFIG_SUFFIXES and not path.name.endswith(INDEX):
        return _from_config_file(name, path, kind)
    folder = path if path.is_dir() else path.parent
    if not (folder / CONFIG).is_file():
        published = path if path.is_file() else _published_file(path, kind)
        release = _release_of(published, kind) if published is not None else None
        # A config.json beside a published file may be that of something else.
        if (folder / HUB_CONFIG).is_file() and (release is None or _is_model_config(folder / HUB_CONFIG)):
            weights = path if path.is_file() else newest_weights(path)
            return _describe(name, weights, _read(folder / HUB_CONFIG), kind)
        if release is not None:
            path = published
            if kind not in (None, release.kind):
                raise ValueError(f"{name} is the file of a {release.kind} ({release.name}), not of a {kind}")
            return ModelFiles(name, _with_own_tokenizer(release, path), path, DROP, release.format)
    run = open_run(path)
    if is_original(run.config):
        return _describe(name, run.weights, run.config, kind)
    check_keys(run.config, f"{CONFIG} of {name}")
    return run


def _is_model_config(path: Path) -> bool:
    """Whether a config.json describes a model of ours or of the original, and not something else."""
    tree = _read_json(path)
    return is_original(tree) or any(isinstance(tree.get(key), Mapping) for key in MODEL_SECTIONS)


def _published_file(folder: Path, kind: str | None) -> Path | None:
    """The file of a folder that has a published name, if there is one such file."""
    found = [path for path in folder.iterdir() if path.is_file() and releases_of_file(path.name, kind)]
    return found[0] if len(found) == 1 else None


def _release_of(path: Path, kind: str | None) -> Release | None:
    """The release that a file with a published name holds; its entries decide where several files have the name."""
    found = releases_of_file(path.name, kind)
    release = next((release for release in found if is_file_of(release, path)), None)
    if found and release is None:
        names = " nor ".join(release.name for release in found)
        raise ValueError(f"{path} has the name of a published file, but holds neither {names}")
    return release


def _with_own_tokenizer(release: Release, path: Path) -> dict[str, Any]:
    """The configuration of a release in the user's file; its tokenizer is read from there too if the file holds it."""
    config, tokenizer = release.config, RELEASES.get(release.tokenizer or "")
    if tokenizer is not None and tokenizer.file == release.file:  # Open-MAGVIT2 and IBQ
        config["tokens"]["tokenizer"] = str(path)
    return config


def _from_config_file(name: str, path: Path, kind: str | None) -> ModelFiles:
    """A model named by its configuration: the weights lie beside it, or it names them."""
    tree = _read(path)
    if not is_original(tree) or path.name == HUB_CONFIG:
        return _describe(name, newest_weights(path.parent), tree, kind)
    kind = kind or ("generator" if weight_file(tree, "generator") else "tokenizer")
    named = weight_file(tree, kind)
    if named is None:
        raise ConfigError(
            f"experiment.{kind}_checkpoint is missing in {name}; set it to the weight file, or name the weight file"
            " and give this file as its configuration"
        )
    return _describe(name, _find_weights(named, path.parent), tree, kind, path.parent)


def _find_weights(named: str, beside: Path) -> Path:
    """A weight file beside the file that names it, by its path, or by its published name."""
    if (beside / named).is_file():
        return beside / named
    found = _existing(named)
    if found is not None:
        return found
    for release in releases_of_file(Path(named).name):
        return release_weights(release)
    raise FileNotFoundError(f"weight file {named} does not exist, neither here nor in {beside}")


def _read(config: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as plain nested dicts."""
    if isinstance(config, Mapping):
        tree, where = dict(config), "config"
    else:
        path = find_file(config, "configuration")
        if path.suffix == ".json":
            return _read_json(path)
        tree, where = read_model_yaml(path), str(path)
    if not is_original(tree):
        check_keys(tree, where)
    return tree


def _read_json(path: Path) -> dict[str, Any]:
    """A config.json; it may have further sections, see `save_pretrained`."""
    try:
        return read_json(path)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _describe(
    name: str, weights: Path, tree: dict[str, Any], kind: str | None, folder: Path | None = None
) -> ModelFiles:
    """Weights with their configuration, translated if it is the original's."""
    if not is_original(tree):
        if not any(isinstance(tree.get(key), Mapping) for key in MODEL_SECTIONS):
            raise ConfigError(
                f"the configuration of {name} has neither a section {' nor '.join(MODEL_SECTIONS)},"
                " nor model.vq_model of the original project"
            )
        return ModelFiles(name, tree, weights)
    names = weight_names(weights)  # without values where the format allows it
    is_tokenizer = any(entry.startswith("encoder.") for entry in names)
    if (kind or ("tokenizer" if is_tokenizer else "generator")) == "tokenizer":
        config = {"tokenizer": tokenizer_section(tree, text=TEXT_ENTRY in names)}
    else:
        section = generator_section(tree)
        made_by = _tokenizer_of(tree, folder or weights.parent)
        config = {
            "generator": section,
            "sampling": sampling_section(tree),
            "tokens": _origin(section, made_by),
        }
    return ModelFiles(name, config, weights, DROP)


def _tokenizer_of(tree: Mapping[str, Any], folder: Path) -> ModelName | None:
    """The tokenizer of an original generator: the weight file that it names, else the release of the same design."""
    if not isinstance(tree["model"].get("vq_model"), Mapping):
        return None
    named = weight_file(tree, "tokenizer")
    places = (folder / named, _existing(named)) if named else ()
    local = next((path for path in places if path and path.is_file()), None)
    if local is not None:
        section = tokenizer_section(tree, text=TEXT_ENTRY in weight_names(local))
        return {"weights": str(local), "tokenizer": section}
    if not named:
        release = release_of_section(tokenizer_section(tree))
        return None if release is None else release.name
    return next((release.name for release in releases_of_file(Path(named).name)), named)


def _origin(generator: Mapping[str, Any], tokenizer: ModelName | None) -> dict[str, Any]:
    """Section `tokens` of an original generator."""
    names = imagenet_classes()  # all of the original's class-conditional generators learned these
    origin = {"class_names": names} if generator.get("num_classes") == len(names) else {}
    return origin if tokenizer is None else {"tokenizer": tokenizer, **origin}
