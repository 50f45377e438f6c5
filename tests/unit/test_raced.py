"""How a race goes on this machine: its rounds, who is dropped and why, what it costs, and that no round sees the test part."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.local import race as local
from pipelines.local.run import ROUND, DivergedError, RunFailedError
from rco.config.branches import Comparison
from rco.config.filing import Filing
from rco.core.errors import InputError
from rco.core.settings import from_dict, jsonable
from rco.data.dataset import Dataset
from rco.evaluation.raced import Race
from rco.reporting import raced
from rco.tasks.check import check
from rco.tasks.data import prepare_data
from rco.tasks.preflight import preflight
from rco.tasks.report_round import report_round
from rco.tasks.teacher import train_teacher
from rco.tasks.validate import shape_of
from tests.in_process import Branch
from tests.local_runs import TINY

SIX = ["scratch", "kd-restart", "equal-interval", "lr-decay", "greedy"]


def started(challengers: int = 5, seeds: tuple[int, ...] = (0, 1, 2)) -> Race:
    return Race.start("race-1", "kd", SIX[:challengers], seeds, 40)


def went(race: Race, *rounds: Mapping[str, float]) -> Race:
    """The race after rounds in which a challenger had the same accuracy with every seed; one without any diverged."""
    for accuracies in rounds:
        diverged = {name: "loss nan" for name in race.alive if name not in accuracies}
        race = race.after({name: [accuracies[name]] * len(race.round_seeds) for name in accuracies}, diverged)
    return race


class TestRace:
    @given(data=st.data(), branches=st.integers(3, 6), seeds=st.integers(1, 12))
    def test_it_never_trains_more_than_the_full_comparison_whatever_happens(
        self, data: st.DataObject, branches: int, seeds: int
    ) -> None:
        try:
            race = started(branches - 1, tuple(range(seeds)))
        except InputError:  # tests/unit/test_race.py
            return
        raced_on: list[int] = []
        while not race.decided:
            fate = {name: data.draw(st.one_of(st.none(), st.floats(0, 1))) for name in race.alive}
            finished = {name: accuracy for name, accuracy in fate.items() if accuracy is not None}
            if not finished:
                with pytest.raises(InputError, match="have all diverged"):
                    went(race, finished)
                return
            assert len(race.ended) < len(race.plan.rounds)
            raced_on += race.round_seeds
            race = went(race, finished if len(finished) > 1 else dict.fromkeys(finished, 0.5))
        race = replace(race, final=True)
        assert race.students <= race.plan.students <= race.plan.full == branches * seeds
        assert not {*raced_on} & {*race.final_seeds}
        assert len(race.final_seeds) >= seeds
        assert from_dict(Race, json.loads(json.dumps(jsonable(race)))) == race
        assert json.loads(json.dumps(race.account()))["winner"] == race.alive[0]

    def test_seeds_that_the_user_named_come_first_and_others_follow(self) -> None:
        race = started(5, (7, 3, 9))
        assert race.round_seeds == (3,)
        assert race.final_seeds == (10, 11, 12, 13)

    def test_the_worse_half_is_dropped_by_the_mean_of_all_seeds_so_far(self) -> None:
        first = dict(zip(SIX, (0.5, 0.7, 0.9, 0.8, 0.6), strict=True))
        race = went(started(), first)
        assert race.alive == ("kd-restart", "equal-interval", "lr-decay")
        # Level over both rounds; the earlier one goes on.
        race = went(race, {"kd-restart": 0.9, "equal-interval": 0.7, "lr-decay": 0.7})
        assert race.alive == ("kd-restart", "equal-interval")
        assert (race.mean("lr-decay", 2), race.mean("greedy", 2)) == (pytest.approx(0.75), None)

    def test_what_diverged_is_worse_than_all_and_makes_nobody_elses_place(self) -> None:
        race = went(started(), {"kd-restart": 0.7, "equal-interval": 0.9, "lr-decay": 0.8, "scratch": 0.1})
        assert race.alive == ("kd-restart", "equal-interval", "lr-decay"), "three of five, as in any first round"
        dropped = {s.branch: s.dropped for s in race.ended[0].standings if s.dropped}
        assert dropped["greedy"] == "greedy is dropped: it diverged (loss nan)"
        assert dropped["scratch"].startswith("scratch is dropped: 10.00 % on the validation part over 1 seed, 60.00 points")

    def test_one_that_alone_has_not_diverged_wins_untrained(self) -> None:
        race = started(2, (0, 1)).after({}, {"scratch": "loss nan"})
        assert race.alive == ("kd-restart",)
        assert race.round_told == (
            "scratch is dropped: it diverged (loss nan)",
            "kd-restart is the only one left, and goes to the final",
            "spent so far: 2 students (80 epochs), of 6 students (240 epochs) for all branches",
        )

    def test_accuracies_of_others_are_refused(self) -> None:
        with pytest.raises(InputError, match="are not of scratch"):
            started().after({"greedy": [0.5]}, {})

    def test_what_is_told(self) -> None:
        race = started()
        assert race.announced == (
            "race of scratch, kd-restart, equal-interval, lr-decay, greedy: rounds of 5, 3, 2 branches with 1 seed each "
            "(of 0, 1, 2), judged by the validation part",
            "then the winner against kd on the test part, with 4 seeds that nobody raced on (3, 4, 5, 6)",
            "18 students (720 epochs) at most; all 6 branches on 3 seeds would be 18 students (720 epochs)",
        )
        assert race.round_announced == f"race, round 1 of 3: {', '.join(SIX)} on seed 0"
        told = went(race, dict(zip(SIX, (0.5, 0.7, 0.9, 0.8, 0.6), strict=True))).round_told
        assert told[0] == (
            "race, round 1, validation accuracy over all seeds so far: equal-interval 90.00 %, lr-decay 80.00 %, "
            "kd-restart 70.00 %, greedy 60.00 %, scratch 50.00 %"
        )
        assert told[-1] == "spent so far: 5 students (200 epochs), of 18 students (720 epochs) for all branches"

    def test_the_report_says_who_was_dropped_when_and_what_it_cost(self) -> None:
        race = replace(
            went(started(3), {"scratch": 0.5, "equal-interval": 0.9}, {"scratch": 0.4, "equal-interval": 0.9}), final=True
        )
        heads, rows = raced.table(race.account())
        assert heads == ["challenger", "round 1, seed 0", "round 2, seed 1", "outcome"]
        assert rows == [
            ["scratch", "50.00 %", "45.00 %", "dropped after round 2: 45.00 points behind"],
            ["kd-restart", "not trained to the end", "", "dropped after round 1: it diverged"],
            ["equal-interval", "90.00 %", "90.00 %", "goes to the final"],
        ]
        assert raced.sentences(race.account()) == [
            "equal-interval has won a race of 3 branches on the validation part; it and kd are compared on seeds 2, 3, 4, on "
            "which nobody raced, and the test part was opened for them alone.",
            "The race and its final are 11 students (440 epochs); comparing all branches would be 12 students (480 epochs).",
        ]
        figures = {"race/students": 11.0, "race/epochs": 440.0, "race/full_students": 12.0, "race/full_epochs": 480.0}
        assert raced.metrics(race.account()) == figures

    def test_mlflow_finds_the_runs_of_a_race(self) -> None:
        race = started()
        filing = Filing(
            experiment="e", parameters={"dataset": "digits", "teacher": "t"}, seeds=(0,), branches=("greedy",), race=race
        )
        assert filing.parent["tags"] == {"rco.race": "race-1", "rco.race_round": "1"}
        assert filing.parent["name"] == "digits t race, round 1"
        final = replace(filing, race=replace(race, final=True)).parent
        assert final["tags"] == {"rco.comparison": "true", "rco.race": "race-1"}
        assert final["params"]["race_challengers"] == ", ".join(SIX)


class TestParameters:
    ASKED: ClassVar[dict[str, Any]] = {"delta": 2.0, "restart_like": "lr-decay", "seeds": [0, 1, 2], "tau": 2.0}

    def test_a_round_is_the_comparison_without_what_no_longer_runs(self) -> None:
        """Settings are cache keys and identities: equal ones mean that nothing is trained twice."""
        race = local.start(self.ASKED)
        whole = preflight(Comparison.of({**self.ASKED, "seeds": [0]}))
        given = local.of_branches(self.ASKED, ["equal-interval", "scratch"], [0], race)
        assert set(self.ASKED) - set(given) == {"delta", "restart_like"}, "greedy and kd-restart are not among them"
        comparison = Comparison.of(given)
        assert [branch.name for branch in comparison.branches] == ["scratch", "equal-interval"]
        assert Comparison.of(jsonable(comparison.to_parameters())) == comparison
        ours = preflight(comparison)
        assert (ours.data, ours.teacher) == (whole.data, whole.teacher)
        assert ours.branches == {name: whole.branches[name] for name in ("scratch", "equal-interval")}
        assert shape_of(comparison).is_round

    def test_the_final_is_a_comparison(self) -> None:
        race = replace(went(local.start(self.ASKED), dict.fromkeys(SIX, 0.5)), final=True)
        comparison = Comparison.of(local.of_branches(self.ASKED, ["kd", "greedy"], race.final_seeds, race))
        assert (comparison.kinds, comparison.seeds) == (("kd", "greedy"), (3, 4, 5, 6))
        assert not shape_of(comparison).is_round
        whole = preflight(Comparison.of({**self.ASKED, "seeds": [3, 4, 5, 6]}))
        assert preflight(comparison).branches == {name: whole.branches[name] for name in ("kd", "greedy")}

    def test_without_a_race_nothing_is_what_it_was_not(self) -> None:
        comparison = Comparison.of({})
        assert "race" not in comparison.to_parameters()
        assert "race" not in shape_of(comparison).constants
        assert "race" not in preflight(comparison).outputs()["filing"], "which is a cache key"

    def test_a_parameter_that_means_nothing_in_all_is_refused(self) -> None:
        with pytest.raises(InputError, match="delta"):
            local.start({"branches": ["kd", "scratch", "lr-decay"], "seeds": [0, 1], "delta": 2.0})

    def test_a_sweep_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"race = True: means nothing in a sweep \(over tau\)"):
            local.start({"grid": {"tau": [2, 4]}})


class Pipelines:
    """In place of pipeline runs: what they were asked, and an answer each.

    Args:
        accuracies: of a challenger with every seed.
        broken: branch (or "teacher") -> what ends the runs that it is in.
    """

    def __init__(self, accuracies: Mapping[str, float], broken: Mapping[str, RunFailedError] | None = None) -> None:
        self.accuracies, self.broken = accuracies, broken or {}
        self.asked: list[tuple[str, list[str], list[int]]] = []
        self.lines: list[str] = []

    def run(self, parameters: Mapping[str, Any], home: Path, *, pipeline: str, show: Any) -> dict[str, Any]:
        comparison = Comparison.of(parameters)
        branches = [branch.name for branch in comparison.branches]
        self.asked.append((pipeline, branches, list(comparison.seeds)))
        for name in ("teacher", *branches):
            if name in self.broken:
                raise self.broken[name]
        if pipeline == ROUND:
            return {"val_accuracies": {name: [self.accuracies[name]] * len(comparison.seeds) for name in branches}}
        assert comparison.race is not None
        return {"race": comparison.race.account()}


@pytest.fixture
def raced_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Pipelines], dict[str, Any]]:
    def go(pipelines: Pipelines) -> dict[str, Any]:
        monkeypatch.setattr(local, "run", pipelines.run)
        parameters = {"branches": ["kd", "scratch", "kd-restart", "greedy"], "seeds": [0, 1, 2], "delta": 2.0}
        return local.race(parameters, tmp_path, show=pipelines.lines.append)

    return go


class TestOnThisMachine:
    def test_its_rounds_and_its_final(self, raced_with: Callable[[Pipelines], dict[str, Any]]) -> None:
        pipelines = Pipelines({"scratch": 0.7, "kd-restart": 0.8, "greedy": 0.75})
        summary = raced_with(pipelines)
        assert pipelines.asked == [
            (ROUND, ["scratch", "kd-restart", "greedy"], [0]),
            (ROUND, ["kd-restart", "greedy"], [1]),
            ("comparison", ["kd", "kd-restart"], [2, 3, 4]),
        ]
        assert summary["race"]["winner"] == "kd-restart"
        assert (summary["race"]["students"], summary["race"]["full_students"]) == (11, 12)
        assert pipelines.lines[-1] == (
            "race, final: kd-restart against kd on the test part; in all 11 students (440 epochs), of 12 students (480 epochs) "
            "for all branches"
        )

    def test_begun_again_it_asks_for_the_same(self, raced_with: Callable[[Pipelines], dict[str, Any]]) -> None:
        first, again = (Pipelines({"scratch": 0.7, "kd-restart": 0.8, "greedy": 0.75}) for _ in range(2))
        raced_with(first)
        raced_with(again)
        assert first.asked == again.asked

    def test_a_branch_that_diverges_is_dropped_and_the_round_goes_on(
        self, raced_with: Callable[[Pipelines], dict[str, Any]]
    ) -> None:
        words = "greedy/seed-0 digits-mlp, stage 1: the loss is nan"
        pipelines = Pipelines({"scratch": 0.7, "kd-restart": 0.8}, {"greedy": DivergedError(words)})
        summary = raced_with(pipelines)
        assert pipelines.asked == [
            (ROUND, ["scratch", "kd-restart", "greedy"], [0]),
            (ROUND, ["scratch", "kd-restart"], [0]),
            (ROUND, ["scratch", "kd-restart"], [1]),
            ("comparison", ["kd", "kd-restart"], [2, 3, 4]),
        ]
        assert f"greedy is dropped: it diverged ({words})" in pipelines.lines
        (row,) = (row for row in summary["race"]["rounds"][0]["branches"] if row["branch"] == "greedy")
        assert (row["val_accuracies"], row["val_accuracy_mean"]) == ([], None)

    def test_where_all_diverge_the_final_says_so(self, raced_with: Callable[[Pipelines], dict[str, Any]]) -> None:
        names = ("scratch", "kd-restart", "greedy")
        pipelines = Pipelines({}, {name: DivergedError(f"{name}/seed-0: nan") for name in names})
        with pytest.raises(DivergedError, match="greedy"):
            raced_with(pipelines)
        assert [(asked[0], asked[1][-1]) for asked in pipelines.asked] == [
            (ROUND, "greedy"),
            (ROUND, "greedy"),
            ("comparison", "greedy"),
        ], "the last that has not been tried goes to the final"

    @pytest.mark.parametrize("error", [DivergedError("teacher digits-cnn-s: nan"), RunFailedError("disk full")])
    def test_what_is_everybodys_failure_ends_it(
        self, raced_with: Callable[[Pipelines], dict[str, Any]], error: RunFailedError
    ) -> None:
        pipelines = Pipelines({}, {"teacher": error})
        with pytest.raises(RunFailedError) as caught:
            raced_with(pipelines)
        assert caught.value is error
        assert len(pipelines.asked) == 1


def test_a_round_is_told_without_the_test_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tasks in this process, with a test part that cannot be opened."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    opened = []
    split = Dataset.split

    def guarded(self: Dataset, part: str) -> Any:
        opened.append(part)
        assert part != "test", "a round opens the test part"
        return split(self, part)

    monkeypatch.setattr(Dataset, "split", guarded)
    tiny = {**TINY, "teacher_epochs": 2, "teacher_milestones": [1], "epochs": 2, "n_anchors": 2}
    asked = {**tiny, "branches": ["kd", "scratch", "equal-interval"], "seeds": [0, 1]}
    race = local.start(asked)
    parameters = local.of_branches(asked, race.alive, race.round_seeds, race)
    shape = shape_of(Comparison.of(parameters))
    settings = check(parameters, compiled=shape.steps)
    data, route, index = tmp_path / "data", tmp_path / "route", tmp_path / "index"
    prepare_data(settings["data"], dataset=data)
    train_teacher(settings["teacher"], dataset=data, route=route, route_index=index)
    branches = [
        Branch(tmp_path / label, settings, label, shape.steps[key], data, route, index) for key, label in shape.labels.items()
    ]
    for branch in branches:
        branch.follow()
    students = [branch.students for branch in branches]
    summary = report_round(settings["filing"], route=route, route_index=index, students=students, folder=tmp_path / "report")
    assert "val" in opened
    assert json.loads((tmp_path / "report" / "summary.json").read_text()) == summary
    assert summary["seeds"] == [0]
    assert list(summary["val_accuracies"]) == ["scratch", "equal-interval"]
    assert all(0 < accuracies[0] <= 1 for accuracies in summary["val_accuracies"].values())
    assert "test" not in json.dumps({name: value for name, value in summary.items() if name != "parameters"})
    going = race.after(summary["val_accuracies"], {})
    assert going.decided
    with pytest.raises(InputError, match="are not those of the round's branches and seeds"):
        report_round(settings["filing"], route=route, route_index=index, students=students[:1], folder=tmp_path / "less")
    final = {**settings["filing"], "race": jsonable(replace(going, final=True))}
    with pytest.raises(InputError, match="is not in one of its rounds"):
        report_round(final, route=route, route_index=index, students=students, folder=tmp_path / "final")
