"""Which MLflow a process tracks to, and how it goes on when that MLflow fails.

Tracking never stops work. If the server cannot be reached, a warning is logged and the record is delivered later.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from rco.core.errors import InputError
from rco.tracking import moved

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

_SQLITE = "sqlite:///"
#: Addresses without a scheme that MLflow knows as services.
_NO_FOLDERS = ("databricks", "databricks-uc", "uc")
#: MLflow's name of the switch that lets it write into folders all the same.
_SWITCH = "MLFLOW_ALLOW_FILE_STORE"
#: Says why this process is not the first that works on its task (set by `rco.tasks.worker`).
RESTARTED = "RCO_RESTARTED"


def import_mlflow() -> Any:
    """MLflow, imported with the defaults of its environment variables set, which it reads as it is imported and later."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    # Two minutes of retries per request would stop the work that tracking promises not to stop.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # A server with artifacts in S3 offers clients addresses there, which they may not reach: stay with the server.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD", "false")
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    # A bar for each of many small files, where tqdm happens to be installed, also in a pod's log.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    return mlflow


@functools.cache
def require_writable(uri: str) -> None:
    """Refuse a tracking server that MLflow no longer writes to: a folder.

    Raises:
        InputError: it is one, and MLflow's own switch for it is not set.
    """
    if not uri or uri in _NO_FOLDERS or urlsplit(uri).scheme not in ("", "file"):
        return
    mlflow = import_mlflow()
    try:
        mlflow.MlflowClient(uri, uri).search_experiments(max_results=1)
    except mlflow.exceptions.MlflowException as error:
        if _SWITCH not in str(error):  # something else is wrong with it: the first request that is tracked says so
            return
        raise InputError(
            "MLFLOW_TRACKING_URI",
            uri,
            "is a folder, and MLflow does not write runs into folders any more",
            f"Name a database: {_SQLITE}mlflow.db (`mlflow migrate-filestore` takes old runs there), or set {_SWITCH}=true",
        ) from None


@dataclass(frozen=True, kw_only=True)
class Context:
    """The pipeline run that this process works for, and the server that tracks it. Read from the environment, not from
    settings: it must not be part of a task's cache key.

    Attributes:
        tracking_uri: of MLflow; empty: nothing is tracked.
        pipeline_run: id of the pipeline run; empty: nothing is tracked.
        artifact_root: address for the artifacts of a new experiment; empty: the server decides.
        task_run: id of the run that Kubeflow's MLflow plugin made for this task; empty without the plugin.
        restarted: why earlier processes of this task have died; empty: this is the first.
        experiment: where the pipeline run is tracked, as far as this process knows.
    """

    tracking_uri: str
    pipeline_run: str
    artifact_root: str = ""
    task_run: str = ""
    restarted: str = ""
    experiment: str = ""

    @classmethod
    def from_environment(cls) -> Context:
        """MLFLOW_TRACKING_URI, RCO_PIPELINE_RUN (set by the local runner, or from the pod's labels), RCO_ARTIFACT_ROOT,
        RCO_EXPERIMENT (set by the local runner), and MLFLOW_RUN_ID (set by Kubeflow's MLflow plugin)."""
        return cls(
            tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", ""),
            pipeline_run=os.environ.get("RCO_PIPELINE_RUN", ""),
            artifact_root=os.environ.get("RCO_ARTIFACT_ROOT", ""),
            task_run=os.environ.get("MLFLOW_RUN_ID", ""),
            restarted=os.environ.get(RESTARTED, ""),
            experiment=os.environ.get("RCO_EXPERIMENT", ""),
        )

    @property
    def active(self) -> bool:
        """Whether a server and a pipeline run are known, so that work is tracked."""
        return bool(self.tracking_uri and self.pipeline_run)

    def client(self) -> MlflowClient:
        """A client of the tracking server. MLflow logs warnings only from then on.

        Raises:
            InputError: as `require_writable`.
        """
        require_writable(self.tracking_uri)
        mlflow = import_mlflow()
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        mlflow.set_tracking_uri(self.tracking_uri)
        mlflow.set_registry_uri(self.tracking_uri)
        if self.tracking_uri.startswith(_SQLITE):
            _open_database(self.tracking_uri)
        client: MlflowClient = mlflow.MlflowClient(self.tracking_uri, self.tracking_uri)
        return client


@functools.cache
def _open_database(uri: str) -> None:
    """Let MLflow create the tables of a database under a lock: two processes that create them at once break each other. If it
    is that of a home that was moved, its paths become those of the new place."""
    import mlflow
    from filelock import FileLock

    path = Path(uri.removeprefix(_SQLITE).partition("?")[0])
    if path.name == moved.DATABASE:
        try:
            moved.settle(path.parent)
        except InputError as error:  # the work goes on; only what was tracked before cannot be loaded
            log.warning("%s", error)
    # The first request reports what is wrong with a database; where a lock cannot be made, tables cannot be made either.
    with contextlib.suppress(OSError, mlflow.exceptions.MlflowException):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            mlflow.MlflowClient(uri, uri).search_experiments(max_results=1)


@dataclass
class Attempt:
    """What became of a `forgiving` block.

    Attributes:
        reason: why it failed; empty: it did not.
    """

    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether it failed."""
        return bool(self.reason)


@contextlib.contextmanager
def forgiving(what: str) -> Iterator[Attempt]:
    """Turn a failure of the tracking server into a warning. The records keep what was not delivered.

    Every exception but InputError counts: the client raises its own, those of requests and of the database behind the server,
    and for answers that are not MLflow's those of protobuf and others.

    Args:
        what: the subject of the warning: "The parent run".
    """
    attempt = Attempt()
    try:
        yield attempt
    except InputError:
        raise
    except Exception as error:
        attempt.reason = f"{type(error).__name__}: {first_line(error)}"
        log.warning("%s was not delivered to MLflow (%s); the record is kept", what, attempt.reason)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, without credentials: the client quotes addresses as they were given."""
    text = (str(error).splitlines() or [""])[0]
    return re.sub(r"(\w+://)\S*@", r"\1", text)[:200]


def without_credentials(uri: str) -> str:
    """An address fit to be shown: without user, password, query and fragment."""
    parts = urlsplit(uri)
    if parts.netloc and "@" not in parts.netloc and "@" in uri:
        return f"{parts.scheme}://..."  # a password with a slash in it looks like this
    if "@" not in parts.netloc and not parts.query and not parts.fragment:
        return uri  # joined again, sqlite:///file would be another
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))
