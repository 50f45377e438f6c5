"""The tasks of a comparison: those of a single run (`rco.tasks`), done for all seeds of one branch in one process.

What a task hands on has one folder for each seed ("seed-0") with what the single task would have written.
`python -m rco.tasks NAME arguments.json` runs one by itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from rco.config.branches import Comparison, ComparisonFiling, branch_params
from rco.config.plugins import require
from rco.config.shape import labels
from rco.core.documents import write_json
from rco.core.files import atomically, sha256_of, verify
from rco.core.settings import jsonable
from rco.data.dataset import Dataset
from rco.evaluation import openset
from rco.evaluation.statistics import require_same_data
from rco.models.route import Route
from rco.models.spec import NetworkSpec, load_network
from rco.strategies.base import Adaptive, StudentLevel
from rco.strategies.hardness import relative_to_stage, route_hardness
from rco.tasks.check import mention_results, require_services
from rco.tasks.comparison_preflight import branch_outputs, costs_of_anchors, preflight_comparison
from rco.tasks.distill import distil
from rco.tasks.evaluate import EVALUATION, measure_unseen
from rco.tasks.process import log, read_settings, task
from rco.tasks.report import deliver
from rco.tasks.selection import Stage, next_stage, write_anchor, write_anchors
from rco.tasks.settings import BranchSettings, ChoiceSettings, MeasureSettings, StudentSettings, StudentsSettings
from rco.tasks.students import PROBE, STUDENT, init_student, load_student, read_logits
from rco.tracking import outbox
from rco.tracking.context import Context, forgiving
from rco.tracking.delivery import Delivery
from rco.tracking.record import Record
from rco.tracking.runs import open_parent
from rco.training import resume

if TYPE_CHECKING:
    from rco.reporting.comparison_report import Student


@task
def check_comparison(
    parameters: Mapping[str, Any], *, compiled: Mapping[str, int], plugins: Mapping[str, str] = MappingProxyType({})
) -> dict[str, dict[str, Any]]:
    """Validate every branch before anything expensive, and open the run in MLflow.

    Args:
        compiled: `rco.config.shape.Shape.steps` of the pipeline.
        plugins: as for `rco.tasks.check.check`.

    Returns:
        data, teacher, filing, and of each branch, by its label, students_L, choice_L, branch_L, measure_L: JSON-ready.

    Raises:
        InputError: the first thing that cannot work.
    """
    require(plugins)
    comparison = Comparison.of(parameters)
    settings = preflight_comparison(comparison, compiled={key: int(steps) for key, steps in compiled.items()})
    students = len(comparison.branches) * len(comparison.seeds)
    log.info("%d branches, %d seeds: %d students", len(comparison.branches), len(comparison.seeds), students)
    for line in costs_of_anchors(comparison.branches):
        log.info("%s", line)
    context = Context.from_environment()
    if comparison.shared["check_services"]:
        require_services(context, partial(open_parent, context, **_parent(settings.filing)))
    elif context.active:
        with forgiving("The parent run"):
            open_parent(context, **_parent(settings.filing))
    if not context.active:
        log.warning("MLFLOW_TRACKING_URI is not set: nothing is tracked; the records stay in the artifacts")
    mention_results()
    outputs_of = {
        "data": jsonable(settings.data),
        "teacher": jsonable(settings.teacher),
        "filing": jsonable(settings.filing),
        **branch_outputs(settings, labels(compiled)),
    }
    # KFP passes no nulls; what is left out is None again when the settings are rebuilt.
    return {name: {key: value for key, value in values.items() if value is not None} for name, values in outputs_of.items()}


def _parent(s: ComparisonFiling) -> dict[str, Any]:
    data = str(s.parameters["dataset"]).rstrip("/").rsplit("/", 1)[-1]
    name = f"{data} {s.parameters['teacher']} comparison"
    params = {**s.parameters, "branches": ", ".join(s.branches), "seeds": ",".join(map(str, s.seeds))}
    return {"experiment": s.experiment, "name": name, "params": params, "tags": {"rco.comparison": "true"}}


def _folder(root: Path, seed: int) -> Path:
    return root / f"seed-{seed}"


@task
def init_students(settings: Mapping[str, Any], *, dataset: Path, students: Path) -> None:
    """Make the initial student of every seed.

    Raises:
        InputError: the route that the settings speak of was made on other data.
    """
    students.mkdir(parents=True, exist_ok=True)
    s = read_settings(StudentsSettings, settings)
    digest = Dataset.open(dataset).manifest.digest
    if s.route_data and s.route_data != digest:
        require_same_data({"the prepared data": digest, "the route": s.route_data})
    for seed in s.seeds:
        single = StudentSettings(student=s.student, seed=seed, compute=s.compute, code=s.code)
        init_student(jsonable(single), dataset=dataset, student=_folder(students, seed))


@task
def select_anchors(
    settings: Mapping[str, Any], *, previous: Mapping[str, Any], route: Path, route_index: Path, students: Path, anchors: Path
) -> dict[str, Any]:
    """Choose, seed by seed, the anchors of the next step, and hand out those checkpoints.

    A step of an adaptive strategy is one stage, chosen with the student that will learn from it. Anchors that are known
    beforehand are all of one step.

    Args:
        previous: what this function returned for the step before; empty before the first.
        anchors: becomes a route with the chosen weights only, and the converged teacher's.

    Returns:
        by seed: last (its last stage so far) and stages (those of this step; empty: the route has been walked).
    """
    anchors.mkdir(parents=True, exist_ok=True)
    s = read_settings(ChoiceSettings, settings)
    index = Route.open(route_index)
    labels, route_logits = index.probe()
    one_at_a_time = isinstance(s.anchors.anchors.strategy, Adaptive)
    selection: dict[str, Any] = {}
    needed = {len(index.epochs) - 1}
    for seed in s.seeds:
        (student_logits,) = read_logits(_folder(students, seed) / PROBE, route_logits.shape[1:], "logits")
        level = StudentLevel.of(labels, route_logits, student_logits, s.anchors.tau)
        before = previous.get(str(seed), {}).get("last")
        last = Stage.of(before) if before else None
        stages: list[Stage] = []
        while not (one_at_a_time and stages):
            stage = next_stage(s.anchors, index, last, level, f"seed {seed}, ")
            if stage.skip:
                break
            stages.append(stage)
            needed.update(stage.anchors)
            last = stage
        selection[str(seed)] = {"last": jsonable(last) if last else {}, "stages": jsonable(_restarted(stages, s.lengths))}
    weights = Route.open(route)
    weights.write_index(anchors)
    for i in needed:
        point = weights.checkpoints[i]
        verify(weights.folder / point.file, point.sha256)
        atomically(anchors / point.file, partial(shutil.copyfile, weights.folder / point.file))
    return selection


def _restarted(stages: list[Stage], lengths: Sequence[int]) -> list[Stage]:
    """One stage cut into several of the same anchor: each starts optimiser and schedule anew."""
    if not stages or not lengths:
        return stages
    (whole,) = stages
    return [
        replace(whole, stage=k, epochs=length, first_epoch=1 + sum(lengths[: k - 1]), reason="the converged teacher")
        for k, length in enumerate(lengths, start=1)
    ]


@task
def distill_students(
    settings: Mapping[str, Any], *, selection: Mapping[str, Any], dataset: Path, anchors: Path, students: Path, distilled: Path
) -> dict[str, Any]:
    """Train the student of every seed through the stages of this step. A retried task finds those that are finished among the
    resume points.

    Args:
        students: as the step before left them.
        distilled: the same after this step.

    Returns:
        figures for the artifact's metadata.
    """
    distilled.mkdir(parents=True, exist_ok=True)
    s = read_settings(BranchSettings, settings)
    # Kubeflow's MLflow plugin makes one run for this task. It is not of one student: several would mix their epochs in it.
    os.environ.pop("MLFLOW_RUN_ID", None)
    trained = found = 0
    with resume.group() as group:
        for seed in s.seeds:
            stages = [Stage.of(stage) for stage in selection[str(seed)]["stages"]]
            with TemporaryDirectory(dir=distilled.parent) as scratch:
                folder = _folder(students, seed)
                found_stages = 0
                for i, stage in enumerate(stages):
                    out = _folder(distilled, seed) if i == len(stages) - 1 else Path(scratch) / f"stage-{stage.stage}"
                    anchor = Path(scratch) / "anchor"
                    _write_anchors(anchor, Route.open(anchors), stage.anchors, folder, s.stage.objective.tau)
                    figures = distil(
                        replace(s.stage, train=replace(s.stage.train, seed=seed)),
                        stage,
                        dataset=dataset,
                        anchor=anchor,
                        student=folder,
                        distilled=out,
                        key=_key(s.branch, seed),
                        params={**branch_params(s.branch, s.kind, s.stage), "seed": seed},
                        tags={"rco.branch": s.branch, "rco.seed": str(seed), "rco.strategy": s.kind},
                        resumable=group.resumable,
                    )
                    found_stages += "trained_by" in figures
                    folder = out
            if not stages:
                shutil.copytree(_folder(students, seed), _folder(distilled, seed))
            trained += found_stages < len(stages)
            found += found_stages == len(stages) > 0
    ready = f"{found} found, " if found else ""
    log.info("%s: %d students trained, %s%d passed on", s.branch, trained, ready, len(s.seeds) - trained - found)
    return {"branch": s.branch, "trained": trained, **({"found": found} if found else {})}


def _key(branch: str, seed: int) -> str:
    return f"{branch}/seed-{seed}"


def _before(student: Path) -> tuple[int, ...]:
    """The anchors that a student has just learnt from, if any."""
    if not (student / "record.json").is_file():
        return ()
    return _indices(Record.read(student).stages[-1])


def _indices(stage: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(anchor["index"]) for anchor in stage["anchors"])


def _write_anchors(folder: Path, route: Route, anchors: tuple[int, ...], student: Path, tau: float) -> None:
    _, route_logits = route.probe()
    (answers,) = read_logits(student / PROBE, route_logits.shape[1:], "logits")
    write_anchors(folder, route, anchors, route_logits, route_hardness(route_logits, answers, tau), _before(student), tau)


@task
def evaluate_students(
    settings: Mapping[str, Any], *, dataset: Path, students: Path, anchors: Path, evaluation: Path
) -> dict[str, float]:
    """Measure the student of every seed, and the converged teacher, on the test part, which nothing before has touched.

    Writes the figures, and beside each student's its tracking record.

    Returns:
        headline figures.
    """
    evaluation.mkdir(parents=True, exist_ok=True)
    s = read_settings(MeasureSettings, settings)
    from rco.evaluation.classification import measure
    from rco.evaluation.cost import count_macs, parameter_count
    from rco.models.predict import predict
    from rco.strategies.hardness import kl
    from rco.training.device import prepare_process

    prepare_process(s.compute)
    data = Dataset.open(dataset)
    test, manifest = data.split("test"), data.manifest
    converged = Route.open(anchors).checkpoints[-1]

    def answers(model: Any) -> tuple[Any, dict[str, Any]]:
        model.to(s.compute.device)
        logits, labels = predict(model, test, device=s.compute.device, precision=s.compute.precision, workers=s.compute.workers)
        figures = measure(logits, labels, manifest.num_classes)
        return logits, {name: figures[name] for name in ("accuracy", "cross_entropy", "ece", "n")} | {
            "parameters": parameter_count(model),
            "macs": count_macs(model, manifest.image_shape),
            **({"open_set": openset.figures(measure_unseen(model, data, s.compute))} if manifest.open_classes else {}),
        }

    weights, spec = anchors / converged.file, NetworkSpec.of(s.teacher, manifest)
    teacher_logits, teacher = answers(load_network(weights, expected_sha256=converged.sha256, spec=spec))
    accuracies = []
    for seed in s.seeds:
        student = _folder(students, seed)
        logits, figures = answers(load_student(student, NetworkSpec.of(s.student, manifest)))
        accuracies.append(figures["accuracy"])
        out = _folder(evaluation, seed)
        document = {
            "branch": s.branch,
            "seed": seed,
            "student": figures,
            "teacher": teacher,
            "congruence_kl": kl(teacher_logits, logits, s.tau),
            "tau": s.tau,
            "student_sha256": sha256_of(student / STUDENT),
            "teacher_sha256": converged.sha256,
        }
        write_json(out / EVALUATION, document)
        Record.read(student).write(out)
        log.info("%s: test accuracy %.2f %%", _key(s.branch, seed), 100 * figures["accuracy"])
    return {"test_accuracy_mean": sum(accuracies) / len(accuracies), "teacher_test_accuracy": teacher["accuracy"]}


@task
def report_comparison(
    settings: Mapping[str, Any], *, route: Path, route_index: Path, evaluations: Sequence[Path], folder: Path
) -> dict[str, Any]:
    """Tell people what came out, and bring MLflow up to date with everything that cached tasks did not say.

    Writes summary.json, results.csv, summary.csv, report.html, report.md and the pictures into `folder`.

    Args:
        route: of the teacher; read only where this tracking server lacks an anchor.
        evaluations: of every branch.

    Returns:
        the summary.
    """
    s = read_settings(ComparisonFiling, settings)
    from rco.reporting import comparison_report

    context = Context.from_environment()
    parent = None
    if context.active:
        with forgiving("The parent run"):
            parent = open_parent(context, **_parent(s))
    students = [
        comparison_report.Student.read(path)
        for evaluation in evaluations
        for path in sorted(p for p in evaluation.iterdir() if p.is_dir())
    ]
    teacher = Record.read(route_index)
    summary = comparison_report.write(
        folder, s, index=Route.open(route_index), students=students, context=context, parent_run_id=parent
    )
    if context.active:
        pending = outbox.PendingReport(
            parent=_parent(s),
            deliveries=[
                Delivery(record=teacher),
                *(_delivery(student, route, s.references[student.branch]) for student in students),
            ],
            headline=comparison_report.headline_metrics(summary),
            note=comparison_report.note(summary),
        )
        deliver(context, pending, folder)
    return summary


def _delivery(student: Student, route: Path, reference: str) -> Delivery:
    anchors = {
        int(anchor["epoch"]): partial(_anchor_of, route, student.record, k, int(anchor["index"]))
        for k, stage in enumerate(student.record.stages)
        if stage["teacher_forward_passes"]
        for anchor in stage["anchors"]
    }
    tags = {"rco.reference": reference} if reference else {}
    return Delivery(record=student.record, anchors=anchors, metrics=student.figures(), tags=tags)


@contextmanager
def _anchor_of(route: Path, record: Record, k: int, i: int) -> Iterator[Path]:
    """An anchor of a student's stage as a folder, made again from the route and the record."""
    import numpy as np

    hardness = np.asarray(record.stages[k]["hardness_before"])
    ratio = relative_to_stage(hardness, _indices(record.stages[k - 1]) if k else ())
    with TemporaryDirectory() as scratch:
        write_anchor(Path(scratch), Route.open(route), i, hardness, ratio)
        yield Path(scratch)
