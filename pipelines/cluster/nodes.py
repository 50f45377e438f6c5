"""Whether a node of the cluster has what tasks ask for: GPUs, memory, cores, labels, and no taint that they do not bear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.cluster.deployment import CLASSES
from pipelines.cluster.kube import Kube, KubeError
from pipelines.cluster.objects import trouble
from rco.core.words import counted
from rco.tasks.services import FAIL, OK, WARN, Finding

_AUTOSCALER = "/api/v1/namespaces/kube-system/configmaps/cluster-autoscaler-status"
_KEEPS_OFF = ("NoSchedule", "NoExecute")


def nodes(kube: Kube, namespace: str, pods: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """Whether a pod of each class fits on a node that is empty.

    Args:
        pods: of each class of tasks.
    """
    try:
        everything = kube.get("/api/v1/nodes").get("items") or []
    except KubeError as error:
        return [trouble("nodes", "nodes", error, namespace)]
    found = []
    for kind in CLASSES:
        reasons = [[*unfit(node, pods[kind]["spec"])] for node in everything]
        if all(reasons):
            found.append((kind, _commonest(reasons)))
    gpus = _gpus(pods["train"]["spec"])
    facts = f"{counted(len(everything), 'node')}"
    if gpus:
        name, _ = gpus
        having = [node for node in everything if _quantity(_allocatable(node).get(name, "0")) > 0]
        total = sum(_quantity(_allocatable(node)[name]) for node in having)
        facts += f", {len(having)} with {name} ({total:.0f} in all)"
    if not found:
        return [Finding(name="nodes", status=OK, found=f"{facts}; pods of every class fit on one")]
    status, hint = (WARN, "; an autoscaler may add one") if _scales(kube) else (FAIL, "")
    asked = "cpu_request, memory_request, gpus, node_selector, tolerations"
    step = f"Change what the deployment file asks for ({asked}), or add a node"
    return [
        Finding(
            name="nodes",
            status=status,
            found=f"{facts}; a pod of the class {kind} fits on none, and stays Pending{hint}: {why}",
            next_step=step,
        )
        for kind, why in found
    ]


def unfit(node: Mapping[str, Any], spec: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a pod off a node, were it empty."""
    labels = (node.get("metadata") or {}).get("labels") or {}
    for key, value in spec.get("nodeSelector", {}).items():
        if labels.get(key) != value:
            yield f"no label {key}={value}"
    if (node.get("spec") or {}).get("unschedulable"):
        yield "cordoned"
    for taint in (node.get("spec") or {}).get("taints") or ():
        if taint.get("effect") in _KEEPS_OFF and not any(_bears(t, taint) for t in spec.get("tolerations", ())):
            shown = f"{taint['key']}={taint['value']}" if taint.get("value") else taint["key"]
            yield f"taint {shown}:{taint['effect']}"
    (container,) = spec["containers"]
    resources = container["resources"]
    for name, amount in {**resources.get("limits", {}), **resources.get("requests", {})}.items():
        # What is not requested is not reserved; of a GPU the limit is the request.
        if (name in ("cpu", "memory") and name not in resources.get("requests", {})) or _quantity(amount) == 0:
            continue
        has = _allocatable(node).get(name, "0")
        if _quantity(has) < _quantity(amount):
            yield f"{name} {has} of {amount}" if name in ("cpu", "memory") else f"{has} of {amount} {name}"


def _bears(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    if toleration.get("key") and toleration["key"] != taint.get("key"):
        return False
    return toleration.get("operator") == "Exists" or toleration.get("value", "") == (taint.get("value") or "")


def _allocatable(node: Mapping[str, Any]) -> Mapping[str, str]:
    found: Mapping[str, str] = (node.get("status") or {}).get("allocatable") or {}
    return found


def _gpus(spec: Mapping[str, Any]) -> tuple[str, str] | None:
    (container,) = spec["containers"]
    limits = container["resources"].get("limits", {})
    return next(((name, amount) for name, amount in limits.items() if "/" in name), None)


def _quantity(text: str) -> float:
    from kubernetes.utils import parse_quantity

    try:
        return float(parse_quantity(text))
    except ValueError:
        return 0.0


def _commonest(reasons: Sequence[Sequence[str]]) -> str:
    """Each reason with the number of nodes that it holds for, the commonest first."""
    if not reasons:
        return "there is no node"
    flat = [reason for of_node in reasons for reason in of_node]
    ordered = sorted(dict.fromkeys(flat), key=lambda reason: -flat.count(reason))
    return "; ".join(f"{reason} ({counted(flat.count(reason), 'node')})" for reason in ordered[:4])


def _scales(kube: Kube) -> bool:
    """Whether the cluster's autoscaler tells of itself; what may not be read is taken for none."""
    try:
        kube.get(_AUTOSCALER)
    except KubeError:
        return False
    return True
