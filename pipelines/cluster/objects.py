"""Checks of what tasks need in their namespace: Secrets, ConfigMaps, claims and service accounts, and what these hold."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from pipelines.cluster.deployment import Deployment, Source
from pipelines.cluster.kube import AWAY, DENIED, MISSING, UNKNOWN_LOGIN, Kube, KubeError
from pipelines.cluster.manifests import KUBEFLOW, PLACEHOLDER
from rco.tasks.services import FAIL, OK, SKIPPED, WARN, Finding

ACCESS = "Ask for the rights that rco cluster manifests access --namespace {} prints, or look at it with an administrator"
_TRACKING = "MLFLOW_TRACKING_URI"
_PAIRS = (("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"))


def trouble(name: str, what: str, error: KubeError, namespace: str) -> Finding:
    """What Kubernetes' refusal means for a check; a check that finds MISSING or REFUSED of interest looks at these itself.

    Args:
        name: of the finding.
        what: was asked for.
        namespace: of the runs.
    """
    if error.kind == DENIED:
        found = f"{what} may not be read with this login (403): {error.words}"
        return Finding(name=name, status=SKIPPED, found=found, next_step=ACCESS.format(namespace))
    if error.kind == UNKNOWN_LOGIN:
        step = "Log in to the cluster again: kubectl auth whoami must name you"
        return Finding(
            name=name, status=FAIL, found=f"the cluster does not know this login (401): {error.words}", next_step=step
        )
    if error.kind == AWAY:
        step = "Check kubectl get --raw /version, the network and the VPN; KFP_KUBE_CONTEXT names another context"
        return Finding(name=name, status=FAIL, found=f"{what}: {error.words}", next_step=step)
    return Finding(name=name, status=FAIL, found=f"{what}: {error.words}", next_step="Look at it with kubectl")


def source(kube: Kube, namespace: str, given: Source) -> list[Finding]:
    """Whether a Secret or ConfigMap is there, and its keys are those that tasks are given."""
    kind, name = ("Secret", given.secret) if given.secret else ("ConfigMap", given.config_map)
    part = "credentials" if given.secret else "settings"
    how = f"rco cluster manifests {part} --namespace {namespace}"
    try:
        held = contents(kube, namespace, kind, name)
    except KubeError as error:
        if error.kind != MISSING:
            return [trouble(kind, f"{kind} {name} in {namespace}", error, namespace)]
        variables = ", ".join(given.variables)
        if given.optional:
            found = f"{name} is not there: tasks go without {variables}"
            return [Finding(name=kind, status=WARN, found=found, next_step=f"Make it: {how} shows how")]
        found = f"{name} is not there, and not optional: every task's pod waits for it until its timeout"
        return [Finding(name=kind, status=FAIL, found=found, next_step=f"Make it: {how} shows how")]
    return [*_keys(kind, name, given, held, how)]


def contents(kube: Kube, namespace: str, kind: str, name: str) -> dict[str, bytes]:
    """What a Secret or ConfigMap holds, by key.

    Raises:
        KubeError: it cannot be had.
    """
    document = kube.get(f"/api/v1/namespaces/{namespace}/{kind.lower()}s/{name}")
    data: Mapping[str, str] = document.get("data") or {}
    if kind == "ConfigMap":
        return {key: text.encode() for key, text in data.items()}
    found = {}
    for key, text in data.items():
        try:
            found[key] = base64.b64decode(text)
        except (binascii.Error, ValueError):
            found[key] = b""
    return found


def _keys(kind: str, name: str, given: Source, held: Mapping[str, bytes], how: str) -> Iterator[Finding]:
    wanted = list(dict.fromkeys(given.variables.values()))
    there, missing = [key for key in wanted if key in held], [key for key in wanted if key not in held]
    unfilled = [key for key in there if held[key].strip() in (b"", PLACEHOLDER.encode())]
    if unfilled:
        found = f"{name} has no value yet for {', '.join(unfilled)}"
        yield Finding(name=kind, status=FAIL, found=found, next_step=f"Fill it in, or remove the key: {how} shows how")
    binary = [key for key in there if b"\0" in held[key] or not _is_text(held[key])]
    if binary:
        found = f"{name}: {', '.join(binary)} is not text, and every task refuses it"
        yield Finding(name=kind, status=FAIL, found=found, next_step="Write the value anew, as text")
    near = {other: get_close_matches(other, missing, n=1, cutoff=0.8) for other in held if other not in wanted}
    misspelt = [f"{other} (did you mean {match[0]}?)" for other, match in near.items() if match]
    if misspelt:
        found = f"{name} has keys that no task reads: {', '.join(misspelt)}"
        yield Finding(
            name=kind, status=WARN, found=found, next_step=f"Name the key as the deployment file does: {how} lists all"
        )
    if missing and not given.optional:
        found = f"{name} has no {', '.join(missing)}, and is not optional: every task fails at once"
        yield Finding(name=kind, status=FAIL, found=found, next_step="Add the key, or take it out of the deployment file")
    variables = {variable for variable, key in given.variables.items() if key in held}
    if _TRACKING in given.variables and _TRACKING not in variables:
        found = f"{name} has no {_TRACKING}: nothing is tracked, unless KFP's MLflow plugin names a server"
        yield Finding(
            name=kind, status=WARN, found=found, next_step=f"Add the address of MLflow as pods reach it: {how} shows how"
        )
    for one, other in _PAIRS:
        if {one, other} <= set(given.variables) and len(variables & {one, other}) == 1:
            (alone,) = variables & {one, other}
            found = f"{name} gives tasks {alone} without {other if alone == one else one}"
            yield Finding(name=kind, status=WARN, found=found, next_step="Add the other one, or remove this one")
    facts = f"{name} has {', '.join(there)}" if there else f"{name} has none of the keys that tasks read"
    facts += f"; not {', '.join(missing)}" if missing and there else ""
    step = "" if there else f"{how} lists them"
    if there or not misspelt:
        yield Finding(name=kind, status=OK if there else WARN, found=facts, next_step=step)


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def certificates(kube: Kube, namespace: str, site: Deployment) -> list[Finding]:
    """Whether the ConfigMap of a certificate authority is there, with its key."""
    name, key = site.certificates.config_map, site.certificates.key
    step = f"kubectl create configmap {name} -n {namespace} --from-file={key}"
    try:
        held = contents(kube, namespace, "ConfigMap", name)
    except KubeError as error:
        if error.kind != MISSING:
            return [trouble("ConfigMap", f"ConfigMap {name} in {namespace}", error, namespace)]
        found = f"{name} is not there: every task's pod waits for it until its timeout"
        return [Finding(name="ConfigMap", status=FAIL, found=found, next_step=step)]
    if b"-----BEGIN CERTIFICATE-----" not in held.get(key, b""):
        found = f"{name} has no certificates in PEM under {key}"
        return [Finding(name="ConfigMap", status=FAIL, found=found, next_step=step)]
    return [Finding(name="ConfigMap", status=OK, found=f"{name} has certificates under {key}")]


def claim(kube: Kube, namespace: str, name: str) -> list[Finding]:
    """Whether a PersistentVolumeClaim is there and bound, and can be used on several nodes."""
    try:
        document = kube.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
    except KubeError as error:
        if error.kind != MISSING:
            return [trouble("PVC", f"PersistentVolumeClaim {name} in {namespace}", error, namespace)]
        step = f"Make it: rco cluster manifests volume --namespace {namespace} --deployment FILE | kubectl apply -f -"
        return [Finding(name="PVC", status=FAIL, found=f"{name} is not there: no pod with it can start", next_step=step)]
    phase = str((document.get("status") or {}).get("phase") or "of unknown phase")
    modes = (document.get("spec") or {}).get("accessModes") or []
    facts = f"{name} is {phase} ({', '.join(modes)})"
    look = f"kubectl describe pvc -n {namespace} {name}"
    if phase == "Lost":
        return [Finding(name="PVC", status=FAIL, found=f"{facts}: its volume is gone", next_step=look)]
    if phase != "Bound":
        found = f"{facts}; a storage class may wait for the first pod"
        return [Finding(name="PVC", status=WARN, found=found, next_step=f"{look} says why; --probe mounts it")]
    if "ReadWriteMany" not in modes:
        found = f"{facts}: tasks on other nodes wait for it while one has it"
        return [Finding(name="PVC", status=WARN, found=found, next_step="Use ReadWriteMany, unless the cluster has one node")]
    return [Finding(name="PVC", status=OK, found=facts)]


def default_account(namespace: str) -> str:
    """The service account that KFP gives to a run's pods where nobody names one."""
    return "pipeline-runner" if namespace == KUBEFLOW else "default-editor"


