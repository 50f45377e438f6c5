"""What a task would find of MLflow and S3: `python -m rco.tasks.probe [s3://BUCKET/PREFIX ...]`, in a pod that is given what
tasks are given (`rco doctor --cluster --probe`). Leaves nothing behind, and prints no secret."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rco.core import mounted
from rco.core.errors import InputError
from rco.core.marks import PREFIX, PROBED
from rco.tasks import services
from rco.tasks.services import FAIL, LIMIT, OK, SKIPPED, Finding
from rco.tracking.context import Context

#: Beside those that are mounted by default, what the deployment file sets.
_VARIABLES = ("RCO_RESUME", "RCO_RESULTS")


def probe(addresses: Sequence[str] = (), limit: float = LIMIT, folder: Path = mounted.FOLDER) -> list[Finding]:
    """Take the mounted settings as a task does, and write to, read from and delete from every service that they name.

    Args:
        addresses: s3:// addresses to try beside those that tasks use.
        limit: seconds for each service.
        folder: where settings are mounted.
    """
    before = set(os.environ)
    try:
        mounted.take(os.environ, folder)
    except InputError as error:
        return [Finding(name="pod", status=FAIL, found=f"{error.parameter} {error.problem}", next_step=error.remedy)]
    taken = sorted({*(set(os.environ) - before), *(name for name in _VARIABLES if os.environ.get(name))})
    found = "tasks are given " + (", ".join(taken) or "no variables of MLflow and S3")
    findings = [Finding(name="pod", status=OK, found=found)]
    checks = services.services(Context.from_environment(), addresses)
    if "MLflow" not in checks:
        findings.append(Finding(name="MLflow", status=SKIPPED, found="MLFLOW_TRACKING_URI is not set: nothing is tracked"))
    if not any(name.startswith("S3 ") for name in checks):
        nothing = "tasks have no address there (resume in the deployment file, --s3 s3://BUCKET/PREFIX)"
        findings.append(Finding(name="S3", status=SKIPPED, found=nothing))
    return [*findings, *services.run(checks, limit)]


def lines(findings: Sequence[Finding]) -> list[str]:
    """Findings as lines of a log."""
    return [f"{PREFIX}{PROBED}{json.dumps(asdict(finding))}" for finding in findings]


def read(log: str) -> list[Finding]:
    """The findings in a log; what is none is left out."""
    found = []
    for line in log.splitlines():
        _, mark, text = line.partition(f"{PREFIX}{PROBED}")
        try:
            values = json.loads(text) if mark else None
            if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
                continue
            finding = Finding(**values)
        except (TypeError, ValueError):
            continue
        if finding.status in (OK, services.WARN, FAIL, SKIPPED):
            found.append(finding)
    return found


def main(arguments: Sequence[str]) -> int:
    """Print the findings; returns the exit status: 1 if something is wrong."""
    logging.disable()  # the libraries' own words may hold secrets
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    findings = probe(arguments)
    print("\n".join(lines(findings)), flush=True)
    return 0 if services.healthy(findings) else 1


if __name__ == "__main__":
    status = main(sys.argv[1:])
    os._exit(status)  # a check that is late has left a thread behind
