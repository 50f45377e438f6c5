"""The command that checks this machine and its services."""

from __future__ import annotations

import json
import logging
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click

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
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
def doctor(
    home: Path,
    device: str,
    addresses: tuple[str, ...],
    target: Target,
    limit: float,
    as_json: bool,
) -> None:
    """Check this machine and the services that it is told to use; leaves nothing behind.

    Python, libraries, PyTorch, GPU and driver, memory and disk; and as far as the environment or the options name them,
    MLflow (a run and an artifact are written, read and deleted), S3 (an object likewise; clocks are compared), Kubeflow
    Pipelines, and the image. Ends with status 1 if something is wrong; each line says what to do next.
    """
    for address in addresses:
        if not address.startswith("s3://"):
            raise InputError("s3", address, "is not an s3:// address", "Write s3://BUCKET/PREFIX")
    logging.disable()  # the libraries' own words may hold secrets, and come between the lines
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # somebody waits, and can ask again
    from pipelines.doctor import checks
    from rco.tasks.services import healthy
    from rco.tasks.services import run as examine

    findings = examine(checks(home, device, addresses, target.endpoint, target.namespace, limit), limit + 1)
    right = healthy(findings)
    if as_json:
        click.echo(json.dumps({"ok": right, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        from pipelines.display import print_findings

        print_findings(findings)
    sys.stdout.flush()
    sys.exit(0 if right else 1)