def account(kube: Kube, namespace: str, name: str) -> list[Finding]:
    """Whether the service account of the run's pods is there."""
    try:
        document = kube.get(f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}")
    except KubeError as error:
        if error.kind != MISSING:
            return [trouble("account", f"ServiceAccount {name} in {namespace}", error, namespace)]
        found = f"the service account {name} is not in {namespace}: no pod of a run can be made"
        step = f"Is {namespace} the namespace of your runs (--namespace)? Another account: --service-account, of rco submit too"
        return [Finding(name="account", status=FAIL, found=found, next_step=step)]
    secrets = [secret["name"] for secret in document.get("imagePullSecrets") or () if "name" in secret]
    facts = f"the service account {name} is there"
    return [Finding(name="account", status=OK, found=facts + (f", with pull secrets {', '.join(secrets)}" if secrets else ""))]


def cluster(kube: Kube, namespace: str) -> list[Finding]:
    """Which cluster it is, and whether it has the namespace; a failure: nothing else need be asked."""
    try:
        return _cluster(kube, namespace)
    except KubeError as error:
        return [trouble("cluster", "the cluster", error, namespace)]


def _cluster(kube: Kube, namespace: str) -> list[Finding]:
    version = kube.get("/version")
    facts = f"Kubernetes {version.get('gitVersion') or 'of unknown version'}, namespace {namespace}"
    try:
        kube.get(f"/api/v1/namespaces/{namespace}")
    except KubeError as error:
        if error.kind == MISSING:
            step = "Name the one that your runs' pods start in: --namespace, KFP_NAMESPACE"
            return [Finding(name="cluster", status=FAIL, found=f"there is no namespace {namespace}", next_step=step)]
        if error.kind != DENIED:
            raise
        facts += " (whether it is there may not be read; what follows shows it)"
    return [Finding(name="cluster", status=OK, found=facts)]
