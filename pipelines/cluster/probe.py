"""One pod that is given what the task `check` is given, and tries MLflow and S3 by the names that tasks use. It is deleted."""

from __future__ import annotations

import copy
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from pipelines.cluster import pods
from pipelines.cluster.kube import AWAY, DENIED, REFUSED, Kube, KubeError
from pipelines.cluster.objects import ACCESS, trouble
from rco.core.words import counted
from rco.tasks.probe import read
from rco.tasks.services import FAIL, OK, SKIPPED, WARN, Finding

PACE = 2.0  # seconds between looks
#: Seconds that an image which cannot be pulled, or a container which cannot be made, is waited for: some of these pass.
_STUCK_FOR = 60.0
_OLD_IMAGE = "No module named rco.tasks.probe"


@dataclass
class Probed:
    """What came of a probe.

    Attributes:
        findings: of the pod, and of the services that it tried.
        interrupted: somebody stopped it.
    """

    findings: list[Finding] = field(default_factory=list)
    interrupted: bool = False

    def add(self, status: str, found: str, next_step: str = "") -> None:
        """A finding of the pod."""
        self.findings.append(Finding(name="probe", status=status, found=found, next_step=next_step))


def probe(
    kube: Kube,
    pod: dict[str, Any],
    addresses: Sequence[str],
    limit: float,
    show: Callable[[str], None] = lambda text: None,
) -> Probed:
    """Start the pod, wait for its end, and delete it, whatever happens.

    Args:
        pod: of the class `check` (`pipelines.cluster.podspec.pods`).
        addresses: s3:// addresses to try beside those that tasks use.
        limit: seconds for all of it, the pull of the image among it.
        show: takes what it waits for, once each.
    """
    probed, given = Probed(), _prepared(pod, addresses, limit)
    namespace, name = given["metadata"]["namespace"], given["metadata"]["name"]
    path = f"/api/v1/namespaces/{namespace}/pods"
    made = True  # unless Kubernetes says that it was not
    with _signals() as asked_to_stop:
        try:
            try:
                kube.create(path, given)
            except KubeError as error:
                made = error.kind == AWAY
                raise
            _watch(kube, namespace, name, limit, probed, show, asked_to_stop)
        except KubeError as error:
            probed.findings.append(_trouble(error, namespace))
        finally:
            if made:
                _remove(kube, f"{path}/{name}", f"kubectl delete pod -n {namespace} {name}", probed)
    return probed


def _prepared(pod: dict[str, Any], addresses: Sequence[str], limit: float) -> dict[str, Any]:
    given = copy.deepcopy(pod)
    given["metadata"]["name"] = f"rco-probe-{secrets.token_hex(4)}"
    given["spec"]["containers"][0]["command"] = ["python3", "-m", "rco.tasks.probe", *addresses]
    # Should this process die, the pod ends by itself.
    given["spec"]["activeDeadlineSeconds"] = round(limit) + 60
    return given


def _trouble(error: KubeError, namespace: str) -> Finding:
    if error.kind == DENIED:
        found = f"this login may not start a pod (403): {error.words}"
        return Finding(name="probe", status=SKIPPED, found=found, next_step=ACCESS.format(namespace))
    if error.kind == REFUSED:
        step = "Change what the deployment file gives to the class check, or have the quota or policy changed"
        return Finding(name="probe", status=FAIL, found=f"the pod is not admitted: {error.words}", next_step=step)
    return trouble("probe", "the pod", error, namespace)


