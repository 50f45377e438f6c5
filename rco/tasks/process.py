"""A task as a process: its progress as plain lines, what stops it in words, and its arguments from a file.

Progress goes to the logger "rco". torch and mlflow are imported by the tasks that need them, when they need them.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from tempfile import gettempdir
from typing import Any, TypeVar, cast

from rco.core import mounted
from rco.core.documents import read_json
from rco.core.errors import DiskFullError, DivergenceError, InputError, ProcessDiedError, disk_full
from rco.core.marks import DIED, DIVERGED, FULL, PREFIX, REFUSED
from rco.core.settings import from_dict, jsonable

log = logging.getLogger("rco")

S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])
TASKS: dict[str, Callable[..., Any]] = {}


def task(function: F) -> F:
    """Make a function a task: it sees as variables what is mounted for it (`rco.core.mounted`), and what a person must mend
    (bad input that only the task can find, a training that diverges, a full disk, a worker that dies again and again) is one
    plain line in the log, above the traceback."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        show_progress()
        try:
            mounted.take()
            return function(*args, **kwargs)
        except InputError as error:
            log.error("%s%s", REFUSED, " ".join(str(error).split()))
            raise
        except DivergenceError as error:
            log.error("%s%s", DIVERGED, " ".join(str(error).split()))
            raise
        except ProcessDiedError as error:
            log.error("%s%s", DIED, error)
            raise
        except DiskFullError as error:  # of a worker
            log.error("%s%s", FULL, error)
            raise
        except Exception as error:
            paths = [value for value in [*args, *kwargs.values()] if isinstance(value, Path)]
            full = disk_full(error, [*paths, gettempdir()])
            if full is None:
                raise
            log.error("%s%s", FULL, full)
            raise full from error

    TASKS[function.__name__] = wrapped
    return cast(F, wrapped)


def read_settings(cls: type[S], settings: Mapping[str, Any]) -> S:
    """The settings of a task as objects again."""
    return from_dict(cls, settings)


def show_progress() -> None:
    """Send the logger "rco" to standard output as plain lines, once."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter(PREFIX + "%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


class EpochLines:
    """Says how a training goes: a line a second at most, and always the last one."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.last = what, total, 0.0

    def __call__(self, row: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self.last < 1 and row["epoch"] < self.total:
            return
        self.last = now
        log.info(
            "%s: epoch %d/%d, loss %.4f, validation accuracy %.2f %%, %.0f images/s",
            self.what,
            row["epoch"],
            self.total,
            row["loss"],
            100 * row["val_accuracy"],
            row["images_per_second"],
        )


def arguments_of(function: Callable[..., Any], file: Path) -> dict[str, Any]:
    """Keyword arguments of a task from a JSON file.

    Raises:
        InputError: no such file, or other arguments than the task has.
    """
    try:
        return typed_arguments(function, read_json(file))
    except TypeError as error:
        raise InputError("arguments", str(file), f"are not those of the task ({error})", "Name them as it does") from None


def typed_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a task from JSON, in which paths are text.

    Raises:
        TypeError: other arguments than the task has.
    """
    hints = inspect.get_annotations(function, eval_str=False)

    def typed(name: str, value: Any) -> Any:
        if "Path" not in str(hints.get(name)) or value is None:
            return value
        return [Path(one) for one in value] if isinstance(value, list) else Path(value)

    inspect.signature(function).bind(**values)
    return {name: typed(name, value) for name, value in values.items()}


def register_all() -> None:
    """Import every module of tasks, so that `TASKS` has them all."""
    for module in iter_modules(import_module("rco.tasks").__path__):
        if module.name != "__main__":
            import_module(f"rco.tasks.{module.name}")


def main(arguments: list[str]) -> int:
    """`python -m rco.tasks NAME arguments.json`: the keyword arguments of a task as JSON; paths as text. Returns the exit
    status: 1 for a training that came to nothing or a full disk, 2 for bad input."""
    register_all()
    if len(arguments) != 2 or arguments[0] not in TASKS:
        print(f"usage: python -m rco.tasks {{{','.join(TASKS)}}} arguments.json", file=sys.stderr)
        return 2
    name, file = arguments
    try:
        result = TASKS[name](**arguments_of(TASKS[name], Path(file)))
    except InputError as error:
        print(f"{PREFIX}{error}", file=sys.stderr)
        return 2
    except (DivergenceError, DiskFullError, ProcessDiedError) as error:
        print(f"{PREFIX}{error}", file=sys.stderr)
        return 1
    print(json.dumps(jsonable(result)))
    return 0
