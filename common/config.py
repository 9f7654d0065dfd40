"""`config=FILE key=value ...`: YAML files, with `base: other.yaml`, and dotted overrides, merged and checked."""

import copy
import dataclasses
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from common import peers
from common.build import ConfigError, build_dataclass, takes_text, type_name
from common.console import one_line, printable
from common.home import at_home
from common.recipes import (
    REMOVED,
    Entry,
    base_file,
    check_names,
    entries,
    inherit,
    leave_out,
    merge,
    plain,
    with_origin,
)
from common.shares import Share
from common.signals import SignalWatch, signal_name
from common.streams import secure_streams
from common.yaml_limits import DEEPEST, MOST_BYTES, check_interpolations, check_text

REPOSITORY = Path(__file__).resolve().parents[1]

Settings = TypeVar("Settings")
_KEY = re.compile(r"[^.\[\]]+(\.[^.\[\]]+|\[[^.\[\]]+\])*")  # a.b, a[0]
# What libraries raise for YAML that is wrong. ValueError: dates, numbers, bytes; TypeError: keys; RecursionError: an
# interpolation that leads to itself.
_UNREADABLE = (YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError, OSError)


def option(
    default: Any = dataclasses.MISSING, help: str = "", *, kinds: Mapping | None = None, parts: Any = None
) -> Any:
    """A settings field with a help text; mutable defaults are copied for every instance.

    Args:
        kinds: {name: what is built} of a section whose `name` chooses.
        parts: {key: kinds} of such sections within it.
    """
    metadata: dict[str, Any] = {"help": help}
    if kinds is not None:
        metadata |= {"kinds": kinds, "parts": parts or {}}
    if isinstance(default, (dict, list)) or dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def find_file(name: str | Path, what: str = "file") -> Path:
    """A path as written, else relative to the repository; raises FileNotFoundError if it is in neither place."""
    path = Path(at_home(str(name)))
    for candidate in (path, REPOSITORY / path):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{what} {name} does not exist")


def read_yaml(path: str | Path, needed: Sequence[str] | None = None) -> dict:
    """A YAML file, merged with its base, as plain nested dicts with interpolations and `~/` resolved.

    A section that is not among `needed` stays as it is if it cannot be resolved (an environment variable of another
    machine, for example); None needs all.

    Raises:
        FileNotFoundError, ConfigError: the file is missing or not a YAML mapping, or its base is wrong.
    """
    recipe = plain(read_recipe(path))
    try:
        check_interpolations(recipe)
    except ConfigError as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    tree = OmegaConf.create(recipe)
    sections = OmegaConf.to_container(tree)
    for key in sections:
        try:
            value = tree[key]  # an interpolation at the top is resolved here
            sections[key] = (
                OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            )
        except (OmegaConfBaseException, RecursionError) as error:
            if needed is None or key in needed:
                raise ConfigError(f"config file {path} cannot be read: {one_line(error)}") from error
    return at_home(sections)


def read_recipe(path: str | Path) -> dict:
    """As `read_yaml`, but nested dicts of `Entry` with unresolved interpolations."""
    found = find_file(path, "config file")
    tree = _load_yaml(found)
    if "base" not in tree:
        return with_origin(tree, _shown(found))
    base = base_file(found, tree.pop("base"))
    inherited = _load_yaml(base)
    if "base" in inherited:
        theirs = inherited["base"]
        raise ConfigError(
            f"{found}: base={base.name!r} has a base itself, {theirs!r}; only one level is allowed"
        )
    return inherit(with_origin(inherited, _shown(base)), with_origin(tree, _shown(found)))


def _shown(path: Path) -> str:
    absolute = path.absolute()
    return str(absolute.relative_to(REPOSITORY) if absolute.is_relative_to(REPOSITORY) else path)


