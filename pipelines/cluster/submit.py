"""Hand a compiled pipeline to a Kubeflow Pipelines service, start a run of it, and watch it to its end.

Whatever is sent can be sent again. A version of a pipeline is called by the sha256 of its YAML, so that the same package is
there once, whoever sends it; a run carries a token of its own, so that one whose creation was not answered is found.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import kfp_server_api

from pipelines.cluster.package import Package
from pipelines.cluster.service import Pace, Service, ServiceError
from pipelines.pipeline import NAME

T = TypeVar("T")

WATCH = Pace(first=2, longest=20, patience=3600)
SUCCEEDED = "SUCCEEDED"
_ENDED = (SUCCEEDED, "FAILED", "CANCELED", "SKIPPED")
# Nodes that KFP adds around the pipeline's own tasks.
_PLUMBING = re.compile(r"(root|executor|driver|.*-driver|exit-handler-\d+)(\(\d+\))?")
_GONE_AFTER = 3  # answers in a row that there is no such run


class RunGoneError(RuntimeError):
    """A run that was there is not there any more."""


class StillRunningError(RuntimeError):
    """The time to wait is over, and the run is not."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A run to be made.

    Attributes:
        name: of the run, for people.
        experiment: of KFP; made if it is not there.
        parameters: typed; what is left out keeps the package's default.
        service_account: of Kubernetes, for its pods; empty: KFP's.
        pipeline_root: where KFP puts artifacts; empty: KFP's.
        token: finds this run, and no other, again.
    """

    name: str
    experiment: str
    parameters: dict[str, Any]
    service_account: str = ""
    pipeline_root: str = ""
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def to_api(self, package: Package, *, experiment_id: str, pipeline_id: str, version_id: str) -> Any:
        """As KFP's API takes it."""
        return kfp_server_api.V2beta1Run(
            display_name=self.name,
            description=f"rco submit {self.token}; package {package.version}",
            experiment_id=experiment_id,
            pipeline_version_reference=kfp_server_api.V2beta1PipelineVersionReference(
                pipeline_id=pipeline_id, pipeline_version_id=version_id
            ),
            runtime_config=kfp_server_api.V2beta1RuntimeConfig(
                parameters=self.parameters, pipeline_root=self.pipeline_root or None
            ),
            service_account=self.service_account or None,
        )


def run_name(what: str) -> str:
    """A name that says what a run is and when it began, and that no other has."""
    return f"{what} {time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def shown(package: Package, request: Request | None, endpoint: str, namespace: str) -> str:
    """What would be sent, as JSON in KFP's words. Ids are known only to the service."""
    document: dict[str, Any] = {
        "endpoint": endpoint,
        "namespace": namespace,
        "pipeline": {"display_name": package.name},
        "pipeline_version": {"display_name": package.version, "images": list(package.images)},
    }
    if request is not None:
        document["experiment"] = {"display_name": request.experiment}
        run = request.to_api(package, experiment_id="(asked)", pipeline_id="(asked)", version_id="(asked)")
        # Sanitised as KFP's client does it; the client itself is not connected to anything.
        document["run"] = kfp_server_api.ApiClient().sanitize_for_serialization(run)
    return json.dumps(document, indent=2)


@dataclass(frozen=True)
class Uploaded:
    """A version that the service has. `new`: it did not have it before."""

    pipeline_id: str
    version_id: str
    new: bool


