"""The task that chooses the anchor of the next stage."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rco.core.documents import write_json
from rco.core.files import atomically, verify
from rco.core.settings import jsonable
from rco.core.tensors import save_arrays
from rco.models.route import Anchor, Route
from rco.strategies import anchors as choosing
from rco.strategies.hardness import relative, route_hardness
from rco.tasks.process import log, read_settings, task
from rco.tasks.settings import (
    AnchorSettings,
)
from rco.tasks.students import (
    ANCHOR,
    PROBE,
    TARGETS,
    read_logits,
)


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
