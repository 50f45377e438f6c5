"""Runs, anchors, metrics and the registry: the only module that knows MLflow.

One parent run a pipeline run; one child run a trained model, kept in step with the model's `Record`. Runs are found by tags,
never by remembered ids, so that a retried task, a cached task and the final report all meet the same run:

    rco.pipeline_run   on parent and children: the pipeline run
    rco.key            on children: the record's key ("teacher", "student", "kd/seed-0")
    rco.branch, rco.seed, rco.strategy, rco.reference   on the students of a comparison
    reused_from        where a cached model was first tracked
    rco.anchor.E       on a student: the LoggedModel id of the anchor of epoch E
    rco.attempts       how often work on the run was begun, if a task failed or was killed

Where Kubeflow's own MLflow plugin is on, every task has a run of the plugin as well (MLFLOW_RUN_ID). A task that trains logs
its epochs there too, and the two runs are linked by the tags rco.run and kfp.run.STEP.

Tracking never stops work. If the server cannot be reached, a warning is logged and the record is delivered later.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from rco.core.errors import InputError, why_unreachable
from rco.core.files import verify
from rco.models.route import ANCHOR, Anchor
from rco.tracking.record import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion
    from torch import nn

    from rco.models.spec import NetworkSpec

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
ANCHOR_SECONDS = 60.0  # for another process to upload the anchor that it has claimed
CHAMPION = "champion"
_ANCHOR_FILE = "anchor.safetensors"
_ANCHOR_TAG = "rco.anchor."
_LONGEST_TAG = 8000
_SQLITE = "sqlite:///"
_PROBED = "rco.probe"
_CURSOR = "epoch"  # logged with every row, whatever its metrics are: its last step says what the server has


class NotTrackedError(RuntimeError):
    """The server knows nothing of this pipeline run. The report, which comes last, makes up for it."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Which pipeline run this process works for, and where that is tracked. Comes from the environment, not from settings:
    it must not be part of a task's cache key.

    Attributes:
        tracking_uri: of MLflow; empty: nothing is tracked.
        pipeline_run: id of the pipeline run; empty: nothing is tracked.
        artifact_root: where a new experiment keeps its artifacts; empty: the server decides.
        task_run: the run that Kubeflow's MLflow plugin made for this task; empty without the plugin.
    """

    tracking_uri: str
    pipeline_run: str
    artifact_root: str = ""
    task_run: str = ""

    @classmethod
    def from_environment(cls) -> Context:
        """MLFLOW_TRACKING_URI, RCO_PIPELINE_RUN (set by the local runner, or from the pod's labels), RCO_ARTIFACT_ROOT, and
        MLFLOW_RUN_ID (set by Kubeflow's MLflow plugin)."""
        return cls(
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", ""),
            pipeline_run=os.environ.get("RCO_PIPELINE_RUN", ""),
            artifact_root=os.environ.get("RCO_ARTIFACT_ROOT", ""),
            task_run=os.environ.get("MLFLOW_RUN_ID", ""),
        )

    @property
    def active(self) -> bool:
        """Whether there is anywhere to track to."""
        return bool(self.tracking_uri and self.pipeline_run)

    def client(self) -> MlflowClient:
        """A client of the tracking server, with MLflow's own chatter turned down."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        # Two minutes of retries per request would stop the work that tracking promises not to stop.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        # A server that keeps artifacts in S3 offers clients addresses there, which they may not reach: stay with the server.
        os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
        os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        mlflow.set_tracking_uri(self.tracking_uri)
        mlflow.set_registry_uri(self.tracking_uri)
        if self.tracking_uri.startswith(_SQLITE):
            _have_database(self.tracking_uri)
        return mlflow.MlflowClient(self.tracking_uri, self.tracking_uri)


@functools.cache
def _have_database(uri: str) -> None:
    """Have MLflow make its tables, if they are not there yet, while no other process does: it would break both."""
    import mlflow
    from filelock import FileLock

    path = Path(uri.removeprefix(_SQLITE).partition("?")[0])
    # What is wrong with a database is said by whoever uses it; where there can be no lock there are no tables to be made.
    with contextlib.suppress(OSError, mlflow.exceptions.MlflowException):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            mlflow.MlflowClient(uri, uri).search_experiments(max_results=1)


@dataclass
class Attempt:
    """Whether a `forgiving` block came to its end."""

    failed: bool = False


@contextlib.contextmanager
def forgiving(what: str) -> Iterator[Attempt]:
    """Turn a failure of the tracking server into a warning. What was not delivered stays in the records.

    Whatever it is: the client raises its own errors, those of requests, of the database that is behind it or that it reads, and
    of protobuf and others for answers that are none.
    """
    attempt = Attempt()
    try:
        yield attempt
    except InputError:
        raise
    except Exception as error:
        attempt.failed = True
        log.warning(
            "%s was not delivered to MLflow (%s: %s); the record is kept", what, type(error).__name__, _first_line(error)
        )


def _first_line(error: BaseException) -> str:
    text = (str(error).splitlines() or [""])[0]
    return re.sub(r"(\w+://)\S*@", r"\1", text)[:200]  # the client quotes addresses as they were given, with passwords


def open_parent(
    context: Context, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> str:
    """The parent run of this pipeline run, made if it is not there yet. Returns its id."""
    client = context.client()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        experiment_id = _create_experiment(client, experiment, context.artifact_root or None)
    elif found.lifecycle_stage == "deleted":
        raise InputError("experiment", experiment, "is a deleted experiment in MLflow", "Restore it, or use another name")
    else:
        experiment_id = found.experiment_id
    parent = _find(client, [experiment_id], context.pipeline_run, key=None)
    if parent is None:
        own = {"rco.pipeline_run": context.pipeline_run, "rco.kind": "pipeline"}
        parent = client.create_run(experiment_id, run_name=name, tags={**(tags or {}), **own})
        _log_params(client, parent.info.run_id, params)
    run_id: str = parent.info.run_id
    return run_id


def _create_experiment(client: MlflowClient, name: str, artifact_root: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        experiment_id: str = client.create_experiment(name, artifact_location=artifact_root)
    except MlflowException as error:
        # Another pipeline, begun at the same time, may have been first.
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or (found := client.get_experiment_by_name(name)) is None:
            raise
        experiment_id = found.experiment_id
    return experiment_id


def find_parent(context: Context, client: MlflowClient) -> Run | None:
    """The parent run of this pipeline run, in whichever experiment it is."""
    ids: list[str] = []
    token = None
    while True:
        page = client.search_experiments(order_by=["last_update_time DESC"], page_token=token)
        ids += [e.experiment_id for e in page]
        token = page.token
        if not token:
            break
    return _find(client, ids, context.pipeline_run, key=None) if ids else None


def require_parent(context: Context, client: MlflowClient) -> Run:
    """As `find_parent`, for those who cannot work without it.

    Raises:
        NotTrackedError: there is none; the server was away when the pipeline began.
    """
    parent = find_parent(context, client)
    if parent is None:
        raise NotTrackedError(f"pipeline run {context.pipeline_run} has no parent run on this server")
    return parent


def _find(client: MlflowClient, experiment_ids: list[str], pipeline_run: str, key: str | None) -> Run | None:
    which = f"tags.`rco.key` = '{key}'" if key else "tags.`rco.kind` = 'pipeline'"
    runs = client.search_runs(experiment_ids, f"tags.`rco.pipeline_run` = '{pipeline_run}' AND {which}", max_results=1)
    return runs[0] if runs else None


def _log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    items = [Param(name, str(value)[:6000]) for name, value in params.items()]
    for start in range(0, len(items), 100):
        client.log_batch(run_id, params=items[start : start + 100])


@dataclass
class ModelRun:
    """The MLflow run of one trained model, kept in step with its record.

    Opening it finds the run of this pipeline run, or makes one and replays the record: that is how the stages of a student
    share a run, how a retried task goes on where it was, and how cached work appears under a new parent.
    """

    client: MlflowClient
    record: Record
    run_id: str
    experiment_id: str
    on_server: int = 0  # last step that the server had when the run was opened
    sent: int = 0  # rows of the record that the server has
    flushed: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, context: Context, client: MlflowClient, record: Record) -> ModelRun:
        """Find or make the run; replays what the server lacks."""
        parent = require_parent(context, client)
        experiment_id = parent.info.experiment_id
        run = _find(client, [experiment_id], context.pipeline_run, record.key)
        if run is None:
            run = cls._create(context, client, record, parent)
        else:
            # Whoever worked on it before has ended it, unless that was cut short.
            if run.info.status != "FINISHED":
                _count_attempt(client, run)
            client.update_run(run.info.run_id, status="RUNNING")
        on_server = max((m.step for m in client.get_metric_history(run.info.run_id, _CURSOR)), default=0)
        self = cls(
            client=client,
            record=record,
            run_id=run.info.run_id,
            experiment_id=experiment_id,
            on_server=on_server,
            sent=sum(row["step"] <= on_server for row in record.rows),
        )
        if record.origin is None:
            record.origin = {
                "tracking_uri": without_credentials(context.tracking_uri),
                "run_id": self.run_id,
                "pipeline_run": context.pipeline_run,
            }
        self.flush()
        return self

    @staticmethod
    def _create(context: Context, client: MlflowClient, record: Record, parent: Run) -> Run:
        from mlflow.entities import DatasetInput, InputTag

        tags = {
            **record.tags,
            "mlflow.parentRunId": parent.info.run_id,
            "rco.pipeline_run": context.pipeline_run,
            "rco.kind": "model",
            "rco.key": record.key,
            "rco.data_digest": str(record.data["digest"]),
            "rco.data": str(record.data["name"]),
        }
        if record.origin is not None:
            tags["reused_from"] = record.origin["run_id"]
        start = record.rows[0]["time"] if record.rows else None
        run = client.create_run(parent.info.experiment_id, run_name=record.key, tags=tags, start_time=start)
        _log_params(client, run.info.run_id, record.params)
        client.log_inputs(
            run.info.run_id,
            datasets=[DatasetInput(_mlflow_dataset(record.data), [InputTag("mlflow.data.context", "training")])],
        )
        return run

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add an epoch to the record; the server gets it with the next flush."""
        self.record.add(step, metrics)
        if step <= self.on_server:  # a retried task computes again what was delivered
            self.sent = len(self.record.rows)
        elif time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send the rows that the server does not have."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, float(value), row["time"], row["step"])
            for row in self.record.rows[self.sent :]
            for name, value in {**row["metrics"], _CURSOR: row["step"]}.items()
        ]
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])
        self.sent = len(self.record.rows)
        self.flushed = time.monotonic()

    def anchor(self, folder: Path) -> None:
        """Make an anchor known as a LoggedModel, and this run as one that learnt from it.

        A checkpoint is uploaded once per experiment, also by pipelines at the same time; it is known by its sha256.

        Args:
            folder: with anchor.json and the checkpoint, as `rco.tasks.run.select_anchor` writes it.
        """
        from mlflow.entities import LoggedModelInput, LoggedModelOutput, Metric, RunTag

        about = Anchor.read(folder)
        tag = f"{_ANCHOR_TAG}{about.epoch}"
        if tag in self.client.get_run(self.run_id).data.tags:
            return
        model_id, uploaded = self._anchor_model(folder, about)
        if uploaded:
            self.client.log_outputs(self.run_id, models=[LoggedModelOutput(model_id, step=about.epoch)])
        else:
            self.client.log_inputs(self.run_id, models=[LoggedModelInput(model_id)])
        now = time.time_ns() // 1_000_000
        metrics = [
            Metric(f"anchor_{name}", getattr(about, name), now, about.epoch, model_id=model_id)
            for name in ("val_accuracy", "hardness", "relative_hardness", "lr", "train_loss")
            if getattr(about, name) is not None
        ]
        self.client.log_batch(self.run_id, metrics=metrics, tags=[RunTag(tag, model_id)])

    def _anchor_model(self, folder: Path, about: Anchor) -> tuple[str, bool]:
        """The LoggedModel of an anchor, and whether it is this process that has uploaded it."""
        sha256 = about.sha256
        if known := self._claims(sha256, "READY"):
            return known[0].model_id, False
        verify(folder / _ANCHOR_FILE, sha256)
        # A claim first, the upload later: of several pipelines that need an anchor at the same time, the others wait.
        claim = self.client.create_logged_model(
            self.experiment_id,
            name=f"anchor-epoch-{about.epoch:04d}",
            source_run_id=self.run_id,
            model_type="anchor",
            tags={"rco.sha256": sha256, "rco.epoch": str(about.epoch)},
            params={"model": str(about.model), "epoch": str(about.epoch), "sha256": sha256},
        )
        try:
            if elder := self._elder(claim, sha256):
                self.client.delete_logged_model(claim.model_id)
                return elder, False
            for file in (folder / _ANCHOR_FILE, folder / ANCHOR):
                self.client.log_model_artifact(claim.model_id, str(file))
        except Exception:
            self.client.finalize_logged_model(claim.model_id, "FAILED")
            raise
        self.client.finalize_logged_model(claim.model_id, "READY")
        return claim.model_id, True

    def _claims(self, sha256: str, *statuses: str) -> list[LoggedModel]:
        """LoggedModels of a checkpoint that are in one of these states, the oldest first."""
        found = self.client.search_logged_models([self.experiment_id], f"tags.`rco.sha256` = '{sha256}'", max_results=50)
        wanted = [model for model in found if str(model.status).rpartition(".")[2] in statuses]
        return sorted(wanted, key=lambda model: (model.creation_timestamp, model.model_id))

    def _elder(self, claim: LoggedModel, sha256: str) -> str | None:
        """The LoggedModel that another process has claimed before, once it is whole; whoever is too slow has died."""
        deadline = time.monotonic() + ANCHOR_SECONDS
        while time.monotonic() < deadline:
            claims = self._claims(sha256, "READY", "PENDING")
            if ready := [model for model in claims if str(model.status).endswith("READY")]:
                return str(ready[0].model_id)
            if claims and claims[0].model_id == claim.model_id:
                return None
            time.sleep(0.5)
        return None

    def metrics(self, values: Mapping[str, float]) -> None:
        """Log final figures that have no step of their own."""
        _log_metrics(self.client, self.run_id, values)

    def close(self, status: str = "FINISHED") -> None:
        """Send what is left and end the run, as of its last epoch. A later stage opens it again."""
        self.flush()
        ended = self.record.rows[-1]["time"] if self.record.rows and status == "FINISHED" else None
        self.client.set_terminated(self.run_id, status, end_time=ended)


