"""Pickles read as data: their opcodes are interpreted over an allow-list, and nothing of Python's is looked up or called.

A name that is not on the list becomes an `Inert` object, which swallows what the pickle does to it. Work and memory are
bounded by the bytes of the pickle: no opcode allocates by a number in the file, what is copied is counted, and only text is
compared or hashed.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

MOST_STEPS = 1_000_000  # opcodes, and values that are copied: some seconds; a tensor takes about 40
_MOST_TEXT = 2**28  # bytes of all text in a pickle
_LONGEST_NAME = 512  # characters of a module, class or function
_LONGEST_KEY = 4096  # characters of a key that keeps its meaning


class PickleError(ValueError):
    """A pickle that is damaged, too large, or does what data need not."""


@dataclass(frozen=True, eq=False)
class Global:
    """A module's name for something; only a name.

    Attributes:
        name: with dots, `collections.OrderedDict`.
    """

    name: str


@dataclass(frozen=True, eq=False)
class Inert:
    """What stands for an object that is not made: of a class that is not allowed, or a key that is not text.

    Attributes:
        name: of the class or function that would have made it.
    """

    name: str


Known = Mapping[str, Callable[..., Any]]


def read_pickle(program: IO[bytes], known: Known, persistent: Callable[[Any], Any], *, most_steps: int = MOST_STEPS) -> Any:
    """Read one pickle, and leave `program` behind its last byte.

    Args:
        program: must not allocate for bytes that it does not have: a BytesIO, not a file.
        known: what is called, with the arguments as they were read, for each name that is allowed. It must check them.
        persistent: yields the object for a persistent id.
        most_steps: how much work it may be.

    Returns:
        Dicts, lists (also for sets), tuples, text, bytes, numbers, None, what `known` and `persistent` yield, `Global` and
        `Inert`. They may hold themselves, and one thing many times.

    Raises:
        PickleError: as its docstring says; also what `known` and `persistent` make of their arguments.
    """
    machine = _Machine(known, persistent, most_steps)
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except PickleError:
        raise
    # Beside ValueError: an empty stack or memo, numbers that do not fit, arguments of the wrong type.
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error) as error:
        raise PickleError(f"its pickle is damaged ({str(error)[:100]})") from None
    raise PickleError("its pickle has no end")


_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_OLD_TEXT = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NEW: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack, the memo and the opcodes, as `pickletools` describes them."""

    def __init__(self, known: Known, persistent: Callable[[Any], Any], most_steps: int) -> None:
        self.known, self.persistent, self.most_steps = known, persistent, most_steps
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # what lies under each mark
        self.memo: dict[int, Any] = {}
        self.steps = self.text = 0

    def pop(self) -> Any:
        return self.stack.pop()

    def spend(self, steps: int) -> None:
        """Count work.

        Raises:
            PickleError: it is too much.
        """
        self.steps += steps
        if self.steps > self.most_steps:
            raise PickleError(f"its pickle takes more than {self.most_steps:,} steps to read")

    def step(self, name: str, argument: Any) -> None:
        """Do one opcode."""
        self.spend(1)
        if isinstance(argument, (str, bytes, bytearray)):
            self.text += len(argument)
            if self.text > _MOST_TEXT:
                raise PickleError(f"its pickle has more than {_MOST_TEXT:,} bytes of text")
        if name in _PUSHED:
            self.stack.append(argument)
        elif name in _OLD_TEXT:
            self.stack.append(_old_text(argument))
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(self.stack) < count:
                raise PickleError("its pickle is damaged (a tuple of what is not there)")
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif (action := getattr(self, f"_{name.lower()}", None)) is not None:
            action(argument)
        else:
            raise PickleError(f"its pickle has an opcode that data need not ({name})")

    def _marked(self) -> list[Any]:
        """What was pushed after the last mark, taken off with it."""
        top, self.stack = self.stack, self.below.pop()
        return top

    def _proto(self, _: Any) -> None:
        pass

    _frame = _proto

    def _mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def _pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._marked()

    def _pop_mark(self, _: Any) -> None:
        self._marked()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _tuple(self, _: Any) -> None:
        items = self._marked()
        self.stack.append(tuple(items))

    def _list(self, _: Any) -> None:
        items = self._marked()
        self.stack.append(items)

    _frozenset = _list

    def _dict(self, _: Any) -> None:
        items = self._marked()
        self.stack.append(_filled({}, items))

    def _append(self, _: Any) -> None:
        item = self.pop()
        _extend(self.stack[-1], [item])

    def _appends(self, _: Any) -> None:
        items = self._marked()
        _extend(self.stack[-1], items)

    _additems = _appends

    def _setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        _filled(self.stack[-1], [key, value])

    def _setitems(self, _: Any) -> None:
        items = self._marked()
        _filled(self.stack[-1], items)

    def _global(self, argument: str) -> None:
        self._name(*argument.partition(" ")[::2])

    def _stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self._name(module, name)

    def _name(self, module: Any, name: Any) -> None:
        if not all(isinstance(part, str) and 0 < len(part) <= _LONGEST_NAME for part in (module, name)):
            raise PickleError("its pickle names something that is no name")
        self.stack.append(Global(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        arguments, what = self.pop(), self.pop()
        self._make(what, arguments)

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self.pop()  # arguments by name, which nothing on the list has
        self._reduce(_)

    def _inst(self, argument: str) -> None:
        arguments = self._marked()
        self._make(Global(argument[:_LONGEST_NAME].replace(" ", ".")), tuple(arguments))

    def _obj(self, _: Any) -> None:
        what, *arguments = self._marked()
        self._make(what, tuple(arguments))

    def _make(self, what: Any, arguments: Any) -> None:
        if not isinstance(arguments, tuple):
            raise PickleError("its pickle is damaged (arguments that are none)")
        name = what.name if isinstance(what, (Global, Inert)) else type(what).__name__
        maker = self.known.get(name) if isinstance(what, Global) else None
        self.spend(sum(len(argument) for argument in arguments[:8] if isinstance(argument, (list, dict, tuple))))
        self.stack.append(Inert(name) if maker is None else maker(*arguments))

    def _build(self, _: Any) -> None:
        self.pop()  # attributes: no object here has any
        if not self.stack:
            raise PickleError("its pickle is damaged (attributes of what is not there)")

    def _persid(self, argument: str) -> None:
        self.stack.append(self.persistent(argument))

    def _binpersid(self, _: Any) -> None:
        self.stack.append(self.persistent(self.pop()))


def _old_text(text: str) -> str | bytes:
    """Text of Python 2: UTF-8 if it can be, as in torch; else its bytes. `pickletools` gives a character for each."""
    content = text.encode("latin-1")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _extend(target: Any, items: Sequence[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, (Inert, dict)):
        raise PickleError("its pickle is damaged (items for what is not a list)")


def _filled(target: Any, items: Sequence[Any]) -> Any:
    """`target` with the keys and values that alternate in `items`."""
    if len(items) % 2:
        raise PickleError("its pickle is damaged (a key without a value)")
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value
    elif not isinstance(target, (Inert, list)):
        raise PickleError("its pickle is damaged (keys for what is not a dict)")
    return target


def _key(key: Any) -> Any:
    """A key that is hashed and compared quickly whatever it is: nested tuples and chosen numbers are not."""
    return key if isinstance(key, str) and len(key) <= _LONGEST_KEY else Inert(f"key of type {type(key).__name__}")
