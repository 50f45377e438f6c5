"""A race on this machine: its rounds and its final are pipeline runs in one home, one after the other.

Every round is a comparison of the challengers that are left on seeds of its own, which measures nothing on the test part; the
final is an ordinary comparison. What has been trained is found by its identity, so that a race which was interrupted, or a
round that is begun again without a branch that has diverged, goes on where it stopped.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.local.run import ROUND, DivergedError, interruptible, run
from rco.config.branches import Comparison
from rco.core.errors import InputError, UnusedError
from rco.core.settings import jsonable
from rco.evaluation.raced import Race


def race(parameters: Mapping[str, Any], home: Path, *, show: Callable[[str], None] = print) -> dict[str, Any]:
    """Race the branches of a comparison; returns the summary of the final, which has the race in it.

    Args:
        parameters: of the comparison, as for `pipelines.local.run.run`.
        home, show: likewise.

    Raises:
        InputError: as `start`; or as the comparison.
        RunFailedError: a pipeline run failed; of a branch that diverged, the final alone.
        InterruptedRunError: as `pipelines.local.run.run`.
    """
    going = start(parameters)
    for line in going.announced:
        show(line)
    with interruptible():  # between two pipeline runs, too
        while not going.decided:
            show(going.round_announced)
            going = _after_round(going, parameters, home, show)
            for line in going.round_told:
                show(line)
        going = replace(going, final=True)
        winner = going.alive[0]
        show(f"race, final: {winner} against {going.reference} on the test part; in all {going.spent}")
        branches = (going.reference, winner)
        return run(of_branches(parameters, branches, going.final_seeds, going), home, pipeline="comparison", show=show)


def start(parameters: Mapping[str, Any]) -> Race:
    """The race of a comparison's branches, before its first round.

    Raises:
        InputError: as `rco.config.branches.Comparison.of`, a sweep, or as `rco.evaluation.race.plan_race`.
    """
    asked = Comparison.of(parameters)
    if asked.grid:
        problem = f"means nothing in a sweep (over {', '.join(asked.grid)}): its branches are compared with several references"
        raise InputError("race", True, problem, "Leave it out, or name branches of one comparison")
    (reference,) = (branch.name for branch in asked.branches if not branch.reference)
    return Race.start(
        id=f"race-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}",
        reference=reference,
        challengers=[branch.name for branch in asked.branches if branch.reference],
        seeds=asked.seeds,
        epochs=asked.reference.student_train.epochs,
    )


def of_branches(parameters: Mapping[str, Any], branches: Iterable[str], seeds: Iterable[int], going: Race) -> dict[str, Any]:
    """The parameters of a race's comparison of some branches. Those of branches that are not among them mean nothing there, and
    are left out.

    Args:
        parameters: of the comparison of all branches, in which each means something.
    """
    given = {**parameters, "branches": list(branches), "seeds": list(seeds), "race": jsonable(going)}
    while True:
        try:
            Comparison.of(given)
            return given
        except UnusedError as error:
            if error.parameter not in parameters:
                raise
            del given[error.parameter]


def _after_round(going: Race, parameters: Mapping[str, Any], home: Path, show: Callable[[str], None]) -> Race:
    """Train the challengers of the next round. One that diverges ends the pipeline run: the round is begun again without it."""
    diverged: dict[str, str] = {}
    while len(left := [name for name in going.alive if name not in diverged]) > 1:
        try:
            summary = run(of_branches(parameters, left, going.round_seeds, going), home, pipeline=ROUND, show=show)
            return going.after(summary["val_accuracies"], diverged)
        except DivergedError as error:
            branch = next((name for name in left if str(error).startswith(f"{name}/seed-")), None)
            if branch is None:  # the teacher, which is everybody's
                raise
            diverged[branch] = str(error)
            show(f"{branch} has diverged; the round goes on without it, and what the others have trained is found")
    return going.after({}, diverged)
