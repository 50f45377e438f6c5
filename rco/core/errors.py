"""The exceptions that are for people (bad input, a training that came to nothing, a full disk), and words for the network's."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import ssl
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class InputError(ValueError):
    """Input that cannot work, named so that its author can mend it.

    The message is one short paragraph: the parameter, the value it had, what is wrong, and what would be right. Code that
    meets bad input raises this before expensive work starts; the command line prints it without a traceback.
    """

    def __init__(self, parameter: str, value: Any, problem: str, remedy: str) -> None:
        self.parameter, self.value, self.problem, self.remedy = parameter, value, problem, remedy
        try:
            shown = repr(value)
        except (ValueError, RecursionError):  # a number of thousands of digits, lists a thousand deep
            shown = f"a {type(value).__name__}"
        if len(shown) > 200:
            shown = shown[:197] + "..."
        super().__init__(printable(f"{parameter} = {shown}: {problem}. {remedy}"))

    def renamed(self, parameter: str) -> InputError:
        """The same complaint about the name under which the user knows the parameter."""
        return type(self)(parameter, self.value, self.problem, self.remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.parameter, self.value, self.problem, self.remedy)


class UnusedError(InputError):
    """A parameter that reaches nothing in what was asked for."""


def printable(text: str) -> str:
    """Text with escapes for what moves a terminal's cursor, ends a line, or cannot be printed: names come from files too."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def choice(parameter: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raise unless `value` is one of `allowed`; the message lists them and the nearest."""
    if value in allowed:
        return
    from difflib import get_close_matches

    near = get_close_matches(str(value), allowed, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise InputError(parameter, value, "is not known", f"{hint}Choose one of: {', '.join(allowed)}")


class DivergenceError(RuntimeError):
    """A training whose loss, or whose weights, stopped being finite numbers.

    Attributes:
        part: of the loss, or "a weight".
        epoch, step: where; both count from 1, the step within its epoch.
        weights: the model's state dict on the CPU as it last was good; None: it was good only before the training.
        weights_of: when that was, in words.
        advice: what to try, in the names of `rco.training.config.TrainConfig` and `ObjectiveConfig`.
    """

    def __init__(
        self,
        part: str,
        *,
        epoch: int,
        step: int,
        steps: int,
        lr: float,
        advice: str,
        weights: Mapping[str, Any] | None = None,
        weights_of: str = "",
    ) -> None:
        self.part, self.epoch, self.step = part, epoch, step
        self.weights, self.weights_of, self.advice = weights, weights_of, advice
        self.where = f"{part} is not a finite number in epoch {epoch} at step {step} of {steps} (learning rate {lr:g})"
        super().__init__(f"{self.where}. {advice}")


class DiskFullError(RuntimeError):
    """There was no space, or no quota, for what had to be written.

    Attributes:
        folder: where least is free.
        free: bytes there, after what was half-written has been removed.
    """

    def __init__(self, folder: str, free: int) -> None:
        self.folder, self.free = folder, free
        super().__init__(
            f"no space is left for what has to be written; {folder} has {free / 2**20:,.1f} MiB free. "
            "Make room, or name a place that has more; the same command then goes on"
        )


class ProcessDiedError(RuntimeError):
    """A process of a task has died, and was not started again."""


def disk_full(error: BaseException, folders: Iterable[str | os.PathLike[str]]) -> DiskFullError | None:
    """Words for an error that a full disk has caused; None: it has another cause.

    Args:
        error: of any library; some give the system's error as text alone.
        folders: where its raiser writes; they need not exist.
    """
    causes = list(_causes(error))
    if not any(
        (isinstance(cause, OSError) and cause.errno in _FULL) or any(mark in str(cause) for mark in _FULL_TEXTS)
        for cause in causes
    ):
        return None
    named = [os.path.dirname(str(cause.filename)) for cause in causes if isinstance(cause, OSError) and cause.filename]
    systems: dict[int, str] = {}
    for folder in [*named, *folders]:
        there = os.path.abspath(folder)
        while not os.path.isdir(there):
            there = os.path.dirname(there)
        systems.setdefault(os.stat(there).st_dev, there)
    least, where = min(((shutil.disk_usage(there).free, there) for there in systems.values()), default=(0, "/"))
    return DiskFullError(where, least)


_FULL = (errno.ENOSPC, errno.EDQUOT)
# Rust's words, which safetensors passes on, and SQLite's.
_FULL_TEXTS = (*(f"(os error {number})" for number in _FULL), "database or disk is full")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised from, in, or with."""
    seen: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        cause = waiting.pop()
        if isinstance(cause, BaseException) and cause not in seen:
            seen.append(cause)
            yield cause
            waiting += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]


def why_unreachable(error: BaseException) -> str:
    """What kept a request from being answered, in our words: the libraries' own may quote addresses with credentials.

    Args:
        error: of any HTTP library; the causes that it wraps are looked at too.
    """
    causes = list(_causes(error))

    def any_is(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    def named(part: str) -> bool:
        return any(part in type(cause).__name__ for cause in causes)

    if named("InvalidURL") or named("LocationParseError"):
        return "it cannot be read as an address; in a password, write / as %2F and @ as %40"
    if any_is(socket.gaierror):
        return "there is no host of that name"
    if any_is(ssl.SSLCertVerificationError):
        return "its certificate is not trusted"
    if any_is(ssl.SSLError):
        return "no TLS is spoken there: http:// in place of https://?"
    if any_is(ConnectionRefusedError):
        return "nothing listens there"
    if any_is(TimeoutError) or named("Timeout"):
        return "it does not answer"
    return "the connection failed"
