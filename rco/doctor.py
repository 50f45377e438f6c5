"""What must be right before a run can be: of this machine, and of the services that it is told to use.

A check looks at one thing, leaves nothing behind, and says what it found and what to do next. Checks run side by side, each
with a time limit. What they say is in our own words: an error's own text may quote an address with a password in it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from rco.core import storage
from rco.core.errors import InputError
from rco.tracking import runs as tracking

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"
#: Seconds for a check, by far more than services are given to answer: importing their clients counts, on a busy machine too.
LIMIT = 120.0
_SKEW_TOLD, _SHARED_MEMORY, _DISK = 60.0, 2**30, 2 * 2**30
_FIX_INSTALL = "Run: make setup"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        name: of what was looked at.
        status: ok, warn (works, but may not do what is meant), fail, or skipped (nothing to look at).
        found: the facts.
        next_step: what to do about it; empty: nothing.
    """

    name: str
    status: str
    found: str
    next_step: str = ""


Check = Callable[[], list[Finding]]


def run(checks: Mapping[str, Check], limit: float = LIMIT) -> list[Finding]:
    """The findings of all checks, in their order. Never raises, whatever a check does.

    Args:
        checks: by a name, and what each looks at if there are several of that name: "S3 s3://bucket".
        limit: seconds that each may take. A thread that is late is left behind, and ends with the process.
    """
    found: dict[str, list[Finding]] = {}

    def work(name: str, check: Check) -> None:
        try:
            found[name] = check()
        except InputError as error:
            found[name] = [_failed(name, f"{error.value} {error.problem}", error.remedy)]
        except Exception as error:
            found[name] = [_failed(name, f"could not be checked ({type(error).__name__})", "Look at it by other means")]

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in checks.items()]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + limit
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [finding for name in checks for finding in found.get(name) or [_late(name, limit)]]


def _failed(name: str, found: str, next_step: str) -> Finding:
    return Finding(name=name.partition(" ")[0], status=FAIL, found=found, next_step=next_step)


def _late(name: str, limit: float) -> Finding:
    _, _, what = name.partition(" ")
    return _failed(
        name,
        f"{what} gives no result within {limit:g} s".strip(),
        "Check addresses, network and firewall; a slow machine may need a longer --limit",
    )


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing is wrong; warnings are not."""
    return all(finding.status != FAIL for finding in findings)


def here(home: Path, device: str = "auto", limit: float = LIMIT) -> dict[str, Check]:
    """The checks of this machine.

    Args:
        home: directory of local state.
        device: auto, cpu or cuda; cuda: that there is no GPU is wrong.
        limit: seconds that PyTorch may take to compute something.
    """
    return {
        "Python": python,
        "libraries": libraries,
        "PyTorch": partial(pytorch, device, limit),
        "machine": machine,
        "state": partial(writable, "state", home, "Name another directory with --home"),
    }


def services(
    context: tracking.Context, addresses: Iterable[str] = (), open_run: Callable[[], str] | None = None
) -> dict[str, Check]:
    """The checks of MLflow, S3 and the place of resume points, as far as the environment or the arguments name them.

    Args:
        context: whose MLflow; without an address it is not checked.
        addresses: s3:// addresses to check beside those of RCO_RESUME and RCO_ARTIFACT_ROOT.
        open_run: as for `rco.tracking.runs.probe`.
    """
    checks: dict[str, Check] = {}
    if context.tracking_uri:
        checks["MLflow"] = partial(mlflow, context, open_run)
    resume = os.environ.get("RCO_RESUME", "")
    for uri in dict.fromkeys(uri for uri in (*addresses, resume, context.artifact_root) if storage.is_remote(uri)):
        checks[f"S3 {uri}"] = partial(s3, uri)
    if resume and not storage.is_remote(resume):
        checks["resume"] = partial(
            writable, "resume", storage.local_path(resume), "Check RCO_RESUME, and that its volume is mounted"
        )
    return checks


def require(checks: Mapping[str, Check], limit: float = 3 * LIMIT) -> list[Finding]:
    """Run checks; what is wrong is bad input.

    Raises:
        InputError: with all that is wrong.
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


def python() -> list[Finding]:
    """This interpreter against the range that the project supports."""
    from packaging.specifiers import SpecifierSet

    version = ".".join(map(str, sys.version_info[:3]))
    wanted = metadata.metadata("rco")["Requires-Python"] or ""
    right = SpecifierSet(wanted).contains(version)
    return [
        Finding(
            name="Python",
            status=OK if right else FAIL,
            found=f"{version} (needs {wanted})",
            next_step="" if right else "Make the environment anew: rm -r .venv; make setup PYTHON=python3.12",
        )
    ]


