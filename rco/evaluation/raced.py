"""How a race goes, round by round, as a document: plain data that the pipeline runs of a race hand on, and the report reads.

Pure: the rule is `rco.evaluation.race`, and who trains the students is somebody else's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rco.core.errors import InputError
from rco.core.words import counted
from rco.evaluation.race import RacePlan, after_round, plan_race


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One challenger in one round.

    Attributes:
        accuracies: on the validation part, 0 to 1, of every seed of this round; empty: it was not trained to the end.
        dropped: why it does not go on; empty: it does.
        behind: how far its mean is below that of the last that goes on, 0 to 1; of one that is dropped and has a mean.
    """

    branch: str
    accuracies: tuple[float, ...] = ()
    dropped: str = ""
    behind: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round that has ended: its seeds, and its challengers in the order of the table."""

    seeds: tuple[int, ...]
    standings: tuple[Standing, ...]


@dataclass(frozen=True, kw_only=True)
class Race:
    """A race as far as it has come.

    Attributes:
        id: names its pipeline runs as one race.
        reference: the branch that all are compared with; it does not race.
        challengers: all of them, in the order of the table.
        plan: as it was made before the first round.
        seeds: the race's, then the final's.
        epochs: of a student, in every branch the same.
        ended: the rounds so far.
        final: whether the pipeline run that has this document is the final, not a round.
    """

    id: str
    reference: str
    challengers: tuple[str, ...]
    plan: RacePlan
    seeds: tuple[int, ...]
    epochs: int
    ended: tuple[Round, ...] = ()
    final: bool = False

    @classmethod
    def start(cls, id: str, reference: str, challengers: Sequence[str], seeds: Sequence[int], epochs: int) -> Race:
        """A race in place of a full comparison.

        Args:
            seeds: of the full comparison. A race and its final need more; the whole numbers above the largest follow.

        Raises:
            InputError: as `rco.evaluation.race.plan_race`.
        """
        plan = plan_race(len(challengers) + 1, len(seeds))
        ordered = sorted(seeds)
        more = plan.race_seeds + plan.final_seeds - len(ordered)
        return cls(
            id=id,
            reference=reference,
            challengers=tuple(challengers),
            plan=plan,
            seeds=(*ordered, *range(ordered[-1] + 1, ordered[-1] + 1 + more)),
            epochs=epochs,
        )

    @property
    def alive(self) -> tuple[str, ...]:
        """The challengers that have not been dropped."""
        if not self.ended:
            return self.challengers
        return tuple(standing.branch for standing in self.ended[-1].standings if not standing.dropped)

    @property
    def decided(self) -> bool:
        """Whether one challenger is left."""
        return len(self.alive) == 1

    @property
    def number(self) -> int:
        """Of the round that is next, from 1."""
        return len(self.ended) + 1

    @property
    def round_seeds(self) -> tuple[int, ...]:
        """Seeds of the round that is next."""
        return tuple(self.seeds[position] for position in self.plan.seeds_of_round(len(self.ended)))

    @property
    def final_seeds(self) -> tuple[int, ...]:
        """Seeds that nobody races on."""
        return tuple(self.seeds[position] for position in self.plan.seeds_of_final)

    @property
    def students(self) -> int:
        """Students of the rounds so far, and of the final if it has come to that: those that a challenger which diverged
        did not train any more are counted, too."""
        rounds = sum(len(round_.standings) * len(round_.seeds) for round_ in self.ended)
        return rounds + 2 * self.plan.final_seeds * self.final

    def after(self, accuracies: Mapping[str, Sequence[float]], diverged: Mapping[str, str]) -> Race:
        """The race after its next round.

        Args:
            accuracies: challenger -> validation accuracy of every seed of the round, 0 to 1. Empty, if but one is left that
                has not diverged: it has won without them.
            diverged: challenger -> how its training came to nothing.

        Raises:
            InputError: other challengers than those that are alive, none that goes on, or as
                `rco.evaluation.race.after_round`.
        """
        left = [name for name in self.alive if name not in diverged]
        if not left:
            raise InputError("branches", list(diverged), "have all diverged", "Change what they share, such as lr")
        reasons = {name: f"{name} is dropped: it diverged ({words})" for name, words in diverged.items()}
        behind: dict[str, float] = {}
        if len(left) > 1:
            if {*accuracies} != {*left}:
                raise InputError("accuracies", [*accuracies], f"are not of {', '.join(left)}", "Train these")
            so_far = {name: [*self._accuracies(name), *accuracies[name]] for name in left}
            _, dropped = after_round(so_far, len(diverged))
            reasons |= {each.branch: each.words for each in dropped}
            behind = {each.branch: each.least_kept - each.mean for each in dropped}
        standings = tuple(
            Standing(
                branch=name,
                accuracies=tuple(accuracies.get(name, ())),
                dropped=reasons.get(name, ""),
                behind=behind.get(name, 0.0),
            )
            for name in self.alive
        )
        return replace(self, ended=(*self.ended, Round(seeds=self.round_seeds, standings=standings)))

    def _accuracies(self, branch: str) -> list[float]:
        return [
            accuracy
            for round_ in self.ended
            for standing in round_.standings
            if standing.branch == branch
            for accuracy in standing.accuracies
        ]

    def mean(self, branch: str, rounds: int) -> float | None:
        """A challenger's validation accuracy over all seeds of the first rounds, 0 to 1; None: it has none of the last of them.

        Args:
            rounds: how many.
        """
        last = {standing.branch: standing for standing in self.ended[rounds - 1].standings}
        if branch not in last or not last[branch].accuracies:
            return None
        values = replace(self, ended=self.ended[:rounds])._accuracies(branch)
        return sum(values) / len(values)

    @property
    def announced(self) -> tuple[str, ...]:
        """What a race will be, in sentences."""
        plan = self.plan
        raced_on = _listed(self.seeds[: plan.race_seeds])
        return (
            f"race of {', '.join(self.challengers)}: rounds of {_listed(plan.rounds)} branches with "
            f"{counted(plan.seeds_a_round, 'seed')} each (of {raced_on}), judged by the validation part",
            f"then the winner against {self.reference} on the test part, with "
            f"{counted(plan.final_seeds, 'seed')} that nobody raced on ({_listed(self.final_seeds)})",
            f"{self._cost(plan.students)} at most; all {len(self.challengers) + 1} branches on "
            f"{counted(plan.full // (len(self.challengers) + 1), 'seed')} would be {self._cost(plan.full)}",
        )

    @property
    def round_announced(self) -> str:
        """What the next round is."""
        seeds = self.round_seeds
        what = f"seed{'s' * (len(seeds) > 1)} {_listed(seeds)}"
        return f"race, round {self.number} of {len(self.plan.rounds)}: {', '.join(self.alive)} on {what}"

    @property
    def round_told(self) -> tuple[str, ...]:
        """How the last round has ended, in sentences."""
        standings = self.ended[-1].standings
        means = {standing.branch: self.mean(standing.branch, len(self.ended)) for standing in standings}
        ranked = sorted((name for name in means if means[name] is not None), key=lambda name: -(means[name] or 0))
        figures = ", ".join(f"{name} {100 * (means[name] or 0):.2f} %" for name in ranked)
        return (
            *([f"race, round {len(self.ended)}, validation accuracy over all seeds so far: {figures}"] if figures else []),
            *(standing.dropped for standing in standings if standing.dropped),
            *(
                [f"{self.alive[0]} {'has won the race' if ranked else 'is the only one left, and goes to the final'}"]
                * self.decided
            ),
            f"spent so far: {self.spent}",
        )

    @property
    def spent(self) -> str:
        """The students so far, beside those of the full comparison."""
        return f"{self._cost(self.students)}, of {self._cost(self.plan.full)} for all branches"

    def _cost(self, students: int) -> str:
        return f"{counted(students, 'student')} ({counted(students * self.epochs, 'epoch')})"

    def account(self) -> dict[str, Any]:
        """The race for programs, JSON-ready; accuracies are those of the validation part, 0 to 1."""
        return {
            "id": self.id,
            "reference": self.reference,
            "challengers": list(self.challengers),
            "winner": self.alive[0] if self.decided else None,
            "rounds": [
                {
                    "seeds": list(round_.seeds),
                    "branches": [
                        {
                            "branch": standing.branch,
                            "val_accuracies": list(standing.accuracies),
                            "val_accuracy_mean": self.mean(standing.branch, number),
                            "dropped": standing.dropped,
                            "behind": standing.behind,
                        }
                        for standing in round_.standings
                    ],
                }
                for number, round_ in enumerate(self.ended, 1)
            ],
            "final_seeds": list(self.final_seeds),
            "students": self.students,
            "epochs": self.students * self.epochs,
            "full_students": self.plan.full,
            "full_epochs": self.plan.full * self.epochs,
        }


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
