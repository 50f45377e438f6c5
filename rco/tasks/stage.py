"""One stage of one student: load what it needs, train, write what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rco.config.plugins import used_by
from rco.config.shape import STUDENT as STUDENT_KEY
from rco.core.errors import InputError
from rco.core.files import sha256_of
from rco.core.settings import jsonable
from rco.core.tensors import load_state, save_model
from rco.data.dataset import Dataset
from rco.data.inputs import Inputs
from rco.data.network_input import NetworkInput
from rco.data.referred import open_dataset
from rco.models.route import Anchor, anchor_folders
from rco.models.spec import NetworkSpec
from rco.models.weights import load_weights
from rco.tasks.process import EpochLines, log
from rco.tasks.selection import Stage
from rco.tasks.settings import StageSettings
from rco.tasks.students import (
    ANCHOR,
    EMA,
    OBJECTIVE,
    OPTIMIZER,
    PROBE,
    STUDENT,
    TARGETS,
    as_training,
    data_summary,
    found_again,
    load_student,
    logged,
    one_schedule_of,
    read_logits,
    save_optimizer,
    save_student,
    settings_as_params,
    taken_up,
)
from rco.tracking.context import Context
from rco.tracking.record import FILE as RECORD
from rco.tracking.record import Record
from rco.tracking.tracker import Tracker, tracked
from rco.training import resume
from rco.training.identity import for_any_workers
from rco.training.results import Result, Training
from rco.training.resume_points import ResumePoints

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from rco.objectives.stage import StageLoss
    from rco.training.distillation import ProbeTargets
    from rco.training.ema import Ema
    from rco.training.loop import OneSchedule

_RESULTS = ("val_accuracy", "kl_to_anchor", "kl_to_teacher")
_OF_EMA = "val_accuracy_ema"


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """All that one stage works with.

    Attributes:
        anchor_data: the data as the anchors take them.
        anchor: the network; of several anchors, that of their mean.
        anchor_id: names its answers.
        about: of each anchor.
        anchor_folders: of the anchors' files.
        objective: as the stage before left it.
        ema: keeps the moving average of this stage; None: there is none.
        record: of the student, as the stage before left it.
        images: of an epoch.
        one_schedule: of all stages, with the optimiser as the stage before left it; None: every stage restarts.
        computation: all that the weights after this stage depend on.
        identity: all that the record depends on, too.
    """

    key: str
    settings: StageSettings
    stage: Stage
    data: Dataset
    anchor_data: Dataset
    spec: NetworkSpec
    student: nn.Module
    anchor: nn.Module
    anchor_id: str
    about: tuple[Anchor, ...]
    anchor_folders: list[Path]
    targets: ProbeTargets
    objective: StageLoss
    ema: Ema | None
    record: Record
    images: int
    one_schedule: OneSchedule | None
    computation: dict[str, Any]
    identity: dict[str, Any]

    @property
    def learns(self) -> bool:
        """Whether the objective has weights of its own."""
        return any(True for _ in self.objective.parameters())

    @property
    def hands_on_optimizer(self) -> bool:
        """Whether a stage follows that goes on with the optimiser of this one."""
        return self.one_schedule is not None and self.stage.last_epoch < self.one_schedule.epochs

    @property
    def label(self) -> str:
        """The student and the stage, in words."""
        return f"{self.key} {self.spec.model}, stage {self.stage.stage}"

    @property
    def prefix(self) -> str:
        """Of lines in the log, where there are several students."""
        return "" if self.key == STUDENT_KEY else f"{self.key}, "

    @property
    def passes(self) -> int:
        """Images that the anchors answer in this stage: every one of every epoch, or of every view once."""
        if not self.objective.needs_anchor:
            return 0
        views = min(self.settings.objective.views, self.stage.epochs)
        one = len(self.data.split("train")) * views if views else self.images * self.stage.epochs
        return one * len(self.about)


def distill_stage(
    s: StageSettings,
    stage: Stage,
    *,
    dataset: Path,
    anchor: Path,
    student: Path,
    distilled: Path,
    teacher_input: NetworkInput | None = None,
    key: str = STUDENT_KEY,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    resumable: Callable[..., AbstractContextManager[ResumePoints]] = resume.resumable,
) -> dict[str, Any]:
    """One stage of one student, from folder to folder. Of several workers the first one writes, and has the figures.

    Args:
        anchor: as `rco.tasks.selection.write_anchors` makes it.
        student: the student's folder as the stage before left it.
        distilled: the same after this stage.
        teacher_input: what the anchors take; None: what the student does.
        key: names the student among those of this pipeline run.
        params: what to record beside the settings.
        tags: of the student's run in MLflow.
        resumable: `rco.training.resume.resumable`, or that of the group to which this training belongs.

    Returns:
        stage, anchor_epochs and results; and trained_by, if nothing was trained: the pipeline run whose result was found.
    """
    from rco.training.device import hardware, prepare_process
    from rco.training.distillation import probe_logits
    from rco.training.distributed import World

    world = World.current()
    prepare_process(s.compute)
    origin = {"key": key, "params": dict(params or {}), "tags": dict(tags or {})}
    loaded = _load(s, stage, origin, teacher_input, dataset=dataset, anchor=anchor, student=student)
    place = f"distill_stage/{key}/stage-{stage.stage}"
    names = (
        STUDENT,
        PROBE,
        *((OBJECTIVE,) if loaded.learns else ()),
        *((OPTIMIZER,) if loaded.hands_on_optimizer else ()),
        *((EMA,) if loaded.ema else ()),
    )
    computation = {**loaded.computation, "hardware": hardware(s.compute), "workers": world.size}
    result = Result("stage", for_any_workers(computation), names, label=loaded.label)
    found = result.find(distilled, partial(_check, stage)) if world.main else None
    if world.of_main(found is not None):
        if found is None:
            return {}
        log.info("%s%s: %s", loaded.prefix, stage.label, found.words)
        resume.forget(place, loaded.identity)
        record = _adopt(loaded, found)
        return {**_conclude(loaded, record, distilled), "trained_by": found.pipeline_run}
    with resumable(place, loaded.identity, label=loaded.label, network=loaded.spec.written) as points:
        record, training = _run(loaded, points)
        logits = probe_logits(loaded.student, loaded.data, s.compute)
        if not world.main:
            return {}
        figures = _conclude(loaded, record, distilled)
        _save(loaded, logits, distilled)
        result.store(distilled, training)
        return figures


def _load(
    s: StageSettings,
    stage: Stage,
    origin: Mapping[str, Any],
    teacher_input: NetworkInput | None,
    *,
    dataset: Path,
    anchor: Path,
    student: Path,
) -> _Loaded:
    """Read everything from the folders.

    Args:
        origin: key, params and tags of the record that a student begins with; those of later stages carry it on.
    """
    from rco.objectives.make import make_objective
    from rco.training.distillation import ProbeTargets, anchor_of
    from rco.training.ema import Ema

    data, folders = open_dataset(dataset), anchor_folders(anchor)
    anchor_data = data.seen_by(teacher_input) if teacher_input else data
    spec, teacher_spec = NetworkSpec.of(s.student, data.manifest), NetworkSpec.of(s.teacher, anchor_data.manifest)
    about = tuple(Anchor.read(folder) for folder in folders)
    files = [(folder / ANCHOR, each.sha256) for folder, each in zip(folders, about, strict=True)]
    anchor_network, anchor_id = anchor_of(files, teacher_spec, s.objective)
    network = load_student(student, spec)
    shape = (len(data.manifest.probe), data.manifest.num_classes)
    targets = ProbeTargets(*read_logits(anchor / TARGETS, shape, "anchor", "teacher"))
    if (student / RECORD).is_file():
        record = Record.read(student)
    else:
        params = {**origin["params"], **settings_as_params(s)}
        record = Record(key=origin["key"], params=params, data=data_summary(data), tags=origin["tags"])
    images_of, anchors_images = data.manifest.image_shape, anchor_data.manifest.image_shape
    objective = make_objective(s.objective, network, anchor_network, images_of, anchor_shape=anchors_images, seed=s.train.seed)
    has_learnt = stage.stage > 1 and any(True for _ in objective.parameters())
    if has_learnt:
        load_weights(objective, load_state(student / OBJECTIVE)[0], student / OBJECTIVE)
    one_schedule = one_schedule_of(s, stage.stage, stage.epochs, student)
    train, size = data.split("train"), s.train.batch_size
    images = min(len(train), train.num_batches(size) * size)
    computation = {
        "settings": {name: getattr(s, name) for name in ("teacher", "student", "train", "objective", "ema", "compute", "code")},
        "plugins": used_by(s.objective, s.train),
        "stage": {"stage": stage.stage, "epochs": stage.epochs, "first_epoch": stage.first_epoch},
        "data": data.manifest.digest,
        "anchor": [each.sha256 for each in about],
        "targets": sha256_of(anchor / TARGETS),
        "student": sha256_of(student / STUDENT),
        "objective": sha256_of(student / OBJECTIVE) if has_learnt else "",
    }
    if one_schedule:  # only then: what restarts keeps its identity
        computation["optimizer"] = sha256_of(student / OPTIMIZER) if stage.stage > 1 else "one schedule begins"
    if anchor_data is not data:  # likewise
        computation["teacher_input"] = jsonable(anchor_data.input)
    return _Loaded(
        key=origin["key"],
        settings=s,
        stage=stage,
        data=data,
        anchor_data=anchor_data,
        spec=spec,
        student=network,
        anchor=anchor_network,
        anchor_id=anchor_id,
        about=about,
        anchor_folders=folders,
        targets=targets,
        objective=objective,
        ema=Ema(s.ema.ema_decay) if s.ema.ema_decay else None,
        record=record,
        images=images,
        one_schedule=one_schedule,
        computation=computation,
        identity={**computation, "settings": s, "selection": jsonable(stage), "record": origin},
    )


def _adopt(loaded: _Loaded, found: Training) -> Record:
    """The student's record as if the epochs that were found had been trained here; MLflow is told of them."""
    record = found_again(loaded.record, found)
    with tracked(Context.from_environment(), record, first_step=loaded.stage.first_epoch) as tracker:
        _log_anchors(loaded, tracker)
    return record