def _watch(
    kube: Kube,
    namespace: str,
    name: str,
    limit: float,
    probed: Probed,
    show: Callable[[str], None],
    asked_to_stop: list[int],
) -> None:
    """Look until the pod has ended, or for so long, or until there are signals."""
    from kubernetes import client

    core = client.CoreV1Api(kube.client)
    begun, told, stuck_since = time.monotonic(), set(), None
    show(f"the pod {name} in {namespace}: started, and deleted afterwards")
    while True:
        try:
            found = core.read_namespaced_pod(name, namespace, _request_timeout=15)
        except client.ApiException as error:
            if error.status == 404:
                probed.add(
                    FAIL, f"the pod {name} was deleted by somebody else", "Ask who removes pods there: a policy, a quota?"
                )
                return
            raise KubeError(
                DENIED if error.status == 403 else REFUSED, f"the pod may not be looked at ({error.status})"
            ) from None
        except Exception:  # the API is away for a moment; the limit ends it
            found = None
        now = time.monotonic()
        if found is not None:
            if found.status.phase in ("Succeeded", "Failed"):
                _conclude(kube, found, now - begun, probed)
                return
            reasons = [*pods.reasons([found])]
            for reason in reasons:
                if reason not in told:
                    told.add(reason)
                    show(f"the pod waits: {reason}")
            stuck = [reason for reason in reasons if not reason.startswith("cannot be scheduled")]
            stuck_since = (stuck_since or now) if stuck else None
            if stuck and stuck_since is not None and now - stuck_since > _STUCK_FOR:
                probed.add(FAIL, f"the pod does not start: {stuck[0]}", _next_step(stuck[0], namespace))
                return
        if now - begun > limit:
            last = (
                reasons[-1] if found is not None and reasons else f"it is {found.status.phase if found else 'not to be seen'}"
            )
            probed.add(FAIL, f"the pod has not ended within {limit:g} s: {last}", _next_step(last, namespace))
            return
        if _signal_within(PACE, asked_to_stop):
            probed.interrupted = True
            step = "Start it again; --probe-limit says how long it may take"
            probed.add(FAIL, f"stopped before the pod {name} had ended", step)
            return


def _next_step(reason: str, namespace: str) -> str:
    if reason.startswith("cannot be scheduled"):
        return "Change what the deployment file asks for, or add a node; the check of nodes names what is missing"
    if "Image" in reason or "image" in reason:
        return "Check the image's name and image_pull_secrets; the check of the registry says what it answers"
    if "Container" in reason:
        return "Check the names and keys of Secrets and ConfigMaps; their checks say what is missing"
    return f"kubectl get events -n {namespace}; a longer --probe-limit gives a first pull of the image more time"


def _conclude(kube: Kube, pod: Any, took: float, probed: Probed) -> None:
    """Read what a pod that has ended has found."""
    name, namespace = pod.metadata.name, pod.metadata.namespace
    account = pod.spec.service_account_name or "the default account"
    facts = f"the pod ran on {pod.spec.node_name or 'a node'} as {account}, {took:.0f} s"
    try:
        log = kube.log(namespace, name)
    except KubeError as error:
        probed.add(SKIPPED, f"{facts}; its log may not be read: {error.words}", ACCESS.format(namespace))
        return
    findings = read(log)
    if findings:
        probed.add(OK, f"{facts}; {counted(len(findings), 'finding')}")
        probed.findings += findings
        return
    if _OLD_IMAGE in log:
        step = "make build-images push-images REGISTRY=..., and rco compile again"
        probed.add(WARN, f"{facts}; its image holds an older revision, without the probe", step)
        return
    probed.add(FAIL, f"{facts}, and found nothing: {_why(pod, log)}", "Look at the image: it must be this project's")


def _why(pod: Any, log: str) -> str:
    for status in pod.status.container_statuses or ():
        ended = status.state.terminated if status.state else None
        if ended and ended.exit_code:
            last = next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "it printed nothing")
            return f"{ended.reason or 'Error'}, exit status {ended.exit_code}; {last[:200]}"
    return str(pod.status.reason or pod.status.message or "no reason is given")


def _remove(kube: Kube, path: str, by_hand: str, probed: Probed) -> None:
    """Delete the pod, also if nobody knows whether it was made."""
    for attempt in range(3):
        try:
            kube.delete(path)
            return
        except KubeError as error:
            last = error
            if error.kind == DENIED:
                break
        if attempt < 2:
            time.sleep(min(PACE, 1.0))
    probed.add(FAIL, f"the pod could not be deleted: {last.words}", by_hand)


def _signal_within(seconds: float, asked_to_stop: list[int]) -> bool:
    until = time.monotonic() + seconds
    while not asked_to_stop and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))
    return bool(asked_to_stop)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C, SIGTERM and SIGHUP are noted, and disturb nothing: not the deletion, nor a lock that a library holds.

    Only the main thread may say so; in another one the list stays empty.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: noted.append(number)) for number in numbers}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            with suppress(TypeError):  # a handler that was not set from Python
                signal.signal(number, handler)
