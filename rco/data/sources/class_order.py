"""In which order classes are numbered: sorted, in natural order, or as a file or list says.

Labels are numbers to a network; a teacher from elsewhere means by them what its own training did. A file of the order is one of

    text    one class a line
    JSON    ["cat", "dog"], or {"cat": 0, "dog": 1}, or {"0": "cat", "1": ["n02123045", "cat"]}
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rco.core.documents import parse_json
from rco.core.errors import InputError
from rco.core.storage.addresses import is_remote, local_path
from rco.core.storage.local import digest_of
from rco.core.storage.transfer import fetch

SORTED, NATURAL = "sorted", "natural"
_MOST_BYTES = 2**24
_SHOWN = 5


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts names with numbers as people do: 1, 2, 10."""
    return [(0, int(word), word) if word.isdecimal() else (1, 0, word) for word in re.findall(r"\d+|\D+", name)]


def is_file_order(order: Sequence[str]) -> bool:
    """Whether a `class_order` names a file."""
    return len(order) == 1 and order[0] not in (SORTED, NATURAL)


def ordered_classes(names: Collection[str], order: Sequence[str], source: str) -> tuple[str, ...]:
    """The classes of a source, by label.

    Args:
        names: of all its classes.
        order: as the setting `class_order`.
        source: its name, for messages.

    Raises:
        InputError: a list without exactly these classes, or a file that is not one.
    """
    if tuple(order) == (NATURAL,):
        return tuple(sorted(sorted(names), key=natural_key))
    if tuple(order) in ((), (SORTED,)):
        return tuple(sorted(names))
    listed = _read(order[0]) if is_file_order(order) else tuple(order)
    what = order[0] if is_file_order(order) else list(order)
    # KFP hands every number over as a float.
    listed = tuple(name if name in names else name.removesuffix(".0") for name in listed)
    if len(set(listed)) < len(listed):
        twice = next(name for i, name in enumerate(listed) if name in listed[:i])
        raise InputError("class_order", what, f"names {twice!r} twice", "Name each class once")
    listed_names, there = set(listed), set(names)
    if missing := sorted(there - listed_names):
        raise InputError("class_order", what, f"lacks {_named(missing)} of {source}", "List every class once")
    if unknown := [name for name in listed if name not in there]:
        remedy = f"List the names of its classes, such as {min(names)!r}"
        raise InputError("class_order", what, f"names {_named(unknown)}, which {source} does not have", remedy)
    return listed


def ordered_digest(digest: str, order: Sequence[str]) -> str:
    """A source's digest, with what the file of the order says, if there is one."""
    if not is_file_order(order):
        return digest
    return digest_of([("source", digest), ("class_order", "\n".join(_read(order[0])))])


def _named(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"{len(names)} classes ({shown}{', ...' if len(names) > _SHOWN else ''})"


def _read(address: str) -> tuple[str, ...]:
    try:
        if is_remote(address):
            with TemporaryDirectory() as scratch:
                return _parsed(fetch(address, Path(scratch)), address)
        return _parsed(local_path(address), address)
    except InputError as error:
        raise (error.renamed("class_order") if error.parameter in ("uri", "file") else error) from None


def _parsed(path: Path, address: str) -> tuple[str, ...]:
    remedy = f"Give {SORTED}, {NATURAL}, the names of all classes, or a file with one class a line"
    if not path.is_file():
        raise InputError("class_order", address, "is neither an order nor a file", remedy)
    if path.stat().st_size > _MOST_BYTES:
        raise InputError("class_order", address, "is too large for a list of classes", remedy)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise InputError("class_order", address, "is not a file of UTF-8 text that can be read", remedy) from None
    if text.lstrip()[:1] in ("[", "{"):
        names = _of_json(parse_json(text, address), address)
    else:
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not names:
        raise InputError("class_order", address, "lists no classes", remedy)
    return names


def _of_json(document: Any, address: str) -> tuple[str, ...]:
    if isinstance(document, list) and all(isinstance(name, str) for name in document):
        return tuple(document)
    if isinstance(document, dict) and all(type(number) is int for number in document.values()):
        return _by_number({number: name for name, number in document.items()}, len(document), address)
    if isinstance(document, dict) and all(key.isdecimal() for key in document):
        names = {int(key): name[0] if isinstance(name, list) and name else name for key, name in document.items()}
        if all(isinstance(name, str) for name in names.values()):
            return _by_number(names, len(document), address)
    remedy = 'Write ["cat", "dog"], {"cat": 0, "dog": 1} or {"0": "cat", "1": "dog"}'
    raise InputError("class_order", address, "is JSON, but not a list of classes or a table of their numbers", remedy)


def _by_number(names: dict[int, str], count: int, address: str) -> tuple[str, ...]:
    if sorted(names) != list(range(count)):
        remedy = f"Number the classes from 0 to {count - 1}, each once"
        raise InputError("class_order", address, "numbers classes with gaps or twice", remedy)
    return tuple(names[number] for number in range(count))
