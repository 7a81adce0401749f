"""Specs to JSON-ready values and back."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from orchestrator.errors import ConfigError, nearest
from orchestrator.spec.training import OptimizerName, why_no_optimizer

_TOO_LARGE = 1 << 63
_SCALARS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def to_dict(spec: Any) -> Any:
    """A spec (or a part) as JSON-ready values: enums by value, tuples as lists."""
    if spec is None or type(spec) in (str, int, float, bool):
        return spec
    if isinstance(spec, enum.Enum):
        return spec.value
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        return {f.name: to_dict(getattr(spec, f.name)) for f in dataclasses.fields(spec)}
    if isinstance(spec, Mapping):
        return {str(key): to_dict(value) for key, value in spec.items()}
    if isinstance(spec, list | tuple):
        return [to_dict(value) for value in spec]
    return spec


def from_dict(cls: type[Any], values: Mapping[str, Any], path: str = "") -> Any:
    """The inverse of `to_dict`. Raises ConfigError with the flag, the value and the nearest name."""
    any_class: Any = cls
    hints, needed = _settings(any_class)
    for key in values:
        if key not in hints:
            raise ConfigError(f"{path}{key} is no setting. Known here: {', '.join(hints)}.{nearest(key, hints)}")
    for name in needed:
        if name not in values:
            raise ConfigError(f"{path}{name} is missing.")
    return cls(**{key: _convert(hints[key], value, f"{path}{key}") for key, value in values.items()})


@functools.cache
def _settings(cls: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """(name -> type, names of those without a default)."""
    hints, fields = get_type_hints(cls), dataclasses.fields(cls)
    needed = (f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
    return {f.name: hints[f.name] for f in fields}, tuple(needed)


def _convert(hint: Any, value: Any, flag: str) -> Any:
    if hint in _SCALARS:
        return _convert_scalar(hint, value, flag)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{flag}={value!r} is not possible: {flag} is a group of settings.")
        return from_dict(hint, value, f"{flag}.")
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _convert_enum(hint, value, flag)
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return None if value is None else _convert(next(a for a in get_args(hint) if a is not type(None)), value, flag)
    if origin is Mapping and not isinstance(value, Mapping):
        raise ConfigError(f"{flag}={value} is not possible: allowed is a mapping such as {{width: 64}}.")
    if origin is tuple:
        if not isinstance(value, list | tuple):
            example = "[[1000,8],[4000,16]]" if get_origin(get_args(hint)[0]) is tuple else "[0.9,0.95]"
            raise ConfigError(f"{flag}={value!r} is not possible: allowed is a list such as {example}.")
        return tuple(_convert(get_args(hint)[0], item, flag) for item in value)
    return value


def _convert_scalar(hint: Any, value: Any, flag: str) -> Any:
    if type(value) is int and abs(value) >= _TOO_LARGE:
        raise ConfigError(f"{flag} is not possible: allowed are whole numbers below 2^63.")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{flag}={value} is not possible: allowed is {_SCALARS[hint]}.")
    return value


def _convert_enum(hint: type[enum.Enum], value: Any, flag: str) -> enum.Enum:
    if isinstance(value, hint):
        return value
    allowed = [str(member.value) for member in hint]
    if value not in allowed:
        remark = (why_no_optimizer(str(value)) if hint is OptimizerName else "") or nearest(str(value), allowed)
        raise ConfigError(f"{flag}={value} is not possible: allowed is {', '.join(allowed)}.{remark}")
    return hint(value)