def _log_anchors(loaded: _Loaded, tracker: Tracker) -> None:
    for folder in loaded.anchor_folders if loaded.objective.needs_anchor else ():
        tracker.log_anchor(folder)


def _mention_views(loaded: _Loaded) -> None:
    """Say what the logits of the views take.

    Raises:
        InputError: they do not fit into memory.
    """
    if not (loaded.objective.needs_anchor and loaded.settings.objective.views):
        return
    from rco.training.anchor import check_size

    views = min(loaded.settings.objective.views, loaded.stage.epochs)
    megabytes = check_size(views, len(loaded.data.split("train")), loaded.data.manifest.num_classes)
    log.info("the anchor's logits of %d views are kept: %.1f MB", views, megabytes)


def _run(loaded: _Loaded, points: ResumePoints) -> tuple[Record, Training]:
    """Train; returns the student's record with the epochs of this stage, and these alone."""
    from rco.training.distillation import train_stage

    _mention_views(loaded)
    s, stage = loaded.settings, loaded.stage
    report_epoch = EpochLines(f"{loaded.prefix}{stage.label}", stage.last_epoch)
    record = taken_up(points, loaded.record)
    with tracked(Context.from_environment(), record, first_step=stage.first_epoch) as tracker:
        _log_anchors(loaded, tracker)
        for row in train_stage(
            loaded.student,
            loaded.anchor,
            loaded.data,
            s.objective,
            s.train,
            s.compute,
            loaded.targets,
            stage=stage.stage,
            epochs=stage.epochs,
            first_epoch=stage.first_epoch,
            anchor_data=loaded.anchor_data,
            loss=loaded.objective,
            anchor_id=loaded.anchor_id,
            checkpointer=points,
            one_schedule=loaded.one_schedule,
            ema=loaded.ema,
        ):
            tracker.log(row["epoch"], logged(row))
            report_epoch(row)
    return record, as_training(record, tracker, stage.first_epoch)


