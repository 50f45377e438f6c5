"""Why pods of a run do not start, asked of Kubernetes where this process may ask it: KFP's API does not say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

#: Reasons of a waiting container that do not pass by themselves.
_STUCK = (
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
)


def reasons(pods: Iterable[Any]) -> Iterator[str]:
    """What keeps pods from starting, each reason once.

    Args:
        pods: as Kubernetes' client gives them.
    """
    seen = set()
    for pod in pods:
        if pod.status.phase != "Pending":
            continue
        for text in _of(pod):
            if text not in seen:
                seen.add(text)
                yield text


def _of(pod: Any) -> Iterator[str]:
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            yield f"cannot be scheduled: {_line(condition.message or condition.reason)}"
    for container in (*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())):
        waiting = container.state and container.state.waiting
        if waiting and waiting.reason in _STUCK:
            yield f"{waiting.reason}: {_line(waiting.message or container.image)}"


def _line(text: Any) -> str:
    return " ".join(str(text or "").split())[:300]


def ask(run_id: str, namespace: str) -> list[str] | None:
    """The reasons that hold for the pods of a run; None: Kubernetes cannot be asked from here."""
    from kubernetes import client

    from pipelines.cluster.kube import api_client

    try:
        answer = client.CoreV1Api(api_client()).list_namespaced_pod(
            namespace or "kubeflow", label_selector=f"pipeline/runid={run_id}", _request_timeout=10
        )
    except Exception:  # no cluster, no rights, no answer: it is an extra
        return None
    return list(reasons(answer.items))
