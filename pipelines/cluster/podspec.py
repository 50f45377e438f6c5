"""The pods of tasks as Kubernetes gets them, out of a compiled pipeline: KFP's driver makes them likewise.

What KFP puts around a task (its launcher, Argo's own containers) is not there. All else is read from what the compiler wrote,
not from the deployment file: what a pod of ours asks for is what a task asks for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import json_format

from pipelines.cluster.placement import Cluster
from pipelines.pipeline import make_pipeline
from rco.config.shape import Shape

#: A task of each class of the deployment file.
TASKS = {"check": "check", "light": "select-anchors", "data": "prepare-data", "train": "train-teacher"}
_RESOURCES = {
    "requests": {"cpu": "resourceCpuRequest", "memory": "resourceMemoryRequest"},
    "limits": {"cpu": "resourceCpuLimit", "memory": "resourceMemoryLimit"},
}


def pods(cluster: Cluster, namespace: str, service_account: str, name: str) -> dict[str, dict[str, Any]]:
    """A pod for each class of tasks.

    Args:
        service_account: that the run's pods have.
        name: of the pods, which the class follows.
    """
    made = make_pipeline(Shape.of_run(1), cluster=cluster)
    executors = json_format.MessageToDict(made.pipeline_spec)["deploymentSpec"]["executors"]
    platform = json_format.MessageToDict(made.platform_spec)["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    found = {}
    for kind, task in TASKS.items():
        label = f"exec-{task}"
        given = platform[label]
        metadata = {
            "name": f"{name}-{kind}",
            "namespace": namespace,
            "labels": {**given.get("podMetadata", {}).get("labels", {}), "app.kubernetes.io/name": "rco-probe"},
            "annotations": {
                # Kubeflow's profiles put a proxy into pods, but not into those of runs.
                "sidecar.istio.io/inject": "false",
                **given.get("podMetadata", {}).get("annotations", {}),
            },
        }
        spec = _spec(executors[label]["container"], given)
        spec["serviceAccountName"] = service_account
        found[kind] = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    return found


def _spec(container: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    volumes, mounts = _volumes(given)
    main = {
        "name": "main",
        "image": container["image"],
        "imagePullPolicy": given["imagePullPolicy"],
        "command": [*container["command"]],
        "env": [*({"name": e["name"], "value": e["value"]} for e in container.get("env", ())), *_references(given)],
        "resources": _resources(container.get("resources", {})),
        "volumeMounts": mounts,
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "containers": [main],
        "volumes": volumes,
        "imagePullSecrets": [{"name": secret["secretName"]} for secret in given.get("imagePullSecret", ())],
        "nodeSelector": given.get("nodeSelector", {}).get("labels", {}),
        "tolerations": [
            {**t, **({"tolerationSeconds": int(t["tolerationSeconds"])} if "tolerationSeconds" in t else {})}
            for t in given.get("tolerations", ())
        ],
    }
    if "activeDeadlineSeconds" in given:
        spec["activeDeadlineSeconds"] = int(given["activeDeadlineSeconds"])
    return spec


def _resources(given: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    found = {
        part: {resource: given[key] for resource, key in keys.items() if key in given} for part, keys in _RESOURCES.items()
    }
    if accelerator := given.get("accelerator"):
        found["limits"][accelerator["resourceType"]] = accelerator["resourceCount"]
    return found


def _volumes(given: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    sources: Sequence[tuple[str, dict[str, Any], Mapping[str, Any]]] = [
        *(
            (s["secretName"], {"secret": {"secretName": s["secretName"], "optional": s.get("optional", False)}}, s)
            for s in given.get("secretAsVolume", ())
        ),
        *(
            (m["configMapName"], {"configMap": {"name": m["configMapName"], "optional": m.get("optional", False)}}, m)
            for m in given.get("configMapAsVolume", ())
        ),
        *((p["constant"], {"persistentVolumeClaim": {"claimName": p["constant"]}}, p) for p in given.get("pvcMount", ())),
        *(
            (e["volumeName"], {"emptyDir": {"medium": e.get("medium", ""), "sizeLimit": e["sizeLimit"]}}, e)
            for e in given.get("emptyDirMounts", ())
        ),
    ]
    volumes = [{"name": name, **source} for name, source, _ in sources]
    mounts = [
        {"name": name, "mountPath": m["mountPath"], **({"subPath": m["subPath"]} if m.get("subPath") else {})}
        for name, _, m in sources
    ]
    return volumes, mounts


def _references(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Variables by reference."""
    found: list[dict[str, Any]] = [
        {"name": f["name"], "valueFrom": {"fieldRef": {"fieldPath": f["fieldPath"]}}} for f in given.get("fieldPathAsEnv", ())
    ]
    for many, name, reference in (
        ("secretAsEnv", "secretName", "secretKeyRef"),
        ("configMapAsEnv", "configMapName", "configMapKeyRef"),
    ):
        for source in given.get(many, ()):
            for pair in source["keyToEnv"]:
                key = pair.get("secretKey") or pair.get("configMapKey")
                value = {"name": source[name], "key": key, "optional": source.get("optional", False)}
                found.append({"name": pair["envVar"], "valueFrom": {reference: value}})
    return found
