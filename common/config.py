"""`config=FILE key=value ...`: YAML files and dotted overrides, merged, checked strictly, written back resolved."""

import copy
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from common.build import ConfigError, build_dataclass, type_name

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
    """A YAML file as plain nested dicts with interpolations resolved.

    Raises:
        FileNotFoundError, ConfigError: the file is missing, or is not a YAML mapping.
    """
    tree = _load_yaml(path)
    try:
        return OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"config file {path} cannot be read: {one_line(error)}") from error


def _load_yaml(path: str | Path) -> DictConfig:
    found = find_file(path, "config file")
    try:
        tree = OmegaConf.load(found)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config file {path} cannot be read: {one_line(error)}") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"config file {path} must hold keys and values, found a list")
    return tree


def merge_arguments(arguments: Sequence[str]) -> dict:
    """The tree that `config=FILE` arguments (in order) and `a.b=value` overrides describe, later ones winning."""
    trees, overrides = [], []
    for argument in arguments:
        key, separator, value = argument.lstrip("-").partition("=")
        if not separator or not key:
            raise ConfigError(f"argument {argument!r} is not understood; write key=value, or --help")
        if key == "config":
            trees.append(_load_yaml(value))  # not resolved yet: values that refer to others follow overrides
        else:
            overrides.append(f"{key}={value}")
    try:
        tree: dict = {}
        for part in (*trees, OmegaConf.from_dotlist(overrides)):
            tree = _merge(tree, OmegaConf.to_container(part))
        return OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        raise ConfigError(f"arguments cannot be merged: {one_line(error)}") from error


def _merge(old: Any, new: Any) -> Any:
    """Sections key by key; anything else is replaced, whatever it was, for the strict check to judge."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merge(old.get(key), value) for key, value in new.items()}}
    return new


def load_settings(
    cls: type[Settings], arguments: Sequence[str], translate: Callable[[dict], dict] | None = None
) -> Settings:
    """Settings from the command line.

    Args:
        cls: settings dataclass.
        arguments: as `merge_arguments` takes them.
        translate: applied to the merged tree before the strict check, so that files and overrides may also use the
            key names of another program; it returns trees that need no translation as they are.
    """
    tree = merge_arguments(arguments)
    if translate is not None:
        tree = translate(tree)
    return build_dataclass(cls, tree)


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


def run_script(
    main: Callable[[Any], None],
    cls: type,
    usage: str,
    translate: Callable[[dict], dict] | None = None,
) -> NoReturn | None:
    """Run an entry point: `--help`, settings from the command line, and user errors as one line.

    ValueError and OSError are mistakes in the input: they end the program with one line and exit code 1 (set the
    environment variable TRACEBACK=1 to see where they were raised); anything else is a bug and shows its traceback.

    Args:
        main: called with the settings.
        cls: settings dataclass of the script.
        usage: the module docstring; printed by `--help` before the options.
        translate: see `load_settings`.
    """
    arguments = sys.argv[1:]
    if any(a in ("-h", "--help", "help") for a in arguments):
        print(f"{usage.strip()}\n\nOptions (config=FILE reads them from YAML; key=value overrides):")
        print("\n".join(describe(cls)))
        return None
    try:
        main(load_settings(cls, arguments, translate))
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
