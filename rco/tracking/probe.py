"""A check of the tracking server: one run and one artifact written, read and deleted; and words for what can go wrong."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from rco.core.errors import InputError, why_unreachable
from rco.tracking.context import Context, without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

PLAIN_ANCHORS = "anchors become plain artifacts of their students' runs"
_PROBED = "rco.probe"
_HAVE_LOGGED_MODELS: dict[str, bool] = {}  # by the server's address


class Probe(NamedTuple):
    """The findings of `probe`.

    Attributes:
        server: version of the server; empty: a database without a server.
        client: version of MLflow in this process.
        artifacts: address of the run's artifacts, as the server gives it.
        left: address of the artifact if it could not be removed; else empty.
        seconds: duration.
        logged_models: whether the server has MLflow 3's logged models.
    """

    server: str
    client: str
    artifacts: str
    left: str
    seconds: float
    logged_models: bool = True


def probe(context: Context, open_run: Callable[[], str] | None = None) -> Probe:
    """Write a tag and an artifact to a run, read them back and delete them.

    MLflow deletes softly: without `open_run`, an experiment with a run stays in its database, marked as deleted, until
    `mlflow gc`.

    Args:
        open_run: opens the run to use, and returns its id; that run stays. Default: a new one in an experiment of its own.

    Raises:
        InputError: the server cannot be used. The text holds no secret.
    """
    uri = without_credentials(context.tracking_uri)
    with explained(uri, "cannot be used"):
        client = context.client()
        import mlflow

        began = time.monotonic()
        server = _server_version(context.tracking_uri)
    with explained(uri, "cannot keep runs"):
        if open_run is None:
            artifacts, left, models = _probe_new_experiment(context, client)
        else:
            run_id = open_run()
            artifacts, left = _probe_run(client, uri, run_id)
            models = has_logged_models(client, client.get_run(run_id).info.experiment_id)
    return Probe(server, mlflow.__version__, artifacts, left, time.monotonic() - began, models)


def has_logged_models(client: MlflowClient, experiment_id: str) -> bool:
    """Whether a server has logged models, which anchors are. MLflow 2 and some hosted servers have none. Raises what MLflow's
    client raises.

    Args:
        experiment_id: of any experiment there.
    """
    known = _HAVE_LOGGED_MODELS.get(client.tracking_uri)
    if known is None:
        try:
            client.search_logged_models([experiment_id], max_results=1)
            known = True
        except Exception as error:
            if _http_status(error) not in (404, 405, 501):
                raise
            known = False
        _HAVE_LOGGED_MODELS[client.tracking_uri] = known
    return known


def _probe_new_experiment(context: Context, client: MlflowClient) -> tuple[str, str, bool]:
    """As `_probe_run`, with a run in a new experiment that is then deleted; and whether there are logged models."""
    name = f"rco-doctor-{secrets.token_hex(4)}"
    root = f"{context.artifact_root.rstrip('/')}/{name}" if context.artifact_root else None
    experiment_id = client.create_experiment(name, artifact_location=root)
    try:
        run_id = client.create_run(experiment_id, run_name=name).info.run_id
        found = _probe_run(client, without_credentials(context.tracking_uri), run_id)
        location = client.get_experiment(experiment_id).artifact_location.rstrip("/")
        if location.endswith((f"/{name}", f"/{experiment_id}")):  # this experiment's alone; empty folders may be left there
            with contextlib.suppress(Exception):
                _artifact_repository(location).delete_artifacts()
        models = has_logged_models(client, experiment_id)
        client.delete_run(run_id)
        return *found, models
    finally:
        client.delete_experiment(experiment_id)


def _artifact_repository(root: str) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(root)


def _server_version(uri: str) -> str:
    if not uri.startswith(("http://", "https://")):
        return ""
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    response = http_request(get_default_host_creds(uri), "/version", "GET", max_retries=0, timeout=10, raise_on_status=False)
    response.raise_for_status()
    version: str = response.text.strip()
    if not version[:1].isdigit() or len(version) > 40:
        raise InputError(
            "MLFLOW_TRACKING_URI",
            without_credentials(uri),
            "answers, but not as MLflow does",
            "Check the address; a page for signing in may stand before the server",
        )
    return version


def _probe_run(client: MlflowClient, uri: str, run_id: str) -> tuple[str, str]:
    """Use a run; returns the address of its artifacts, and that of the probe's artifact if it could not be deleted."""
    mark = secrets.token_hex(16)
    client.set_tag(run_id, _PROBED, mark)
    run = client.get_run(run_id)
    if run.data.tags.get(_PROBED) != mark:
        raise InputError("MLFLOW_TRACKING_URI", uri, "does not give back what was written", "See the log of the server")
    client.delete_tag(run_id, _PROBED)
    root = without_credentials(run.info.artifact_uri)
    name = f"{_PROBED}-{mark}.txt"
    with (
        explained(uri, f"has the run, but its artifacts, at {root}, cannot be written and read"),
        TemporaryDirectory() as scratch,
    ):
        (Path(scratch) / name).write_text(mark)
        client.log_artifact(run_id, str(Path(scratch) / name))
        back_folder = Path(scratch) / "back"
        back_folder.mkdir()
        back = Path(client.download_artifacts(run_id, name, str(back_folder)))
        if back.read_text() != mark:
            raise InputError(
                "MLFLOW_TRACKING_URI", uri, f"gives back other artifacts than were written to {root}", "See its log"
            )
    try:
        _artifact_repository(run.info.artifact_uri).delete_artifacts(name)
    except Exception:  # a login with the right to write may lack that to delete
        return root, f"{root}/{name}"
    return root, ""


@contextlib.contextmanager
def explained(uri: str, problem: str) -> Iterator[None]:
    """Turn every error into an InputError with a text of this module: the originals may quote secrets, hence `from None`.

    Args:
        uri: of the server, without credentials.
        problem: what cannot be done, if neither the address nor the login is to blame.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError("MLFLOW_TRACKING_URI", uri, *_explanation(error, problem)) from None


def _explanation(error: Exception, problem: str) -> tuple[str, str]:
    """The problem and the remedy of an InputError."""
    status = _http_status(error)
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
        return "is not the address of an MLflow server (404)", "Check the path; it must be the one under which the UI opens"
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


def _http_status(error: Exception) -> int | None:
    """The HTTP status behind an error of MLflow's client; None: another kind of error."""
    from mlflow.exceptions import MlflowException

    response = getattr(error, "response", None)
    if isinstance(status := getattr(response, "status_code", None), int):
        return status
    if match := re.search(r"(?:too many |error code |HTTP )(\d{3})", str(error)):
        return int(match[1])
    if isinstance(error, MlflowException) and error.error_code != "INTERNAL_ERROR":
        return int(error.get_http_status_code())
    return None
