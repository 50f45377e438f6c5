"""Images a second of one distillation step: this project beside KD_Lib, torchdistill and a careful plain loop.

ResNet-32 teaches ResNet-8 on 32x32 images. The contenders take turns, an epoch each, in several rounds, so that whatever else
the machine does hits all of them; a figure is a median over the rounds, and a ratio the median of the ratios within rounds.

    make bench-step [ARGS="--rounds 7"]
    make bench-step ARGS="--device cuda --teacher torchvision/resnet50 --student mobilenetv2-t6-w0.5 --batch 256 --images 40000"
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from harness import HERE, computes_bf16, floor, machine, prepare, save, table

PEERS = ("KD_Lib", "torchdistill", "plain loop")
FP32 = (3.3, 1.5)  # the bars on a CPU: over KD_Lib, over the plain loop
BEST = (5.0, 2.2)
KEPT = (9.0, 4.0)
GPU = (10.0, 10.0)


@dataclass(frozen=True)
class Setup:
    """What all contenders are told."""

    folder: str
    batch: int
    threads: int
    teacher: str
    student: str
    device: str


class Contender:
    """A contender in a process of its own."""

    def __init__(self, name: str, setup: Setup, python: str) -> None:
        self.name = name
        command = [python, str(HERE / "contenders.py"), name, json.dumps(asdict(setup))]
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": str(setup.threads), "PYTHONPATH": path}
        self.log = (Path(setup.folder) / f"{name.replace(' ', '-')}.log").open("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )
        if self._line() != "ready\n":
            self.log.seek(0)
            raise SystemExit(f"{name} does not start:\n{self.log.read()[-3000:]}")

    def _line(self) -> str:
        out: IO[str] | None = self.process.stdout
        assert out is not None
        return out.readline()

    def epoch(self) -> dict[str, Any]:
        """Train one epoch; images, seconds, peak memory."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        told: dict[str, Any] = json.loads(self._line())
        return told

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def flops(setup: Setup) -> dict[str, float]:
    """Floating-point operations of one image: the teacher forward; the student forward and backward (twice its forward)."""
    from rco.evaluation.cost import count_macs
    from rco.models.build import build_network

    shape = {"in_channels": 3, "num_classes": 10, "image_size": 32}
    teacher, student = (
        2 * count_macs(build_network(name, **shape, seed=0), (3, 32, 32)) for name in (setup.teacher, setup.student)
    )
    return {"teacher": float(teacher), "student": 3.0 * student}


def compete(setup: Setup, names: list[str], rounds: int, peers: str) -> dict[str, list[dict[str, Any]]]:
    """Epochs of every contender, in turn."""
    own = {name: Contender(name, setup, peers if name in ("KD_Lib", "torchdistill") else sys.executable) for name in names}
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name, contender in own.items():
            measured[name].append(contender.epoch())
        speeds = ", ".join(f"{n} {rows[-1]['images'] / rows[-1]['seconds']:.0f}" for n, rows in measured.items())
        print(f"round {number + 1} of {rounds}: {speeds} images/s", flush=True)
    for contender in own.values():
        contender.end()
    return measured


def summarise(measured: dict[str, list[dict[str, Any]]], of: dict[str, float], rates: dict[str, float]) -> list[dict[str, Any]]:
    """One row a contender."""
    speeds = {name: [row["images"] / row["seconds"] for row in rows] for name, rows in measured.items()}
    rows = []
    for name, own in speeds.items():
        precision = "bf16" if "bf16" in name else "fp32"
        needed = of["student"] + (0 if "kept" in name else of["teacher"])
        bound = rates[f"{precision}_gflops"] * 1e9 / needed
        ratios = {
            f"over {peer}": statistics.median(a / b for a, b in zip(own, speeds[peer], strict=True))
            for peer in PEERS
            if peer in speeds
        }
        rows.append(
            {
                "contender": name,
                "images_per_second": statistics.median(own),
                "lowest": min(own),
                "highest": max(own),
                **ratios,
                "bound_images_per_second": bound,
                "of_bound": statistics.median(own) / bound,
                "peak_mb": max(row["peak_mb"] for row in measured[name]),
            }
        )
    return rows


HEADS = ["contender", "images/s", "lowest to highest", *(f"over {p}" for p in PEERS), "of the floor", "peak MB"]


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    over = [f"{row[f'over {p}']:.2f}" if f"over {p}" in row else "" for p in PEERS]
    span = f"{row['lowest']:,.0f} to {row['highest']:,.0f}"
    floored = f"{100 * row['of_bound']:.0f} %"
    return [row["contender"], f"{row['images_per_second']:,.0f}", span, *over, floored, f"{row['peak_mb']:,.0f}"]


def main() -> int:
    """Measure, print, write JSON. Exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder CLASS/* of 32x32 pictures (default: random ones)")
    parser.add_argument("--images", type=int, default=2048, help="training images of an epoch")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--teacher", default="resnet32")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--only", help="contenders, comma-separated")
    parser.add_argument("--peers", default=sys.executable, help="Python of an environment that has KD_Lib and torchdistill")
    parser.add_argument("--output", type=Path, help="default: results/kd_step.json, or kd_step_cuda.json")
    told = parser.parse_args()
    names = told.only.split(",") if told.only else [*PEERS, *_ours(told.device)]
    with tempfile.TemporaryDirectory() as scratch:
        images = prepare(Path(scratch), told.data, told.images)
        print(f"{images} training images, batch {told.batch}, {told.threads} threads, on {told.device}", flush=True)
        setup = Setup(scratch, told.batch, told.threads, told.teacher, told.student, told.device)
        measured = compete(setup, names, told.rounds, told.peers)
    rates, of = floor(told.threads, told.device), flops(setup)
    rows = summarise(measured, of, rates)
    print(table(HEADS, [cells(row) for row in rows]))
    found = {row["contender"]: row for row in rows}
    missed = [
        f"{name}: {found[name][f'over {peer}']:.2f} times {peer}, the bar {what} is {bar}"
        for what, name, aims in bars(told.device)
        for peer, bar in zip(("KD_Lib", "plain loop"), aims, strict=True)
        if name in found and found[name].get(f"over {peer}", bar) < bar
    ]
    print("\n".join(missed) or "all bars are met")
    if not computes_bf16(told.device):
        print("this processor has no bf16 instructions: bf16 is not measured; the bars of the best settings are held to fp32")
    document = {
        "machine": machine(told.device),
        "setup": {**asdict(setup), "folder": "", "images": images, "rounds": told.rounds, "pictures": bool(told.data)},
        "floor": rates,
        "flops_per_image": of,
        "rows": rows,
        "rounds": measured,
        "missed": missed,
    }
    save(told.output or HERE / "results" / ("kd_step.json" if told.device == "cpu" else "kd_step_cuda.json"), document)
    return int(bool(missed))


def bars(device: str) -> list[tuple[str, str, tuple[float, float]]]:
    """What it is for, the contender that has to reach it, and how often KD_Lib's and the plain loop's speed it is."""
    if device == "cuda":
        return [("at the best settings", "rco bf16", GPU)]
    best = "bf16" if computes_bf16(device) else "fp32"
    return [
        ("at equal precision", "rco fp32", FP32),
        ("at the best settings", f"rco {best}", BEST),
        ("with kept logits", f"rco {best} kept", KEPT),
    ]


def _ours(device: str) -> list[str]:
    fp32 = ["rco fp32", "rco fp32 kept"]
    return [*fp32, "rco bf16", "rco bf16 kept"] if computes_bf16(device) else fp32


if __name__ == "__main__":
    sys.exit(main())