def _log_metrics(client: MlflowClient, run_id: str, values: Mapping[str, float]) -> None:
    """Final figures, under the time at which the run began: said again by a retried task, they are the same points."""
    from mlflow.entities import Metric

    began = client.get_run(run_id).info.start_time
    client.log_batch(run_id, metrics=[Metric(name, float(value), began, 0) for name, value in values.items()])


def _mlflow_dataset(data: Mapping[str, Any]) -> Any:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset

    source = CodeDatasetSource(tags={"source": str(data["source"])})
    described = MetaDataset(source, name=str(data["name"]), digest=str(data["digest"])[:36]).to_dict()
    return Dataset(
        name=described["name"],
        digest=described["digest"],
        source_type=described["source_type"],
        source=described["source"],
        schema=described.get("schema"),
        profile=described.get("profile"),
    )


def without_credentials(uri: str) -> str:
    """An address that may be shown: user, password and query are left out."""
    parts = urlsplit(uri)
    if parts.netloc and "@" not in parts.netloc and "@" in uri:
        return f"{parts.scheme}://..."  # a password with a slash in it looks like this
    if "@" not in parts.netloc and not parts.query and not parts.fragment:
        return uri  # joined again, sqlite:///file would be another
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _count_attempt(client: MlflowClient, run: Run) -> None:
    client.set_tag(run.info.run_id, "rco.attempts", str(int(run.data.tags.get("rco.attempts", 1)) + 1))


