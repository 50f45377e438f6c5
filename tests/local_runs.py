"""Local runs of the whole pipeline on real digits, as small as they can be, and what they have left in MLflow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pipelines.local.run import run
from rco.strategies.base import STRATEGIES

TINY = {
    "teacher": "digits-cnn-s",
    "student": "digits-mlp",
    "teacher_epochs": 6,
    "teacher_milestones": [2, 4],
    "checkpoint_every": 1,
    "epochs": 6,
    "n_anchors": 3,
    "threads": 1,
    "workers": 0,
}


#: Those of `TINY` that mean nothing beside a route.
TEACHING = ("teacher_epochs", "teacher_milestones", "checkpoint_every")


def tiny(**parameters: Any) -> dict[str, Any]:
    """`TINY` and others, but for what would mean nothing: anchors where the strategy has none, a training beside a route."""
    counts = parameters.get("strategy", "greedy") in STRATEGIES.owners("n_anchors")
    unread = {*(() if counts else ("n_anchors",)), *(TEACHING if parameters.get("route") else ())}
    return {**{name: value for name, value in TINY.items() if name not in unread}, **parameters}


ONE_STAGE = {"strategy": "explicit", "anchor_epochs": [6]}


class Ran:
    """One run of the pipeline and what it said."""

    def __init__(self, home: Path, **parameters: Any) -> None:
        self.lines: list[str] = []
        self.home = home
        self.summary = run(tiny(**parameters), home, show=self.lines.append)

    @property
    def cached(self) -> set[str]:
        """The tasks that were not run again."""
        return {line.split(":")[0] for line in self.lines if "taken from the cache" in line}


def flags(parameters: dict[str, Any]) -> list[str]:
    """The same parameters for the command line."""
    return [
        f"--{name.replace('_', '-')}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in parameters.items()
    ]


def tracking_uri(home: Path) -> str:
    return f"sqlite:///{home}/mlflow.db"


def client(home: Path) -> Any:
    import mlflow

    mlflow.set_tracking_uri(tracking_uri(home))
    mlflow.set_registry_uri(tracking_uri(home))
    return mlflow.MlflowClient(tracking_uri(home))


def runs_of(home: Path, parent_run_id: str) -> tuple[Any, dict[str, Any]]:
    """The parent run and its children by key."""
    c = client(home)
    parent = c.get_run(parent_run_id)
    children = c.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return parent, {child.data.tags["rco.key"]: child for child in children}


def statuses(home: Path) -> set[str]:
    """Of all runs that MLflow has."""
    c = client(home)
    return {r.info.status for e in c.search_experiments() for r in c.search_runs([e.experiment_id])}


def processes_of(run_id: str) -> list[int]:
    """The processes of a local run that are alive, without this one."""
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and run_id.encode() in _environ(p)]


def _environ(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes() if int(process.name) != os.getpid() else b""
    except OSError:
        return b""


def paragraphs(said: str) -> list[str]:
    """What the command line says of a failure."""
    return [line for line in said.splitlines() if line.startswith("rco: ")]


def shows_everything(first: Ran, second: Ran) -> None:
    """Assert that a run which has trained nothing shows what the first one has."""
    assert second.summary["stages"] == first.summary["stages"]
    assert second.summary["parent_run_id"] != first.summary["parent_run_id"]
    assert second.summary["registered"] == first.summary["registered"], "the same weights are not registered twice"
    (parent, children), (_, originals) = (runs_of(first.home, r.summary["parent_run_id"]) for r in (second, first))
    assert set(children) == {"teacher", "student"}
    assert parent.info.status == "FINISHED"
    assert set(parent.data.tags["reused_from"].split(",")) == {r.info.run_id for r in originals.values()}
    c = client(first.home)
    for key, child in children.items():
        assert child.data.tags["reused_from"] == originals[key].info.run_id
        for metric in ("loss", "val_accuracy"):
            ours, theirs = (c.get_metric_history(r.info.run_id, metric) for r in (child, originals[key]))
            assert [(m.step, m.value, m.timestamp) for m in ours] == [(m.step, m.value, m.timestamp) for m in theirs]
    anchors = c.search_logged_models([parent.info.experiment_id], "model_type = 'anchor'")
    shas = [m.tags["rco.sha256"] for m in anchors]
    assert len(shas) == len(set(shas)), "no anchor is uploaded twice"
