"""Anchors as LoggedModels: each checkpoint is uploaded once per experiment, and linked to every run that learns from it.

Several pipelines may need an anchor at the same time. Each claims it (a LoggedModel that is PENDING), the process with the
oldest claim uploads it, and the others wait. On a server that has no LoggedModels an anchor is an artifact of each run.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from rco.core.files import verify
from rco.models.route import ANCHOR, Anchor, anchor_folder
from rco.tracking.model_run import ModelRun
from rco.tracking.probe import has_logged_models
from rco.tracking.runs import ANCHOR_TAG

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

ANCHOR_SECONDS = 60.0  # for another process to upload the anchor that it has claimed; a slower one counts as dead
_ANCHOR_FILE = "anchor.safetensors"
#: (server, experiment, sha256) -> the anchor's LoggedModel: a task asks once, for the students of all its seeds.
_READY: dict[tuple[str, str, str], str] = {}


def anchor_tag(epoch: int) -> str:
    """The tag of a student's run that holds the LoggedModel id of the anchor of an epoch, or the address of its artifacts."""
    return f"{ANCHOR_TAG}{epoch}"


def log_anchor(run: ModelRun, folder: Path) -> None:
    """Make an anchor known as a LoggedModel, and the run as one that learnt from it. Does nothing if the run has it already.
    On a server without logged models the anchor becomes a plain artifact of the run.

    Args:
        folder: with anchor.json and the checkpoint, as `rco.tasks.selection.write_anchor` writes it.

    Raises:
        InputError: the checkpoint is damaged.
    """
    from mlflow.entities import LoggedModelInput, LoggedModelOutput, Metric, RunTag

    anchor = Anchor.read(folder)
    tag = anchor_tag(anchor.epoch)
    if tag in run.anchors:
        return
    model_id: str | None = None
    if not has_logged_models(run.client, run.experiment_id):
        where = _log_plainly(run, folder, anchor)
    else:
        model_id, uploaded = _logged_model(run, folder, anchor)
        where = model_id
        if uploaded:
            run.client.log_outputs(run.run_id, models=[LoggedModelOutput(model_id, step=anchor.epoch)])
        else:
            run.client.log_inputs(run.run_id, models=[LoggedModelInput(model_id)])
    now = time.time_ns() // 1_000_000
    metrics = [
        Metric(f"anchor_{name}", getattr(anchor, name), now, anchor.epoch, model_id=model_id)
        for name in ("val_accuracy", "hardness", "relative_hardness", "lr", "train_loss")
        if getattr(anchor, name) is not None
    ]
    run.client.log_batch(run.run_id, metrics=metrics, tags=[RunTag(tag, where)])
    run.anchors.add(tag)


def _log_plainly(run: ModelRun, folder: Path, anchor: Anchor) -> str:
    """The address of an anchor among the artifacts of the run, where this process has uploaded it."""
    verify(folder / _ANCHOR_FILE, anchor.sha256)
    place = f"anchors/{anchor_folder(anchor.epoch)}"
    for file in (folder / _ANCHOR_FILE, folder / ANCHOR):
        run.client.log_artifact(run.run_id, str(file), place)
    return f"runs:/{run.run_id}/{place}"


def _logged_model(run: ModelRun, folder: Path, anchor: Anchor) -> tuple[str, bool]:
    """The id of an anchor's LoggedModel, and whether this process has uploaded it."""
    client, sha256 = run.client, anchor.sha256
    known = (client.tracking_uri, run.experiment_id, sha256)
    if known not in _READY and (ready := _claims(run, sha256, "READY")):
        _READY[known] = ready[0].model_id
    if known in _READY:
        return _READY[known], False
    verify(folder / _ANCHOR_FILE, sha256)
    claim = client.create_logged_model(
        run.experiment_id,
        name=f"anchor-epoch-{anchor.epoch:04d}",
        source_run_id=run.run_id,
        model_type="anchor",
        tags={"rco.sha256": sha256, "rco.epoch": str(anchor.epoch)},
        params={"model": str(anchor.model), "epoch": str(anchor.epoch), "sha256": sha256},
    )
    try:
        if other := _await_older_claim(run, claim, sha256):
            client.delete_logged_model(claim.model_id)
            return other, False
        for file in (folder / _ANCHOR_FILE, folder / ANCHOR):
            client.log_model_artifact(claim.model_id, str(file))
    except Exception:
        client.finalize_logged_model(claim.model_id, "FAILED")
        raise
    client.finalize_logged_model(claim.model_id, "READY")
    _READY[known] = claim.model_id
    return claim.model_id, True


def _claims(run: ModelRun, sha256: str, *statuses: str) -> list[LoggedModel]:
    """LoggedModels of a checkpoint in one of these states, the oldest first."""
    found = run.client.search_logged_models([run.experiment_id], f"tags.`rco.sha256` = '{sha256}'", max_results=50)
    wanted = [model for model in found if str(model.status).rpartition(".")[2] in statuses]
    return sorted(wanted, key=lambda model: (model.creation_timestamp, model.model_id))


def _await_older_claim(run: ModelRun, claim: LoggedModel, sha256: str) -> str | None:
    """The id of the LoggedModel that another process has uploaded; None: it is this process that must upload."""
    deadline = time.monotonic() + ANCHOR_SECONDS
    while time.monotonic() < deadline:
        claims = _claims(run, sha256, "READY", "PENDING")
        if ready := [model for model in claims if str(model.status).endswith("READY")]:
            return str(ready[0].model_id)
        if claims and claims[0].model_id == claim.model_id:
            return None
        time.sleep(0.5)
    return None
