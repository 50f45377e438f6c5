"""The harness of benchmarks/evidence: what a plan may say, what a record is found by, what is compared, what a page says."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.stats import nct, t

from benchmarks.evidence import run as running
from benchmarks.evidence.data import prepared, sweep
from benchmarks.evidence.page import BEGINS, ENDS, comparisons, put_into, readme_table, render
from benchmarks.evidence.plan import PLANS, Plan, Setting, Student, Subset, detectable, read_plan
from benchmarks.evidence.prediction import Rule, counted, line_of, points_of, read_rule, render_prediction
from benchmarks.evidence.records import RECORDS, append, groups, identity_of, pending, read_records
from benchmarks.evidence.run import Run
from benchmarks.evidence.train import Places
from rco.config.parameters import PARAMETERS
from rco.core.errors import InputError

TINY: dict[str, Any] = {
    "question": "Does it work?",
    "settings": {
        "tiny": {
            "parameters": {
                **{"test_fraction": 0.8, "val_fraction": 0.5, "probe_size": 64, "teacher": "digits-mlp", "teacher_epochs": 2},
                **{"checkpoint_every": 1, "student": "digits-mlp", "epochs": 2},
            }
        }
    },
    "branches": {
        "kd": {"kind": "kd"},
        "route": {"kind": "equal-interval", "n_anchors": 2},
        "cut": {"kind": "kd-restart", "stages": 2},
    },
    "tests": {"route": "kd", "cut": "kd"},
    "in_readme": True,
    "seeds": 2,
    "assumed_sd": 1.0,
    "assumed_from": "a guess",
    "detects": 10.0,
}


@pytest.fixture
def planned(tmp_path: Path) -> Callable[..., Plan]:
    def write(**changes: Any) -> Plan:
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
        return read_plan(path)

    return write


class TestPlans:
    @pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
    def test_every_plan_says_what_its_seeds_detect_and_has_enough_of_them(self, path: Path) -> None:
        plan = read_plan(path)
        assert plan.seeds >= 5
        assert plan.tests
        ids = {identity_of(plan, s, s.setting) for s in plan.students()}
        assert len(ids) == len(list(plan.students())), "two branches are the same"

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"detects": 1.0}, "Give 10.0"),
            ({"tests": {"route": "kdd"}}, "kdd"),
            ({"seeds": 0}, "1 or more"),
            ({"branches": {"kd": {"kind": "kid"}}, "tests": {}}, "kid"),
            ({"branches": {"kd": {"kind": "kd", "n_ancors": 1}}, "tests": {}}, "n_ancors"),
            ({"branches": {"kd": {"kind": "kd", "stages": 4}}, "tests": {}}, "kd-restart"),
            ({"branches": {"kd": {"kind": "kd", "delta": 2.0}}, "tests": {}}, "delta"),
            ({"question": None}, "question"),
        ],
    )
    def test_what_cannot_be(self, planned: Callable[..., Plan], changes: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError, match=words):
            planned(**changes)

    def test_a_plan_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="gap-digits"):
            read_plan("gap-digit")
        (tmp_path / "a.yaml").write_text("a: [")
        with pytest.raises(InputError, match="not YAML"):
            read_plan(tmp_path / "a.yaml")

    @pytest.mark.parametrize("seeds", [3, 5, 10, 30])
    def test_the_detectable_difference_is_found_as_often_as_is_said(self, seeds: int) -> None:
        """Against the exact power, from the noncentral t distribution."""
        difference = detectable(seeds, 1.0)
        power = nct.sf(t.ppf(0.975, seeds - 1), seeds - 1, difference * seeds**0.5)
        assert 0.76 <= power <= 0.87
        assert detectable(1, 1.0) == float("inf")


def record(plan: Plan, branch: str, seed: int, accuracy: float, route: str = "r", setting: str = "tiny") -> dict[str, Any]:
    student = Student(setting=setting, branch=branch, seed=seed, teacher_seed=0)
    return {
        **{"id": identity_of(plan, student, "d"), "plan": plan.name, "setting": setting, "branch": branch, "seed": seed},
        **{"teacher_seed": 0, "route": route, "test_accuracy": accuracy, "val_accuracy": 0.5, "stages": [[1, [1]], [2, [2]]]},
        "teacher": {"model": "m", "val": [[1, 0.5, 1.25], [2, 0.6, 1.5]], "train_accuracy": 1.0, "test_accuracy": 0.6},
        "curve": {"kl_to_teacher": [0.5, 0.25]},
        "data": {"digest": "d", "sizes": {"train": 10, "val": 10, "test": 10}},
        "cost": {"seconds": 36.0, "cpu_seconds": 30.0, "epochs": 2, "images": 20, "teacher_images": 20},
        "versions": {"torch": "2"},
        "machine": {"processor": "CPU"},
        "finished": "2026-01-01T00:00:00Z",
    }


class TestRecords:
    def test_a_student_is_found_by_all_that_it_depends_on_and_by_nothing_else(self, planned: Callable[..., Plan]) -> None:
        plan, student = planned(), Student(setting="tiny", branch="cut", seed=0, teacher_seed=0)
        one = identity_of(plan, student, "d")
        renamed = planned(branches={"x": TINY["branches"]["cut"]}, tests={}, question="Another?")
        assert identity_of(renamed, Student(setting="tiny", branch="x", seed=0, teacher_seed=0), "d") == one
        others = [
            identity_of(plan, student, "e"),
            identity_of(plan, Student(setting="tiny", branch="cut", seed=1, teacher_seed=0), "d"),
            identity_of(plan, Student(setting="tiny", branch="cut", seed=0, teacher_seed=1), "d"),
            identity_of(plan, Student(setting="tiny", branch="kd", seed=0, teacher_seed=0), "d"),
            identity_of(planned(branches={**TINY["branches"], "cut": {"kind": "kd-restart", "stages": 1}}), student, "d"),
        ]
        assert len({one, *others}) == 6

    def test_a_parameter_that_is_new_later_changes_no_identity(
        self, planned: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plan, student = planned(), Student(setting="tiny", branch="kd", seed=0, teacher_seed=0)
        one = identity_of(plan, student, "d")
        fewer = {name: p for name, p in PARAMETERS.items() if name != "stage_schedule"}
        monkeypatch.setattr("benchmarks.evidence.records.PARAMETERS", fewer)
        assert identity_of(plan, student, "d") == one
        assert identity_of(planned(branches={"kd": {"kind": "kd", "tau": 2.0}}, tests={}), student, "d") != one

    def test_half_a_line_is_passed_over_and_the_next_is_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "plan.jsonl"
        append(path, {"id": "a"})
        with path.open("a") as lines:
            lines.write('{"id": "b", "te')
        append(path, {"id": "c"})
        assert [r["id"] for r in read_records(path)] == ["a", "c"]
        assert read_records(tmp_path / "none.jsonl") == []

    def test_a_seed_that_is_whole_is_done_whoever_trained_its_teacher(self, planned: Callable[..., Plan]) -> None:
        plan = planned()
        students = list(plan.students())
        ids = {s: identity_of(plan, s, "d") for s in students}
        there = [record(plan, b, 0, 0.5, "theirs") for b in plan.branches] + [record(plan, "kd", 1, 0.5, "theirs")]
        todo = pending(plan, students, there, ids, {("tiny", 0): "ours"})
        assert [(s.branch, s.seed) for s in todo] == [("kd", 1), ("route", 1), ("cut", 1)], "half a seed is of another teacher"
        todo = pending(plan, students, there, ids, {("tiny", 0): "theirs"})
        assert [(s.branch, s.seed) for s in todo] == [("route", 1), ("cut", 1)]

    def test_students_of_different_teachers_are_not_compared(self, planned: Callable[..., Plan]) -> None:
        plan = planned()
        mixed = [record(plan, "kd", 0, 0.1, "a"), record(plan, "kd", 0, 0.5, "b"), record(plan, "route", 0, 0.6, "b")]
        (branches,) = groups(plan, mixed).values()
        assert {branch: r["test_accuracy"] for branch, r in branches.items()} == {"kd": 0.5, "route": 0.6}

    def test_records_of_a_plan_that_was_edited_count_no_more(self, planned: Callable[..., Plan]) -> None:
        before = planned()
        there = [record(before, "kd", 0, 0.5), record(before, "route", 0, 0.6)]
        after = planned(branches={**TINY["branches"], "route": {"kind": "equal-interval", "n_anchors": 1}})
        assert [list(branches) for branches in groups(after, there).values()] == [["kd"]]


class TestPages:
    def test_a_page_says_what_was_not_run(self, planned: Callable[..., Plan]) -> None:
        plan = planned()
        assert "**Run: not run (0 of 6 students).**" in render(plan, [])
        page = render(plan, [record(plan, "kd", 0, 0.5), record(plan, "route", 0, 0.6)])
        assert "2 of 6 students; the plan is not finished" in page
        assert "`cut` against `kd`: not run" in page
        assert "no interval can be had" in page
        assert readme_table([(plan, [])]) == "No plan has been run to its end."

    def test_differences_are_within_seeds_and_corrected_for_all_tests_of_the_plan(self, planned: Callable[..., Plan]) -> None:
        plan = planned()
        accuracies = {"kd": (0.50, 0.60), "route": (0.60, 0.71), "cut": (0.50, 0.62)}
        there = [record(plan, b, seed, a) for b, of in accuracies.items() for seed, a in enumerate(of)]
        here = {seed: b for (_, _, seed), b in groups(plan, there).items()}
        pair, reference = comparisons(plan, here)["route"]
        assert reference == "kd"
        assert pair is not None
        assert pair.mean == pytest.approx(0.105)
        p = 2 * t.sf(0.105 / 0.005, 1)
        assert pair.p == pytest.approx(p)
        page = render(plan, there)
        assert f"| +10.50 to `kd` | +4.15 to +16.85 | {2 * p:.3f} |" in page, "of two tests, Holm doubles the smallest p"
        assert "0.500 0.250" in page
        assert "NLL on the validation part 1.25 at epoch 1, 1.50 at the end (epoch 2)" in page
        assert "| +10.50 | +4.15 to +16.85 | no difference found |" in readme_table([(plan, there)])
        assert (
            "Of all 1 tests of a route against plain distillation at equal epochs, other anchors, temperatures and budgets "
            "included, 0 found it better, 0 worse, 1 no difference; the differences are +10.50 to +10.50 points"
        ) in readme_table([(plan, there), (plan, there)]), "kd-restart is no route, and the same students count once"
        assert "+10.50" not in readme_table([(dataclasses.replace(plan, in_readme=False), there)])

    def test_what_is_tuned_is_chosen_by_validation_and_compared_on_the_test_part(self, planned: Callable[..., Plan]) -> None:
        plan = planned(tuned={"kd": ["kd"], "the others": ["route", "cut"]})
        there = [
            {**record(plan, branch, seed, test + seed / 100), "val_accuracy": validation}
            for branch, test, validation in (("kd", 0.5, 0.5), ("route", 0.9, 0.4), ("cut", 0.52, 0.6))
            for seed in (0, 1)
        ]
        assert "the others (`cut`) against kd (`kd`): +2.00 points" in render(plan, there)
        assert "Tuned" not in render(plan, there[:-1]), "a student is missing"
        with pytest.raises(InputError, match="tuned"):
            planned(tuned={"kd": ["kid"]})

    def test_readme_is_left_alone_outside_the_marks(self) -> None:
        text = f"before\n{BEGINS}\nold\n{ENDS}\nafter\n"
        assert put_into(text, "new") == f"before\n{BEGINS}\nnew\n{ENDS}\nafter\n"
        for broken in ("no marks", f"{BEGINS} alone", f"{ENDS} {BEGINS}", f"{text}{text}"):
            with pytest.raises(InputError, match="not there once"):
                put_into(broken, "new")

    def test_committed_pages_are_those_of_the_records(self) -> None:
        for path in PLANS.glob("*.yaml"):
            plan = read_plan(path)
            page = PLANS.parent / "pages" / f"{plan.name}.md"
            assert page.read_text() == render(plan, read_records(RECORDS / f"{plan.name}.jsonl")), "make evidence-pages"


class TestPrediction:
    @pytest.fixture
    def known(self, planned: Callable[..., Plan]) -> list[tuple[Plan, list[dict[str, Any]]]]:
        setting = TINY["settings"]["tiny"]
        branches = {"plain": {"kind": "kd"}, "walk": {"kind": "equal-interval", "n_anchors": 4}}
        plan = planned(settings=dict.fromkeys(("worse", "better", "lone"), setting), branches=branches, tests={"walk": "plain"})
        there = []
        for name, rise, gain in (("worse", 0.0, -0.01), ("better", 1.0, 0.02)):
            for seed in range(5):
                for branch, accuracy in (("plain", 0.5), ("walk", 0.5 + gain + seed / 1000)):
                    one = record(plan, branch, seed, accuracy, setting=name)
                    one["teacher"]["val"] = [[1, 0.5, 1.25], [2, 0.6, 1.25 + rise]]
                    there.append(one)
        return [(dataclasses.replace(plan, seeds=5, detects=detectable(5, 1.0)), there)]

    def test_a_teacher_is_a_point_with_what_its_curve_tells(self, known: list[tuple[Plan, list[dict[str, Any]]]]) -> None:
        points = {point.setting: point for point in points_of(known)}
        assert sorted(points) == ["better", "worse"], "of `lone` nothing was run"
        assert (points["better"].rise, points["worse"].rise) == (1.0, 0.0)
        assert points["better"].overfit == pytest.approx(40.0)
        assert points["better"].points == pytest.approx(2.2)

    def test_a_teacher_of_another_processor_is_another_one(self, known: list[tuple[Plan, list[dict[str, Any]]]]) -> None:
        ((plan, there),) = known
        again = [{**one, "route": "another"} for one in there if one["setting"] == "better"]
        points = points_of([*known, (dataclasses.replace(plan, name="later"), again), *known])
        assert sorted((point.setting, point.plan) for point in points) == [
            ("better", "later"),
            ("better", plan.name),
            ("worse", plan.name),
        ]

    def test_the_rule_is_counted_on_what_it_was_not_written_on(self, known: list[tuple[Plan, list[dict[str, Any]]]]) -> None:
        points = points_of(known)
        rule = Rule(written="now", feature="rise", threshold=0.5, first=["worse"])
        assert counted(rule, points) == (2, 2)
        assert counted(dataclasses.replace(rule, threshold=2.0), points) == (1, 2)
        page = render_prediction(rule, points)
        before, after = page.split("## All others")
        assert "| [worse]" in before
        assert "| [better]" in after
        assert 'tells 1 of 1 signs; of those whose interval leaves out 0, 1 of 1. "Never better" would tell 0 of 1.' in after

    def test_congruence_is_set_beside_accuracy(self, known: list[tuple[Plan, list[dict[str, Any]]]]) -> None:
        for one in known[0][1]:
            if (one["branch"], one["setting"]) == ("walk", "better"):
                one["curve"] = {"kl_to_teacher": [0.5, 0.125]}
        page = render_prediction(Rule(written="now", feature="rise", threshold=0.5, first=[]), points_of(known))
        assert "| better | 0 | 0.2500 | 0.1250 | +2.20 |" in page
        assert "lower after the route in 1 of 2. Lower KL and higher accuracy go together in 2 of 2" in page

    def test_the_straight_line(self, known: list[tuple[Plan, list[dict[str, Any]]]]) -> None:
        slope, height = line_of("rise", points_of(known))
        assert (slope, height) == (pytest.approx(3.0), pytest.approx(-0.8))

    def test_the_committed_page_is_that_of_the_records(self) -> None:
        known = [(p, read_records(RECORDS / f"{p.name}.jsonl")) for p in map(read_plan, sorted(PLANS.glob("*.yaml")))]
        page = PLANS.parent / "pages" / "prediction.md"
        assert page.read_text() == render_prediction(read_rule(), points_of(known)), "make evidence-pages"


class TestData:
    def test_a_part_of_a_tar_is_a_part_of_its_folder(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        with tarfile.open(tmp_path / "set.tar.xz", "w:xz") as tar:
            for name in [f"{p}/c{c}/{i}.png" for p, n in (("train", 12), ("test", 3)) for c in range(4) for i in range(n)]:
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
                member = tarfile.TarInfo(f"./set/{name}")
                member.size = buffer.tell()
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
        setting = Setting(parameters={"val_fraction": 0.2}, subset=Subset(archive="set", classes=2, images=10))
        (tmp_path / "cache").mkdir()
        data = prepared(setting, tmp_path / "cache", tmp_path)
        assert data.manifest.class_names == ("c0", "c2")
        assert data.manifest.sizes == {"train": 16, "val": 4, "test": 6}
        assert prepared(setting, tmp_path / "cache", None).manifest.digest == data.manifest.digest, "the cache has it"
        with tarfile.open(tmp_path / "set.tar.xz") as tar:
            tar.extractall(tmp_path, filter="data")
        (tmp_path / "set.tar.xz").unlink()
        (tmp_path / "other").mkdir()
        assert prepared(setting, tmp_path / "other", tmp_path).manifest.digest == data.manifest.digest
        for subset, words in (
            (Subset(archive="set", classes=5, images=1), "4 of set"),
            (Subset(archive="no", classes=1, images=1), "DATA=DIR"),
        ):
            with pytest.raises(InputError, match=words):
                prepared(Setting(subset=subset), tmp_path / "other", tmp_path)


def test_what_is_half_made_is_removed_once_nobody_makes_it(tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    for number in (gone.pid, os.getpid()):
        (tmp_path / f"route-a.half-{number}").mkdir()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"route-a.half-{os.getpid()}"]


def test_a_plan_is_run_goes_on_where_it_stopped_and_elsewhere(
    planned: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "ProcessPoolExecutor", lambda jobs, **options: ThreadPoolExecutor(jobs))
    path, plan = tmp_path / "records.jsonl", planned()

    def go(cache: str, seconds: float = 600) -> int:
        places = Places(cache=tmp_path / cache, source=None)
        places.cache.mkdir(exist_ok=True)
        return Run(plan, path, places, ends=time.time() + seconds, jobs=1).go()

    assert go("cache", seconds=-1) == 0
    assert read_records(path) == []
    assert "the time was over" in capsys.readouterr().out
    assert go("cache") == 0
    whole = read_records(path)
    assert [(r["branch"], r["seed"]) for r in whole] == [(b, s) for s in (0, 1) for b in ("kd", "route", "cut")]
    assert "| tiny | 6 | 5 |" in capsys.readouterr().out, "one student was measured before the costs were told"
    route = whole[1]
    assert route["stages"] == [[1, [1]], [2, [2]]]
    assert route["cost"]["images"] == 2 * route["data"]["sizes"]["train"] == route["cost"]["teacher_images"]
    assert len(route["curve"]["val_accuracy"]) == 2
    path.write_text("".join(json.dumps(r) + "\n" for r in whole if r["branch"] != "route"))
    assert go("elsewhere") == 0, "another machine: the teacher is trained anew, here with the same bits"
    again = read_records(path)
    assert {r["id"]: r["test_accuracy"] for r in again} == {r["id"]: r["test_accuracy"] for r in whole}
    assert len(again) == 6

    def refuse(*arguments: Any) -> None:
        raise AssertionError("nothing is trained: another plan has these students")

    monkeypatch.setattr(running, "train", refuse)
    plan, others = planned(branches={"plain": {"kind": "kd"}}, tests={}), path
    path = tmp_path / "other.jsonl"
    assert go("cache") == 0
    assert [(r["branch"], r["seed"], r["first_of"]) for r in read_records(path)] == [("plain", 0, "plan"), ("plain", 1, "plan")]
    assert read_records(others) == again
