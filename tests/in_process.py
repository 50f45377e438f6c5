"""The tasks of a run in this process, one after the other, with what the pipeline gives each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rco.config.branches import Comparison
from rco.config.parameters import RunConfig
from rco.config.shape import STUDENT
from rco.tasks.check import check
from rco.tasks.data import prepare_data
from rco.tasks.distill import distill_students
from rco.tasks.evaluate import evaluate_students
from rco.tasks.init import init_students
from rco.tasks.preflight import preflight
from rco.tasks.report import report
from rco.tasks.selection import select_anchors
from rco.tasks.settings import Settings
from rco.tasks.students import seed_folder
from rco.tasks.teacher import train_teacher
from rco.tasks.validate import shape_of
from rco.tracking.record import Record


def run_of(parameters: dict[str, Any]) -> Comparison:
    """A run's flat parameters, understood."""
    return Comparison.of_run(RunConfig.from_flat(parameters))


def settings_of(parameters: dict[str, Any]) -> Settings:
    """The settings of a run's tasks."""
    return preflight(run_of(parameters))


def changed(one: Settings, other: Settings) -> set[str]:
    """The tasks whose settings differ: "data", "teacher", "filing", "init", "anchors", "distill", "evaluate"."""
    ours, theirs = one.outputs(), other.outputs()
    return {name.removesuffix(f"_{STUDENT}") for name in ours if ours[name] != theirs[name]}


def stages_needed(parameters: dict[str, Any]) -> int:
    """How many stages a run with these flat parameters has, at most."""
    return shape_of(run_of(parameters)).steps[STUDENT]


class Branch:
    """One branch of a pipeline along a route that is there. Every task is called as its component calls it.

    Args:
        folder: for what the tasks make.
        settings: of all tasks, from `check`.
        label, steps: of the branch.
        dataset, route, index: of prepare_data and train_teacher.

    Attributes:
        selections: of the steps so far.
        students: the artifact of the last step.
        anchors: the artifact of the last step.
        evaluation: the artifact of the evaluation.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], label: str, steps: int, dataset: Path, route: Path, index: Path
    ) -> None:
        self.folder, self.settings, self.label, self.steps = folder, settings, label, steps
        self.dataset, self.route, self.index = dataset, route, index
        self.selections: list[dict[str, Any]] = []
        self.students, self.anchors, self.evaluation = folder / "students-0", folder / "anchors-0", folder / "evaluation"

    def init(self) -> None:
        """The initial students."""
        init_students(self.settings[f"init_{self.label}"], dataset=self.dataset, students=self.students)

    def select(self, step: int) -> dict[str, Any]:
        """The anchors of a step, from 1; returns the selection."""
        self.anchors = self.folder / f"anchors-{step}"
        selection: dict[str, Any] = select_anchors(
            self.settings[f"anchors_{self.label}"],
            previous=self.selections[-1] if self.selections else {},
            last_step=step == self.steps,
            route=self.route,
            route_index=self.index,
            students=self.students,
            anchors=self.anchors,
        )
        self.selections.append(selection)
        return selection

    def distil(self, step: int, out: Path | None = None) -> dict[str, Any]:
        """The students after a step; returns the figures of the artifact.

        Args:
            out: for the students; default: where the next step looks for them.
        """
        distilled = out or self.folder / f"students-{step}"
        figures: dict[str, Any] = distill_students(
            self.settings[f"distill_{self.label}"],
            selection=self.selections[-1],
            dataset=self.dataset,
            anchors=self.anchors,
            students=self.students,
            distilled=distilled,
        )
        if out is None:
            self.students = distilled
        return figures

    def follow(self) -> None:
        """The students, through all steps."""
        self.init()
        for step in range(1, self.steps + 1):
            self.select(step)
            self.distil(step)

    def evaluate(self) -> dict[str, float]:
        """The headline figures."""
        figures: dict[str, float] = evaluate_students(
            self.settings[f"evaluate_{self.label}"],
            dataset=self.dataset,
            students=self.students,
            anchors=self.anchors,
            evaluation=self.evaluation,
        )
        return figures


class Walk(Branch):
    """A run: one teacher, its route, and a student that follows it.

    Args:
        folder: for what the tasks make.
        parameters: flat.

    Attributes:
        settings: of the tasks, from `check`.
    """

    def __init__(self, folder: Path, **parameters: Any) -> None:
        asked = run_of(parameters)
        (self.seed,) = asked.seeds
        shape = shape_of(asked)
        settings = check(parameters, compiled=shape.steps)
        super().__init__(folder, settings, STUDENT, shape.steps[STUDENT], folder / "data", folder / "route", folder / "index")

    @property
    def student(self) -> Path:
        """The folder of the student, as the last step left it."""
        return seed_folder(self.students, self.seed)

    def prepare(self) -> None:
        """The data set."""
        prepare_data(self.settings["data"], dataset=self.dataset)

    def teach(self) -> None:
        """The route."""
        train_teacher(self.settings["teacher"], dataset=self.dataset, route=self.route, route_index=self.index)

    def walk(self) -> Record:
        """The student, through all stages; returns its record."""
        self.follow()
        return Record.read(self.student)

    def report(self) -> dict[str, Any]:
        """The summary; in the folder `report` with everything that people get."""
        summary: dict[str, Any] = report(
            self.settings["filing"],
            registered={},
            route=self.route,
            route_index=self.index,
            students=self.students,
            evaluations=[self.evaluation],
            folder=self.folder / "report",
        )
        return summary