def libraries() -> list[Finding]:
    """Every dependency of the project against its range."""
    from packaging.requirements import Requirement

    versions: dict[str, str] = {}
    wrong = []
    for requirement in map(Requirement, metadata.requires("rco") or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        versions[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} (needs {requirement.specifier})")
    if wrong:
        return [Finding(name="libraries", status=FAIL, found=", ".join(wrong), next_step=_FIX_INSTALL)]
    told = ", ".join(f"{name} {versions[name]}" for name in ("mlflow", "kfp", "boto3") if name in versions)
    return [Finding(name="libraries", status=OK, found=f"all {len(versions)} are in range: {told}")]


def pytorch(device: str, limit: float) -> list[Finding]:
    """Whether PyTorch can be imported, and computes on the device. In a process of its own: it may crash or hang."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rco.doctor", device], capture_output=True, text=True, errors="replace", timeout=limit
        )
    except subprocess.TimeoutExpired:
        found = f"does not get to compute within {limit:g} s"
        return [_failed("PyTorch", found, "Check nvidia-smi; a slow machine may need a longer --limit")]
    try:
        facts = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        facts = {"crashed": done.returncode}
    return judge_pytorch(facts, device)


def judge_pytorch(facts: Mapping[str, Any], device: str) -> list[Finding]:
    """What the facts of `look_at_pytorch` mean."""

    def finding(name: str, status: str, found: str, next_step: str = "") -> Finding:
        return Finding(name=name, status=status, found=found, next_step=next_step)

    if "crashed" in facts:
        return [finding("PyTorch", FAIL, f"ends the interpreter (status {facts['crashed']})", _FIX_INSTALL)]
    pair = f"torch {facts['torch']}, torchvision {facts['torchvision']}"
    if facts["problem"]:
        builds = {str(facts[name]).partition("+")[2] for name in ("torch", "torchvision")}
        if len(builds) > 1:
            step = "They are of different builds. Install both from one place: make setup, or make setup TORCH_BACKEND=cpu"
        else:
            step = _FIX_INSTALL
        return [finding("PyTorch", FAIL, f"{pair}: cannot be imported ({facts['problem']})", step)]
    build = f"built for CUDA {facts['cuda_build']}" if facts["cuda_build"] else "built for the CPU alone"
    findings = [finding("PyTorch", OK, f"{pair}, {build}")]
    driver = f"NVIDIA driver {facts['driver'] or 'of unknown version'}"
    if facts["driver_cuda"]:
        driver += f" (for CUDA up to {facts['driver_cuda']})"
    there = bool(facts["driver"] or facts["driver_cuda"])
    wanted = FAIL if device == "cuda" else WARN
    if facts["gpus"]:
        told = f"{', '.join(facts['gpus'])}; {driver}"
        if facts["failed"]:
            step = "Check nvidia-smi; a GPU older or newer than the build needs another build of PyTorch"
            findings.append(finding("device", FAIL, f"{told}; cannot compute there ({facts['failed']})", step))
        else:
            findings.append(finding("device", OK, told))
    elif facts["failed"]:
        findings.append(finding("device", FAIL, f"cannot compute on the CPU ({facts['failed']})", _FIX_INSTALL))
    elif there and not facts["cuda_build"]:
        step = "Install PyPI's build: make setup (without TORCH_BACKEND)"
        findings.append(finding("device", wanted, f"{driver}, but PyTorch is built for the CPU alone", step))
    elif there:
        old = facts["driver_cuda"] and _number(facts["driver_cuda"]) < _number(facts["cuda_build"])
        step = f"Update the driver to one for CUDA {facts['cuda_build']}, or install an older PyTorch (2.11 or newer)"
        found = f"{driver}, but PyTorch, {build}, finds no GPU that it can use"
        step = step if old else "Check nvidia-smi, CUDA_VISIBLE_DEVICES and, in a container, that it was given the GPU"
        findings.append(finding("device", wanted, found, step))
    else:
        step = "Ask for a GPU (docker run --gpus all; on Kubernetes: nvidia.com/gpu), or use --device cpu"
        none = "no GPU" if device != "cpu" else "not asked for a GPU"
        failed = device == "cuda"
        findings.append(finding("device", FAIL if failed else OK, f"{none}; computes on the CPU", step if failed else ""))
    return findings


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def look_at_pytorch(device: str) -> dict[str, Any]:
    """Facts of PyTorch, the driver and the GPU, with a tiny computation; for a process of its own."""
    facts: dict[str, Any] = {"problem": "", "cuda_build": "", "gpus": [], "failed": ""}
    for name in ("torch", "torchvision"):
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "missing"
    facts["driver"], facts["driver_cuda"] = _driver()
    try:
        import torch
        import torchvision  # noqa: F401
    except Exception as error:
        facts["problem"] = (str(error).splitlines() or [type(error).__name__])[0][:120]
        return facts
    facts["cuda_build"] = torch.version.cuda or ""
    place = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if place == "cuda":
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            facts["gpus"].append(f"{about.name} ({about.total_memory / 2**30:.0f} GiB)")
    try:
        ones = torch.ones(64, 64, device=place)
        if float((ones @ ones).sum()) != 64.0**3:
            facts["failed"] = "the result is wrong"
    except Exception as error:
        facts["failed"] = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return facts


def _driver() -> tuple[str, str]:
    """Version of the NVIDIA driver, and the newest CUDA that it is for; empty where there is none."""
    import ctypes

    version = cuda = ""
    try:
        told = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text())
        version = told[0] if told else ""
    except OSError:
        pass
    try:
        number = ctypes.c_int()
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) == 0 and number.value:
            cuda = f"{number.value // 1000}.{number.value % 1000 // 10}"
    except (OSError, AttributeError):
        pass
    return version, cuda


def machine() -> list[Finding]:
    """Cores, memory and shared memory that this process may use."""
    from joblib import cpu_count

    total, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _container_limit()
    memory = f"{_gib(min(total, limit or total))} of memory" + (" (the container's limit)" if limit and limit < total else "")
    facts = [f"{cpu_count()} cores", memory]
    shared = Path("/dev/shm")
    status, step = OK, ""
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        facts.append(f"{_gib(size)} in /dev/shm")
        if size < _SHARED_MEMORY:
            status = WARN
            step = "Processes that decode images hand them over in /dev/shm: docker run --shm-size=2g (--workers 0 needs none)"
    return [Finding(name="machine", status=status, found=", ".join(facts), next_step=step)]


def _container_limit() -> int | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((Path("/sys/fs/cgroup") / name).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def writable(name: str, folder: Path, remedy: str) -> list[Finding]:
    """Whether a directory can be written, and how much room it has. One that is not there yet is not made.

    Args:
        name: of the finding.
        remedy: what to do if it cannot, or is full.
    """
    folder = folder.absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with NamedTemporaryFile(dir=place) as file:
            file.write(b"rco")
            file.flush()
    except OSError as error:
        return [Finding(name=name, status=FAIL, found=f"{folder} cannot be written ({error.strerror})", next_step=remedy)]
    free = shutil.disk_usage(place).free
    little = free < _DISK
    found = f"{folder} can be written; {_gib(free)} free"
    return [Finding(name=name, status=WARN if little else OK, found=found, next_step=f"Make room. {remedy}" if little else "")]


def mlflow(context: tracking.Context, open_run: Callable[[], str] | None = None) -> list[Finding]:
    """Whether MLflow takes a run and an artifact, gives them back, and is of a version that knows logged models."""
    found = tracking.probe(context, open_run)
    uri = tracking.without_credentials(context.tracking_uri)
    told = f"{uri}: a run and an artifact written, read and deleted in {found.seconds:.1f} s"
    status, step = OK, ""
    if found.server:
        told += f"; server {found.server}, client {found.client}"
        if _number(found.server) < (3, 0):
            status, step = FAIL, "Update the server: MLflow 3 is the first that knows logged models, which anchors are"
        elif _number(found.server) < _number(found.client):
            status, step = WARN, "Update the server: it is older than the client"
        elif not re.match(r"(?!file:)[a-z][\w+.-]*:", found.artifacts):
            status = WARN
            told += f"; artifacts go to {found.artifacts} on the disk of whoever writes them"
            step = "Unless the server is this machine, start it with --serve-artifacts, or nobody else will find them"
    if found.left:
        status = FAIL if status == FAIL else WARN
        told += f"; {found.left} could not be deleted"
        step = step or "Remove it, or allow this login to delete"
    return [Finding(name="MLflow", status=status, found=told, next_step=step)]


def s3(uri: str) -> list[Finding]:
    """Whether an object can be written, read and deleted below an S3 address, and whether the clocks agree."""
    found = storage.probe(uri)
    told = f"{uri} at {found.endpoint}: an object written, read and deleted in {found.seconds:.1f} s"
    status, step = OK, ""
    if found.ahead is not None and abs(found.ahead) >= _SKEW_TOLD:
        told += f"; this machine's clock is {storage.said_skew(found.ahead)} the store's"
        step = "Set the clock (chrony, systemd-timesyncd): signatures are dated, and refused if it drifts further"
        status = WARN if abs(found.ahead) > storage.SKEW_REFUSED else OK
    if found.left:
        status, told = WARN, f"{told}; {found.left} could not be deleted"
        step = step or "Remove it, and allow this key to delete there: resume points that are done with are deleted"
    return [Finding(name="S3", status=status, found=told, next_step=step)]


if __name__ == "__main__":
    print(json.dumps(look_at_pytorch(sys.argv[1])))
