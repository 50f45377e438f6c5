"""Checks of this machine before a run, one function a check, as for the services (`rco.tasks.services`)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from rco.core.words import counted
from rco.tasks.services import FAIL, LIMIT, OK, WARN, Check, Finding, failed, gib, number, writable

_SHARED_MEMORY = 2**30
_FIX_INSTALL = "Run: make setup"


def machine_checks(home: Path, device: str = "auto", limit: float = LIMIT) -> dict[str, Check]:
    """The checks of this machine.

    Args:
        home: directory of local state.
        device: auto, cpu or cuda; with cuda a missing GPU is a failure.
        limit: seconds for the import of PyTorch and a small computation.
    """
    return {
        "Python": python,
        "libraries": libraries,
        "plug-ins": plugins,
        "PyTorch": partial(pytorch, device, limit),
        "machine": machine,
        "state": partial(writable, "state", home, "Name another directory with --home"),
    }


def python() -> list[Finding]:
    """Check this interpreter against the supported range."""
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
    """Check every dependency of the project against its range."""
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
    shown = ", ".join(f"{name} {versions[name]}" for name in ("mlflow", "kfp", "boto3") if name in versions)
    return [Finding(name="libraries", status=OK, found=f"all {len(versions)} are in range: {shown}")]


def plugins() -> list[Finding]:
    """Check the plug-ins of other packages that are installed here."""
    from rco.config.plugins import failures, installed

    wrong = [
        Finding(name="plug-ins", status=FAIL, found=problem, next_step="Mend that package, or uninstall it")
        for problem in failures()
    ]
    right = [Finding(name="plug-ins", status=OK, found=f"{name} of {origin}") for name, origin in installed().items()]
    return wrong + right or [Finding(name="plug-ins", status=OK, found="none of other packages")]


def pytorch(device: str, limit: float) -> list[Finding]:
    """Check that PyTorch can be imported and computes on the device, in a process of its own: it may crash or hang."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rco.doctor", device], capture_output=True, text=True, errors="replace", timeout=limit
        )
    except subprocess.TimeoutExpired:
        found = f"does not get to compute within {limit:g} s"
        return [failed("PyTorch", found, "Check nvidia-smi; a slow machine may need a longer --limit")]
    try:
        facts = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        facts = {"crashed": done.returncode}
    return judge_pytorch(facts, device)


def judge_pytorch(facts: Mapping[str, Any], device: str) -> list[Finding]:
    """The findings that follow from the facts of `pytorch_facts`."""

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
    has_driver = bool(facts["driver"] or facts["driver_cuda"])
    wanted = FAIL if device == "cuda" else WARN
    if facts["gpus"]:
        gpus = f"{', '.join(facts['gpus'])}; {driver}"
        if facts["failed"]:
            step = "Check nvidia-smi; a GPU older or newer than the build needs another build of PyTorch"
            findings.append(finding("device", FAIL, f"{gpus}; cannot compute there ({facts['failed']})", step))
        else:
            findings.append(finding("device", OK, gpus))
    elif facts["failed"]:
        findings.append(finding("device", FAIL, f"cannot compute on the CPU ({facts['failed']})", _FIX_INSTALL))
    elif has_driver and not facts["cuda_build"]:
        step = "Install PyPI's build: make setup (without TORCH_BACKEND)"
        findings.append(finding("device", wanted, f"{driver}, but PyTorch is built for the CPU alone", step))
    elif has_driver:
        old = facts["driver_cuda"] and number(facts["driver_cuda"]) < number(facts["cuda_build"])
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


def pytorch_facts(device: str) -> dict[str, Any]:
    """Facts about PyTorch, the driver and the GPU, with a tiny computation; for a process of its own."""
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
    target = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if target == "cuda":
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            facts["gpus"].append(f"{about.name} ({about.total_memory / 2**30:.0f} GiB)")
    try:
        ones = torch.ones(64, 64, device=target)
        if float((ones @ ones).sum()) != 64.0**3:
            facts["failed"] = "the result is wrong"
    except Exception as error:
        facts["failed"] = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return facts


def _driver() -> tuple[str, str]:
    """Version of the NVIDIA driver, and the newest CUDA that it supports; empty without a driver."""
    import ctypes

    version = cuda = ""
    try:
        match = re.search(r"\b\d{3,}\.\d+(?:\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text())
        version = match[0] if match else ""
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
    """Check the cores, memory and shared memory that this process may use."""
    from joblib import cpu_count

    total, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), _container_limit()
    memory = f"{gib(min(total, limit or total))} of memory" + (" (the container's limit)" if limit and limit < total else "")
    facts = [counted(cpu_count(), "core"), memory]
    shared = Path("/dev/shm")
    status, step = OK, ""
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        facts.append(f"{gib(size)} in /dev/shm")
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


if __name__ == "__main__":
    print(json.dumps(pytorch_facts(sys.argv[1])))
