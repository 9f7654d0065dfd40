"""Checks options from YAML or the command line against signatures, whose keywords, types and defaults are the schema.

`build` turns a section such as `{name: vq, codebook_size: 1024}` into an object, or names the wrong key or value.
"""

import dataclasses
import difflib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from common.shares import Share


class ConfigError(ValueError):
    """A wrong option: the message names the key, the value and what was expected."""


def nearest(word: str, choices: Sequence[str]) -> str:
    """' (did you mean ...?)' for a mistyped word; an empty string if nothing is similar."""
    match = difflib.get_close_matches(str(word), [str(c) for c in choices], n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def type_name(annotation: Any) -> str:
    """Readable name of a type annotation: 'int', 'float or null', 'one of l1, l2'."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(type_name(a) for a in get_args(annotation))
    if origin is Literal:
        return "one of " + ", ".join(str(a) for a in get_args(annotation))
    if annotation in (type(None), None):
        return "null"
    if annotation is Share:
        return "share of the run (5%)"
    if origin in (list, tuple, Sequence):
        return f"list of {type_name(get_args(annotation)[0])}"
    if origin in (dict, Mapping) or annotation in (dict, Mapping) or dataclasses.is_dataclass(annotation):
        return "section"
    return getattr(annotation, "__name__", str(annotation))


def check_value(path: str, value: Any, annotation: Any) -> Any:
    """Return `value` as `annotation`, or raise ConfigError naming `path`, the value and the expected type.

    Converts only what loses nothing: int to float, 1e5 to int, str to Path, list to tuple, a section to a dataclass.
    """
    origin = get_origin(annotation)
    if annotation is Any or annotation is inspect.Parameter.empty:
        return value
    if origin in (Union, types.UnionType):
        return _check_union(path, value, annotation)
    if origin is Literal:
        if value is False and "no" in get_args(annotation):
            return "no"  # YAML reads a bare no as false
        if value in get_args(annotation) and not isinstance(value, bool):  # True == 1
            return value
        raise ConfigError(
            f"{path}={value!r} is not allowed; expected {type_name(annotation)}{nearest(value, get_args(annotation))}"
        )
    if origin in (list, tuple, Sequence):
        if isinstance(value, (list, tuple)):
            item = get_args(annotation)[0]
            items = [check_value(f"{path}[{i}]", v, item) for i, v in enumerate(value)]
            return tuple(items) if origin is tuple else items
    elif origin in (dict, Mapping) or annotation in (dict, Mapping):
        if isinstance(value, Mapping):
            return dict(value)
    elif dataclasses.is_dataclass(annotation):
        if isinstance(value, annotation):
            return value
        if isinstance(value, Mapping):
            return build_dataclass(annotation, value, path)
    elif annotation is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool):  # bool is a subclass of int
            return float(value)
    elif annotation is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, float) and value.is_integer():  # step counts are often written 1e5
            return int(value)
    elif annotation is Path:
        if isinstance(value, (str, Path)):
            return Path(value)
    elif annotation is Share:
        if isinstance(value, str):
            try:
                return Share(value)
            except ValueError as error:
                raise ConfigError(f"{path}: {error}") from error
    elif isinstance(annotation, type) and isinstance(value, annotation):
        return value
    quoted = f"; as text, write '{path}=\"...\"'" if takes_text(annotation) else ""
    raise ConfigError(f"{path}={value!r} has the wrong type; expected {type_name(annotation)}{quoted}")


def takes_text(annotation: Any) -> bool:
    """Whether an option is a text, a path or null, and no number or switch."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return bool({str, Path} & set(choices)) and not {int, float, bool, Any} & set(choices)


def _check_union(path: str, value: Any, annotation: Any) -> Any:
    if Share in get_args(annotation) and isinstance(value, str) and "%" in value:
        return check_value(path, value, Share)
    errors = []
    for choice in get_args(annotation):
        if choice is type(None):
            if value is None:
                return None
            continue
        try:
            return check_value(path, value, choice)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1 and value is not None:
        raise errors[0]  # `X | None`: the message about X is more exact
    raise ConfigError(f"{path}={value!r} has the wrong type; expected {type_name(annotation)}")


def _check_known(path: str, key: str, known: list[str]) -> None:
    if key not in known:
        raise ConfigError(f"{path} is not an option{nearest(key, known)}; options: {', '.join(known)}")


def check_least(settings: object, **least: int) -> None:
    """Raise ValueError for an attribute below its least value; None passes."""
    for key, bound in least.items():
        value = getattr(settings, key)
        if value is not None and value < bound:
            raise ValueError(f"{key}={value} must be at least {bound}")


def check_options(path: str, target: Callable, options: Mapping, runtime: Sequence[str] = ()) -> dict:
    """Check a section without its `name` against the keywords of `target`; returns its options, converted.

    Args:
        path: dotted name of the section, for messages.
        runtime: keywords that the program supplies; the section may not set them.

    Raises:
        ConfigError: unknown key, wrong type, or missing required key.
    """
    parameters = {n: p for n, p in inspect.signature(target).parameters.items() if n not in runtime}
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    checked = {}
    for key, value in options.items():
        _check_known(f"{path}.{key}", key, sorted(parameters))
        checked[key] = check_value(f"{path}.{key}", value, hints.get(key, Any))
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in checked:
            raise ConfigError(f"{path}.{key} is missing; expected {type_name(hints.get(key, Any))}")
    return checked


def build_dataclass(cls: type, section: Mapping, path: str = "") -> Any:
    """A settings dataclass from a section; nested dataclass fields are built from nested sections."""
    hints, fields = get_type_hints(cls), {f.name: f for f in dataclasses.fields(cls)}
    prefix = f"{path}." if path else ""
    values = {}
    for key, value in section.items():
        _check_known(f"{prefix}{key}", key, list(fields))
        values[key] = check_value(f"{prefix}{key}", value, hints[key])
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{prefix}{name} is missing; expected {type_name(hints[name])}")
    try:
        return cls(**values)
    except ConfigError:  # names its key
        raise
    except ValueError as error:  # of __post_init__
        raise ConfigError(f"{path or 'options'}: {error}") from error


def choose(kind: str, builders: Mapping[str, Callable], section: Mapping) -> tuple[Callable, dict]:
    """The builder that `section['name']` selects, and the remaining options (unchecked).

    Raises:
        ConfigError: `name` is missing or unknown.
    """
    options = dict(section)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in builders:
        known = sorted(builders)
        wrong = " is missing" if name is None else f"={name!r} is unknown{nearest(name, known)}"
        raise ConfigError(f"{kind}.name{wrong}; choose one of {', '.join(known)}")
    return builders[name], options


def build(kind: str, builders: Mapping[str, Callable], section: Mapping, **runtime: Any) -> Any:
    """Construct what a section describes: `name` selects from `builders`, the other keys are its keywords.

    Args:
        kind: dotted name of the section, for messages.
        **runtime: keywords that the program supplies (built sub-modules, sizes known from data).

    Raises:
        ConfigError: an unknown name or key, a wrong type or value, a missing option.
    """
    builder, options = choose(kind, builders, section)
    checked = check_options(kind, builder, options, runtime=tuple(runtime))
    try:
        return builder(**checked, **runtime)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{kind}: {error}") from error
