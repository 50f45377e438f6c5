"""What `rco doctor` checks beside `rco.doctor`: the endpoint of Kubeflow Pipelines, and the image that tasks run in."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from components.image import ROOT, content_hash
from pipelines.local.run import Home
from rco import doctor
from rco.core.errors import InputError
from rco.tasks import services
from rco.tasks.services import FAIL, OK, SKIPPED, WARN, Check, Finding
from rco.tracking.context import Context

BUILD = ROOT / "build" / "image.json"
_DOMAIN = r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*(?::\d+)?/)?"
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"{_DOMAIN}{_PART}(?:/{_PART})*(?::(?P<tag>\w[\w.-]{{0,127}}))?(?:@(?P<digest>sha256:[0-9a-f]{{64}}))?"
)
_BUILD_IT = "make build-images push-images REGISTRY=..."


def checks(
    home: Path, device: str, addresses: tuple[str, ...], endpoint: str | None, namespace: str | None, limit: float
) -> dict[str, Check]:
    """All checks of `rco doctor`.

    Args:
        home: directory of local state; its MLflow is checked if the environment names none.
        device: as for `rco.doctor.machine_checks`.
        addresses: s3:// addresses.
        endpoint: of Kubeflow Pipelines; without one it is not checked.
        namespace: of the runs there.
        limit: seconds that each check may take.
    """
    state = Home(home.resolve())
    environment = {**os.environ, **state.environment}
    context = Context(
        tracking_uri=environment.get("MLFLOW_TRACKING_URI", ""),
        pipeline_run="",
        artifact_root=environment.get("RCO_ARTIFACT_ROOT", ""),
    )
    found: dict[str, Check] = {**doctor.machine_checks(home, device, limit)}
    if state.environment and not (state.root / "mlflow.db").exists():
        local = "MLFLOW_TRACKING_URI is not set; local runs are tracked in the state directory, from the first one on"
        found["MLflow"] = partial(skip, "MLflow", local)
        context = Context(tracking_uri="", pipeline_run="", artifact_root=context.artifact_root)
    asked = services.services(context, addresses)
    if not any(name.startswith("S3 ") for name in asked):
        asked["S3"] = partial(skip, "S3", "no address is named (--s3 s3://BUCKET/PREFIX, RCO_RESUME, RCO_ARTIFACT_ROOT)")
    found |= asked
    found["Kubeflow"] = partial(kubeflow, endpoint, namespace)
    found["workflows"] = partial(workflows, endpoint)
    found["image"] = partial(image, os.environ.get("RCO_IMAGE", ""))
    return found


def skip(name: str, why: str) -> list[Finding]:
    """There is nothing to check."""
    return [Finding(name=name, status=SKIPPED, found=why)]


def image(named: str, build: Path = BUILD) -> list[Finding]:
    """Whether the image that a cluster would run has a valid name that cannot move, and holds this code.

    Args:
        named: RCO_IMAGE; empty: what was built last.
        build: what `make build-images` wrote.
    """

    def finding(status: str, found: str, next_step: str = "") -> list[Finding]:
        return [Finding(name="image", status=status, found=found, next_step=next_step)]

    built = _built(build)
    if built is None:
        return finding(WARN if named else FAIL, f"{build} does not describe an image", _BUILD_IT)
    reference = named or built.get("reference")
    if not reference:
        return finding(SKIPPED, "none was built or named in RCO_IMAGE; only a cluster needs one", f"For a cluster: {_BUILD_IT}")
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        step = "Write HOST/NAME:TAG or HOST/NAME@sha256:..., in lower case and without a scheme"
        return finding(FAIL, f"{_shortened(reference)} is not an image reference", step)
    facts = _shortened(reference)
    if "python" not in reference:
        facts += "; KFP's own subprocess runner warns of names without 'python' (rco run does not use this one)"
    if built.get("reference") != reference:
        facts += "; what it holds is not known here"
    elif built.get("content") != content_hash():
        return finding(WARN, f"{facts}; it holds other code than this checkout", _BUILD_IT)
    else:
        facts += "; it holds this checkout"
    if match["digest"]:
        return finding(OK, facts)
    if match["tag"] in (None, "latest"):
        return finding(WARN, f"{facts}; its tag moves, so caches may serve results of other code", f"Use a digest: {_BUILD_IT}")
    return finding(WARN, f"{facts}; a tag, which can be moved", f"Use the digest that a push records: {_BUILD_IT}")


def _built(build: Path) -> dict[str, str] | None:
    """What was built; empty: nothing. None: the file says something else."""
    if not build.is_file():
        return {}
    try:
        content = json.loads(build.read_text())
        return {name: re.fullmatch(r"\S+", content[name])[0] for name in ("reference", "content")}  # type: ignore[index]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _shortened(reference: str) -> str:
    """A name with user and password left out, which somebody may have copied from a registry's address."""
    return reference.rpartition("@")[2] if "://" in reference else reference


