"""The kinds of branches that a comparison knows, its parameters beside a run's, and how both are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rco.config.parameters import PARAMETERS, read_value
from rco.core.errors import InputError, choice
from rco.core.settings import items_of
from rco.strategies.base import STRATEGIES, Adaptive

REFERENCE = "kd"
#: The branches of a comparison that names none.
STANDARD = ("scratch", "kd", "kd-restart", "equal-interval", "lr-decay", "greedy")
#: In the order of tables: those of `STANDARD` first.
_STRATEGIES = sorted(STRATEGIES.names, key=lambda name: (STANDARD.index(name) if name in STANDARD else len(STANDARD), name))
# One stage, or its restarts: there is no other way to share a schedule.
_PLAIN = {"strategy": "equal-interval", "n_anchors": 1, "stage_schedule": "restart"}
#: What sets a kind of branch apart from the run's own parameters: the baselines, and a kind for every strategy.
KINDS: dict[str, dict[str, Any]] = {
    "scratch": {**_PLAIN, "lam": "0"},
    "kd": _PLAIN,
    "kd-restart": _PLAIN,
    **{name: {"strategy": name} for name in _STRATEGIES},
}
DESCRIBED = {
    "scratch": "labels only",
    "kd": "converged teacher, one schedule",
    "kd-restart": "converged teacher, restarts as in another branch",
    **{name: STRATEGIES[name].summary for name in STRATEGIES.names},
}
BASELINES = ("scratch", "kd", "kd-restart")
SEEDS = (0, 1, 2)
RESTART_LIKE = "equal-interval"
#: Most branches of one comparison. Six are a workflow of 260 kB, and Kubernetes stores no more than some 1 MB of one.
MOST = 24

#: Kinds whose stages are known before a student is trained: kd-restart can have their lengths.
RESTARTED = tuple(name for name in _STRATEGIES if not issubclass(STRATEGIES[name], Adaptive))
GROUPS = {name: p.group for name, p in PARAMETERS.items()}
#: Parameters of `rco run` that mean nothing here: branches have their own strategies and seeds, and no student is registered
#: or exported.
NOT_SHARED = ("seed", "strategy", "registered_model", "champion_margin", "registered_weights", "export")
SHARED = tuple(name for name in PARAMETERS if name not in NOT_SHARED)
#: Parameters of the student alone: they can differ between branches that share a teacher and a data set.
SWEPT = tuple(name for name in SHARED if GROUPS[name] in ("student", "student_train", "ema", "anchors", "objective"))
#: Where a comparison's default is not that of a run: many students are trained.
DEFAULTS: dict[str, Any] = {"epochs": 40}


@dataclass(frozen=True)
class Option:
    """A parameter of a comparison that a single run does not have."""

    name: str
    kind: type
    default: Any
    help: str


OPTIONS: dict[str, Option] = {
    option.name: option
    for option in (
        Option("branches", list, list(STANDARD), f"ways to train the student, from: {', '.join(KINDS)}"),
        Option("seeds", list, list(SEEDS), "seeds of the student; each is trained in every branch"),
        Option("restart_like", str, RESTART_LIKE, f"whose stage lengths kd-restart has: {' | '.join(RESTARTED)}"),
        Option("grid", dict, {}, "a sweep: parameter -> list of values"),
    )
}
#: Options that a comparison is compiled with; it takes all others when it runs.
COMPILED = ("branches", "grid")


def read_seeds(seeds: Any) -> tuple[int, ...]:
    """The students' seeds, in increasing order.

    Raises:
        InputError: an empty list, a repeated seed, or a value that is not a seed.
    """
    remedy = "Give different whole numbers, 0 or more, such as 0,1,2"
    try:
        items = items_of(seeds) if isinstance(seeds, str) else list(seeds)
        numbers = [int(float(item)) for item in items]
        whole = all(float(item) == number and number >= 0 for item, number in zip(items, numbers, strict=True))
    except (TypeError, ValueError):
        raise InputError("seeds", seeds, "is not a list of whole numbers", remedy) from None
    if not numbers:
        raise InputError("seeds", seeds, "is empty", remedy)
    if not whole:
        raise InputError("seeds", seeds, "has a value that is not a seed", remedy)
    if len(set(numbers)) < len(numbers):
        raise InputError("seeds", numbers, "repeats a seed: the same student twice says nothing new", remedy)
    return tuple(sorted(numbers))


def read_kinds(kinds: Any, *, with_reference: bool = True) -> tuple[str, ...]:
    """The kinds of branches, in the order of `KINDS`.

    Args:
        with_reference: whether the reference must be among them; in a round of a race nothing is compared with it.

    Raises:
        InputError: an unknown or repeated one, no reference, or nothing to compare with it.
    """
    try:
        names = items_of(kinds) if isinstance(kinds, str) else list(kinds)
    except ValueError as error:
        raise InputError("branches", kinds, f"is not a list ({error})", f"Name some of: {', '.join(KINDS)}") from None
    for name in names:
        choice("branches", name, tuple(KINDS))
    if len(set(names)) < len(names):
        raise InputError("branches", names, "names a branch twice", "Name each once")
    if with_reference and REFERENCE not in names:
        raise InputError(
            "branches", names, f"lacks {REFERENCE}, which all others are compared with", f"Add {REFERENCE} to the list"
        )
    if len(names) < 2:
        raise InputError("branches", names, "leaves nothing to compare", f"Add one of: {', '.join(KINDS)}")
    return tuple(name for name in KINDS if name in names)


def read_grid(grid: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """The axes of a sweep with their values, read as the types of the parameters.

    Raises:
        InputError: a parameter that cannot be swept, an axis without values, or a value given twice.
    """
    axes: dict[str, tuple[Any, ...]] = {}
    for name, values in grid.items():
        if name not in SWEPT:
            if name in PARAMETERS and name not in NOT_SHARED:
                raise InputError(
                    name, values, "cannot be swept: all branches share one teacher and one data set", "Give one value"
                )
            choice("parameter", name, SWEPT)
        if not isinstance(values, (list, tuple)) or not values:
            raise InputError(name, values, "is not a list of values to sweep over", "Give two values or more")
        read = tuple(read_value(name, value) for value in values)
        if any(value in read[:i] for i, value in enumerate(read)):
            raise InputError(name, list(read), "has a value twice", "Name each once")
        axes[name] = read
    return axes
