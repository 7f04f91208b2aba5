"""Value types as plain JSON data and back: a dataclass is an object of its fields, read by their type hints.

An enumeration is its value, a time ISO 8601, a tuple a list, and a tuple of (name, value) pairs an object. Reading
checks every type and names the first value that does not fit by its path, as in `trial.config.lr`.

The metadata of a field can say `named(key)`, where its key in JSON is not its name, or `OMIT_DEFAULT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")
OMIT_DEFAULT: Mapping[str, Any] = {"omit_default": True}  # metadata of a field that JSON leaves out at its default
_PLAIN = frozenset({str, int, float, bool, NoneType})


def named(key: str) -> Mapping[str, Any]:
    """Metadata of a field whose key in JSON is not its name."""
    return {"key": key}


class CodecError(ValueError):
    """JSON data that is not what a type expects; the message says where, what was expected and what was found."""


def encode(value: Any) -> Any:
    """Plain JSON data from which `decode` makes an equal value, given its type."""
    return _encode(type(value), value)


def encode_fields(value: Any, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """As `encode`, for a dataclass, without the fields of these names."""
    return {
        key: inner if type(inner) in _PLAIN else _encode(hint, inner)
        for key, name, hint, omitted in _select_fields(cast(Any, type(value)), leave_out)
        if (inner := getattr(value, name)) != omitted
    }


@cache
def _select_fields(kind: Any, leave_out: tuple[str, ...]) -> tuple[tuple[str, str, Any, Any], ...]:
    """The key, name, type and omitted value of each field but those."""
    found = _fields(kind).items()
    return tuple((key, each.name, each.hint, each.omitted) for key, each in found if each.name not in leave_out)


def decode(kind: type[T], data: Any) -> T:
    """The value of the given type that `encode` wrote as this data. Raises CodecError for any other data."""
    return cast(T, _decode(kind, data, ""))


class _Field(NamedTuple):
    name: str
    hint: Any
    is_optional: bool
    omitted: Any  # the value at which JSON leaves it out; MISSING where there is none


def _encode(kind: Any, value: Any) -> Any:
    if type(value) in _PLAIN:  # as most values are
        return value
    if isinstance(value, (tuple, list)):
        return dict(value) if _is_pairs(kind) else [_encode(Any, inner) for inner in value]
    if is_dataclass(value):
        return encode_fields(value)
    if isinstance(value, Mapping):
        return {name: _encode(Any, inner) for name, inner in value.items()}
    if isinstance(value, Enum):
        return value.value
    return value.isoformat() if isinstance(value, datetime) else value


@cache
def _fields(kind: Any) -> dict[str, _Field]:
    """The fields of a dataclass by their keys in JSON."""
    hints = get_type_hints(kind)
    return {
        field.metadata.get("key", field.name): _Field(
            field.name,
            hints[field.name],
            field.default is not MISSING or field.default_factory is not MISSING,
            field.default if field.metadata.get("omit_default") else MISSING,
        )
        for field in fields(kind)
    }


@cache
def _is_pairs(kind: Any) -> bool:
    """Whether a type is a tuple of any number of (name, value) pairs."""
    first = (*get_args(kind), None)[0]
    return get_origin(kind) is tuple and get_origin(first) is tuple and get_args(first)[0] is str


def _decode(kind: Any, data: Any, path: str) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return data
    if origin in (Union, UnionType):
        return _decode_union(kind, data, path)
    if is_dataclass(kind):
        return _decode_object(cast(type, kind), data, path)
    if origin is tuple:
        return _decode_tuple(kind, data, path)
    if origin and issubclass(origin, Mapping):
        hint = get_args(kind)[1]
        return {name: _decode(hint, inner, _join(path, name)) for name, inner in _check(dict, data, path).items()}
    try:
        if kind is datetime or issubclass(kind, Enum):
            return datetime.fromisoformat(_check(str, data, path)) if kind is datetime else kind(data)
    except ValueError as error:
        raise CodecError(f"{path or 'the value'}: {error}") from None
    return _check(kind, data, path)


def _decode_union(kind: Any, data: Any, path: str) -> Any:
    """The first member of a union that the data fits."""
    if data is None and NoneType in get_args(kind):
        return None
    for option in get_args(kind):
        if option is NoneType:
            continue
        try:
            return _decode(option, data, path)
        except CodecError as error:
            last = error
    raise last


def _decode_object(kind: type, data: Any, path: str) -> Any:
    known, found = _fields(kind), _check(dict, data, path)
    for key in found:
        if key not in known:
            raise CodecError(f"{_join(path, key)}: {kind.__name__} has no such field")
    for key, field in known.items():
        if key not in found and not field.is_optional:
            raise CodecError(f"{_join(path, key)}: {kind.__name__} needs this field, and it is missing")
    return kind(**{known[key].name: _decode(known[key].hint, inner, _join(path, key)) for key, inner in found.items()})


def _decode_tuple(kind: Any, data: Any, path: str) -> tuple[Any, ...]:
    hints = get_args(kind)
    if _is_pairs(kind):
        hint = get_args(hints[0])[1]
        found = {name: _decode(hint, inner, _join(path, name)) for name, inner in _check(dict, data, path).items()}
        return tuple(sorted(found.items()))
    items = _check(list, data, path)
    hints = hints[:1] * len(items) if hints[-1] is Ellipsis else hints
    if len(hints) != len(items):
        raise CodecError(f"{path or 'the value'}: expected {len(hints)} items, found {len(items)}")
    return tuple(_decode(hint, item, f"{path}[{no}]") for no, (hint, item) in enumerate(zip(hints, items, strict=True)))


def _check(kind: type, data: Any, path: str) -> Any:
    """The data, whose type must be the given one; whole numbers are also numbers, and true and false are neither."""
    if type(data) is kind or (kind is float and type(data) is int):
        return data
    raise CodecError(f"{path or 'the value'}: expected {kind.__name__}, found {type(data).__name__}")


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
