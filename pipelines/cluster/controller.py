"""What KFP's workflow controller does with every workflow: which failures are tried again, and when it deletes them.

KFP 2.17 comes with defaults (`workflowDefaults` of its ConfigMap) that Argo merges into what a pipeline asks for: a task's own
number of retries then has the policy OnError, which a process that dies or times out does not meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

CONFIG_MAP = "workflow-controller-configmap"
KEY = "workflowDefaults"


def ask(namespace: str) -> str | None:
    """The controller's defaults as they are written; None: they cannot be read from here. Empty: it has none.

    Args:
        namespace: of KFP itself.
    """
    from pipelines.cluster.kube import Kube

    try:
        found = Kube.connect().get(f"/api/v1/namespaces/{namespace}/configmaps/{CONFIG_MAP}")
    except Exception:  # no cluster, no rights, no answer: it is an extra
        return None
    return defaults_of(found)


def defaults_of(config_map: Mapping[str, Any]) -> str:
    """The defaults that the controller's ConfigMap holds; empty: none."""
    return str((config_map.get("data") or {}).get(KEY) or "")


def policy(defaults: str) -> str:
    """The policy that the defaults give to the retries of every task; empty: none."""
    strategy = _within(defaults, "spec", "templateDefaults", "retryStrategy")
    return str(strategy.get("retryPolicy") or "") if isinstance(strategy, dict) else ""


def doubles(defaults: str) -> bool:
    """Whether the defaults make every node of a workflow a retry node."""
    return isinstance(_within(defaults, "spec", "templateDefaults", "retryStrategy"), dict)


def kept_for(defaults: str) -> int | None:
    """Seconds after which a workflow that has ended is deleted; None: it is kept."""
    seconds = _within(defaults, "spec", "ttlStrategy", "secondsAfterCompletion")
    return seconds if isinstance(seconds, int) and not isinstance(seconds, bool) else None


def _within(defaults: str, *path: str) -> Any:
    try:
        found = yaml.safe_load(defaults)
    except yaml.YAMLError:
        return None
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found
