"""The one exception for bad input."""

from __future__ import annotations

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
        return InputError, (self.parameter, self.value, self.problem, self.remedy)


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
