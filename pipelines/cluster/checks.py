"""What `rco doctor --cluster` checks, through the user's own kubectl context: all that a run needs there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipelines.cluster import controller, objects, registry
from pipelines.cluster.deployment import CLASSES, Deployment
from pipelines.cluster.kube import DENIED, MISSING, REFUSED, Kube, KubeError
from pipelines.cluster.manifests import KUBEFLOW
from pipelines.cluster.nodes import nodes
from pipelines.cluster.objects import ACCESS, trouble
from rco.core.errors import InputError
from rco.core.settings import has_credentials
from rco.tasks.services import FAIL, OK, SKIPPED, WARN, Check, Finding

_DEPLOYMENTS = {"KFP": "ml-pipeline", "Argo": "workflow-controller"}
_LAUNCHER = "kfp-launcher"
_PUSH = "make push-images REGISTRY=..., or name another image with RCO_IMAGE"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run would be started with.

    Attributes:
        namespace: of its pods.
        site: the deployment file.
        service_account: of its pods.
        image: of its tasks.
    """

    namespace: str
    site: Deployment
    service_account: str
    image: str


def checks(kube: Kube, wanted: Wanted, pods: Mapping[str, dict[str, Any]]) -> dict[str, Check]:
    """All checks of a cluster that answers.

    Args:
        pods: of each class of tasks (`pipelines.cluster.podspec.pods`).
    """
    namespace, site = wanted.namespace, wanted.site
    found: dict[str, Check] = {}
    for source in site.environment:
        kind = "Secret" if source.secret else "ConfigMap"
        found[f"{kind} {source.secret or source.config_map}"] = partial(objects.source, kube, namespace, source)
    if site.certificates.config_map:
        found["ConfigMap of certificates"] = partial(objects.certificates, kube, namespace, site)
    for volume in site.volumes:
        found[f"PVC {volume.claim}"] = partial(objects.claim, kube, namespace, volume.claim)
    found["account"] = partial(objects.account, kube, namespace, wanted.service_account)
    found["registry"] = partial(image, kube, wanted)
    for name in _DEPLOYMENTS:
        found[name] = partial(version, kube, namespace, name)
    found["workflows"] = partial(workflows, kube, namespace)
    found["plugin"] = partial(plugin, kube, namespace, site)
    found["admission"] = partial(admission, kube, namespace, pods)
    found["nodes"] = partial(nodes, kube, namespace, pods)
    return found


def version(kube: Kube, namespace: str, name: str) -> list[Finding]:
    """The version of KFP or of Argo, by the image of its Deployment."""
    deployment = _DEPLOYMENTS[name]
    what = f"Deployment {deployment} in {KUBEFLOW}"
    try:
        document = kube.get(f"/apis/apps/v1/namespaces/{KUBEFLOW}/deployments/{deployment}")
    except KubeError as error:
        if error.kind != MISSING:
            return [trouble(name, what, error, namespace)]
        step = "Is this the right cluster (kubectl config current-context)? If KFP is in another namespace, ask it: --endpoint"
        return [Finding(name=name, status=WARN, found=f"{what} is not there", next_step=step)]
    images = [container.get("image", "") for container in _containers(document)]
    ready = (document.get("status") or {}).get("readyReplicas") or 0
    tag = re.search(r":v?(\d+)\.(\d+)(\.\d+)?", images[0].rpartition("/")[2]) if images else None
    facts = f"{name} {tag[0].lstrip(':v')}" if tag else f"{name} of unknown version ({images[0] if images else 'no image'})"
    if not ready:
        step = f"kubectl describe deployment -n {KUBEFLOW} {deployment}"
        return [Finding(name=name, status=FAIL, found=f"{facts}, of which no pod is ready", next_step=step)]
    if name == "KFP" and tag:
        return [_judge(facts, (int(tag[1]), int(tag[2])))]
    return [Finding(name=name, status=OK, found=facts)]


def _judge(facts: str, version: tuple[int, int]) -> Finding:
    import kfp

    from pipelines.cluster.service import OLDEST

    if version < OLDEST:
        found = f"{facts}, older than {OLDEST[0]}.{OLDEST[1]}: nested pipelines do not hand on artifacts there"
        return Finding(name="KFP", status=FAIL, found=found, next_step="Update it: a run fails at its first stage")
    major, minor = (int(number) for number in kfp.__version__.split(".")[:2])
    if version < (major, minor):
        found = f"{facts}, older than the {kfp.__version__} that compiles"
        return Finding(name="KFP", status=WARN, found=found, next_step="It may refuse what is new: update it")
    return Finding(name="KFP", status=OK, found=facts)


