"""JSON documents: written whole, read strictly, and made dataclasses with every type checked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, TypeVar

from rco.core.errors import InputError
from rco.core.files import atomically
from rco.core.settings import from_dict, jsonable

T = TypeVar("T")


def write_json(path: Path, document: Any) -> None:
    """Write `document` (dataclasses and tuples welcome) as indented JSON. NaN and infinity are refused: they are not JSON."""
    text = json.dumps(jsonable(document), indent=1, allow_nan=False) + "\n"
    atomically(path, lambda temporary: temporary.write_text(text))


def read_json(path: Path, *, surrogates: bool = False) -> Any:
    """Read a JSON file.

    Args:
        surrogates: whether strings may hold halves of characters, as names of files that are not UTF-8 do.

    Raises:
        InputError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("file", str(path), "does not exist", "Check the path; was the step that writes it run?") from None
    except OSError as error:
        raise InputError("file", str(path), f"cannot be read ({error.strerror})", "Check path and permissions") from None
    except UnicodeDecodeError as error:
        raise InputError("file", str(path), f"is not valid JSON ({error})", "Make it again") from None
    return parse_json(text, path, surrogates=surrogates)


def parse_json(text: str, source: object, *, surrogates: bool = False) -> Any:
    """A JSON document, as strict as the standard: no NaN, no name twice in an object.

    Args:
        source: for messages.
        surrogates: as in `read_json`.

    Raises:
        InputError: it is not one.
    """
    try:
        document = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_named_once)
        if not surrogates and "\\ud" in text.lower():
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise InputError("file", str(source), "is nested too deeply", "Make it again") from None
    except ValueError as error:  # no JSON, a number of thousands of digits, half a character
        raise InputError("file", str(source), f"is not valid JSON ({error})", "Make it again") from None
    return document


def read_as(cls: type[T], path: Path, remedy: str, *, partial: bool = False, surrogates: bool = False) -> T:
    """A dataclass from the JSON file that it was written to.

    Args:
        remedy: what to do if it is not one, for messages.
        partial: whether values without a field are passed over.
        surrogates: as in `read_json`.

    Raises:
        InputError: it is not one; the message names the file, and the value in it.
    """
    document = read_json(path, surrogates=surrogates)
    try:
        return from_dict(cls, document, partial=partial)
    except InputError as error:
        raise InputError("file", str(path), f"cannot be used: {error.parameter} {error.problem}", remedy) from None


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is not a number")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        _no_number(digits)
    return number


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("an object has two values of the same name")
    return document
