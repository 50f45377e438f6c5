"""Hand a compiled pipeline to a Kubeflow Pipelines service, and start a run of it.

Whatever is sent can be sent again. A version of a pipeline is called by the sha256 of its YAML, so that the same package is
there once, whoever sends it; a run carries a token of its own, so that one whose creation was not answered is found.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import kfp_server_api

from pipelines.cluster.package import Package
from pipelines.cluster.service import Service, ServiceError

T = TypeVar("T")


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


def links(service: Service, run: Any, experiment: str = "") -> list[str]:
    """Where to look at a run: KFP's UI, MLflow where it is known, KFP's command line."""
    lines = [f"run        {service.link(f'runs/details/{run.run_id}') or run.run_id}"]
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
        f"  rco submit{endpoint} --terminate {run_id}   ends it",
    ]