def _load_yaml(path: Path) -> dict:
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ConfigError(f"{size} bytes are more than a configuration has")
        check_text(path.read_text("utf-8"))
        tree = OmegaConf.load(path)
    except AssertionError:  # of omegaconf, for a text in quotes that is a number
        raise ConfigError(f"config file {path} must hold keys and values, found one value") from None
    except _UNREADABLE as error:
        raise ConfigError(f"config file {path} cannot be read: {one_line(error)}") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"config file {path} must hold keys and values, found a list")
    return OmegaConf.to_container(tree)


def merge_arguments(arguments: Sequence[str]) -> dict:
    """The tree that `config=FILE` arguments (in order) and `a.b=value` overrides describe, later ones winning."""
    return resolve(merge_sources(arguments))


def merge_sources(arguments: Sequence[str]) -> dict:
    """As `merge_arguments`, but nested dicts of `Entry` with unresolved interpolations."""
    trees, overrides = [], []
    for argument in arguments:
        key, separator, value = argument.lstrip("-").partition("=")
        if not separator or not _KEY.fullmatch(key):
            raise ConfigError(f"argument {argument[:200]!r} is not understood; write key=value, or --help")
        if key == "config":
            trees.append(read_recipe(value))
        else:
            overrides.append((key, value))
    try:
        trees.append(_command_line(overrides))
    except _UNREADABLE as error:
        raise ConfigError(f"arguments cannot be merged: {one_line(error)}") from error
    return functools.reduce(merge, trees)


def _command_line(overrides: Sequence[tuple[str, str]]) -> dict:
    """The tree of `key=value` pairs; what YAML takes for another type than text is kept as it is written, too."""
    tree: dict = {}
    for key, text in overrides:
        if key.count(".") > DEEPEST:
            raise ConfigError(f"{key[:40]}... has more than {DEEPEST} levels")
        check_text(text)
        # "a: b" without braces is a text that YAML would take for a section.
        is_text = not text.lstrip().startswith(("{", "[")) and OmegaConf.is_config(_yaml_value(text))
        one = OmegaConf.create() if is_text else OmegaConf.from_dotlist([f"{key}={text}"])
        if is_text:
            OmegaConf.update(one, key, text, force_add=True)
        tree = merge(tree, with_origin(OmegaConf.to_container(one), "command line"))
        *sections, name = key.split(".")
        owner = functools.reduce(lambda held, section: held.get(section, {}), sections, tree)
        if isinstance(owner.get(name), Entry) and not isinstance(owner[name].value, (str, list)):
            owner[name] = dataclasses.replace(owner[name], text=text)
    return tree


def _yaml_value(text: str) -> Any:
    return OmegaConf.from_dotlist([f"value={text}"])._get_node("value")


def resolve(tree: dict) -> dict:
    """Plain nested dicts from nested dicts of `Entry`, interpolations (`${a.b}`) and `~/` resolved."""
    try:
        found = plain(tree)
        check_interpolations(found)
        return at_home(OmegaConf.to_container(OmegaConf.create(found), resolve=True))
    except _UNREADABLE as error:
        raise ConfigError(f"arguments cannot be merged: {one_line(error)}") from error


def load_settings(cls: type[Settings], arguments: Sequence[str]) -> Settings:
    """A settings dataclass from the command line."""
    sources = leave_out(merge_sources(arguments), cls)
    tree = resolve(_with_texts(cls, sources))
    if hasattr(cls, "translate"):  # before the strict check: from the keys of another program
        tree = cls.translate(tree)
    check_names(tree, cls)
    settings = build_dataclass(cls, tree)
    _check_removed(settings, sources)
    return settings


def _with_texts(cls: type, tree: dict) -> dict:
    """`tree` with the written form of what a command line gives for options that are text: input=007, output=no."""
    hints, found = get_type_hints(cls), dict(tree)
    for key, value in tree.items():
        if isinstance(value, dict) and dataclasses.is_dataclass(hints.get(key)):
            found[key] = _with_texts(hints[key], value)
        elif isinstance(value, Entry) and value.text is not None and takes_text(hints.get(key)):
            is_null = value.value is None and type(None) in get_args(hints[key])
            found[key] = value if is_null else Entry(value.text, value.origin)
    return found


