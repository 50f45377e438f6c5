"""One function a task of the pipeline: settings and folders in, folders out. Engine, records and tracking meet here.

Components unpack their artifacts and call these; so does `python -m rco.tasks NAME arguments.json`, which is the same door for
people and for process launchers. Progress goes to the logger "rco" as plain lines. torch and mlflow are imported by the
tasks that need them, when they need them: every task is a process of its own.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, TypeVar, cast

import numpy as np

from rco.config.parameters import RunConfig
from rco.core.documents import read_as, read_json, write_json
from rco.core.errors import DiskFullError, DivergenceError, InputError, disk_full
from rco.core.files import atomically, sha256_of, verify
from rco.core.settings import from_dict, jsonable
from rco.core.tensors import load_arrays, load_metadata, load_state, save_arrays, save_model
from rco.data.dataset import Dataset
from rco.evaluation import openset
from rco.models.route import Anchor, Route
from rco.models.spec import NetworkSpec, described, load_network, save_network
from rco.models.weights import load_weights
from rco.strategies import anchors as choosing
from rco.strategies.hardness import relative, route_hardness
from rco.tasks.preflight import (
    AnchorSettings,
    DataSettings,
    EvaluateSettings,
    FilingSettings,
    StageSettings,
    StudentSettings,
    TeacherSettings,
    preflight,
)
from rco.tracking import outbox
from rco.tracking.context import Context, forgiving, without_credentials
from rco.tracking.delivery import run_deliveries
from rco.tracking.record import Record
from rco.tracking.registry import promote, register, registered_version
from rco.tracking.runs import end_open_runs, open_parent
from rco.tracking.tracker import tracked
from rco.training import resume
from rco.training.config import ComputeConfig

log = logging.getLogger("rco")

STUDENT, PROBE, ANCHOR = "student.safetensors", "probe.safetensors", "anchor.safetensors"
TARGETS, EVALUATION = "targets.safetensors", "evaluation.json"
OBJECTIVE = "objective.safetensors"  # what the objective itself has learnt; beside the student, not in it
PREFIX = "rco | "  # marks the lines that are for people; the local runner shows these and files the rest
REFUSED = "refused: "  # marks, after the prefix, the one line that says which input a task could not work with
DIVERGED = "diverged: "  # likewise, why a training came to nothing
FULL = "disk full: "  # likewise, where there was no space

S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])
TASKS: dict[str, Callable[..., Any]] = {}


def task(function: F) -> F:
    """Make a function a task: what a person must mend (bad input that only the task can find, a training that diverges, a full
    disk) is one plain line in the log, above the traceback."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        show_progress()
        try:
            return function(*args, **kwargs)
        except InputError as error:
            log.error("%s%s", REFUSED, " ".join(str(error).split()))
            raise
        except DivergenceError as error:
            log.error("%s%s", DIVERGED, " ".join(str(error).split()))
            raise
        except Exception as error:
            paths = [value for value in [*args, *kwargs.values()] if isinstance(value, Path)]
            full = disk_full(error, [*paths, gettempdir()])
            if full is None:
                raise
            log.error("%s%s", FULL, full)
            raise full from error

    TASKS[function.__name__] = wrapped
    return cast(F, wrapped)


def read_settings(cls: type[S], settings: Mapping[str, Any]) -> S:
    """The settings of a task as objects again."""
    return from_dict(cls, settings)