def _check(stage: Stage, folder: Path, training: Training) -> None:
    _metrics(stage, jsonable(training.rows), "result")


def _metrics(stage: Stage, rows: Sequence[Mapping[str, Any]], source: str) -> list[Mapping[str, float]]:
    """The metrics of the stage's epochs among the rows of a record.

    Args:
        source: of the rows, for messages.

    Raises:
        InputError: an epoch is missing, or a figure in it.
    """
    of_stage = [row for row in rows if row["step"] >= stage.first_epoch]
    metrics = [row["metrics"] for row in of_stage]
    steps = list(range(stage.first_epoch, stage.last_epoch + 1))
    if [row["step"] for row in of_stage] != steps or not all({*_RESULTS, "images_per_second"} <= set(m) for m in metrics):
        raise InputError(source, stage.label, "lacks epochs of this stage", "Delete it")
    return metrics


def _save(loaded: _Loaded, logits: np.ndarray, distilled: Path) -> None:
    """Write what has been trained: the student, its logits (N, K) on the probe samples, the objective, and the optimiser."""
    save_student(distilled, loaded.student, loaded.spec, logits, loaded.ema.network if loaded.ema else None)
    if loaded.learns:
        save_model(distilled / OBJECTIVE, loaded.objective)
    if loaded.hands_on_optimizer and loaded.one_schedule and loaded.one_schedule.optimizer is not None:
        save_optimizer(distilled, loaded.one_schedule.optimizer)


def _conclude(loaded: _Loaded, record: Record, distilled: Path) -> dict[str, Any]:
    """Write the record, with the stage in it; returns the figures of the stage."""
    stage, last = loaded.stage, loaded.about[-1]
    rows = _metrics(stage, record.rows, "resume point")
    results = {name: rows[-1][name] for name in (*_RESULTS, *((_OF_EMA,) if loaded.ema else ()))}
    summary = {
        "stage": stage.stage,
        "anchor_epoch": last.epoch,
        "anchor_index": last.index,
        "anchor_val_accuracy": last.val_accuracy,
        "anchor_sha256": last.sha256,
        "anchors": [
            {"epoch": a.epoch, "index": a.index, "val_accuracy": a.val_accuracy, "sha256": a.sha256} for a in loaded.about
        ],
        "reason": stage.reason,
        "first_epoch": stage.first_epoch,
        "last_epoch": stage.last_epoch,
        "hardness_before": list(last.hardness_of_route),
        "train_seconds": sum(loaded.images / row["images_per_second"] for row in rows),
        "teacher_forward_passes": loaded.passes,
        **results,
    }
    record.stages = [*(other for other in record.stages if other["stage"] != stage.stage), summary]
    record.write(distilled)
    Inputs.of(loaded.data.manifest).write(distilled)
    return {"stage": stage.stage, "anchor_epochs": list(stage.anchor_epochs), **results}
