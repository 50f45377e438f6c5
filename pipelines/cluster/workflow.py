"""How large the Workflow gets that KFP makes of a compiled pipeline: its pods, its nodes, and the bytes that Kubernetes keeps.

Above 1 MB Argo compresses the state of the nodes, and KFP's list of a run's tasks goes stale. What is counted is a run that
executes everything, on a KFP 2.17 as it comes: its defaults make every node a retry node, hence two.

KFP writes the JSON of components, containers and tasks into the workflow as text, so quotes are escaped; and each node repeats
what it was given: the driver of a task all of it, and the patch of the pod's spec that the driver makes is there six times. The
other constants were measured on Workflows that a real cluster had: a comparison of 35 tasks, and a run of 16
(`tests/pipeline/test_workflow.py` holds this count to them).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

#: Bytes of a workflow above which Argo compresses its nodes (MAX_WORKFLOW_SIZE), and KFP's list of tasks goes stale.
LARGEST = 1024 * 1024
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Of the spec: templates; what a task needs beside its texts; the same of a DAG.
_TEMPLATES, _TASK, _DAG = 21_500, 1_250, 700
# Of a pod's spec: what is always there; for each of its parts.
_POD, _VARIABLE, _REFERENCE, _VOLUME = 1_980, 60, 150, 350
# Of what the task is given, as text in text: for each input and output.
_STRUCT, _SCALAR, _RETURNED, _ARTIFACT_IN, _ARTIFACT_OUT = 750, 70, 50, 1_080, 600
# Of the status, beside the texts: a driver of a DAG, a DAG's node, a node of a task; and all nodes around the pipeline.
_DAG_DRIVER, _DAG_NODE, _NODE, _AROUND = 1_640, 800, 120, 3_250


@dataclass(frozen=True)
class Workflow:
    """What a run of a pipeline is for Kubernetes.

    Attributes:
        pods: of tasks and their drivers.
        nodes: of the workflow.
        spec: bytes of the workflow as it is made.
        status: bytes of its nodes when it has ended.
    """

    pods: int
    nodes: int
    spec: int
    status: int

    @property
    def total(self) -> int:
        """Bytes of both."""
        return self.spec + self.status


def workflow_of(path: Path, *, doubled: bool = True) -> Workflow:
    """The workflow of a compiled pipeline, as `rco compile` writes it.

    Args:
        doubled: whether KFP's own defaults are in force, which make every node a retry node.
    """
    documents = [document for document in yaml.load_all(path.read_bytes(), Loader=_LOADER) if document is not None]
    return count(*documents, doubled=doubled)


def count(pipeline: Mapping[str, Any], platform: Mapping[str, Any] = MappingProxyType({}), *, doubled: bool = True) -> Workflow:
    """The workflow of a pipeline.

    Args:
        pipeline, platform: the two documents of a package.
        doubled: as for `workflow_of`.
    """
    twice = 2 if doubled else 1
    components, root = pipeline["components"], pipeline["root"]
    executors = pipeline["deploymentSpec"]["executors"]
    kubernetes = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    status = twice * (_escaped(root) + _form(root) + _DAG_DRIVER + _AROUND)
    pods, nodes = 1, 4 * twice  # the root and its driver, the workflow itself, the exit hook
    for task in _tasks(root, components):
        component = components[task["componentRef"]["name"]]
        if "dag" in component:
            status += twice * (_escaped(component) + _escaped(task) + _DAG_DRIVER + _DAG_NODE)
            pods, nodes = pods + 1, nodes + 2 * twice
            continue
        label = component["executorLabel"]
        container, placed = executors[label]["container"], kubernetes.get(label, {})
        patch = _patch(component, task, container, placed)
        given = sum(map(_escaped, (component, task, container, placed)))
        executors_of = twice + (2 if doubled or "retryPolicy" in task else 1)  # a node for the task, and its pod with its tries
        status += twice * (given + patch + _NODE) + executors_of * (patch + _NODE)
        pods, nodes = pods + 2, nodes + twice + executors_of
    return Workflow(pods=pods, nodes=nodes, spec=_spec(pipeline, executors, kubernetes), status=status)


def _spec(pipeline: Mapping[str, Any], executors: dict[str, Any], kubernetes: dict[str, Any]) -> int:
    """Bytes of a workflow's spec: a component, and the templates inside it, are there once, whatever number of tasks it has."""
    components = pipeline["components"]
    size, containers = _TEMPLATES + _form(pipeline["root"]), set()
    used = {task["componentRef"]["name"] for task in _tasks(pipeline["root"], components)}
    for component in (pipeline["root"], *(components[name] for name in sorted(used))):
        for task in component.get("dag", {}).get("tasks", {}).values():
            size += _escaped(task) + (_DAG if "dag" in components[task["componentRef"]["name"]] else _TASK)
        if "dag" in component:
            size += _escaped(component)
            continue
        label = component["executorLabel"]
        size += _escaped(kubernetes.get(label, {}))
        if (text := _text(executors[label]["container"])) not in containers:  # it goes by its container there
            containers.add(text)
            size += _escaped(executors[label]["container"]) + _escaped(component)
    return size


def _form(root: dict[str, Any]) -> int:
    """Bytes of the values of all parameters, which the driver of the root is given."""
    parameters = root.get("inputDefinitions", {}).get("parameters", {})
    return _escaped({name: parameter.get("defaultValue") for name, parameter in parameters.items()})


def _tasks(component: dict[str, Any], components: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All tasks of a DAG and of those inside it."""
    for task in component["dag"]["tasks"].values():
        yield task
        inner = components[task["componentRef"]["name"]]
        if "dag" in inner:
            yield from _tasks(inner, components)


def _patch(component: dict[str, Any], task: dict[str, Any], container: dict[str, Any], placed: dict[str, Any]) -> int:
    """Bytes of the patch of a pod's spec: command, variables, volumes, the component, and all that the task is given."""
    inputs, outputs = task.get("inputs", {}), component.get("outputDefinitions", {})
    defined, parameters = component.get("inputDefinitions", {}).get("parameters", {}), inputs.get("parameters", ())
    structs = sum(defined[name]["parameterType"] in ("STRUCT", "TASK_FINAL_STATUS") for name in parameters)
    references = [pair for name in ("secretAsEnv", "configMapAsEnv") for s in placed.get(name, ()) for pair in s["keyToEnv"]]
    volumes = [v for name in ("secretAsVolume", "configMapAsVolume", "pvcMount") for v in placed.get(name, ())]
    return (
        _POD
        + len(json.dumps(_escape(_text(component)))) - 2
        + _escaped([*container.get("command", ()), *container.get("args", ())])
        + _VARIABLE * len(container.get("env", ()))
        + _REFERENCE * len(references)
        + _VOLUME * len(volumes)
        + _STRUCT * structs
        + _SCALAR * (len(parameters) - structs)
        + _RETURNED * len(outputs.get("parameters", ()))
        + _ARTIFACT_IN * len(inputs.get("artifacts", ()))
        + _ARTIFACT_OUT * len(outputs.get("artifacts", ()))
    )  # fmt: skip


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _escape(text: str) -> str:
    return json.dumps(text)[1:-1]


def _escaped(value: Any) -> int:
    """Bytes of a value's JSON as text in JSON."""
    return len(_escape(_text(value)))
