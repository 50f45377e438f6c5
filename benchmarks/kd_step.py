"""Images a second of one distillation step: this project beside KD_Lib, torchdistill and a careful plain loop.

ResNet-32 teaches ResNet-8 on 32x32 images. The contenders take turns, an epoch each, in several rounds, so that whatever else
the machine does hits all of them; a figure is a median over the rounds, and a ratio the median of the ratios within rounds.

    make bench-step [ARGS="--rounds 7"]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
FP32 = (3.3, 1.5)  # the bars: over KD_Lib, over the plain loop
BEST = (5.0, 2.2)
KEPT = (9.0, 4.0)


def write_images(folder: Path, source: Path | None, count: int, size: int, classes: int) -> None:
    """An image folder: pictures from `source` (CLASS/*), or drawn at random."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    if source is not None:
        names = sorted(p.name for p in source.iterdir() if p.is_dir())
        files = [p for name in names for p in sorted((source / name).iterdir())[: count // len(names)]]
        for file in files:
            (folder / file.parent.name).mkdir(parents=True, exist_ok=True)
            (folder / file.parent.name / file.name).write_bytes(file.read_bytes())
        return
    for i in range(count):
        place = folder / f"{i % classes:04d}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(place / f"{i:06d}.png")


def prepare(folder: Path, source: Path | None, count: int, size: int = 32, classes: int = 10) -> int:
    """A prepared data set in folder/prepared; returns the number of training images."""
    from rco.config import DataConfig
    from rco.prepare import prepare as prepared
    from rco.sources import source_digest

    write_images(folder / "images", source, int(count / 0.8 / 0.95), size, classes)
    config = DataConfig(dataset=str(folder / "images"), val_fraction=0.2, test_fraction=0.05, probe_size=32)
    return prepared(config, folder / "prepared", source_digest(config)).sizes["train"]


class Contender:
    """A contender in a process of its own."""

    def __init__(self, name: str, folder: Path, batch: int, threads: int, python: str) -> None:
        self.name = name
        command = [python, str(HERE / "contenders.py"), name, str(folder), str(batch), str(threads)]
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
        self.log = (folder / f"{name.replace(' ', '-')}.log").open("w+")
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


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch

    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    return {"cpu": cpu, "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}


def floor(threads: int) -> dict[str, float]:
    """Measured matrix rate (GFLOP/s) and copy bandwidth (GB/s), which no step can beat."""
    import time

    import torch

    torch.set_num_threads(threads)
    rates = {}
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
        times = []
        for _ in range(7):
            started = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - started)
        rates[f"{name}_gflops"] = 2 * 2048**3 / statistics.median(times[2:]) / 1e9
    x = torch.randn(2**26)
    y = torch.empty_like(x)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        y.copy_(x)
        times.append(time.perf_counter() - started)
    rates["copy_gb_s"] = 2 * x.numel() * 4 / statistics.median(times[1:]) / 1e9
    return rates


def flops() -> dict[str, float]:
    """Floating-point operations of one image: the teacher forward; the student forward and backward (twice its forward)."""
    from rco import models
    from rco.evaluate import count_macs

    shape = {"in_channels": 3, "num_classes": 10, "image_size": 32}
    teacher, student = (2 * count_macs(models.build(name, **shape, seed=0), (3, 32, 32)) for name in ("resnet32", "resnet8"))
    return {"teacher": float(teacher), "student": 3.0 * student}


def compete(
    folder: Path, names: list[str], batch: int, threads: int, rounds: int, peers: str
) -> dict[str, list[dict[str, Any]]]:
    """Epochs of every contender, in turn."""
    own = {
        name: Contender(name, folder, batch, threads, peers if name in ("KD_Lib", "torchdistill") else sys.executable)
        for name in names
    }
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
            for peer in ("KD_Lib", "torchdistill", "plain loop")
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


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    heads = [
        "contender",
        "images/s",
        "lowest to highest",
        "over KD_Lib",
        "over torchdistill",
        "over plain loop",
        "of the floor",
        "peak MB",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        over = [f"{row[f'over {p}']:.2f}" if f"over {p}" in row else "" for p in ("KD_Lib", "torchdistill", "plain loop")]
        cells = [
            row["contender"],
            f"{row['images_per_second']:,.0f}",
            f"{row['lowest']:,.0f} to {row['highest']:,.0f}",
            *over,
            f"{100 * row['of_bound']:.0f} %",
            f"{row['peak_mb']:,.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write JSON. Exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder CLASS/* of 32x32 pictures (default: random ones)")
    parser.add_argument("--images", type=int, default=2048, help="training images of an epoch")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help="contenders, comma-separated")
    parser.add_argument("--peers", default=sys.executable, help="Python of an environment that has KD_Lib and torchdistill")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "kd_step.json")
    told = parser.parse_args()
    sys.path.insert(0, str(HERE.parent))
    names = told.only.split(",") if told.only else ["KD_Lib", "torchdistill", "plain loop", *_ours()]
    with tempfile.TemporaryDirectory() as scratch:
        images = prepare(Path(scratch), told.data, told.images)
        print(f"{images} training images, batch {told.batch}, {told.threads} threads", flush=True)
        measured = compete(Path(scratch), names, told.batch, told.threads, told.rounds, told.peers)
    rates, of = floor(told.threads), flops()
    rows = summarise(measured, of, rates)
    print(table(rows))
    missed = [
        f"{name}: {row[f'over {peer}']:.2f} times {peer}, the bar is {bar}"
        for row in rows
        if (name := row["contender"]) in bars()
        for peer, bar in zip(("KD_Lib", "plain loop"), bars()[name], strict=True)
        if row.get(f"over {peer}", bar) < bar
    ]
    print("\n".join(missed) or "all bars are met")
    if not computes_bf16():
        print("this processor has no bf16 instructions: the bars for bf16 are not measured")
    told.output.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "floor": rates, "flops_per_image": of, "rows": rows, "rounds": measured, "missed": missed}
    told.output.write_text(json.dumps(document, indent=1) + "\n")
    return int(bool(missed))


def computes_bf16() -> bool:
    """Whether this processor has instructions for bf16; where it has none, PyTorch's bf16 is slower than fp32, many times."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def bars() -> dict[str, tuple[float, float]]:
    """Contender of ours -> its bars, at the best settings that this processor has."""
    if computes_bf16():
        return {"rco fp32": FP32, "rco bf16": BEST, "rco bf16 kept": KEPT}
    return {"rco fp32": FP32, "rco fp32 kept": KEPT}


def _ours() -> list[str]:
    fp32 = ["rco fp32", "rco fp32 kept"]
    return [*fp32, "rco bf16", "rco bf16 kept"] if computes_bf16() else fp32


if __name__ == "__main__":
    sys.exit(main())
