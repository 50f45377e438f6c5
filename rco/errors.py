"""The exceptions that are for people (bad input, a training that came to nothing), and words for what the network does."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
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
        super().__init__(_printable(f"{parameter} = {shown}: {problem}. {remedy}"))

    def renamed(self, parameter: str) -> InputError:
        """The same complaint about the name under which the user knows the parameter."""
        return InputError(parameter, self.value, self.problem, self.remedy)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.parameter, self.value, self.problem, self.remedy)


def _printable(text: str) -> str:
    """Names come from files too: what would move a terminal's cursor, or could not be printed, is shown as an escape."""
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
        advice: what to try, in the names of `rco.config.TrainConfig` and `ObjectiveConfig`.
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


def why_unreachable(error: BaseException) -> str:
    """What kept a request from being answered, in our words: the libraries' own may quote addresses with credentials.

    Args:
        error: of any HTTP library; the causes that it wraps are looked at too.
    """
    causes: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        cause = waiting.pop()
        if isinstance(cause, BaseException) and cause not in causes:
            causes.append(cause)
            waiting += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]

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
