"""The command that checks this machine and its services, or a cluster."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

from pipelines.cli.cluster import deployment_option
from pipelines.cli.options import gathered, home_option
from pipelines.cli.service import Target, target_options
from rco.core.errors import InputError
from rco.training.config import DEVICES


@click.command()
@home_option
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="cuda: a GPU must be there")
@click.option(
    "--s3", "addresses", multiple=True, metavar="URI", help="s3://BUCKET/PREFIX to write to and read from; repeatable"
)
@gathered("target", Target, *target_options)
@click.option("--limit", type=click.FloatRange(1), default=120, show_default=True, help="seconds that a check may take")
@click.option("--cluster", is_flag=True, help="look at the cluster of your kubectl context in place of this machine")
@click.option("--probe", is_flag=True, help="there, start a pod that tries MLflow and S3 as tasks would; it is always deleted")
@click.option(
    "--probe-limit",
    type=click.FloatRange(1),
    default=600,
    show_default=True,
    help="seconds for that pod; the first one of a node pulls the image",
)
@click.option("--service-account", default="", help="of Kubernetes, for the runs' pods  [KFP's]")
@deployment_option
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
def doctor(
    home: Path,
    device: str,
    addresses: tuple[str, ...],
    target: Target,
    limit: float,
    cluster: bool,
    probe: bool,
    probe_limit: float,
    service_account: str,
    deployment: Path | None,
    as_json: bool,
) -> None:
    """Check this machine and the services that it is told to use; leaves nothing behind.

    Python, libraries, PyTorch, GPU and driver, memory and disk; and as far as the environment or the options name them,
    MLflow (a run and an artifact are written, read and deleted), S3 (an object likewise; clocks are compared), Kubeflow
    Pipelines, and the image. Ends with status 1 if something is wrong; each line says what to do next.

    With --cluster it looks through your kubectl context (KFP_KUBE_CONTEXT, else the current one) at all that a run needs there:
    the Secrets, ConfigMaps, claims and keys that the deployment file names, the service account, the image in its registry,
    KFP's and Argo's versions, retries and how long workflows are kept, KFP's MLflow plugin, whether pods would be admitted
    and fit on a node. What may not be read is said. --probe starts one pod, which is deleted, also by Ctrl-C (status 130).
    """
    for address in addresses:
        if not address.startswith("s3://"):
            raise InputError("s3", address, "is not an s3:// address", "Write s3://BUCKET/PREFIX")
    logging.disable()  # the libraries' own words may hold secrets, and come between the lines
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # somebody waits, and can ask again
    from rco.tasks.services import healthy

    interrupted = False
    if cluster or probe:
        from pipelines.cluster.examine import Options, examine

        options = Options(
            namespace=target.namespace or "kubeflow",
            deployment=deployment,
            service_account=service_account,
            endpoint=target.endpoint,
            probe=probe,
            probe_limit=probe_limit,
            addresses=addresses,
            limit=limit,
        )
        findings, interrupted = examine(options, lambda text: click.echo(f"rco: {text}", err=True))
    else:
        for name, value in (("deployment", deployment), ("service-account", service_account)):
            if value:
                raise InputError(name, str(value), "is of a cluster", "Add --cluster")
        from pipelines.doctor import checks
        from rco.tasks.services import run

        findings = run(checks(home, device, addresses, target.endpoint, target.namespace, limit), limit + 1)
    right = healthy(findings)
    if as_json:
        click.echo(json.dumps({"ok": right, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        from pipelines.display import print_findings

        print_findings(findings)
    sys.stdout.flush()
    sys.exit(130 if interrupted else 0 if right else 1)