def upload(service: Service, package: Package) -> Uploaded:
    """Make sure that the service has this package as a version of its pipeline.

    Raises:
        ServiceError: it cannot be reached, or refuses the package (`status` 400).
    """
    api = kfp_server_api
    namespace = service.namespace or None

    def find_pipeline() -> Any:
        methods = service.client.pipelines
        arguments = {"filter": _named(package.name), **({"namespace": namespace} if namespace else {})}
        found = list(service.pages(methods.pipeline_service_list_pipelines, "pipelines", **arguments))
        # Names are unique, display names need not be.
        return next((p for p in found if getattr(p, "name", None) == package.name), found[0] if found else None)

    def make_pipeline() -> Any:
        pipeline = api.V2beta1Pipeline(
            display_name=package.name, name=package.name, description=package.description or None, namespace=namespace
        )
        # Uploading a package as a pipeline would make a first version that is called as the pipeline is.
        return service.ask(service.client.pipelines.pipeline_service_create_pipeline, pipeline=pipeline)

    pipeline, _ = ensure(find_pipeline, make_pipeline)

    def find_version() -> Any:
        method = service.client.pipelines.pipeline_service_list_pipeline_versions
        arguments = {"pipeline_id": pipeline.pipeline_id, "filter": _named(package.version)}
        return next(service.pages(method, "pipeline_versions", **arguments), None)

    def make_version() -> Any:
        return service.ask(
            service.client.pipeline_uploads.upload_pipeline_version,
            uploadfile=str(package.path),
            name=package.version,
            pipelineid=pipeline.pipeline_id,
            description=f"image {', '.join(package.images)}",
        )

    version, new = ensure(find_version, make_version)
    return Uploaded(pipeline.pipeline_id, version.pipeline_version_id, new)


def find_experiment(service: Service, name: str) -> Any:
    """KFP's experiment of this name; made if it is not there."""
    namespace = service.namespace or None

    def find() -> Any:
        method = service.client.experiments.experiment_service_list_experiments
        arguments = {"filter": _named(name), **({"namespace": namespace} if namespace else {})}
        return next(service.pages(method, "experiments", **arguments), None)

    def make() -> Any:
        experiment = kfp_server_api.V2beta1Experiment(display_name=name, namespace=namespace)
        return service.ask(service.client.experiments.experiment_service_create_experiment, experiment=experiment)

    return ensure(find, make)[0]


def start(service: Service, package: Package, uploaded: Uploaded, request: Request) -> Any:
    """Make the run, once."""
    experiment = find_experiment(service, request.experiment)
    body = request.to_api(
        package,
        experiment_id=experiment.experiment_id,
        pipeline_id=uploaded.pipeline_id,
        version_id=uploaded.version_id,
    )

    def find() -> Any:
        method = service.client.runs.run_service_list_runs
        runs = service.pages(method, "runs", experiment_id=experiment.experiment_id, filter=_named(request.name))
        return next((run for run in runs if run.description == body.description), None)

    def make() -> Any:
        return service.call(service.client.runs.run_service_create_run, run=body)

    return service.persist(lambda: ensure(find, make)[0])


def ensure(find: Callable[[], T | None], make: Callable[[], T]) -> tuple[T, bool]:
    """Find something, or make it; and whether it is new. If it cannot be made it is looked for again: somebody else was
    quicker, or it was made and the answer was lost."""
    found = find()
    if found is not None:
        return found, False
    try:
        return make(), True
    except ServiceError:
        found = find()
        if found is None:
            raise
        return found, False


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": name}]})


def wait(
    service: Service, run_id: str, show: Callable[[str], None], *, timeout: float | None = None, pace: Pace | None = None
) -> Any:
    """Watch a run to its end; returns it as it then is.

    Args:
        show: is given a line for every task that begins or ends.
        timeout: seconds to wait at most; the run itself is not touched.
        pace: how often to look, and how long the service may be away; `WATCH` if None.

    Raises:
        RunGoneError: it was there, or should be, and is not.
        StillRunningError: after `timeout`.
        ServiceError: the service is away for too long, or does not know us any more. The run goes on.
    """
    pace = pace or WATCH
    begun = time.monotonic()
    seen: dict[str, str] = {}
    away: float | None = None  # since when
    missing, renewed = 0, False
    for pause in pace.pauses():
        try:
            run = service.call(service.client.runs.run_service_get_run, run_id=run_id)
        except ServiceError as error:
            now = time.monotonic()
            if error.status == 401 and not renewed:
                renewed = True
                service.renew()
                continue
            if error.status == 404:
                missing += 1
                if missing == _GONE_AFTER:
                    raise RunGoneError(
                        f"there is no run {run_id} (any more): it was deleted, or is another service's"
                    ) from None
            elif not error.passing or (away is not None and now - away > pace.patience):
                raise
            elif away is None:
                away = now
                show(f"{error}; the run goes on, looking again")
        else:
            if away is not None:
                show(f"{service.address or 'KFP'} is back")
            away, missing, renewed = None, 0, False
            for line in progress(run, seen):
                show(line)
            if _state(run) in _ENDED:
                return run
        if timeout is not None:
            left = timeout - (time.monotonic() - begun)
            if left <= 0:
                raise StillRunningError(f"the run has not ended within {_duration(timeout)}")
            pause = min(pause, left)
        time.sleep(pause)
    raise AssertionError("pauses do not end")


