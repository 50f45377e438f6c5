"""Prove on a GPU what has never run on one, in the minutes that there are; parts in the order of their importance.

    make gpu [ARGS="--data CIFAR10.tar --minutes 8"]
    python3 -m benchmarks.gpu --device cpu --smoke      # a trial of the benchmark itself

Each part is a process of its own, which prints and writes as it goes on, and is ended when its share of the time is over: what
it has written until then stays. Exit status 1 if a check has failed or a part has ended badly.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Of the whole time. The students have what the others leave.
SHARES = {"tests": 0.2, "steps-0": 0.22, "steps-1": 0.2, "recipe": 0.13, "steps-2": 0.12, "students": 1.0}
_GRACE = 10  # seconds for a part to end by itself


def main() -> int:
    """Run the parts, or, as a child, one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--smoke", action="store_true", help="everything as small as it can be")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything (%(default)s)")
    parser.add_argument("--data", type=Path, help="tar of an image folder of CIFAR-10: {train,test}/CLASS/*; never committed")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "gpu", help="folder of the results; of the last machine's, too"
    )
    parser.add_argument("--plans", type=Path, default=Path(__file__).with_name("plans.json"), help="whose students are trained")
    parser.add_argument("--only", default="", help=f"parts, comma-separated: {', '.join(SHARES)}")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ends", type=float, default=0.0, help=argparse.SUPPRESS)
    told = parser.parse_args()
    for path in (told.data, told.plans):
        if path is not None and not path.is_file():
            parser.error(f"{path} is not a file")
    names = told.only.split(",") if told.only else list(SHARES)
    if unknown := [name for name in names if name not in SHARES]:
        parser.error(f"--only {unknown[0]} is not a part: {', '.join(SHARES)}")
    return _child(told) if told.part else _parent(told, names)


def _parent(told: argparse.Namespace, names: list[str]) -> int:
    ends = time.time() + 60 * told.minutes
    if told.device == "cuda" and not _has_gpu():
        print("no GPU can be used here; --device cpu --smoke tries the benchmark itself", flush=True)
        return 2
    told.out.mkdir(parents=True, exist_ok=True)
    for stale in ("tests.json", "steps.json", "recipe.json"):  # of the machine before; its students stay
        (told.out / stale).unlink(missing_ok=True)
    ended: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="rco-gpu-") as scratch:
        if told.smoke:  # one pair, and one process: most of its time is imports
            names = [",".join(name for name in names if name not in ("steps-1", "steps-2"))]
        for name in names:
            seconds = min(SHARES.get(name, 1.0) * 60 * told.minutes, ends - time.time() - _GRACE)
            print(f"=== {name} ({seconds:.0f} s)", flush=True)
            ended[name] = _run(told, name, Path(scratch), seconds) if seconds > 5 else "skipped: the time was spent"
            print(f"=== {name}: {ended[name]}", flush=True)
        _report(told, Path(scratch), ended)
    return int(any(words.startswith("FAILED") for words in ended.values()))


def _has_gpu() -> bool:
    asked = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", asked], check=False).returncode == 0


def _run(told: argparse.Namespace, name: str, scratch: Path, seconds: float) -> str:
    """Run one part; returns how it has ended."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--device", told.device, "--scratch", str(scratch)]
    command += ["--out", str(told.out.resolve()), "--plans", str(told.plans.resolve()), "--ends", str(time.time() + seconds)]
    command += ["--data", str(told.data.resolve())] if told.data else []
    command += ["--smoke"] if told.smoke else []
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(scratch / "compiled"), "RCO_LOGITS": ""}
    if name == "tests":
        environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS repeats bit for bit
    return watched(command, environment, seconds + _GRACE)


def watched(command: list[str], environment: dict[str, str], seconds: float) -> str:
    """Run a command for so many seconds at most; returns how it has ended. None of its processes is left."""
    started = time.monotonic()
    child = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    try:
        status = child.wait(seconds)
    except subprocess.TimeoutExpired:
        return "ended: its share of the time was spent; what it had written stays"
    finally:
        _end(child)
    took = f"after {time.monotonic() - started:.0f} s"
    return f"done {took}" if status == 0 else f"FAILED with status {status} {took}"


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a part and its workers."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _child(told: argparse.Namespace) -> int:
    import logging

    from benchmarks.gpu.common import Part, cores

    logging.disable(logging.INFO)
    part = Part(told.device, told.smoke, told.out, told.scratch, told.data, told.plans, told.ends)
    import torch

    torch.set_num_threads(1 if told.smoke else min(8, cores()))
    failed = False
    for name in told.part.split(","):
        module, _, number = name.partition("-")
        if module == "tests":
            from benchmarks.gpu import tests_on_gpu

            failed |= not tests_on_gpu.run(part)
        elif module == "recipe":
            from benchmarks.gpu import recipe

            recipe.run(part)
        elif module == "students":
            from benchmarks.gpu import students

            students.run(part)
        else:
            from benchmarks.gpu import steps

            steps.run(part, int(number))
    return int(failed)


def _report(told: argparse.Namespace, scratch: Path, ended: dict[str, str]) -> None:
    from benchmarks.gpu import report
    from benchmarks.gpu.common import Part

    part = Part(told.device, told.smoke, told.out, scratch, told.data, told.plans, 0.0)
    report.write(part, ended)
    print(f"written to {told.out}: {', '.join(sorted(p.name for p in told.out.iterdir()))}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
