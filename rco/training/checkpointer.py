"""What a training needs of whatever saves its state for when it is interrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from rco.core.errors import InputError

#: Errors that a value of another training causes where it is used.
MISFIT = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


class Checkpointer(Protocol):
    """Saves the state of a training (see `rco.training.resume`). A state has parts; each belongs to the code that adds it."""

    def add(self, part: str, make: Callable[[], Any], files: Callable[[], Mapping[str, str]] | None = None) -> None:
        """From now on save what `make` returns (tensors, arrays, JSON), and the files that `files` names, with their sha256."""

    def take(self, part: str) -> Any:
        """The saved state of a part, once; None: there is none."""

    def due(self) -> bool:
        """Whether it is time to save the state. Asked after every step."""

    def keep(self) -> None:
        """Save all parts as they are now; may end the process after that, if it has been asked to."""


@contextlib.contextmanager
def restoring(misfits: tuple[type[Exception], ...] = (*MISFIT, RuntimeError)) -> Iterator[None]:
    """Report errors in the block as a saved state that does not fit.

    Args:
        misfits: the errors that show this.

    Raises:
        InputError: the saved state is of another training, or is not a training's state.
    """
    try:
        yield
    except misfits as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            "resume point", type(error).__name__, f"is of another training ({reason})", "Delete it, or name another place"
        ) from None
