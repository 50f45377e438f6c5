"""Settings as frozen dataclasses: how a field is declared and checked, and how values of JSON or words become typed."""

from __future__ import annotations

import csv
import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import field, fields
from functools import cache
from typing import Any, TypeVar

from rco.core.errors import InputError
from rco.core.plugins import Plugin, registry_of

T = TypeVar("T")

_LARGEST = 2**63
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def setting(default: Any, help: str) -> Any:
    """A field of a settings dataclass, with the help that people are shown."""
    return field(default=default, metadata={"help": help})


def positive(name: str, value: float, remedy: str = "Give a number above 0") -> None:
    """Raise InputError unless `value` is a finite number above 0."""
    if not (is_number(value) and value > 0):
        raise InputError(name, value, "must be a finite number above 0", remedy)


def at_least(name: str, value: float, least: float) -> None:
    """Raise InputError unless `value` is a finite number, `least` or more."""
    if not (is_number(value) and value >= least):
        raise InputError(name, value, f"must be a finite number, {least:g} or more", f"Give {least:g} or more")


def fraction(name: str, value: float) -> None:
    """Raise InputError unless `value` lies between 0 and 1, both excluded."""
    if not 0 < value < 1:
        raise InputError(name, value, "must lie strictly between 0 and 1", "Give a fraction such as 0.2")


def below_one(name: str, value: float, remedy: str) -> None:
    """Raise InputError unless `value` is a number, 0 or more and below 1."""
    if not (is_number(value) and 0 <= value < 1):
        raise InputError(name, value, "must be at least 0 and below 1", remedy)


def has_credentials(address: str) -> bool:
    """Whether an address holds more than the name of a host or bucket: it would be written into logs, files and MLflow.

    A password may hold a slash. Then what stands before it has a colon, which no bucket's name has; a key may hold an @.
    """
    scheme, separator, rest = address.partition("://")
    if scheme == "s3":
        return any(mark in rest.partition("/")[0] for mark in "@:")
    return bool(separator) and "@" in rest and scheme != "file"


def no_credentials(name: str, address: str) -> None:
    """Raise InputError if `address` holds credentials."""
    if has_credentials(address):
        scheme = address.partition("://")[0]
        raise InputError(
            name, f"{scheme}://...", "holds credentials", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )


def is_number(value: Any) -> bool:
    """Whether a value of a JSON document is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def jsonable(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, all the way down; a plug-in as its name, with its parameters beside it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: getattr(value, f.name) for f in fields(value)}
        plugins = [v for v in own.values() if isinstance(v, Plugin)]
        named = {name: v.plugin_name if isinstance(v, Plugin) else jsonable(v) for name, v in own.items()}
        return named | {name: v for plugin in plugins for name, v in jsonable(plugin).items()}
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [jsonable(v) for v in value]
    return value


def from_dict(cls: type[T], values: Any, *, partial: bool = False) -> T:
    """The reverse of `jsonable` for a dataclass: every value has the type of its field, nested dataclasses and tuples too.

    Args:
        partial: whether values without a field are passed over.

    Raises:
        InputError: no mapping, a field that `cls` does not have, one that is missing or of another type, or a value it refuses.
    """
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise InputError(cls.__name__, values, "is not a mapping", f"Give a value for each of: {', '.join(known)}")
    hints = _hints(cls)  # type: ignore[arg-type]
    kwargs, values = _plugins_from(cls, values)
    for name, value in values.items():
        if name not in known:
            if partial:
                continue
            raise InputError(str(name), value, f"is not a field of {cls.__name__}", f"Known: {', '.join(known)}")
        try:
            kwargs[name] = typed(hints[name], value, partial=partial)
        except InputError:
            raise
        except (TypeError, ValueError, OverflowError):
            wanted = str(known[name].type)
            raise InputError(name, value, f"is not of type {wanted}, as {cls.__name__} needs it", "Make it again") from None
    for name, f in known.items():
        if name not in kwargs and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise InputError(name, None, f"is missing, and {cls.__name__} needs it", "Make it again")
    return cls(**kwargs)


def _plugins_from(cls: Any, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plug-ins among a dataclass's fields, made of the values that are theirs; and the other values."""
    made, left = dict[str, Any](), dict(values)
    for f in fields(cls):
        registry = registry_of(f)
        if registry is None or f.name not in left:
            continue
        plugin = registry[str(left.pop(f.name))]
        made[f.name] = from_dict(plugin, {p.name: left.pop(p.name) for p in fields(plugin) if p.name in left})
    return made, left


def typed(hint: Any, value: Any, *, partial: bool = False, lenient: bool = False) -> Any:
    """A value as the type that a field has.

    Args:
        hint: the field's type: a dataclass, a union with None, dict, list, tuple, int, float, str or bool.
        partial: as for `from_dict`.
        lenient: whether values may be words, as on a command line ("4", "true", "10,20": `items_of`); else they are of a JSON
            document, and a number is not text.

    Raises:
        TypeError, ValueError, OverflowError: it is of another type.
    """
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, partial=partial)  # type: ignore[arg-type]
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TypeError
        return {
            typed(items[0], k, partial=partial, lenient=lenient): typed(items[1], v, partial=partial, lenient=lenient)
            for k, v in value.items()
        }
    if origin in (tuple, list):
        if lenient and isinstance(value, str):
            value = items_of(value)
        if not isinstance(value, (list, tuple)):
            raise TypeError
        if origin is tuple and items[-1] is not ...:
            pairs = zip(items, value, strict=True)
            return tuple(typed(item, v, partial=partial, lenient=lenient) for item, v in pairs)
        return origin(typed(items[0], v, partial=partial, lenient=lenient) for v in value)
    return _scalar_of_words(hint, value) if lenient else _scalar(hint, value)


def items_of(text: str) -> list[str]:
    """The items of a list as people write it: 10,20 or [10, 20]; an item with a comma in it has quotes around it, as in CSV.

    Raises:
        ValueError: quotes that do not end, or end within an item.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error as error:
        raise ValueError(str(error)) from None
    return [item.strip() for row in rows for item in row if item.strip()]


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    """Types of the fields: they are written as text, and evaluating that anew would take half of the time of reading."""
    return typing.get_type_hints(cls)


def _scalar(hint: Any, value: Any) -> Any:
    """A number, text or truth of a JSON document."""
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError
        number = hint(value)  # KFP hands every JSON number over as a float
        if hint is int and (number != value or abs(number) >= _LARGEST):
            raise ValueError
        return number
    if hint in (str, bool) and not isinstance(value, hint):
        raise TypeError
    return value


def _scalar_of_words(hint: Any, value: Any) -> Any:
    """A number, text or truth as people write it."""
    if hint is bool:
        word = str(value).strip().lower()
        if word not in _BOOLEANS or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            raise TypeError
        return _BOOLEANS[word]
    if isinstance(value, bool):
        raise TypeError
    if hint is int:
        number = float(value)
        if number != int(number):
            raise ValueError
        return int(number)
    if hint is float:
        return float(value)
    return value if isinstance(value, str) else str(value)