def progress(run: Any, seen: dict[str, str]) -> list[str]:
    """What has happened since it was looked at last: a line for every task that began or ended.

    Args:
        seen: task -> its state; brought up to date.
    """
    lines = []
    for task in sorted(_tasks(run), key=lambda task: (str(task.start_time), str(task.display_name))):
        state, key = _state(task), str(task.task_id or task.pod_name or task.display_name)
        if seen.get(key, "PENDING") == state or state in ("RUNTIME_STATE_UNSPECIFIED", "PENDING"):
            continue
        seen[key] = state
        took = _took(task) if state in (SUCCEEDED, "FAILED") else ""
        lines.append(f"{task.display_name}: {state.lower()}{took}")
    return lines


def failures(run: Any, namespace: str) -> list[str]:
    """Why a run did not succeed, as far as KFP says, and where it says more."""
    lines = [f"{task.display_name}: {_error(task) or 'failed'}" for task in _tasks(run) if _state(task) == "FAILED"]
    if text := _error(run):
        lines.append(text)
    details = (run.run_details and run.run_details.task_details) or ()
    failed = [task for task in details if _state(task) == "FAILED" and str(task.display_name).startswith("executor")]
    return lines + [
        f"log: kubectl -n {namespace or 'kubeflow'} logs {task.pod_name} -c main" for task in failed if task.pod_name
    ]


def links(service: Service, run: Any, experiment: str = "") -> list[str]:
    """Where to look at a run: KFP's UI, MLflow where it is known, KFP's command line."""
    lines = [f"run        {service.link(f'runs/details/{run.run_id}')}"]
    for name, plugin in (getattr(run, "plugins_output", None) or {}).items():
        for key, entry in (plugin.entries or {}).items():
            if str(entry.render_type) == "URL":
                lines.append(f"{name:<10} {entry.value}   ({key})")
    tracking = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if tracking.scheme in ("http", "https"):
        server = urlunsplit((tracking.scheme, tracking.netloc.rpartition("@")[2], tracking.path, "", ""))
        where = f"experiment {experiment}, " if experiment else ""
        lines.append(f"MLflow     {server}   ({where}tags.`rco.pipeline_run` = '{run.run_id}')")
    return lines


def again(service: Service, run_id: str) -> list[str]:
    """How to look at a run that goes on without us."""
    endpoint = f" --endpoint {service.address}" if service.address else ""
    return [
        "the run goes on. Look at it again with",
        f"  rco wait{endpoint} {run_id}",
        f"  kfp{endpoint} run get {run_id}",
        f"  {service.link(f'runs/details/{run_id}')}   (there it can be ended, too)",
    ]


def state_of(run: Any) -> str:
    """A run's state, as KFP names it: SUCCEEDED, FAILED, ..."""
    return _state(run)


def _state(thing: Any) -> str:
    return str(thing.state or "PENDING").upper()


def _tasks(run: Any) -> list[Any]:
    """Those that the pipeline's author knows."""
    details = (run.run_details and run.run_details.task_details) or ()
    own = [task for task in details if task.display_name and not _PLUMBING.fullmatch(task.display_name)]
    # Argo's node for the whole workflow is called as the workflow is: as the pipeline, and five letters.
    return [task for task in own if not task.display_name.startswith(NAME)]


def _took(task: Any) -> str:
    begun, ended = task.start_time, task.end_time
    unset = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)  # the service says 1970 for a time that is not yet
    if not begun or not ended or begun < unset or ended < begun:
        return ""
    return f" after {_duration((ended - begun).total_seconds())}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def _error(thing: Any) -> str:
    return " ".join(str(thing.error.message).split())[:500] if thing.error and thing.error.message else ""
