"""`config=FILE key=value ...`: YAML files and dotted overrides, merged, checked strictly, written back resolved.

A file may inherit from another one: `base: other.yaml` (common/recipes.py).
"""

import copy
import dataclasses
import functools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from common.build import ConfigError, build_dataclass, type_name
from common.recipes import REMOVED, base_file, entries, inherit, merge, plain, with_origin

REPOSITORY = Path(__file__).resolve().parents[1]

Settings = TypeVar("Settings")


def option(default: Any = dataclasses.MISSING, help: str = "") -> Any:
    """A settings field with a help text; mutable defaults are copied for every instance."""
    if isinstance(default, (dict, list)) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def find_file(name: str | Path, what: str = "file") -> Path:
    """A path given by the user: as written, else relative to the repository (scripts work from any directory).

    Raises:
        FileNotFoundError: it is in neither place.
    """
    path = Path(name).expanduser()
    for candidate in (path, REPOSITORY / path):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{what} {name} does not exist")


def read_yaml(path: str | Path) -> dict:
    """A YAML file, merged with its base if it names one, as plain nested dicts with interpolations resolved.

    Raises:
        FileNotFoundError, ConfigError: the file is missing, or is not a YAML mapping, or its base does not fit.
    """
    try:
        return OmegaConf.to_container(OmegaConf.create(plain(read_recipe(path))), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config file {path} cannot be read: {one_line(error)}") from error


def read_recipe(path: str | Path) -> dict:
    """A YAML file over its base: nested dicts of `Entry`, interpolations not resolved yet.

    Raises:
        FileNotFoundError, ConfigError: as `read_yaml`.
    """
    found = find_file(path, "config file")
    tree = _load_yaml(found)
    if "base" not in tree:
        return with_origin(tree, _shown(found))
    base = base_file(found, tree.pop("base"))
    inherited = _load_yaml(base)
    if "base" in inherited:
        raise ConfigError(
            f"{found}: base={base.name!r} has a base itself, {inherited['base']!r}; only one level is allowed"
        )
    return inherit(with_origin(inherited, _shown(base)), with_origin(tree, _shown(found)))


def _shown(path: Path) -> str:
    absolute = path.absolute()
    return str(absolute.relative_to(REPOSITORY) if absolute.is_relative_to(REPOSITORY) else path)


def _load_yaml(path: Path) -> dict:
    try:
        tree = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config file {path} cannot be read: {one_line(error)}") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"config file {path} must hold keys and values, found a list")
    return OmegaConf.to_container(tree)


def merge_arguments(arguments: Sequence[str]) -> dict:
    """The tree that `config=FILE` arguments (in order) and `a.b=value` overrides describe, later ones winning."""
    return resolve(merge_sources(arguments))


def merge_sources(arguments: Sequence[str]) -> dict:
    """As `merge_arguments`, but nested dicts of `Entry`, whose values refer to others until `resolve`."""
    trees, overrides = [], []
    for argument in arguments:
        key, separator, value = argument.lstrip("-").partition("=")
        if not separator or not key:
            raise ConfigError(f"argument {argument!r} is not understood; write key=value, or --help")
        if key == "config":
            trees.append(read_recipe(value))
        else:
            overrides.append(f"{key}={value}")
    try:
        trees.append(with_origin(OmegaConf.to_container(OmegaConf.from_dotlist(overrides)), "command line"))
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"arguments cannot be merged: {one_line(error)}") from error
    return functools.reduce(merge, trees)


def resolve(tree: dict) -> dict:
    """Plain nested dicts from nested dicts of `Entry`, values that refer to others (`${a.b}`) filled in."""
    try:
        return OmegaConf.to_container(OmegaConf.create(plain(tree)), resolve=True)
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"arguments cannot be merged: {one_line(error)}") from error


