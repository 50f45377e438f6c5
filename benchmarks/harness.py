"""What the benchmarks share: the machine, its physical limits, test data, tables, results as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


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
    from rco.data.config import DataConfig
    from rco.data.prepare import prepare as prepared
    from rco.data.sources.kinds import source_digest

    write_images(folder / "images", source, max(int(count / 0.8 / 0.95), 8 * classes), size, classes)
    config = DataConfig(dataset=str(folder / "images"), val_fraction=0.2, test_fraction=0.05, probe_size=32)
    return prepared(config, folder / "prepared", source_digest(config)).sizes["train"]


def machine(device: str = "cpu") -> dict[str, Any]:
    """What it ran on."""
    import torch

    if device == "cuda":
        processor = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    return {"processor": processor, "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version()}


def computes_bf16(device: str) -> bool:
    """Whether the device has instructions for bf16. Where a processor has none, PyTorch emulates them, many times slower."""
    from rco.training.precision import cpu_computes_bf16

    return device == "cuda" or cpu_computes_bf16()


def floor(threads: int, device: str = "cpu") -> dict[str, float]:
    """Measured matrix rate (GFLOP/s) and copy bandwidth (GB/s), which no step can beat."""
    import torch

    torch.set_num_threads(threads)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    rates = {}
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        # A 2048 matrix in bf16 takes a minute where it is emulated.
        emulated = dtype == torch.bfloat16 and not computes_bf16(device)
        side = 8192 if device == "cuda" else 256 if emulated else 2048
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates[f"{name}_gflops"] = 2 * side**3 / median_seconds(lambda a=a, b=b: a @ b, 7, wait) / 1e9  # type: ignore[misc]
    x = torch.randn(2**26, device=device)
    y = torch.empty_like(x)
    rates["copy_gb_s"] = 2 * x.numel() * 4 / median_seconds(lambda: y.copy_(x), 7, wait) / 1e9
    return rates


def median_seconds(work: Callable[[], Any], times: int, wait: Callable[[], None] = lambda: None) -> float:
    """Median over `times` calls, after two that do not count."""
    taken = []
    for _ in range(times + 2):
        wait()
        started = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def save(path: Path, document: Mapping[str, Any]) -> None:
    """Write results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {path}", flush=True)