def show_progress() -> None:
    """Send the logger "rco" to standard output as plain lines, once."""
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter(PREFIX + "%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


class EpochLines:
    """Says how a training goes: a line a second at most, and always the last one."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.last = what, total, 0.0

    def __call__(self, row: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self.last < 1 and row["epoch"] < self.total:
            return
        self.last = now
        log.info(
            "%s: epoch %d/%d, loss %.4f, validation accuracy %.2f %%, %.0f images/s",
            self.what,
            row["epoch"],
            self.total,
            row["loss"],
            100 * row["val_accuracy"],
            row["images_per_second"],
        )


def _logged(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if name != "epoch"}


def _data_summary(data: Dataset) -> dict[str, Any]:
    m = data.manifest
    return {"name": m.source, "source": m.source, "digest": m.digest, "num_classes": m.num_classes, "sizes": dict(m.sizes)}


@task
def check(parameters: Mapping[str, Any], *, max_stages: int) -> dict[str, dict[str, Any]]:
    """Validate a whole run before anything expensive, resolve what was left open, and open the run in MLflow.

    Returns:
        the settings of every task, JSON-ready.

    Raises:
        InputError: the first thing that cannot work.
    """
    config = RunConfig.from_flat(parameters)
    settings = preflight(config, max_stages)
    compute = settings.stage.compute
    log.info("settings are sound; computing on %s in %s with %d threads", compute.device, compute.precision, compute.threads)
    context = Context.from_environment()
    if config.services.check_services:
        require_services(context, functools.partial(open_parent, context, **_parent(settings.filing)))
    elif context.active:
        with forgiving("The parent run"):
            open_parent(context, **_parent(settings.filing))
    if not context.active:
        log.warning("MLFLOW_TRACKING_URI is not set: nothing is tracked; the records stay in the artifacts")
    # KFP passes no nulls; what is left out is None again when `read_settings` rebuilds the settings.
    return {
        task: {name: value for name, value in values.items() if value is not None}
        for task, values in jsonable(settings).items()
    }


def require_services(context: Context, open_parent: Callable[[], str]) -> None:
    """Use what the environment names, MLflow and S3, once: that a secret is wrong is known before a GPU is taken.

    Raises:
        InputError: with all that is wrong.
    """
    from rco.tasks import services

    checks = services.services(context if context.active else replace(context, tracking_uri=""), open_run=open_parent)
    for finding in services.require(checks):
        log.info("%s: %s", finding.name, finding.found)
        if finding.next_step:
            log.warning("%s", finding.next_step)


@task
def prepare_data(settings: Mapping[str, Any], *, dataset: Path) -> dict[str, Any]:
    """Read, split and store the data set.

    Returns:
        figures for the artifact's metadata.
    """
    s = read_settings(DataSettings, settings)
    from rco.data.prepare import prepare

    log.info("preparing %s", s.data.dataset)
    manifest = prepare(s.data, dataset, s.source_digest)
    sizes = ", ".join(f"{size} {split}" for split, size in manifest.sizes.items())
    log.info("%d classes of %s images: %s", manifest.num_classes, "x".join(map(str, manifest.image_shape)), sizes)
    return {"digest": manifest.digest, "num_classes": manifest.num_classes, **manifest.sizes}


@task
def train_teacher(settings: Mapping[str, Any], *, dataset: Path, route: Path, route_index: Path) -> dict[str, Any]:
    """Train the teacher and keep its route, or adopt the route that the settings name.

    Returns:
        figures for the artifact's metadata.
    """
    s = read_settings(TeacherSettings, settings)
    from rco.core.storage.transfer import fetch
    from rco.training import teacher
    from rco.training.device import prepare_process
    from rco.training.route import adopt_route

    prepare_process(s.compute)
    data = Dataset.open(dataset)
    spec = NetworkSpec.of(s.teacher, data.manifest)
    record = Record(key="teacher", params=_params(s), data=_data_summary(data))
    context = Context.from_environment()
    if s.train is None or s.checkpoint_every is None:
        with tracked(context, record) as tracker:
            log.info("adopting the route at %s", s.route)
            with TemporaryDirectory(dir=route.parent if route.parent.is_dir() else None) as scratch:
                source = fetch(s.route, Path(scratch))
                existing = Route.open(source)
                if existing.data_digest != data.manifest.digest:
                    log.warning(
                        "the route was made on other data: its checkpoints are measured again; their validation accuracy "
                        "flatters if the teacher was trained on images that are held out here"
                    )
                adopted = adopt_route(existing, data, spec, s.compute, route)
            rows: Sequence[Mapping[str, Any]] = adopted.history or [
                {"epoch": c.epoch, "val_accuracy": c.val_accuracy} for c in adopted.checkpoints
            ]
            for row in rows:
                tracker.log(int(row["epoch"]), _logged(row))
        kept = _file_route(route, route_index, record)
    else:
        say = EpochLines(f"teacher {spec.model}", s.train.epochs)
        with resume.resumable(
            "train_teacher",
            {"settings": s, "data": data.manifest.digest},
            who=f"teacher {spec.model}",
            network=spec.written,
            prefix="teacher_",
            files=route,
        ) as points:
            record = _taken_up(points, record)
            with tracked(context, record) as tracker:
                for row in teacher.train_teacher(
                    data, spec, s.train, s.compute, checkpoint_every=s.checkpoint_every, folder=route, checkpointer=points
                ):
                    tracker.log(row["epoch"], _logged(row))
                    say(row)
            kept = _file_route(route, route_index, record)
    log.info("the route has %d checkpoints: epochs %s", len(kept.epochs), ", ".join(map(str, kept.epochs)))
    return {"checkpoints": len(kept.epochs), "epochs": kept.epochs[-1], "val_accuracy": kept.checkpoints[-1].val_accuracy}


def _file_route(route: Path, route_index: Path, record: Record) -> Route:
    kept = Route.open(route)
    kept.write_index(route_index)
    record.write(route_index)
    return kept


def _taken_up(points: resume.ResumePoints, record: Record) -> Record:
    """The record as an interrupted training left it, if there is one to go on with; it is kept from now on."""
    before = points.take("record")
    current = record if before is None else Record.of(before, "a resume point's record")
    points.add("record", lambda: jsonable(current))
    return current


@task
def init_student(settings: Mapping[str, Any], *, dataset: Path, student: Path) -> None:
    """Make the initial student, a function of its seed."""
    s = read_settings(StudentSettings, settings)
    from rco.training import distillation
    from rco.training.device import prepare_process

    prepare_process(s.compute)
    data = Dataset.open(dataset)
    spec = NetworkSpec.of(s.student, data.manifest)
    model = spec.build(s.seed)
    _save_student(student, model, spec, distillation.probe_logits(model.to(s.compute.device), data, s.compute))
    log.info("initial student %s, seed %d", spec.model, s.seed)


def _save_student(folder: Path, model: Any, spec: NetworkSpec, logits: np.ndarray) -> str:
    digest = save_network(folder / STUDENT, model, spec)
    save_arrays(folder / PROBE, {"logits": logits}, {"student_sha256": digest})
    return digest


def read_logits(path: Path, shape: tuple[int, ...], *names: str) -> list[np.ndarray]:
    """Answers on the probe samples, (N, K) float32.

    Raises:
        InputError: they are missing, or of another shape, or no numbers.
    """
    arrays, _ = load_arrays(path, *names)
    for name in names:
        if arrays[name].shape != tuple(shape) or arrays[name].dtype != np.float32 or not np.isfinite(arrays[name]).all():
            problem = f"has no finite {name} of shape {tuple(shape)}"
            raise InputError("file", str(path), problem, "Run the step that writes it again")
    return [arrays[name] for name in names]


def load_student(folder: Path, spec: NetworkSpec) -> Any:
    """The student in an artifact's folder, as it was written there.

    Raises:
        InputError: as `rco.models.spec.load_network`; or the file is not what was written.
    """
    expected = load_metadata(folder / PROBE).get("student_sha256")
    if not isinstance(expected, str):
        raise InputError(
            "student", str(folder / PROBE), "does not say which student it is of", "Run the task that made it again"
        )
    return load_network(folder / STUDENT, expected_sha256=expected, spec=spec)


@task
def select_anchor(
    settings: Mapping[str, Any],
    *,
    previous: Mapping[str, Any],
    route: Path,
    route_index: Path,
    student: Path,
    anchor: Path,
    anchors: Path,
    last_stage: bool = False,
) -> dict[str, Any]:
    """Choose the anchor of the next stage with the student that will learn from it, and hand out that one checkpoint.

    Args:
        previous: what this function returned for the stage before; empty before stage 1.
        anchors: receives the list of all anchors chosen so far; from the last stage's task their checkpoints too, for the
            report.
        last_stage: whether this is the pipeline's last stage.

    Returns:
        chosen (indices on the route so far), stage, epoch, reason, epochs (of the stage), first_epoch, and skip: the route
        has been walked, the stage passes its student through.
    """
    s = read_settings(AnchorSettings, settings)
    index = Route.open(route_index)
    _, route_logits = index.probe()
    chosen = [int(i) for i in previous.get("chosen", [])]
    (answers,) = read_logits(student / PROBE, route_logits.shape[1:], "logits")
    hardness = route_hardness(route_logits, answers, s.tau)
    selection = next_stage(s, index, previous, hardness)
    if selection["skip"]:
        log.info("the route has been walked: this stage passes the student through")
    now = [int(i) for i in selection["chosen"]]
    weights = Route.open(route)
    ratio = relative(hardness, chosen[-1]) if chosen else None
    write_anchor(anchor, weights, now[-1], route_logits, hardness, ratio)
    write_json(anchors / "anchors.json", [index.epochs[i] for i in now])
    if last_stage:
        for i in now:
            write_anchor(anchors / f"epoch-{index.epochs[i]:04d}", weights, i, route_logits, None, None)
    return selection


def next_stage(
    s: AnchorSettings, index: Route, previous: Mapping[str, Any], hardness: np.ndarray, who: str = ""
) -> dict[str, Any]:
    """The stage after `previous`; returns what `select_anchor` does."""
    chosen = [int(i) for i in previous.get("chosen", [])]
    choice = choosing.next_anchor(s.anchors, index.epochs, index.decay_epochs, chosen=chosen, hardness=hardness)
    if choice is None:
        return {**jsonable(previous), "skip": True}
    stages = choosing.stage_count(s.anchors, index.epochs, index.decay_epochs)
    epochs = choosing.stage_epochs(s.student_epochs, stages, choice.stage, last=choice.last)
    log.info("%sstage %d: anchor epoch %d (%s), %d epochs", who, choice.stage, choice.epoch, choice.reason, epochs)
    return {
        "skip": False,
        "chosen": [*chosen, choice.index],
        "stage": choice.stage,
        "epoch": choice.epoch,
        "reason": choice.reason,
        "epochs": epochs,
        "first_epoch": int(previous["first_epoch"]) + int(previous["epochs"]) if previous else 1,
    }


def write_anchor(
    folder: Path, route: Route, i: int, logits: np.ndarray, hardness: np.ndarray | None, ratio: np.ndarray | None
) -> None:
    """One checkpoint as an artifact: weights, what is known of it, and the probe logits that its stage compares with."""
    point = route.checkpoints[i]
    source = route.folder / point.file
    verify(source, point.sha256)
    atomically(folder / ANCHOR, lambda temporary: shutil.copyfile(source, temporary))
    save_arrays(folder / TARGETS, {"anchor": logits[i], "teacher": logits[-1]})
    Anchor(
        **asdict(point),
        model=route.network.model,
        index=i,
        hardness=None if hardness is None else float(hardness[i]),
        hardness_of_route=() if hardness is None else tuple(float(h) for h in hardness),
        relative_hardness=None if ratio is None else float(ratio[i]),
    ).write(folder)


@task
def distill_stage(
    settings: Mapping[str, Any],
    *,
    selection: Mapping[str, Any],
    dataset: Path,
    anchor: Path,
    student: Path,
    distilled: Path,
    key: str = "student",
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    finished: list[resume.ResumePoints] | None = None,
) -> dict[str, Any]:
    """Train the student on one anchor; passes it through if the route has been walked.

    Args:
        student: the student's folder as the stage before left it.
        distilled: the same after this stage.
        key: names the student among those of this pipeline run.
        params: what to record beside the settings.
        tags: of the student's run in MLflow.
        finished: as for `rco.training.resume.resumable`.

    Returns:
        figures for the artifact's metadata.
    """
    s = read_settings(StageSettings, settings)
    if selection["skip"]:
        shutil.copytree(student, distilled, dirs_exist_ok=True)
        log.info("nothing to do in this stage")
        return {"skipped": True}
    from rco.objectives.make import make_objective
    from rco.training import distillation
    from rco.training.device import prepare_process

    prepare_process(s.compute)
    data = Dataset.open(dataset)
    student_spec, anchor_spec = NetworkSpec.of(s.student, data.manifest), NetworkSpec.of(s.teacher, data.manifest)
    about = Anchor.read(anchor)
    teacher_model = load_network(anchor / ANCHOR, expected_sha256=about.sha256, spec=anchor_spec)
    model = load_student(student, student_spec)
    shape = (len(data.manifest.probe), data.manifest.num_classes)
    targets = distillation.ProbeTargets(*read_logits(anchor / TARGETS, shape, "anchor", "teacher"))
    has_record = (student / "record.json").is_file()
    record = (
        Record.read(student)
        if has_record
        else Record(key=key, params={**(params or {}), **_params(s)}, data=_data_summary(data), tags=dict(tags or {}))
    )
    stage, epochs, first = int(selection["stage"]), int(selection["epochs"]), int(selection["first_epoch"])
    loss = make_objective(s.objective, model, teacher_model, data.manifest.image_shape, seed=s.train.seed)
    learns = any(True for _ in loss.parameters())
    if learns and stage > 1:
        load_weights(loss, load_state(student / OBJECTIVE)[0], student / OBJECTIVE)
    who = "" if key == "student" else f"{key}, "
    say = EpochLines(f"{who}stage {stage}, anchor epoch {about.epoch}", first + epochs - 1)
    train, size = data.split("train"), s.train.batch_size
    images = min(len(train), train.num_batches(size) * size)  # of an epoch
    passes = images * epochs if loss.needs_anchor else 0
    if s.objective.views and loss.needs_anchor:
        from rco.training.anchor import check_size

        views = min(s.objective.views, epochs)
        passes = len(train) * views
        megabytes = check_size(views, len(train), data.manifest.num_classes)
        log.info("the anchor's logits of %d views are kept: %.1f MB", views, megabytes)
    identity = {
        "settings": s,
        "selection": selection,
        "data": data.manifest.digest,
        "anchor": about.sha256,
        "targets": sha256_of(anchor / TARGETS),
        "student": sha256_of(student / STUDENT),
        "objective": sha256_of(student / OBJECTIVE) if learns and stage > 1 else "",
        "record": {"key": key, "params": params or {}, "tags": tags or {}},
    }
    with resume.resumable(
        f"distill_stage/{key}/stage-{stage}",
        identity,
        who=f"{key} {student_spec.model}, stage {stage}",
        network=student_spec.written,
        finished=finished,
    ) as points:
        record = _taken_up(points, record)
        with tracked(Context.from_environment(), record, first_step=first) as tracker:
            if loss.needs_anchor:
                tracker.log_anchor(anchor)
            for row in distillation.train_stage(
                model,
                teacher_model,
                data,
                s.objective,
                s.train,
                s.compute,
                targets,
                stage=stage,
                epochs=epochs,
                first_epoch=first,
                loss=loss,
                anchor_id=about.sha256,
                checkpointer=points,
            ):
                tracker.log(row["epoch"], _logged(row))
                say(row)
        rows = [row["metrics"] for row in record.rows if row["step"] >= first]
        figures = ("val_accuracy", "kl_to_anchor", "kl_to_teacher")
        if len(rows) != epochs or not {*figures, "images_per_second"} <= set.intersection(*map(set, rows)):
            raise InputError("resume point", key, "lacks epochs of this stage", "Delete it")
        results = {name: rows[-1][name] for name in figures}
        this = {
            "stage": stage,
            "anchor_epoch": about.epoch,
            "anchor_index": about.index,
            "anchor_val_accuracy": about.val_accuracy,
            "anchor_sha256": about.sha256,
            "reason": selection["reason"],
            "first_epoch": first,
            "last_epoch": first + epochs - 1,
            "hardness_before": list(about.hardness_of_route),
            "train_seconds": sum(images / row["images_per_second"] for row in rows),
            "teacher_forward_passes": passes,
            **results,
        }
        record.stages = [*(told for told in record.stages if told["stage"] != stage), this]
        _save_student(distilled, model, student_spec, distillation.probe_logits(model, data, s.compute))
        if learns:
            save_model(distilled / OBJECTIVE, loss)
        record.write(distilled)
    return {"stage": stage, "anchor_epoch": about.epoch, **results}


@task
def evaluate(settings: Mapping[str, Any], *, dataset: Path, student: Path, anchor: Path, evaluation: Path) -> dict[str, Any]:
    """Measure the student and the converged teacher on the test part, which nothing before has touched.

    Writes evaluation.json, and an example batch with the student's answer for whoever serves it.

    Returns:
        headline figures.
    """
    s = read_settings(EvaluateSettings, settings)
    from rco.evaluation import classification as measure
    from rco.models.predict import predict
    from rco.strategies.hardness import kl
    from rco.training.device import prepare_process

    prepare_process(s.compute)
    data = Dataset.open(dataset)
    manifest = data.manifest
    test = data.split("test")
    about = Anchor.read(anchor)
    models = {
        "teacher": load_network(anchor / ANCHOR, expected_sha256=about.sha256, spec=NetworkSpec.of(s.teacher, manifest)),
        "student": load_student(student, NetworkSpec.of(s.student, manifest)),
    }
    result: dict[str, Any] = {}
    logits = {}
    for name, model in models.items():
        log.info("measuring the %s on %d test images", name, len(test))
        model.to(s.compute.device)
        answers, labels = predict(
            model, test, device=s.compute.device, precision=s.compute.precision, workers=s.compute.workers
        )
        logits[name] = answers
        timing = measure.latency(model, manifest.image_shape, device=s.compute.device)
        result[name] = {
            **measure.measure(answers, labels, manifest.num_classes),
            "parameters": measure.parameter_count(model),
            "macs": measure.count_macs(model, manifest.image_shape),
            "latency_ms": timing.median_ms,
            "latency_p95_ms": timing.p95_ms,
        }
    if manifest.open_classes:
        result["open_set"] = _evaluate_open_set(models, data, s)
    result["congruence_kl"] = kl(logits["teacher"], logits["student"], s.tau)
    result["tau"] = s.tau
    result["class_names"] = list(manifest.class_names)
    result["device"] = s.compute.device
    write_json(evaluation / EVALUATION, result)
    _write_example(evaluation, data, models["student"].cpu())
    return {
        f"{name}_{figure}": result[name][figure]
        for name in models
        for figure in ("accuracy", "parameters", "macs", "latency_ms")
    } | openset.both_figures(result.get("open_set"))


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What is needed of what `evaluate` says of a network."""

    accuracy: float
    cross_entropy: float
    ece: float
    parameters: int
    macs: int
    latency_ms: float
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    student: _Measured
    teacher: _Measured
    congruence_kl: float
    tau: float
    class_names: tuple[str, ...]
    device: str
    open_set: openset.OpenSet | None = None

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        for model in (self.student, self.teacher):
            if len(model.confusion) != classes or {len(row) for row in model.confusion} != {classes}:
                raise InputError("confusion", len(model.confusion), f"is not of {classes} classes", "Evaluate again")


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What `evaluate` has written.

    Raises:
        InputError: it is something else.
    """
    path = folder / EVALUATION
    read_as(_Evaluation, path, "Run evaluate again", partial=True)
    document: dict[str, Any] = read_json(path)
    return document


def _evaluate_open_set(models: Mapping[str, Any], data: Dataset, s: EvaluateSettings) -> dict[str, Any]:
    """Verification and identification of the classes that nothing was trained on, by teacher and student."""
    classes = list(data.manifest.open_classes)
    result: dict[str, Any] = {"classes": classes}
    for name, model in models.items():
        log.info("comparing the %s's embeddings of %d images of %d unseen classes", name, len(data.split("open")), len(classes))
        result[name] = measure_unseen(model, data, s.compute)
    return result


def measure_unseen(model: Any, data: Dataset, compute: ComputeConfig) -> dict[str, Any]:
    """What `rco.evaluation.openset.measure` says of a network's embeddings of the open classes."""
    from rco.models.embeddings import Embedder
    from rco.models.predict import predict

    vectors, labels = predict(
        Embedder(model), data.split("open"), device=compute.device, precision=compute.precision, workers=compute.workers
    )
    return openset.measure(vectors, labels)


def _write_example(folder: Path, data: Dataset, student: Any) -> None:
    """Two validation images as pixels in 0..1, and the student's logits for them."""
    import torch

    x, _ = next(iter(data.probe().batches(2)))
    shape = (1, -1, 1, 1)
    mean, std = (torch.tensor(v, dtype=torch.float32).view(shape) for v in (data.manifest.mean, data.manifest.std))
    with torch.inference_mode():
        pixels = x * std + mean
        answer = student((pixels - mean) / std)
    arrays = {"pixels": pixels.numpy(), "logits": answer.numpy(), "mean": mean.numpy(), "std": std.numpy()}
    save_arrays(folder / "example.safetensors", arrays)


@task
def register_student(settings: Mapping[str, Any], *, student: Path, evaluation: Path) -> dict[str, Any]:
    """Put the student into the MLflow model registry, unless these very weights are there already, and make it the champion
    if it is better than the one that is.

    Returns:
        name, version, champion (whether it is now) and reason; or nothing if no registry is used.
    """
    s = read_settings(FilingSettings, settings)
    context = Context.from_environment()
    if not s.registered_model or not context.active:
        log.info("the student is not registered: %s", "no name is given" if context.active else "nothing is tracked")
        return {}
    weights = student / STUDENT
    digest = sha256_of(weights)
    measured = read_evaluation(evaluation)
    with forgiving("The registration of the student"):
        version = registered_version(context, s.registered_model, digest)
        if version is None:
            log.info("exporting the student")
            version = _register(s, context, weights, digest, evaluation)
            log.info("registered as %s version %s", s.registered_model, version)
        else:
            log.info("these weights are %s version %s already", s.registered_model, version)
        promotion = promote(
            context,
            s.registered_model,
            version,
            accuracy=measured["student"]["accuracy"],
            data_digest=Record.read(student).data["digest"],
            margin=s.champion_margin,
        )
        log.info(
            "version %s is %s: %s", version, "the champion" if promotion.champion else "not the champion", promotion.reason
        )
        return {"name": s.registered_model, "version": version, **promotion._asdict()}
    return {}


def _register(s: FilingSettings, context: Context, weights: Path, digest: str, evaluation: Path) -> str:
    import torch

    from rco.models.normalized import Normalized

    arrays, _ = load_arrays(evaluation / "example.safetensors", "pixels", "logits", "mean", "std")
    _, metadata = load_state(weights)
    spec = described(metadata, weights)
    if spec.model != s.student.model:
        raise InputError("student", s.student.model, f"is not the {spec.model} that was trained", "Run evaluate again")
    model = Normalized(
        load_network(weights, spec=spec), torch.from_numpy(arrays["mean"]), torch.from_numpy(arrays["std"])
    ).eval()
    return register(
        context,
        s.registered_model,
        model,
        Record.read(weights.parent),
        example=arrays["pixels"],
        expected=arrays["logits"],
        weights=weights,
        sha256=digest,
        params={"model": spec.model, "image_size": spec.image_size, "num_classes": spec.num_classes},
    )


@task
def report(
    settings: Mapping[str, Any],
    *,
    registered: Mapping[str, Any],
    route_index: Path,
    student: Path,
    anchors: Path,
    evaluation: Path,
    folder: Path,
) -> dict[str, Any]:
    """Tell people what came out, and bring MLflow up to date with everything that cached tasks did not say.

    Writes summary.json, report.html, report.md and the pictures into `folder`.

    Returns:
        the summary.
    """
    s = read_settings(FilingSettings, settings)
    from rco.reporting import report as telling

    context = Context.from_environment()
    parent = None
    if context.active:
        with forgiving("The parent run"):
            parent = open_parent(context, **_parent(s))
    learner, index = Record.read(student), Route.open(route_index)
    summary = telling.write(
        folder,
        parameters=s.parameters,
        index=index,
        student=learner,
        student_logits=read_logits(student / PROBE, index.probe()[1].shape[1:], "logits")[0],
        evaluation=read_evaluation(evaluation),
        registered=registered,
        context=context,
        parent_run_id=parent,
    )
    if context.active:
        student_figures = {
            f"test_{name}": summary["student"][name] for name in ("accuracy", "ece", "parameters", "macs", "latency_ms")
        }
        headline = {
            **{f"student_{name}": value for name, value in student_figures.items()},
            "teacher_test_accuracy": summary["teacher"]["accuracy"],
            "teacher_parameters": summary["teacher"]["parameters"],
            "congruence_kl": summary["congruence_kl"],
            "stages": len(summary["stages"]),
            **openset.both_figures(summary.get("open_set")),
        }
        if "open_set" in summary:
            student_figures |= openset.figures(summary["open_set"]["student"])
        letter = outbox.PendingReport(
            parent=_parent(s),
            deliveries=run_deliveries(
                [Record.read(route_index), learner],
                sorted(path for path in anchors.iterdir() if path.is_dir()),
                {**student_figures, "test_congruence_kl": summary["congruence_kl"]},
            ),
            headline=headline,
            note=(folder / "report.md").read_text(),
        )
        lacking = s.registered_model and not registered

        def registration(place: Path) -> None:
            shutil.copytree(student, place / "student")
            shutil.copytree(evaluation, place / "evaluation")
            write_json(place / "settings.json", settings)

        tell(context, letter, folder, registration if lacking else None)
    return summary


def _parent(s: FilingSettings) -> dict[str, Any]:
    data = str(s.parameters["dataset"]).rstrip("/").rsplit("/", 1)[-1]
    name = f"{data} {s.parameters['teacher']} to {s.parameters['student']} {s.parameters['strategy']}"
    return {"experiment": s.experiment, "name": name, "params": s.parameters}


def tell(
    context: Context,
    letter: outbox.PendingReport,
    folder: Path,
    registration: Callable[[Path], object] | None = None,
) -> None:
    """Deliver what a report has to say; keep it in the report's folder if the server cannot be told now.

    Args:
        registration: as for `rco.tracking.outbox.keep`, if the registry lacks the model.
    """
    log.info("completing the runs in MLflow")
    with forgiving("The report") as attempt:
        letter.send(context, report_files(folder))
    if attempt.failed or registration is not None:
        outbox.keep(folder, letter, context, registration)
        log.warning("what MLflow lacks is kept beside the report; when the server is back, deliver it with: rco sync")


def sync(report: Path, *, anywhere: bool = False) -> str:
    """Deliver what waits in a report's outbox to the server that MLFLOW_TRACKING_URI names, then clear the outbox. Safe to
    repeat: what the server has is not sent again.

    Args:
        anywhere: also to another server than the one that was away.

    Returns:
        the parent's run id; empty if the server is still away, and all is kept.

    Raises:
        InputError: no or a damaged outbox, or a server that it was not meant for.
    """
    letter, pipeline_run, meant_for = outbox.take(report)
    os.environ["RCO_PIPELINE_RUN"] = pipeline_run
    context = Context.from_environment()
    here = without_credentials(context.tracking_uri)
    if not here or (here != meant_for and not anywhere):
        raise InputError(
            "MLFLOW_TRACKING_URI",
            here,
            f"is not where run {pipeline_run} was tracked",
            f"Set it to {meant_for}, or give --anywhere with a server",
        )
    run_id = ""
    with forgiving(f"Run {pipeline_run}"):
        run_id = letter.send(context, report_files(report))
    registration = report / outbox.FOLDER / outbox.REGISTRATION
    if run_id and registration.is_dir():
        settings = read_json(registration / "settings.json")
        if not register_student(settings, student=registration / "student", evaluation=registration / "evaluation"):
            return ""
    if run_id:
        outbox.clear(report)
    return run_id


def report_files(folder: Path) -> list[Path]:
    """Pictures, page and tables of a report."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())


@task
def close_run(*, succeeded: bool) -> int:
    """End every run of this pipeline run that is still open; returns how many there were. If the pipeline has succeeded, its
    resume points go.

    Args:
        succeeded: whether it did.
    """
    context = Context.from_environment()
    closed = 0
    if context.active:
        with forgiving("The end of the pipeline run"):
            closed = end_open_runs(context, "FINISHED" if succeeded else "FAILED")
    if succeeded:
        resume.clear_run()
    return closed


def _params(s: TeacherSettings | StageSettings) -> dict[str, Any]:
    """Settings as MLflow parameters: flat names, one level of dots."""
    flat: dict[str, Any] = {}
    for name, value in jsonable(s).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        elif value not in (None, ""):
            flat[name] = value
    return flat


def _arguments(function: Callable[..., Any], file: Path) -> dict[str, Any]:
    """Keyword arguments of a task from a JSON file.

    Raises:
        InputError: no such file, or other arguments than the task has.
    """
    values = read_json(file)
    import inspect

    hints = inspect.get_annotations(function, eval_str=False)

    def typed(name: str, value: Any) -> Any:
        if "Path" not in str(hints.get(name)) or value is None:
            return value
        return [Path(one) for one in value] if isinstance(value, list) else Path(value)

    try:
        inspect.signature(function).bind(**values)
        return {name: typed(name, value) for name, value in values.items()}
    except TypeError as error:
        raise InputError("arguments", str(file), f"are not those of the task ({error})", "Name them as it does") from None


def main(arguments: list[str], module: str = "rco.tasks") -> int:
    """`python -m rco.tasks NAME arguments.json`: the keyword arguments of a task as JSON; paths as text."""
    if len(arguments) != 2 or arguments[0] not in TASKS:
        print(f"usage: python -m {module} {{{','.join(TASKS)}}} arguments.json", file=sys.stderr)
        return 2
    name, file = arguments
    try:
        result = TASKS[name](**_arguments(TASKS[name], Path(file)))
    except InputError as error:
        print(f"{PREFIX}{error}", file=sys.stderr)
        return 2
    except (DivergenceError, DiskFullError) as error:
        print(f"{PREFIX}{error}", file=sys.stderr)
        return 1
    print(json.dumps(jsonable(result)))
    return 0