def kubeflow(endpoint: str | None, namespace: str | None = None) -> list[Finding]:
    """Whether Kubeflow Pipelines answers at its endpoint, and lets this user see runs."""
    if not endpoint:
        return skip("Kubeflow", "no endpoint is named (--endpoint, KFP_ENDPOINT); local runs need none")
    import kfp

    from pipelines.cluster.service import OLDEST, Pace, Service, ServiceError

    def finding(status: str, found: str, next_step: str = "") -> list[Finding]:
        return [Finding(name="Kubeflow", status=status, found=found, next_step=next_step)]

    try:
        service = Service(endpoint, namespace, pace=Pace(first=0.5, patience=3))
        mine = {"namespace": service.namespace} if service.namespace else {}
        service.ask(service.client.experiments.experiment_service_list_experiments, page_size=1, **mine)
    except ServiceError as error:
        found, _, next_step = str(error).partition(". ")
        return finding(FAIL, found, next_step or "See docs/cluster.md; the administrator of the cluster can look at its log")
    except InputError as error:
        return finding(FAIL, f"{error.parameter} {error.problem}", error.remedy)
    facts = f"{service.address}: KFP {service.version or 'of unknown version'}"
    facts += f", namespace {service.namespace}" if service.namespace else ""
    if service.older_than(OLDEST):
        found = f"{facts}, older than {OLDEST[0]}.{OLDEST[1]}: nested pipelines do not hand on artifacts there"
        return finding(FAIL, found, "Update it: a run fails at its first stage")
    plugin = _plugin(service)
    facts += f"; {plugin}" if plugin else ""
    numbers = re.match(r"(\d+)\.(\d+)", kfp.__version__)
    if numbers and service.older_than((int(numbers[1]), int(numbers[2]))):
        return finding(WARN, f"{facts}, older than the {kfp.__version__} that compiles", "It may refuse what is new: update it")
    return finding(OK, f"{facts}; lets this user in")


def _plugin(service: Any) -> str:
    """What KFP's MLflow plugin did in the last run, if there is one."""
    from pipelines.cluster.service import ServiceError

    mine = {"namespace": service.namespace} if service.namespace else {}
    try:
        answer = service.call(service.client.runs.run_service_list_runs, page_size=1, sort_by="created_at desc", **mine)
    except ServiceError:
        return ""
    outputs = (answer.runs[0].plugins_output or {}) if answer.runs else {}
    if "mlflow" not in outputs:
        return ""
    state = str(outputs["mlflow"].state or "").lower().replace("_", " ")
    return f"its MLflow plugin is on ({state}): where it sets MLFLOW_TRACKING_URI, tasks track there"


def workflows(endpoint: str | None, namespace: str = "kubeflow") -> list[Finding]:
    """Which failures the cluster tries again, and how long it keeps workflows, if Kubernetes lets this user read it.

    Args:
        endpoint: of Kubeflow Pipelines; without one it is not checked.
        namespace: of KFP itself.
    """
    if not endpoint:
        return skip("workflows", "no endpoint of Kubeflow is named")
    from pipelines.cluster import controller

    defaults = controller.ask(namespace)
    if defaults is None:
        return skip(
            "workflows", f"{controller.CONFIG_MAP} in {namespace} cannot be read from here: which failures are tried again?"
        )
    return policies(defaults)


def policies(defaults: str) -> list[Finding]:
    """What follows from the workflow controller's defaults."""
    from pipelines.cluster import controller
    from pipelines.cluster.watch import duration

    kept = controller.kept_for(defaults)
    facts = (
        f"a workflow is deleted, with the logs of its pods, {duration(kept)} after its end" if kept else "workflows are kept"
    )
    policy = controller.policy(defaults)
    if policy in ("OnError", "OnTransientError"):
        found = f"{policy} is the policy of all retries: a task that dies or times out is not tried again; {facts}"
        step = (
            "docs/deployment.md#retries-on-kfp-as-it-comes says what an administrator changes; or rco submit --retry-failed N"
        )
        return [Finding(name="workflows", status=WARN, found=found, next_step=step)]
    return [Finding(name="workflows", status=OK, found=f"failures are tried again as the deployment file says; {facts}")]
