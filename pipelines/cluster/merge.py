"""One component for all tasks that are alike: KFP's compiler writes one for each task, with all that it holds.

KFP's service takes both: it visits every component once, whichever tasks refer to it (its compiler has a test of a component
that is used twice, `backend/src/v2/compiler/visitor_test.go`, and says so at `saveProtoToArguments`), and tells tasks by their
own names. Cache keys hold what a task is given and runs, not the name of its component. The workflow has a component, what
Kubernetes gives it, and the templates inside a branch or a stage, once then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def merge_components(path: Path) -> None:
    """Rewrite a compiled pipeline so that tasks whose components are alike share one; its comments stay."""
    text = path.read_text()
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    pipeline, *platforms = list(yaml.load_all(text, Loader=_LOADER))
    merge(pipeline, platforms[0] if platforms else {})
    path.write_text(comments + yaml.safe_dump_all([pipeline, *platforms], sort_keys=True))


def merge(pipeline: dict[str, Any], platform: dict[str, Any]) -> None:
    """Merge the components of two documents, in place.

    Two tasks are alike if their interface, their container and what Kubernetes gives them are; two DAGs, if their interface
    and their tasks are, once the tasks inside share what they can.
    """
    components, executors = pipeline["components"], pipeline["deploymentSpec"]["executors"]
    kubernetes = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})

    def described(component: dict[str, Any]) -> str:
        label = component.get("executorLabel")
        interface = {key: value for key, value in component.items() if key != "executorLabel"}
        return json.dumps([interface, label and [executors[label], kubernetes.get(label)]], sort_keys=True)

    while instead := _doubles({name: described(component) for name, component in components.items()}):
        for name in instead:
            del components[name]
        for component in (pipeline["root"], *components.values()):
            for task in component.get("dag", {}).get("tasks", {}).values():
                reference = task["componentRef"]
                reference["name"] = instead.get(reference["name"], reference["name"])
    used = {component.get("executorLabel") for component in components.values()}
    for documented in (executors, kubernetes):
        for label in documented.keys() - used:
            del documented[label]


def _doubles(described: dict[str, str]) -> dict[str, str]:
    """Name -> another name of the same description: the shortest of them, then the first."""
    first: dict[str, str] = {}
    instead = {name: first.setdefault(described[name], name) for name in sorted(described, key=lambda name: (len(name), name))}
    return {name: other for name, other in instead.items() if other != name}
