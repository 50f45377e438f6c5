"""The rule of a race: which branches of a comparison go on, by successive halving over seeds. Pure functions.

Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", AISTATS 2016, arXiv
1502.07943; that the arms are branches and the resource is seeds, and all that follows, is this project's.

Challengers (every branch but the reference) train the same few seeds; the worse half by validation accuracy is dropped; the
rest trains the next seeds, until one is left. It and the reference are then trained on seeds that nobody raced on, and
compared on the test part, which is opened for the first time then: the winner was chosen for being lucky on its race seeds,
and a fresh seed knows nothing of that luck. A race never trains more students than the full comparison would.

How one goes is `rco.evaluation.raced`; the command is `rco compare --race`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rco.core.errors import InputError
from rco.core.words import counted


@dataclass(frozen=True, kw_only=True)
class RacePlan:
    """How a race goes, known before it begins.

    Attributes:
        rounds: of each round how many challengers train.
        seeds_a_round: how many seeds each of them trains in a round.
        final_seeds: how many the winner and the reference train afterwards.
        full: students that the full comparison would train.
    """

    rounds: tuple[int, ...]
    seeds_a_round: int
    final_seeds: int
    full: int

    @property
    def race_seeds(self) -> int:
        """Seeds that are raced on."""
        return len(self.rounds) * self.seeds_a_round

    @property
    def students(self) -> int:
        """Students that the race trains, its final included; never more than `full`."""
        return sum(self.rounds) * self.seeds_a_round + 2 * self.final_seeds

    def seeds_of_round(self, number: int) -> range:
        """Positions of the seeds of a round, from 0: 0, 1, ... are raced on, the final's follow.

        Args:
            number: of the round, from 0.
        """
        return range(number * self.seeds_a_round, (number + 1) * self.seeds_a_round)

    @property
    def seeds_of_final(self) -> range:
        """Positions of the final's seeds: none of them is raced on."""
        return range(self.race_seeds, self.race_seeds + self.final_seeds)


def plan_race(branches: int, seeds: int) -> RacePlan:
    """A race in place of a full comparison.

    The final has at least as many seeds as the full comparison would, so that its interval is no wider; the race has what is
    left of the students, and what it leaves lengthens the final.

    Args:
        branches: how many, the reference among them.
        seeds: of the full comparison.

    Raises:
        InputError: there is nothing to drop, or too few students for a round.
    """
    challengers = branches - 1
    if challengers < 2:
        raise InputError("race", branches, "branches are too few: nothing could be dropped", "Add one, or leave out race")
    rounds = [challengers]
    while rounds[-1] > 2:
        rounds.append(_half(rounds[-1]))
    full = branches * seeds
    each = (full - 2 * seeds) // sum(rounds)
    if each < 1:
        least = math.ceil(sum(rounds) / (branches - 2))
        raise InputError(
            "seeds",
            seeds,
            f"are too few for a race of {branches} branches within the cost of comparing all",
            f"Give {least} or more",
        )
    return RacePlan(rounds=tuple(rounds), seeds_a_round=each, final_seeds=(full - each * sum(rounds)) // 2, full=full)


def _half(count: int) -> int:
    return math.ceil(count / 2)


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A branch that does not go on.

    Attributes:
        mean: its validation accuracy over all seeds so far, 0 to 1.
        least_kept: that of the worst branch that goes on.
        seeds: how many.
    """

    branch: str
    mean: float
    least_kept: float
    seeds: int

    @property
    def words(self) -> str:
        behind = self.least_kept - self.mean
        where = f"{100 * behind:.2f} points below" if behind > 0 else "level with, and named after,"
        return (
            f"{self.branch} is dropped: {100 * self.mean:.2f} % on the validation part over {counted(self.seeds, 'seed')}, "
            f"{where} the last that goes on"
        )


def after_round(accuracies: Mapping[str, Sequence[float]], diverged: int = 0) -> tuple[tuple[str, ...], tuple[Dropped, ...]]:
    """The challengers that go on, the better half (rounded up) by their means, and those that do not, the worst last.

    All have the same seeds, so a hard seed is hard for all. Equal means: the earlier one goes on.

    Args:
        accuracies: challenger -> validation accuracy (0 to 1) of every seed so far; in the order of the table.
        diverged: how many more there were in the round, whose training came to nothing: they are the worst of all.

    Raises:
        InputError: challengers with different numbers of seeds, or none, or an accuracy that is not finite.
    """
    counts = {name: len(values) for name, values in accuracies.items()}
    if len(counts) < 2 or len(set(counts.values())) > 1 or not all(counts.values()):
        raise InputError(
            "accuracies", counts, "are not of two challengers or more with the same seeds", "Train what is missing"
        )
    if bad := [name for name, values in accuracies.items() if not all(map(math.isfinite, values))]:
        raise InputError("accuracies", bad, "are not finite", "Train these students again")
    means = {name: math.fsum(values) / len(values) for name, values in accuracies.items()}
    ranked = sorted(means, key=lambda name: -means[name])  # stable
    kept = ranked[: _half(len(ranked) + diverged)]
    least = means[kept[-1]]
    dropped = tuple(
        Dropped(branch=name, mean=means[name], least_kept=least, seeds=counts[name]) for name in ranked[len(kept) :]
    )
    return tuple(name for name in accuracies if name in kept), dropped