def load_settings(cls: type[Settings], arguments: Sequence[str]) -> Settings:
    """Settings from the command line.

    Args:
        cls: settings dataclass. If it has a class method `translate`, that is applied to the merged tree before the
            strict check, so that files and overrides may also use the key names of another program.
        arguments: as `merge_arguments` takes them.
    """
    sources = merge_sources(arguments)
    tree = resolve(sources)
    if hasattr(cls, "translate"):
        tree = cls.translate(tree)
    settings = build_dataclass(cls, tree)
    _check_removed(settings, sources)
    return settings


def _check_removed(settings: Any, sources: dict) -> None:
    """Refuse a null that was meant as a value but brings back a default that is not null."""
    for path, entry in entries(sources):
        *sections, key = path.split(".")
        owner = functools.reduce(lambda held, name: getattr(held, name, None), sections, settings)
        if entry.value is not REMOVED or not dataclasses.is_dataclass(owner) or not hasattr(owner, key):
            continue
        default = getattr(owner, key)
        if default is not None and type(None) in get_args(get_type_hints(type(owner))[key]):
            raise ConfigError(
                f"{entry.origin}: {path}: null removes the key of the base, and the default is {default}, not null;"
                f" write {key}: {default}, or {key}: ${{oc.decode:null}} for the value null"
            )


def to_tree(settings: Any) -> dict:
    """A settings dataclass as nested plain values, with every default filled in."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(settings))


def first_difference(old: Any, new: Any, path: str) -> str | None:
    """'path.key was 1, is now 2' for the first place where two trees differ, None if they are equal."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(k for k in new if k not in old)]:
            difference = first_difference(old.get(key), new.get(key), f"{path}.{key}")
            if difference:
                return difference
        return None
    return None if old == new else f"{path} was {old}, is now {new}"


def describe(cls: type, prefix: str = "", given: Any = None) -> list[str]:
    """One help line per option of a settings dataclass, nested sections with dotted names.

    Args:
        prefix: of the names.
        given: the section that holds if none is given, whose values are the defaults; None: those of the class.
    """
    hints, lines = get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        name, annotation, default = prefix + field.name, hints[field.name], dataclasses.MISSING
        if given is not None:
            default = getattr(given, field.name)
        elif field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        missing = default is dataclasses.MISSING
        if dataclasses.is_dataclass(annotation):
            lines += describe(annotation, f"{name}.", None if missing else default)
            continue
        shown = "required" if missing else "null" if default is None else f"{default}"
        lines.append(
            f"  {name + '=':38s} {type_name(annotation)} [{shown}]  {field.metadata.get('help', '')}".rstrip()
        )
    return lines


def run_script(main: Callable[[Any], None], cls: type, usage: str) -> NoReturn | None:
    """Run an entry point: `--help`, settings from the command line, and user errors as one line.

    ValueError and OSError are mistakes in the input: they end the program with one line and exit code 1 (set the
    environment variable TRACEBACK=1 to see where they were raised); anything else is a bug and shows its traceback.

    Args:
        main: called with the settings.
        cls: settings dataclass of the script.
        usage: the module docstring; printed by `--help` before the options.
    """
    arguments = sys.argv[1:]
    if any(a in ("-h", "--help", "help") for a in arguments):
        print(f"{usage.strip()}\n\nOptions (config=FILE reads them from YAML; key=value overrides):")
        print("\n".join(describe(cls)))
        return None
    try:
        main(load_settings(cls, arguments))
    except KeyboardInterrupt:
        sys.exit("stopped by the user")
    except (ValueError, OSError) as error:
        if os.environ.get("TRACEBACK"):
            raise
        sys.exit(f"error: {one_line(error)}")
    return None


def one_line(error: Exception) -> str:
    """The message of an error; of one that a data loading worker passed on, without the worker's traceback."""
    text = str(error)
    if "Original Traceback (most recent call last):" in text:
        text = re.split(r"\n[\w.]+: ", text)[-1]
    return " ".join(text.split())
