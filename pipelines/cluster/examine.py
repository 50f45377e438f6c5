"""`rco doctor --cluster`: connect, check, and probe where that is asked for."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rco.core.errors import InputError
from rco.tasks.services import FAIL, Check, Finding, healthy
from rco.tasks.services import run as run_checks


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command was told.

    Attributes:
        namespace: of the runs' pods.
        deployment: the deployment file.
        service_account: of the runs' pods; empty: KFP's own.
        endpoint: of KFP; empty: its API is not asked.
        probe: start a pod.
        probe_limit: seconds for it.
        addresses: s3:// addresses for it.
        limit: seconds for a check.
    """

    namespace: str
    deployment: Path | None = None
    service_account: str = ""
    endpoint: str | None = None
    probe: bool = False
    probe_limit: float = 600
    addresses: tuple[str, ...] = ()
    limit: float = 120


def examine(options: Options, show: Callable[[str], None]) -> tuple[list[Finding], bool]:
    """The findings, and whether somebody stopped the probe.

    Args:
        show: takes lines of progress.

    Raises:
        InputError: a deployment file that cannot work, or a namespace that cannot be one.
    """
    from pipelines.cluster.deployment import read_deployment
    from pipelines.cluster.manifests import require_namespace

    site = read_deployment(options.deployment)
    require_namespace(options.namespace)
    warnings.filterwarnings(
        "ignore", module="urllib3"
    )  # of a kubectl context that does not check certificates: its user's choice
    from pipelines import doctor
    from pipelines.cluster import objects
    from pipelines.cluster.checks import Wanted, checks
    from pipelines.cluster.kube import Kube, KubeError
    from pipelines.cluster.placement import Cluster
    from pipelines.cluster.podspec import pods
    from pipelines.cluster.probe import probe

    try:
        kube = Kube.connect()
    except KubeError as error:
        step = "kubectl config current-context must name one; KUBECONFIG names its file, KFP_KUBE_CONTEXT another context"
        return [Finding(name="cluster", status=FAIL, found=error.words, next_step=step)], False
    findings = objects.cluster(kube, options.namespace)
    if not healthy(findings):
        return findings, False
    image = _image()
    account = options.service_account or objects.default_account(options.namespace)
    made = pods(Cluster(deployment=site, image=image), options.namespace, account, "rco-probe")
    wanted = Wanted(namespace=options.namespace, site=site, service_account=account, image=image)
    found: dict[str, Check] = {
        "image": partial(doctor.image, os.environ.get("RCO_IMAGE", "")),
        **checks(kube, wanted, made),
    }
    if options.endpoint:
        found["Kubeflow"] = partial(doctor.kubeflow, options.endpoint, options.namespace)
    findings += run_checks(found, options.limit)
    if not options.probe:
        return findings, False
    # In this thread, which Ctrl-C reaches: its pod is deleted then, too.
    probed = probe(kube, made["check"], options.addresses, options.probe_limit, show)
    return findings + probed.findings, probed.interrupted


def _image() -> str:
    """The image that tasks would run in; the check of the image says what is wrong with it."""
    from components.image import IMAGE
    from pipelines.compile import image_to_run

    try:
        return image_to_run()
    except InputError as error:
        return error.value if isinstance(error.value, str) and "://" not in error.value and "/" in error.value else IMAGE
