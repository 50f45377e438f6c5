"""The task that trains a student on one anchor."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rco.core.errors import InputError
from rco.core.files import sha256_of
from rco.core.tensors import load_state, save_model
from rco.data.dataset import Dataset
from rco.models.route import Anchor
from rco.models.spec import NetworkSpec, load_network
from rco.models.weights import load_weights
from rco.tasks.process import EpochLines, log, read_settings, task
from rco.tasks.settings import (
    StageSettings,
)
from rco.tasks.students import (
    ANCHOR,
    OBJECTIVE,
    STUDENT,
    TARGETS,
    data_summary,
    load_student,
    logged,
    read_logits,
    save_student,
    settings_as_params,
    taken_up,
)
from rco.tracking.context import Context
from rco.tracking.record import Record
from rco.tracking.tracker import tracked
from rco.training import resume


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
        else Record(key=key, params={**(params or {}), **settings_as_params(s)}, data=data_summary(data), tags=dict(tags or {}))
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
        record = taken_up(points, record)
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
                tracker.log(row["epoch"], logged(row))
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
        save_student(distilled, model, student_spec, distillation.probe_logits(model, data, s.compute))
        if learns:
            save_model(distilled / OBJECTIVE, loss)
        record.write(distilled)
    return {"stage": stage, "anchor_epoch": about.epoch, **results}