@dataclass
class TaskRun:
    """The run that Kubeflow's MLflow plugin made for a task: what the task does is told there too. Its end is the plugin's."""

    client: MlflowClient
    run_id: str
    on_server: int
    waiting: list[tuple[int, int, dict[str, float]]] = field(default_factory=list)
    due: float = field(default_factory=lambda: time.monotonic() + FLUSH_SECONDS)

    @classmethod
    def open(cls, client: MlflowClient, run_id: str, record: Record, model_run: str | None, first_step: int) -> TaskRun:
        """Resume the plugin's run: a retried task has the same one, and is told what its record has of this task already.

        Args:
            model_run: the run of the trained model, to link with.
            first_step: of this task.
        """
        run = client.get_run(run_id)
        # A parameter that is logged again with another value is an error to MLflow: what is there stays.
        _log_params(client, run_id, {k: v for k, v in record.params.items() if k not in run.data.params})
        if "rco.key" in run.data.tags:
            _count_attempt(client, run)
        client.set_tag(run_id, "rco.key", record.key)
        if model_run is not None:
            client.set_tag(run_id, "rco.run", model_run)
            client.set_tag(model_run, f"kfp.run.{first_step}", run_id)
        on_server = max((m.step for m in client.get_metric_history(run_id, _CURSOR)), default=0)
        first_row = max(first_step, on_server + 1)
        return cls(
            client, run_id, on_server, [(r["step"], r["time"], r["metrics"]) for r in record.rows if r["step"] >= first_row]
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add an epoch."""
        if step > self.on_server:
            self.waiting.append((step, time.time_ns() // 1_000_000, metrics))
        if time.monotonic() > self.due:
            self.flush()

    def flush(self) -> None:
        """Send what waits. An epoch keeps the time at which it came: what is sent again, because an answer was lost, is the
        same point to MLflow."""
        from mlflow.entities import Metric

        began = time.monotonic()
        metrics = [
            Metric(name, float(value), at, step)
            for step, at, values in self.waiting
            for name, value in {**values, _CURSOR: step}.items()
        ]
        try:
            for start in range(0, len(metrics), 1000):
                self.client.log_batch(self.run_id, metrics=metrics[start : start + 1000])
            self.waiting.clear()
        finally:
            # A server that does not answer is asked again the later the longer it made the training wait.
            now = time.monotonic()
            self.due = now + max(FLUSH_SECONDS, 20 * (now - began))


@contextlib.contextmanager
def tracked(context: Context, record: Record, first_step: int | None = None) -> Iterator[Tracker]:
    """Track the work of a `with` block: its run is closed as FINISHED, or FAILED if the block raises.

    Args:
        first_step: of this block; what the record has before that is of other tasks. None: the step after all that it has.
    """
    if first_step is None:
        first_step = record.rows[-1]["step"] + 1 if record.rows else 1
    tracker = Tracker(record)
    if context.active:
        with forgiving(f"The run of the {record.key}"):
            tracker.run = ModelRun.open(context, context.client(), record)
    if context.tracking_uri and context.task_run:
        with forgiving("The run of Kubeflow's MLflow plugin"):
            model_run = tracker.run.run_id if tracker.run is not None else None
            tracker.task_run = TaskRun.open(context.client(), context.task_run, record, model_run, first_step)
    try:
        yield tracker
    except BaseException as error:
        tracker.close("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracker.close("FINISHED")


@dataclass
class Tracker:
    """Keeps the record, and delivers it while the server answers."""

    record: Record
    run: ModelRun | None = None
    task_run: TaskRun | None = None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record one epoch."""
        if self.task_run is not None:
            with forgiving(f"Epoch {step}, for the plugin's run,"):
                self.task_run.log(step, metrics)
        if self.run is None:
            self.record.add(step, metrics)
            return
        before = len(self.record.rows)
        with forgiving(f"Epoch {step}"):
            self.run.log(step, metrics)
            return
        if len(self.record.rows) == before:
            self.record.add(step, metrics)
        self.run = None  # the report delivers the rest

    def anchor(self, folder: Path) -> None:
        """Record an anchor as a LoggedModel."""
        if self.run is not None:
            with forgiving(f"The anchor in {folder.name}"):
                self.run.anchor(folder)

    def close(self, status: str) -> None:
        """End the run."""
        if self.task_run is not None:
            with forgiving("The last epochs, for the plugin's run,"):
                self.task_run.flush()
        if self.run is not None:
            with forgiving("The end of the run"):
                self.run.close(status)


def close_all(context: Context, status: str) -> int:
    """End every run of this pipeline run that is still RUNNING; returns how many there were."""
    client = context.client()
    parent = find_parent(context, client)
    if parent is None:
        return 0
    runs = client.search_runs([parent.info.experiment_id], f"tags.`rco.pipeline_run` = '{context.pipeline_run}'")
    open_runs = [run for run in runs if run.info.status == "RUNNING"]
    for run in open_runs:
        client.set_terminated(run.info.run_id, status)
    return len(open_runs)


def of_run(records: Iterable[Record], anchors: Iterable[Path], student_metrics: Mapping[str, float]) -> list[Delivery]:
    """What is to be delivered of a run with one student.

    Args:
        anchors: folders of the anchors that the student learnt from.
        student_metrics: final figures of the student's run.
    """
    learnt: dict[int, Callable[[], contextlib.AbstractContextManager[Path]]] = {
        Anchor.read(folder).epoch: partial(_there, folder) for folder in anchors
    }
    return [
        Delivery(record=record, anchors=learnt, metrics=student_metrics) if record.key == "student" else Delivery(record=record)
        for record in records
    ]


def _there(folder: Path) -> contextlib.AbstractContextManager[Path]:
    return contextlib.nullcontext(folder)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What a server must know of one trained model.

    Attributes:
        anchors: epoch -> makes a folder with that anchor; called only where the server lacks it.
        metrics: final figures.
        tags: more tags of its run.
    """

    record: Record
    anchors: Mapping[int, Callable[[], contextlib.AbstractContextManager[Path]]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def deliver(
    context: Context,
    deliveries: Iterable[Delivery],
    *,
    headline: Mapping[str, float],
    files: Iterable[Path],
    note: str = "",
) -> str:
    """Bring the server up to date with any number of models, and finish the parent. Safe to repeat; no run stays open if it
    fails.

    Args:
        headline: figures for the parent.
        files: pictures and tables for the parent's artifacts.
        note: Markdown that MLflow shows on the parent's page.

    Returns:
        the parent's run id.
    """
    client = context.client()
    parent = require_parent(context, client)
    parent_id: str = parent.info.run_id
    try:
        reused = []
        for delivery in deliveries:
            origin = delivery.record.origin
            run = ModelRun.open(context, client, delivery.record)
            if origin is not None and origin["pipeline_run"] != context.pipeline_run:
                reused.append(origin["run_id"])
                client.set_tag(run.run_id, "reused_from", origin["run_id"])
            known = client.get_run(run.run_id).data.tags if delivery.anchors else {}
            for epoch, anchor in delivery.anchors.items():
                if f"{_ANCHOR_TAG}{epoch}" not in known:
                    with anchor() as folder:
                        run.anchor(folder)
            run.metrics(delivery.metrics)
            for name, value in delivery.tags.items():
                client.set_tag(run.run_id, name, value)
            run.close()
        if reused:
            client.set_tag(parent_id, "reused_from", ",".join(reused))
        _log_metrics(client, parent_id, headline)
        if note:
            client.set_tag(parent_id, "mlflow.note.content", note[:_LONGEST_TAG])
        for path in files:
            client.log_artifact(parent_id, str(path), "report")
    finally:
        close_all(context, "FINISHED")
    return parent_id


def registered_version(context: Context, name: str, sha256: str) -> str | None:
    """The version of a registered model that was made from these very weights, if there is one."""
    from mlflow.exceptions import MlflowException

    client = context.client()
    try:
        versions = client.search_model_versions(f"name = '{name}' AND tags.`rco.sha256` = '{sha256}'")
    except MlflowException:
        return None
    return str(max(int(v.version) for v in versions)) if versions else None


def register(
    context: Context,
    name: str,
    model: nn.Module,
    record: Record,
    *,
    example: Any,
    expected: Any,
    weights: Path,
    sha256: str,
    params: Mapping[str, Any],
) -> str:
    """Register a student as a model that anything can serve; returns the version.

    The model takes pixels in 0..1 and normalises them itself. It is stored as an exported graph (pt2: no pickle), with
    signature and input example, and beside it the plain weights for `load`.

    Args:
        record: of the student; the version hangs on its run.
        example: (B, C, H, W) float32, pixels in 0..1; B of 2 or more, so that the exporter leaves the batch size open.
        expected: (B, K) float32, the logits for the example.
        weights: the safetensors file.
    """
    import mlflow
    from mlflow.models import infer_signature

    client = context.client()
    run = ModelRun.open(context, client, record)
    import numpy as np
    import torch
    import torchvision
    from mlflow.types import Schema, TensorSpec

    signature = infer_signature(example, expected)
    # Open batch size: what infer_signature sees is one example.
    for schema_name in ("inputs", "outputs"):
        schema = getattr(signature, schema_name)
        spec = schema.inputs[0]
        setattr(signature, schema_name, Schema([TensorSpec(np.dtype("float32"), (-1, *spec.shape[1:]), spec.name)]))
    with mlflow.start_run(run_id=run.run_id):  # ends it as well
        info = mlflow.pytorch.log_model(
            model,
            name="student",
            serialization_format="pt2",
            signature=signature,
            input_example=example,
            extra_files=[str(weights)],
            pip_requirements=[
                f"torch=={torch.__version__.split('+')[0]}",
                f"torchvision=={torchvision.__version__.split('+')[0]}",
                f"numpy=={np.__version__}",
            ],
            params={key: str(value) for key, value in params.items()},
            tags={"rco.sha256": sha256},
            model_type="student",
        )
    with contextlib.suppress(mlflow.exceptions.MlflowException):
        client.create_registered_model(name)
    version = client.create_model_version(
        name, source=info.model_uri, run_id=run.run_id, model_id=info.model_id, tags={"rco.sha256": sha256}
    )
    return str(version.version)


class Promotion(NamedTuple):
    """Whether a version is the champion, and why."""

    champion: bool
    reason: str


def promote(context: Context, name: str, version: str, *, accuracy: float, data_digest: str, margin: float = 0.0) -> Promotion:
    """Move the alias `champion` to this version if it is better than the version that has it, by more than `margin`.

    Accuracies compare only on the same data: a champion that was measured on other data keeps the alias, until a person
    moves it. Decision and reason become tags of the version (rco.champion, rco.champion_reason). Safe to repeat.

    Args:
        accuracy: on the test part, 0 to 1.
        data_digest: of the prepared data set.
    """
    from mlflow.exceptions import MlflowException

    client = context.client()
    client.set_model_version_tag(name, version, "rco.test_accuracy", repr(accuracy))
    client.set_model_version_tag(name, version, "rco.data_digest", data_digest)
    try:
        holder = client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        holder = None
    if holder is not None and str(holder.version) == version:
        return Promotion(True, holder.tags.get("rco.champion_reason", "it was the champion already"))
    promotion = _decide(holder, accuracy, data_digest, margin)
    client.set_model_version_tag(name, version, "rco.champion", str(promotion.champion).lower())
    client.set_model_version_tag(name, version, "rco.champion_reason", promotion.reason)
    if promotion.champion:  # last: a decision that was not written down is made again
        client.set_registered_model_alias(name, CHAMPION, version)
    return promotion


def _decide(holder: ModelVersion | None, accuracy: float, data_digest: str, margin: float) -> Promotion:
    if holder is None:
        return Promotion(True, "there was no champion")
    if "rco.test_accuracy" not in holder.tags:
        return Promotion(False, f"the champion, version {holder.version}, does not say how good it is")
    if holder.tags.get("rco.data_digest") != data_digest:
        return Promotion(False, f"the champion, version {holder.version}, was measured on other data")
    best = float(holder.tags["rco.test_accuracy"])
    better = accuracy - best > margin
    compared = f"{100 * accuracy:.2f} % against {100 * best:.2f} % of version {holder.version}"
    wanted = f" by more than {100 * margin:g} points" if margin else ""
    return Promotion(better, f"{compared}: {'better' if better else 'not better'}{wanted}")


def load(uri: str, *, model: NetworkSpec | None = None, tracking_uri: str | None = None) -> nn.Module:
    """The module behind an anchor ("models:/m-...") or a registered student ("models:/NAME/VERSION"), in evaluation mode.

    Students come back bare: they take normalised images. (`mlflow.pyfunc.load_model` gives the one that normalises.)

    Args:
        uri: as MLflow writes it.
        model: what the network is; needed if it is a user's own factory.
        tracking_uri: default: MLFLOW_TRACKING_URI, else the local runs of the current directory.

    Raises:
        InputError: no such model, or one that holds no weights of ours.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from rco.models.spec import load_network

    default = "sqlite:///.rco/mlflow.db" if Path(".rco/mlflow.db").is_file() else ""
    where = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or default
    Context(tracking_uri=where, pipeline_run="").client()
    try:
        folder = Path(mlflow.artifacts.download_artifacts(uri))
    except MlflowException as error:
        raise InputError(
            "uri", uri, f"cannot be loaded ({_first_line(error)})", "Copy a model's URI from the MLflow UI"
        ) from None
    files = sorted(folder.rglob("*.safetensors"))
    if len(files) != 1:
        raise InputError(
            "uri", uri, f"holds {len(files)} safetensors files", "Name an anchor, or a student that this project registered"
        )
    return load_network(files[0], spec=model)


class Probe(NamedTuple):
    """What `probe` found.

    Attributes:
        server: version of the server; empty: a database without one.
        client: version of MLflow here.
        artifacts: where the run's artifacts lie, as the server says.
        left: what could not be removed; empty: nothing.
        seconds: that it took.
    """

    server: str
    client: str
    artifacts: str
    left: str
    seconds: float


def probe(context: Context, open_run: Callable[[], str] | None = None) -> Probe:
    """Write to a run, with an artifact, read that back and delete it.

    MLflow deletes softly: without `open_run`, an experiment with a run stays in its database, marked as deleted, until
    `mlflow gc`.

    Args:
        open_run: opens the run to use, and gives its id; that run stays. Default: a new one in an experiment of its own.

    Raises:
        InputError: the server cannot be used. Its text is ours, and holds no secret.
    """
    uri = without_credentials(context.tracking_uri)
    with _explained(uri, "cannot be used"):
        client = context.client()
        import mlflow

        began = time.monotonic()
        server = _server_version(context.tracking_uri)
    with _explained(uri, "cannot keep runs"):
        artifacts, left = _scratch(context, client) if open_run is None else _round_trip(client, uri, open_run())
    return Probe(server, mlflow.__version__, artifacts, left, time.monotonic() - began)


def _scratch(context: Context, client: MlflowClient) -> tuple[str, str]:
    """As `_round_trip`, in an experiment that is then deleted."""
    name = f"rco-doctor-{secrets.token_hex(4)}"
    root = f"{context.artifact_root.rstrip('/')}/{name}" if context.artifact_root else None
    experiment_id = client.create_experiment(name, artifact_location=root)
    try:
        run_id = client.create_run(experiment_id, run_name=name).info.run_id
        found = _round_trip(client, without_credentials(context.tracking_uri), run_id)
        place = client.get_experiment(experiment_id).artifact_location.rstrip("/")
        if place.endswith((f"/{name}", f"/{experiment_id}")):  # nobody else's; folders may be there that are empty now
            with contextlib.suppress(Exception):
                _artifacts(place).delete_artifacts()
        client.delete_run(run_id)
        return found
    finally:
        client.delete_experiment(experiment_id)


def _artifacts(root: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(root)


def _server_version(uri: str) -> str:
    if not uri.startswith(("http://", "https://")):
        return ""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), "/version", "GET", max_retries=0, timeout=10, raise_on_status=False)
    answer.raise_for_status()
    version: str = answer.text.strip()
    if not version[:1].isdigit() or len(version) > 40:
        raise InputError(
            "MLFLOW_TRACKING_URI",
            without_credentials(uri),
            "answers, but not as MLflow does",
            "Check the address; a page for signing in may stand before the server",
        )
    return version


