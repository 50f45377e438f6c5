"""A race in the report of its final: who was dropped when, and what it cost. Its figures are those of the validation part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rco.core.words import counted
from rco.reporting.page import Table, percent

TITLE = "Race"


def table(race: Mapping[str, Any]) -> Table:
    """The challengers by round: mean validation accuracy over all seeds so far; and why one does not go on, with its
    distance to the last that does.

    Args:
        race: `rco.evaluation.raced.Race.account`.
    """
    heads = ["challenger", *(f"round {number}, {_seeds(r['seeds'])}" for number, r in enumerate(race["rounds"], 1)), "outcome"]
    return heads, [
        [name, *(_cell(round_, name) for round_ in race["rounds"]), _outcome(race, name)] for name in race["challengers"]
    ]


def sentences(race: Mapping[str, Any]) -> list[str]:
    """How the compared branches were chosen, and what that cost."""
    challengers = len(race["challengers"])
    share = f"{counted(race['students'], 'student')} ({counted(race['epochs'], 'epoch')})"
    full = f"{counted(race['full_students'], 'student')} ({counted(race['full_epochs'], 'epoch')})"
    return [
        f"{race['winner']} has won a race of {challengers} branches on the validation part; it and {race['reference']} "
        f"are compared on {_seeds(race['final_seeds'])}, on which nobody raced, and the test part was opened for them alone.",
        f"The race and its final are {share}; comparing all branches would be {full}.",
    ]


def metrics(race: Mapping[str, Any]) -> dict[str, float]:
    """Its figures for the parent run in MLflow."""
    names = ("students", "epochs", "full_students", "full_epochs")
    return {f"race/{name}": float(race[name]) for name in names}


def _cell(round_: Mapping[str, Any], branch: str) -> str:
    rows = [row for row in round_["branches"] if row["branch"] == branch]
    if not rows:
        return ""
    mean = rows[0]["val_accuracy_mean"]
    return "not trained to the end" if mean is None else percent(mean)


def _outcome(race: Mapping[str, Any], branch: str) -> str:
    for number, round_ in enumerate(race["rounds"], 1):
        for row in round_["branches"]:
            if row["branch"] == branch and row["dropped"]:
                behind = f"{100 * row['behind']:.2f} points behind" if row["behind"] > 0 else "level, and named later"
                why = "it diverged" if row["val_accuracy_mean"] is None else behind
                return f"dropped after round {number}: {why}"
    return "goes to the final" if branch == race["winner"] else "goes on"


def _seeds(seeds: list[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
