"""Checks of the services that the environment names: MLflow, S3, the store of resume points; and the function that runs checks.

A check examines one thing, leaves nothing behind, and reports its findings and what to do next. Checks run side by side, each
with a time limit. Findings never quote an error's own text: it may hold an address with a password.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile

from rco.core.errors import InputError
from rco.core.storage.addresses import is_remote, local_path
from rco.core.storage.probe import SKEW_REFUSED, describe_skew, probe_store
from rco.tracking.context import Context, without_credentials
from rco.tracking.probe import PLAIN_ANCHORS, probe

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"
#: Seconds for a check, by far more than services are given to answer: importing their clients counts, on a busy machine too.
LIMIT = 120.0
_SKEW_REPORTED, _DISK = 60.0, 2 * 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of a check.

    Attributes:
        name: of the thing that was checked.
        status: ok, warn (works, but perhaps not as intended), fail, or skipped (nothing to check).
        found: the facts.
        next_step: the remedy; empty: nothing to do.
    """

    name: str
    status: str
    found: str
    next_step: str = ""


Check = Callable[[], list[Finding]]


def run(checks: Mapping[str, Check], limit: float = LIMIT) -> list[Finding]:
    """The findings of all checks, in their order. Never raises, whatever a check does.

    Args:
        checks: by name; several of one name are told apart by a second word: "S3 s3://bucket".
        limit: seconds for each check. A thread that is late is left behind, and ends with the process.
    """
    found: dict[str, list[Finding]] = {}

    def work(name: str, check: Check) -> None:
        try:
            found[name] = check()
        except InputError as error:
            found[name] = [failed(name, f"{error.value} {error.problem}", error.remedy)]
        except Exception as error:
            found[name] = [failed(name, f"could not be checked ({type(error).__name__})", "Look at it by other means")]

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in checks.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [finding for name in checks for finding in found.get(name) or [_late(name, limit)]]


def failed(name: str, found: str, next_step: str) -> Finding:
    """A finding with status fail; its name is the first word of `name`."""
    return Finding(name=name.partition(" ")[0], status=FAIL, found=found, next_step=next_step)


def _late(name: str, limit: float) -> Finding:
    _, _, what = name.partition(" ")
    return failed(
        name,
        f"{what} gives no result within {limit:g} s".strip(),
        "Check addresses, network and firewall; a slow machine may need a longer --limit",
    )


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether no check has failed; warnings do not count."""
    return all(finding.status != FAIL for finding in findings)


def services(context: Context, addresses: Iterable[str] = (), open_run: Callable[[], str] | None = None) -> dict[str, Check]:
    """The checks of MLflow, S3 and the stores of resume points and results, as far as the environment or the arguments name
    them.

    Args:
        context: names the MLflow server; without an address it is not checked.
        addresses: s3:// addresses to check beside those of RCO_RESUME, RCO_RESULTS and RCO_ARTIFACT_ROOT.
        open_run: as for `rco.tracking.probe.probe`.
    """
    checks: dict[str, Check] = {}
    if context.tracking_uri:
        checks["MLflow"] = partial(mlflow, context, open_run)
    stores = {name: os.environ.get(f"RCO_{name.upper()}", "") for name in ("resume", "results")}
    if stores["resume"] and stores["results"].startswith(f"{stores['resume'].rstrip('/')}/"):
        del stores["results"]
    for uri in dict.fromkeys(uri for uri in (*addresses, *stores.values(), context.artifact_root) if is_remote(uri)):
        checks[f"S3 {uri}"] = partial(s3, uri)
    for name, place in stores.items():
        if place and not is_remote(place):
            remedy = f"Check RCO_{name.upper()}, and that its volume is mounted"
            checks[name] = partial(writable, name, local_path(place), remedy)
    return checks


def require(checks: Mapping[str, Check], limit: float = 3 * LIMIT) -> list[Finding]:
    """Run checks; returns their findings.

    Raises:
        InputError: a check failed; the text has all failures.
    """
    findings = run(checks, limit)
    wrong = [finding for finding in findings if finding.status == FAIL]
    if wrong:
        raise InputError(
            "check_services",
            True,
            "; ".join(f"{finding.name}: {finding.found}" for finding in wrong),
            "; ".join(dict.fromkeys(finding.next_step for finding in wrong if finding.next_step))
            + ". With check_services = false the run starts all the same",
        )
    return findings


def writable(name: str, folder: Path, remedy: str) -> list[Finding]:
    """Check that a directory can be written, and its free space. A missing directory is not created: its nearest parent counts.

    Args:
        name: of the finding.
        remedy: the next step if it cannot be written or is nearly full.
    """
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with NamedTemporaryFile(dir=existing) as file:
            file.write(b"rco")
            file.flush()
    except OSError as error:
        return [Finding(name=name, status=FAIL, found=f"{folder} cannot be written ({error.strerror})", next_step=remedy)]
    free = shutil.disk_usage(existing).free
    little = free < _DISK
    found = f"{folder} can be written; {gib(free)} free"
    return [Finding(name=name, status=WARN if little else OK, found=found, next_step=f"Make room. {remedy}" if little else "")]


def mlflow(context: Context, open_run: Callable[[], str] | None = None) -> list[Finding]:
    """Check that MLflow stores a run and an artifact, gives them back, and has logged models."""
    found = probe(context, open_run)
    uri = without_credentials(context.tracking_uri)
    text = f"{uri}: a run and an artifact written, read and deleted in {found.seconds:.1f} s"
    status, step = OK, ""
    if found.server:
        text += f"; server {found.server}, client {found.client}"
        if number(found.server) < number(found.client):
            status, step = WARN, "Update the server: it is older than the client"
        elif not re.match(r"(?!file:)[a-z][\w+.-]*:", found.artifacts):
            status = WARN
            text += f"; artifacts go to {found.artifacts} on the disk of the machine that writes them"
            step = "Unless the server is this machine, start it with --serve-artifacts, or nobody else will find them"
    if not found.logged_models:
        status, step = WARN, f"Update the server: it has no logged models (MLflow 3 has), and {PLAIN_ANCHORS}"
    if found.left:
        status = WARN
        text += f"; {found.left} could not be deleted"
        step = step or "Remove it, or allow this login to delete"
    return [Finding(name="MLflow", status=status, found=text, next_step=step)]


def s3(uri: str) -> list[Finding]:
    """Check that an object can be written, read and deleted below an S3 address, and that the clocks agree."""
    found = probe_store(uri)
    text = f"{uri} at {found.endpoint}: an object written, read and deleted in {found.seconds:.1f} s"
    status, step = OK, ""
    if found.ahead is not None and abs(found.ahead) >= _SKEW_REPORTED:
        text += f"; this machine's clock is {describe_skew(found.ahead)} the store's"
        step = "Set the clock (chrony, systemd-timesyncd): signatures are dated, and refused if it drifts further"
        status = WARN if abs(found.ahead) > SKEW_REFUSED else OK
    if found.left:
        status, text = WARN, f"{text}; {found.left} could not be deleted"
        step = step or "Remove it, and allow this key to delete there: resume points that are done with are deleted"
    return [Finding(name="S3", status=status, found=text, next_step=step)]


def number(version: str) -> tuple[int, ...]:
    """Major and minor number of a version, to compare."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def gib(size: float) -> str:
    """A size in bytes as text, in GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