def _containers(deployment: Mapping[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = deployment.get("spec", {}).get("template", {}).get("spec", {}).get("containers") or []
    return found


def workflows(kube: Kube, namespace: str) -> list[Finding]:
    """Which failures are tried again, and how long workflows are kept."""
    from pipelines.doctor import policies

    try:
        found = kube.get(f"/api/v1/namespaces/{KUBEFLOW}/configmaps/{controller.CONFIG_MAP}")
    except KubeError as error:
        if error.kind == MISSING:
            step = "Is KFP in another namespace? docs/deployment.md says what its retry policy changes"
            text = f"{controller.CONFIG_MAP} is not in {KUBEFLOW}"
            return [Finding(name="workflows", status=SKIPPED, found=text, next_step=step)]
        return [trouble("workflows", f"ConfigMap {controller.CONFIG_MAP} in {KUBEFLOW}", error, namespace)]
    return policies(controller.defaults_of(found))


def plugin(kube: Kube, namespace: str, site: Deployment) -> list[Finding]:
    """Whether KFP's MLflow plugin is on, and sends tasks elsewhere than our settings do."""
    try:
        settings = _plugin(kube, namespace)
    except KubeError as error:
        return [trouble("plugin", "the configuration of KFP's API server", error, namespace)]
    if settings is None:
        return [Finding(name="plugin", status=OK, found="KFP's MLflow plugin is not on: tasks track where our settings say")]
    endpoint, injects = settings
    if not injects:
        found = "KFP's MLflow plugin is on, without injectUserEnvVars: tasks track where our settings say"
        return [Finding(name="plugin", status=OK, found=found)]
    shown = "(hidden)" if has_credentials(endpoint) else endpoint or "an address of its own"
    ours = _tracking_uri(kube, namespace, site)
    facts = f"KFP's MLflow plugin sets MLFLOW_TRACKING_URI for every task: {shown}"
    if not ours or ours.rstrip("/") == endpoint.rstrip("/"):
        return [Finding(name="plugin", status=OK, found=facts)]
    step = "Name one server in both; or have the administrator set injectUserEnvVars: false"
    found = f"{facts}; the address in our ConfigMap is another one, and is not used"
    return [Finding(name="plugin", status=WARN, found=found, next_step=step)]


def _plugin(kube: Kube, namespace: str) -> tuple[str, bool] | None:
    """Its server, and whether it sets variables for tasks; None: it is off.

    The API server reads config.json, which lies in its image or in a ConfigMap that is mounted over it; a namespace may change
    some settings in its own `kfp-launcher`.
    """
    deployment = kube.get(f"/apis/apps/v1/namespaces/{KUBEFLOW}/deployments/{_DEPLOYMENTS['KFP']}")
    volumes = deployment.get("spec", {}).get("template", {}).get("spec", {}).get("volumes") or []
    found: dict[str, Any] = {}
    for name in (volume["configMap"]["name"] for volume in volumes if "configMap" in volume):
        for text in (_data(kube, KUBEFLOW, name)).values():
            found = _mlflow(_parsed(text)) or found
    if not found:
        return None
    own = _parsed(_data(kube, namespace, _LAUNCHER).get("plugins.mlflow", ""))
    settings = {**(found.get("settings") or {}), **(own.get("settings") or {})}
    return str(found.get("endpoint") or ""), settings.get("injectUserEnvVars") is True


def _data(kube: Kube, namespace: str, name: str) -> Mapping[str, str]:
    try:
        return kube.get(f"/api/v1/namespaces/{namespace}/configmaps/{name}").get("data") or {}
    except KubeError as error:
        if error.kind == MISSING:
            return {}
        raise


def _parsed(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _mlflow(config: Mapping[str, Any]) -> dict[str, Any]:
    """plugins.mlflow of config.json."""
    plugins = config.get("plugins")
    found = plugins.get("mlflow") if isinstance(plugins, dict) else config.get("plugins.mlflow")
    return found if isinstance(found, dict) else {}


def _tracking_uri(kube: Kube, namespace: str, site: Deployment) -> str:
    for source in site.environment:
        if source.config_map and (key := source.variables.get("MLFLOW_TRACKING_URI")):
            try:
                return objects.contents(kube, namespace, "ConfigMap", source.config_map).get(key, b"").decode().strip()
            except (KubeError, UnicodeDecodeError):
                return ""
    return ""


def admission(kube: Kube, namespace: str, pods: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """Whether a pod of each class would be admitted: a dry run of the server, with its quotas and policies."""
    found, admitted = [], []
    for kind in CLASSES:
        try:
            kube.try_to_create(f"/api/v1/namespaces/{namespace}/pods", pods[kind])
            admitted.append(kind)
        except KubeError as error:
            if error.kind != REFUSED:
                what = f"whether pods would be admitted to {namespace}"
                denied = Finding(
                    name="admission",
                    status=SKIPPED,
                    found=f"{what} may not be tried with this login (403): {error.words}",
                    next_step=ACCESS.format(namespace),
                )
                return [denied if error.kind == DENIED else trouble("admission", what, error, namespace)]
            step = "Change what the deployment file gives to this class, or have the quota or policy changed"
            text = f"a pod of the class {kind} is not admitted: {error.words}"
            found.append(Finding(name="admission", status=FAIL, found=text, next_step=step))
    if admitted:
        text = f"pods of the classes {', '.join(admitted)} would be admitted (dry run)"
        found.append(Finding(name="admission", status=OK, found=text))
    return found


def image(kube: Kube, wanted: Wanted) -> list[Finding]:
    """Whether the image is in its registry, with the rights of the pull secrets."""
    reference = registry.Reference.of(wanted.image)
    if not reference.registry and "/" not in reference.repository:
        found = f"{wanted.image} names no registry: only nodes that were given it by hand have it"
        return [Finding(name="registry", status=WARN, found=found, next_step=_PUSH)]
    given: list[registry.Login] = []
    findings: list[Finding] = []
    names, unread = _pull_secrets(kube, wanted)
    for name in names:
        try:
            given += registry.logins(name, kube.get(f"/api/v1/namespaces/{wanted.namespace}/secrets/{name}"))
        except InputError as error:
            findings.append(_registry(FAIL, f"the pull secret {name} {error.problem}", error.remedy))
        except KubeError as error:
            if error.kind == MISSING:
                step = f"kubectl create secret docker-registry {name} -n {wanted.namespace} --docker-server=... ..."
                findings.append(_registry(WARN, f"the pull secret {name} is not there: pods pull without it", step))
            else:
                unread.append(name)
                findings.append(trouble("registry", f"the pull secret {name}", error, wanted.namespace))
    answer = registry.look(reference, given)
    return [*findings, *_of_image(wanted.image, answer, [login.secret for login in given], unread)]


def _registry(status: str, found: str, next_step: str = "") -> Finding:
    return Finding(name="registry", status=status, found=found, next_step=next_step)


def _of_image(name: str, found: registry.Found, secrets: list[str], unread: list[str]) -> Iterator[Finding]:
    rights = f"with the rights of {found.login.secret}" if found.login else "without a login"
    if found.outcome == registry.THERE:
        yield _registry(OK, f"{name} is there, {rights}" + (f"; {found.facts}" if found.facts else ""))
    elif found.outcome == registry.ABSENT:
        yield _registry(FAIL, f"the registry of {name} {found.facts} ({rights})", f"Push it: {_PUSH}")
    elif found.outcome == registry.AWAY:
        step = "Nodes may reach it where this machine does not: --probe has one pull the image"
        yield _registry(WARN, f"the registry of {name} {found.facts}", step)
    elif unread:
        step = "--probe has a node pull the image"
        yield _registry(SKIPPED, f"the registry of {name} {found.facts}, and {', '.join(unread)} may not be read", step)
    elif found.login:
        step = "Make the pull secret anew, with a login that may read this image"
        yield _registry(FAIL, f"the registry of {name} {found.facts} ({rights})", step)
    else:
        lacking = f"{', '.join(dict.fromkeys(secrets))} is for other registries" if secrets else "no pull secret is named"
        step = "Name one under image_pull_secrets, unless your nodes have rights of their own (--probe has one pull the image)"
        yield _registry(WARN, f"the registry of {name} {found.facts}, and {lacking}", step)


def _pull_secrets(kube: Kube, wanted: Wanted) -> tuple[list[str], list[str]]:
    """Those of the deployment file; without any, Kubernetes takes those of the service account. And what cannot be read."""
    if wanted.site.image_pull_secrets:
        return list(wanted.site.image_pull_secrets), []
    try:
        document = kube.get(f"/api/v1/namespaces/{wanted.namespace}/serviceaccounts/{wanted.service_account}")
    except KubeError:  # the check of the account tells of it
        return [], [f"the service account {wanted.service_account}"]
    return [secret["name"] for secret in document.get("imagePullSecrets") or () if "name" in secret], []
