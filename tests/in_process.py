"""The tasks of a pipeline run in this process, one after the other, with what the pipeline gives each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rco.config.parameters import RunConfig
from rco.tasks.check import check
from rco.tasks.data import prepare_data
from rco.tasks.distill import distill_stage
from rco.tasks.evaluate import evaluate
from rco.tasks.preflight import stages_needed
from rco.tasks.report import report
from rco.tasks.selection import select_anchor
from rco.tasks.students import init_student
from rco.tasks.teacher import train_teacher
from rco.tracking.record import Record


class Walk:
    """One teacher, its route, and a student that follows it. Every task is called as its component calls it.

    Args:
        folder: for what the tasks make.
        parameters: flat, as of a run.

    Attributes:
        settings: of the tasks, from `check`.
        selections: of the stages, from `walk`.
    """

    def __init__(self, folder: Path, **parameters: Any) -> None:
        self.folder = folder
        self.stages = stages_needed(RunConfig.from_flat(parameters))
        self.settings: dict[str, Any] = check(parameters, max_stages=self.stages)
        self.dataset, self.route, self.index = folder / "data", folder / "route", folder / "index"
        self.selections: list[dict[str, Any]] = []
        self.student, self.anchor, self.anchors = folder / "initial", folder / "anchor-0", folder / "anchors-0"
        self.evaluation = folder / "evaluation"

    def prepare(self) -> None:
        """The data set."""
        prepare_data(self.settings["data"], dataset=self.dataset)

    def teach(self) -> None:
        """The route."""
        train_teacher(self.settings["teacher"], dataset=self.dataset, route=self.route, route_index=self.index)

    def walk(self) -> Record:
        """The student, through all stages; returns its record."""
        init_student(self.settings["student"], dataset=self.dataset, student=self.student)
        previous: dict[str, Any] = {}
        for stage in range(1, self.stages + 1):
            self.anchor, self.anchors = self.folder / f"anchor-{stage}", self.folder / f"anchors-{stage}"
            previous = select_anchor(
                self.settings["anchors"],
                previous=previous,
                route=self.route,
                route_index=self.index,
                student=self.student,
                anchor=self.anchor,
                anchors=self.anchors,
                last_stage=stage == self.stages,
            )
            self.selections.append(previous)
            distilled = self.folder / f"student-{stage}"
            distill_stage(
                self.settings["stage"],
                selection=previous,
                dataset=self.dataset,
                anchor=self.anchor,
                student=self.student,
                distilled=distilled,
            )
            self.student = distilled
        return Record.read(self.student)

    def evaluate(self) -> dict[str, float]:
        """The headline figures."""
        figures: dict[str, float] = evaluate(
            self.settings["evaluate"],
            dataset=self.dataset,
            student=self.student,
            anchors=self.anchors,
            evaluation=self.evaluation,
        )
        return figures

    def report(self) -> dict[str, Any]:
        """The summary; in the folder `report` with everything that people get."""
        summary: dict[str, Any] = report(
            self.settings["filing"],
            registered={},
            route_index=self.index,
            student=self.student,
            anchors=self.anchors,
            evaluation=self.evaluation,
            folder=self.folder / "report",
        )
        return summary