def _check_removed(settings: Any, sources: dict) -> None:
    # A null that was meant as a value would bring back a default that is not null.
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
    """A settings dataclass as nested plain values, defaults included."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, (Path, Share)) else value  # plain YAML

    return plain(dataclasses.asdict(settings))


def first_difference(old: Any, new: Any, path: str) -> str | None:
    """'path.key was 1, is now 2' for the first place where two trees differ, None if they are equal."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(k for k in new if k not in old)]:
            difference = first_difference(old.get(key), new.get(key), f"{path}.{key}")
            if difference:
                return difference
        return None
    return None if old == new else printable(f"{path} was {old}, is now {new}")


def describe(cls: type, prefix: str = "", given: Any = None) -> list[str]:
    """One help line per option of a settings dataclass, nested sections with dotted names.

    Defaults are the values of `given`, or those of the class if that is None.
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
        text = f"  {name + '=':38s} {type_name(annotation)} [{shown}]  {field.metadata.get('help', '')}"
        lines.append(text.rstrip())
    return lines


def run_script(main: Callable[[Any], None] | str, cls: type, usage: str) -> NoReturn | None:
    """Call `main` with the settings of the command line, or print `usage` and the options for `--help`.

    A `main` of the form "package.module:function" is imported when the settings are right: help and errors are quick.

    ValueError and OSError are mistakes in the input: they end the program with one line and exit code 1 (with a
    traceback if the environment variable TRACEBACK is set); anything else is a bug and shows its traceback. A stop
    signal ends it with 128 + its number (`common.signals`).
    """
    arguments = sys.argv[1:]
    helping = any(a in ("-h", "--help", "help") for a in arguments)
    secure_streams(quiet=helping)
    if helping:
        print(f"{usage.strip()}\n\nOptions (config=FILE reads them from YAML; key=value overrides):")
        print("\n".join(describe(cls)))
        return None
    watch = SignalWatch()
    try:
        with watch:
            settings = load_settings(cls, arguments)
            (resolve_name(main) if isinstance(main, str) else main)(settings)
    except SystemExit as end:
        if watch.signal:
            peers.fail(f"stopped by {signal_name(watch.signal)}")
        elif isinstance(end.code, int) and end.code > 128:  # all processes have agreed to stop
            peers.note_for_launcher(f"stopped by {signal_name(end.code - 128)}")
            peers.leave()
        raise
    except Exception as error:
        if (message := _report(error)) is None:
            raise
        sys.exit(message)
    peers.leave()
    return None


def print_lines(lines: Callable[[list[str]], Iterable[str]] | str, usage: str) -> None:
    """Print what `lines` gives for the arguments of the command line, or `usage` for `--help` and without any.

    `lines` as `main` of `run_script`.

    A ValueError or OSError ends the program with one line and exit code 1.
    """
    arguments = sys.argv[1:]
    secure_streams(quiet=True)
    try:
        asked = not arguments or any(a in ("-h", "--help", "help") for a in arguments)
        if asked:
            print(usage)
            return
        print("\n".join((resolve_name(lines) if isinstance(lines, str) else lines)(arguments)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")


def _report(error: Exception) -> str | int | None:
    """Tell other processes of an error; what to exit with, None for a traceback.

    A process that only lost contact with one that failed is silent: the other one has the cause.
    """
    peers.yield_to_cause(error)
    text, mistake = one_line(error), isinstance(error, (ValueError, OSError))
    same = peers.fail(text if mistake else f"{type(error).__name__}: {text}")
    if not mistake or os.environ.get("TRACEBACK"):
        return None
    return 1 if same else f"error: {text}"
