"""One real local comparison of all branches, with everything that it promises."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pipelines.local.run import RunFailedError, run
from rco.config.kinds import STANDARD
from rco.core.errors import InputError
from rco.core.files import sha256_of
from rco.tasks.check import check
from rco.tasks.data import prepare_data
from rco.tasks.init import init_students
from tests import local_runs
from tests.local_runs import TEACHING, client, runs_of, statuses

TINY = {**local_runs.TINY, "seeds": [0, 1]}
#: Of branches without anchors.
PLAIN = {**{name: value for name, value in TINY.items() if name != "n_anchors"}, "branches": ["kd", "scratch"]}


class Compared:
    """One comparison and what it said."""

    def __init__(self, home: Path, **parameters: Any) -> None:
        self.lines: list[str] = []
        self.home = home
        self.summary = run({**TINY, **parameters}, home, pipeline="comparison", show=self.lines.append)
        self.branches = {row["branch"]: row for row in self.summary["branches"]}

    @property
    def trained(self) -> set[str]:
        """The branches of which a student was trained in this run."""
        return {line.strip().split("/seed-")[0] for line in self.lines if "/seed-" in line and ": epoch " in line}

    @property
    def found(self) -> set[str]:
        """The branches of which a stage was found, with the run that trained it."""
        return {line.strip().split("/seed-")[0] for line in self.lines if "/seed-" in line and ": found, trained by " in line}

    @property
    def cached(self) -> Counter[str]:
        """The tasks that were taken from the cache, without the numbers that KFP gives those that it has several of."""
        hits = (line.split(":")[0] for line in self.lines if line.endswith(": unchanged, taken from the cache"))
        return Counter(re.sub(r"(-\d+)+$", "", task) for task in hits)

    @property
    def runs(self) -> tuple[Any, dict[str, Any]]:
        return runs_of(self.home, self.summary["parent_run_id"])


@pytest.mark.usefixtures("_zygote")
class TestRealRun:
    @pytest.fixture(scope="class")
    def first(self, tmp_path_factory: pytest.TempPathFactory) -> Compared:
        return Compared(tmp_path_factory.mktemp("comparison"))

    def test_every_branch_costs_the_same_epochs_from_the_same_weights(self, first: Compared) -> None:
        assert list(first.branches) == list(STANDARD)
        assert {row["student_epochs"] for row in first.summary["branches"]} == {TINY["epochs"]}
        passes = {name: row["teacher_forward_passes"] for name, row in first.branches.items()}
        size = first.summary["dataset"]["sizes"]["train"]
        assert passes == {**dict.fromkeys(STANDARD, 6 * size), "scratch": 0}
        assert all(row["train_seconds"] > 0 for row in first.summary["branches"])
        # What the distilling tasks were given: one initial student a seed, whatever the branch.
        initial: dict[str, set[str]] = {"seed-0": set(), "seed-1": set()}
        for path in (first.home / "pipeline").glob("*/init-students*/students/*/student.safetensors"):
            initial[path.parent.name].add(sha256_of(path))
        assert [len(hashes) for hashes in initial.values()] == [1, 1]
        assert initial["seed-0"] != initial["seed-1"]

    def test_the_branches_are_what_they_are_called(self, first: Compared) -> None:
        anchors = {name: row["anchors"] for name, row in first.branches.items()}
        assert {name: anchors[name] for name in STANDARD if name != "greedy"} == {
            "scratch": "none",
            "kd": "6",
            "kd-restart": "6 6 6",
            "equal-interval": "2 4 6",
            "lr-decay": "2 4 6",
        }
        for chosen in anchors["greedy"].split(" / "):
            assert chosen.startswith("1 ")
            assert chosen.endswith(" 6")
        # Equal anchors, seeds and lengths under two names: bit for bit the same students.
        hashes = {(s["branch"], s["seed"]): s["student_sha256"] for s in first.summary["students"]}
        for seed in (0, 1):
            assert hashes["equal-interval", seed] == hashes["lr-decay", seed]
        assert {"equal-interval", "lr-decay"} & first.found, "so they are trained once"
        assert len(set(hashes.values())) == 10

    def test_files_for_people_and_machines(self, first: Compared) -> None:
        folder = first.home / "last-comparison"
        assert json.loads((folder / "summary.json").read_text()) == first.summary
        with (folder / "results.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(r["branch"], r["seed"]) for r in rows] == [(b, s) for b in STANDARD for s in ("0", "1")]
        means = {r["branch"]: float(r["test_accuracy_mean"]) for r in csv.DictReader((folder / "summary.csv").open())}
        for branch in STANDARD:
            own = [float(r["test_accuracy"]) for r in rows if r["branch"] == branch]
            assert means[branch] == pytest.approx(sum(own) / 2)
        kd, greedy = ([float(r["test_accuracy"]) for r in rows if r["branch"] == b] for b in ("kd", "greedy"))
        difference = first.branches["greedy"]["difference_mean"]
        assert difference == pytest.approx(sum(g - k for g, k in zip(greedy, kd, strict=True)) / 2)
        for name in ("curves", "differences"):
            assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        page, told = (folder / "report.html").read_text(), (folder / "report.md").read_text()
        measured = first.summary["measures"]
        assert set(measured) == {"teacher", *first.branches}
        assert set(measured["kd"]) == {"balanced_accuracy", "macro_f1", "top5"}
        for sentence in first.summary["verdict"]:
            assert sentence in told
        assert "<td>kd-restart</td>" in page
        assert sum(f"{b} against kd" in told for b in STANDARD) == 5

    def test_mlflow_has_a_run_for_every_student_on_one_axis(self, first: Compared) -> None:
        parent, children = first.runs
        assert set(children) == {"teacher", *(f"{b}/seed-{s}" for b in STANDARD for s in (0, 1))}
        assert {r.info.status for r in (parent, *children.values())} == {"FINISHED"}
        c = client(first.home)
        results = {(s["branch"], s["seed"]): s for s in first.summary["students"]}
        for key, child in children.items():
            if key == "teacher":
                continue
            branch, seed = child.data.tags["rco.branch"], int(child.data.tags["rco.seed"])
            assert key == f"{branch}/seed-{seed}"
            p, m = child.data.params, child.data.metrics
            assert (p["branch"], p["seed"], p["train.seed"], p["epochs"]) == (branch, str(seed), str(seed), "6")
            assert p["lambda"] == ("0.0" if branch == "scratch" else "16.0")
            assert child.data.tags["rco.data_digest"] == first.summary["dataset"]["digest"]
            for name in ("test_accuracy", "congruence_kl", "train_seconds", "teacher_forward_passes"):
                assert m[name] == pytest.approx(results[branch, seed][name])
            assert [x.step for x in c.get_metric_history(child.info.run_id, "val_accuracy")] == [1, 2, 3, 4, 5, 6]
        found = c.search_runs([parent.info.experiment_id], "tags.`rco.branch` = 'greedy' AND tags.`rco.seed` = '1'")
        assert [r.data.tags["rco.key"] for r in found] == ["greedy/seed-1"]
        assert parent.data.metrics["kd/test_accuracy_mean"] == pytest.approx(first.branches["kd"]["test_accuracy_mean"])
        assert parent.data.metrics["greedy/difference_mean"] == pytest.approx(first.branches["greedy"]["difference_mean"])
        assert "| kd-restart |" in parent.data.tags["mlflow.note.content"]
        files = {a.path for a in c.list_artifacts(parent.info.run_id, "report")}
        assert {f"report/{n}" for n in ("report.html", "summary.json", "results.csv", "curves.png")} <= files

    def test_every_anchor_is_a_model_with_its_hardness(self, first: Compared) -> None:
        parent, children = first.runs
        c = client(first.home)
        anchors = c.search_logged_models([parent.info.experiment_id], "model_type = 'anchor'")
        shas = [m.tags["rco.sha256"] for m in anchors]
        assert len(shas) == len(set(shas)), "no anchor is uploaded twice"
        assert {2, 4, 6} <= {int(m.tags["rco.epoch"]) for m in anchors}
        for anchor in anchors:
            assert {"anchor_val_accuracy", "anchor_hardness"} <= {m.key for m in anchor.metrics}
        tags = children["equal-interval/seed-0"].data.tags
        assert {f"rco.anchor.{epoch}" for epoch in (2, 4, 6)} <= set(tags)
        assert not any(name.startswith("rco.anchor.") for name in children["scratch/seed-0"].data.tags)

    def test_a_sweep_trains_only_what_is_new_and_mlflow_has_it_all(self, first: Compared) -> None:
        swept = Compared(first.home, branches=["kd", "greedy", "equal-interval"], grid={"tau": [2, 4]})
        assert list(swept.branches) == [
            "kd tau=2",
            "equal-interval tau=2",
            "greedy tau=2",
            "kd",
            "equal-interval",
            "greedy",
        ]
        assert swept.trained == {"kd tau=2", "equal-interval tau=2", "greedy tau=2"}
        # Of the three branches that were there every task is a cache hit, and the initial students of the new ones are theirs.
        assert swept.cached == {
            **{"prepare-data": 1, "train-teacher": 1, "init-students": 6},
            **{"select-anchors": 1 + 1 + 3, "distill-students": 1 + 1 + 3, "evaluate-students": 3},
        }
        for name in ("kd", "equal-interval", "greedy"):
            ours, theirs = swept.branches[name], first.branches[name]
            for figure in ("test_accuracy_mean", "train_seconds", "congruence_kl_mean"):
                assert ours[figure] == theirs[figure], "cached work keeps its original figures"
        assert swept.branches["greedy tau=2"]["reference"] == "kd tau=2"
        parent, children = swept.runs
        _, before = first.runs
        assert len(children) == 1 + 12
        assert {r.info.status for r in (parent, *children.values())} == {"FINISHED"}
        again, original = children["greedy/seed-1"], before["greedy/seed-1"]
        assert again.data.tags["reused_from"] == original.info.run_id
        assert again.data.params == original.data.params
        assert {n: v for n, v in again.data.tags.items() if n.startswith("rco.anchor.")} == {
            n: v for n, v in original.data.tags.items() if n.startswith("rco.anchor.")
        }
        c = client(first.home)
        history = c.get_metric_history(again.info.run_id, "val_accuracy")
        assert [m.value for m in history] == [m.value for m in c.get_metric_history(original.info.run_id, "val_accuracy")]
        assert parent.data.metrics["greedy tau:2/difference_mean"] == swept.branches["greedy tau=2"]["difference_mean"]

    def test_the_teacher_is_shared_with_a_single_run(self, first: Compared) -> None:
        lines: list[str] = []
        single = {name: value for name, value in TINY.items() if name != "seeds"}
        ran = run({**single, "strategy": "equal-interval", "seed": 1}, first.home, show=lines.append)
        assert "train-teacher: unchanged, taken from the cache" in lines
        assert not any(": epoch " in line for line in lines), "a comparison's student is found by the run that wants it"
        assert sum(": found, trained by run " in line for line in lines) == 3
        theirs = next(s for s in first.summary["students"] if (s["branch"], s["seed"]) == ("equal-interval", 1))
        ours = sha256_of(first.home / "last-run" / "student" / "student.safetensors")
        assert ours == theirs["student_sha256"], "the same settings make the same student, bit for bit"
        assert ran["student"]["accuracy"] == theirs["test_accuracy"]

    def test_a_route_of_other_data_is_refused_before_any_student_is_trained(self, first: Compared, tmp_path: Path) -> None:
        (manifest,) = (
            p
            for p in (first.home / "pipeline").glob("*/train-teacher/route/manifest.json")
            if (p.parent / "epoch-0006.safetensors").exists()
        )
        student = {name: value for name, value in PLAIN.items() if name not in TEACHING}
        parameters = {**student, "route": str(manifest.parent), "data_seed": 1}
        checked = check(parameters, compiled={"scratch": 1, "kd": 1})
        prepare_data(checked["data"], dataset=tmp_path / "data")
        for branch in ("kd", "scratch"):  # of both branches the first task
            with pytest.raises(InputError, match=r"data = .*the route.*(differ|data)"):
                init_students(checked[f"init_{branch}"], dataset=tmp_path / "data", students=tmp_path / "students")

    def test_a_branch_that_fails_leaves_nothing_running(
        self, first: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trap = """
import torch
class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear(64, num_classes)
    def forward(self, x):
        if self.training and x.device.type != "meta" and len(x) > 8:
            raise RuntimeError("trap sprung")
        return self.layer(x.flatten(1))
"""
        (tmp_path / "trapnets.py").write_text(trap)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(RunFailedError, match="trap sprung"):
            run({**PLAIN, "student": "trapnets:Net"}, first.home, pipeline="comparison")
        assert "RUNNING" not in statuses(first.home)
        assert "FAILED" in statuses(first.home)
