"""A real race on digits, stopped between its round and its final and begun again; and one in which a branch diverges."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from pipelines.local.race import race
from pipelines.local.run import DivergedError, InterruptedRunError
from tests import local_runs
from tests.local_runs import client, runs_of, statuses

ASKED = {**local_runs.TINY, "branches": ["kd", "scratch", "equal-interval"], "seeds": [0, 1]}
FINAL = "race, final: "


def trained(lines: list[str]) -> set[str]:
    """The students of which an epoch was trained."""
    return {line.strip().split(",")[0] for line in lines if "/seed-" in line and ": epoch " in line}


@pytest.mark.usefixtures("_zygote")
class TestRealRace:
    @pytest.fixture(scope="class")
    def home(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("race")

    @pytest.fixture(scope="class")
    def stopped(self, home: Path) -> list[str]:
        """What a race said that was stopped when its final was to begin."""
        lines: list[str] = []

        def show(line: str) -> None:
            lines.append(line)
            if line.startswith(FINAL):
                raise InterruptedRunError(signal.SIGINT)

        with pytest.raises(InterruptedRunError):
            race(ASKED, home, show=show)
        return lines

    @pytest.fixture(scope="class")
    def ended(self, home: Path, stopped: list[str]) -> tuple[list[str], dict[str, Any]]:
        """What the same race said when it was begun again, and its summary."""
        lines: list[str] = []
        return lines, race(ASKED, home, show=lines.append)

    def test_a_round_trains_the_challengers_and_measures_nobody_on_the_test_part(self, home: Path, stopped: list[str]) -> None:
        assert trained(stopped) == {"scratch/seed-0", "equal-interval/seed-0"}
        assert not any("evaluate" in line or "test accuracy" in line for line in stopped)
        assert any(" is dropped: " in line and "points below the last that goes on" in line for line in stopped)
        c = client(home)
        experiment = c.get_experiment_by_name("rco")
        (parent,) = c.search_runs([experiment.experiment_id], "tags.`rco.race_round` = '1'")
        _, children = runs_of(home, parent.info.run_id)
        assert set(children) == {"teacher", "scratch/seed-0", "equal-interval/seed-0"}
        for run in (parent, *children.values()):
            assert run.info.status == "FINISHED"
            assert not [name for name in run.data.metrics if "test" in name]
        assert "| scratch |" in parent.data.tags["mlflow.note.content"]

    def test_begun_again_it_goes_on_where_it_stopped(self, stopped: list[str], ended: tuple[list[str], dict[str, Any]]) -> None:
        lines, summary = ended
        winner = summary["race"]["winner"]
        assert trained(lines) == {f"{branch}/seed-{seed}" for branch in ("kd", winner) for seed in (1, 2)}
        cut = next(i for i, line in enumerate(lines) if line.startswith(FINAL))
        assert trained(lines[:cut]) == set(), "the round's students are found"
        assert [line for line in lines[:cut] if " is dropped: " in line] == [
            line for line in stopped if " is dropped: " in line
        ]
        assert not any("evaluate" in line for line in lines[:cut])
        assert sum(line.startswith("evaluate-students") for line in lines[cut:]) == 2

    def test_the_report_says_how_the_winner_was_found(self, home: Path, ended: tuple[list[str], dict[str, Any]]) -> None:
        _, summary = ended
        told = summary["race"]
        assert json.loads((home / "last-comparison" / "summary.json").read_text()) == summary
        assert (told["students"], told["full_students"]) == (6, 6)
        assert (told["epochs"], told["full_epochs"]) == (36, 36)
        (round_,) = told["rounds"]
        assert round_["seeds"] == [0]
        means = {row["branch"]: row["val_accuracy_mean"] for row in round_["branches"]}
        assert means[told["winner"]] == max(means.values())
        assert [row["branch"] for row in summary["branches"]] == sorted(
            ("kd", told["winner"]), key=["scratch", "kd", "equal-interval"].index
        )
        assert summary["seeds"] == told["final_seeds"] == [1, 2]
        report = (home / "last-comparison" / "report.md").read_text()
        assert "## Race" in report
        assert f"{told['winner']} has won a race of 2 branches" in report
        parent, children = runs_of(home, summary["parent_run_id"])
        assert parent.data.tags["rco.race"] == told["id"]
        assert parent.data.params["race_challengers"] == "scratch, equal-interval"
        assert parent.data.metrics["race/students"] == 6
        assert set(children) == {"teacher", *(f"{branch}/seed-{seed}" for branch in ("kd", told["winner"]) for seed in (1, 2))}
        assert "RUNNING" not in statuses(home)

    def test_a_branch_that_diverges_is_dropped_with_that_reason(
        self, home: Path, ended: tuple[list[str], dict[str, Any]]
    ) -> None:
        """So do all that mimic anything, with this weight: kd, in the final, which is then a failure like any other."""
        lines: list[str] = []
        with pytest.raises(DivergedError, match=r"^kd/seed-1 "):
            race({**ASKED, "lam": "1e38"}, home, show=lines.append)
        assert any(line.startswith("equal-interval is dropped: it diverged (equal-interval/seed-0 ") for line in lines)
        assert any(line.startswith(f"{FINAL}scratch against kd") for line in lines)
        assert "RUNNING" not in statuses(home)