def _round_trip(client: MlflowClient, uri: str, run_id: str) -> tuple[str, str]:
    """Returns where the run's artifacts lie, and what could not be removed."""
    mark = secrets.token_hex(16)
    client.set_tag(run_id, _PROBED, mark)
    run = client.get_run(run_id)
    if run.data.tags.get(_PROBED) != mark:
        raise InputError("MLFLOW_TRACKING_URI", uri, "does not give back what was written", "See the log of the server")
    client.delete_tag(run_id, _PROBED)
    root = without_credentials(run.info.artifact_uri)
    name = f"{_PROBED}-{mark}.txt"
    with (
        _explained(uri, f"has the run, but its artifacts, at {root}, cannot be written and read"),
        TemporaryDirectory() as scratch,
    ):
        (Path(scratch) / name).write_text(mark)
        client.log_artifact(run_id, str(Path(scratch) / name))
        back = Path(client.download_artifacts(run_id, name, str(_made(Path(scratch) / "back"))))
        if back.read_text() != mark:
            raise InputError(
                "MLFLOW_TRACKING_URI", uri, f"gives back other artifacts than were written to {root}", "See its log"
            )
    try:
        _artifacts(run.info.artifact_uri).delete_artifacts(name)
    except Exception:  # who may write need not have the right to delete
        return root, f"{root}/{name}"
    return root, ""


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@contextlib.contextmanager
def _explained(uri: str, problem: str) -> Iterator[None]:
    """Turn whatever goes wrong into InputError, in our own words: the originals may quote secrets, hence `from None`.

    Args:
        problem: what cannot be done, for those who are not kept from it by their address or login.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError("MLFLOW_TRACKING_URI", uri, *_words(error, problem)) from None


def _words(error: Exception, problem: str) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    status = _status(error)
    if status == 401:
        given = any(os.environ.get(name) for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"))
        return (
            "refuses the login" if given else "asks for a login",
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    if status == 403 and "Host header" in str(error):
        return "does not serve under this name (403)", "Start the server with --allowed-hosts and the name and port used here"
    if status == 403:
        return f"{problem}: this login may not (403)", "Ask its administrator for the right to make experiments and runs"
    if status == 400:
        return f"{problem} (400)", "Give the address of an MLflow server: http:// or https://"
    if status == 404:
        return "is no address of an MLflow server (404)", "Check the path; it must be the one under which the UI opens"
    if status is not None:
        return (
            f"{problem}: the server answers {status}",
            "See its log: most often its database, or the bucket and secret of the store behind it",
        )
    if any(kind.__module__.startswith("requests") for cause in (error, error.__context__) for kind in type(cause).__mro__):
        return f"cannot be reached ({why_unreachable(error)})", "Check MLFLOW_TRACKING_URI, and that the server runs"
    if isinstance(error, ModuleNotFoundError):
        return f"{problem}: the module {error.name} is missing", "Install it, or use the address of an MLflow server"
    if isinstance(error, OSError):
        return (
            f"{problem} ({error.strerror or type(error).__name__})",
            "Start the server with --serve-artifacts, or with a root for artifacts that this machine can write",
        )
    code = getattr(error, "response", {}).get("Error", {}).get("Code") or type(error).__name__
    return f"{problem} ({code})", "Check the login of the database, or of the store (AWS_ACCESS_KEY_ID and its like)"


def _status(error: Exception) -> int | None:
    """The HTTP status that an error of MLflow's client stands for, if it does for one."""
    from mlflow.exceptions import MlflowException

    answer = getattr(error, "response", None)
    if isinstance(status := getattr(answer, "status_code", None), int):
        return status
    if said := re.search(r"(?:too many |error code |HTTP )(\d{3})", str(error)):
        return int(said[1])
    if isinstance(error, MlflowException) and error.error_code != "INTERNAL_ERROR":
        return int(error.get_http_status_code())
    return None
