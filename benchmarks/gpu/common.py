"""What the parts share: what they are told, the time that is left, the images, the results."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rco.core.documents import write_json
from rco.core.tensors import save_arrays
from rco.data.config import DataConfig
from rco.data.dataset import MANIFEST, Dataset, Manifest
from rco.data.prepare import prepare
from rco.data.sources.kinds import source_digest

if TYPE_CHECKING:
    import torch

TESTS, STEPS, RECIPE, STUDENTS, REPORT = "tests.json", "steps.json", "recipe.json", "students.jsonl", "report.md"
TAU, LR = 4.0, 0.01  # of the contenders of `benchmarks/contenders.py`
CIFAR_TRAIN, CIFAR_VAL, CIFAR_TEST = 45_000, 5_000, 10_000  # as the recipe splits CIFAR-10


@dataclass(frozen=True)
class Part:
    """What one part is told.

    Args:
        device: "cuda", or "cpu" for a trial of the benchmark itself.
        smoke: everything as small as it can be.
        out: folder of the results.
        scratch: folder of what is not a result.
        data: tar of an image folder of CIFAR-10; None: synthetic images, and digits.
        plans: file of the plans whose students are trained.
        ends: when it has to be over, on the clock of `time.time`.
    """

    device: str
    smoke: bool
    out: Path
    scratch: Path
    data: Path | None
    plans: Path
    ends: float

    def left(self) -> float:
        """Seconds."""
        return self.ends - time.time()

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def precision(self) -> str:
        """bf16; fp32 on a CPU, most of which emulate bf16."""
        return "bf16" if self.on_gpu else "fp32"

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

    def save(self, name: str, document: Any) -> None:
        """Write a result; a reader finds the old one or the new one, whole."""
        path = self.out / name
        half = self.scratch / f"{name}.half"
        half.write_text(json.dumps(document, indent=1) + "\n")
        os.replace(half, path) if half.stat().st_dev == path.parent.stat().st_dev else path.write_text(half.read_text())

    def saved(self, name: str) -> Any:
        """A result that was saved before; None: there is none."""
        path = self.out / name
        return json.loads(path.read_text()) if path.is_file() else None


def synthetic(folder: Path, train: int, val: int, test: int, *, size: int = 32, classes: int = 10) -> Dataset:
    """A prepared data set of uniform noise with random labels; found again if it is there."""
    import numpy as np

    if (folder / MANIFEST).is_file():
        return Dataset.open(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    sizes = {"train": train, "val": val, "test": test}
    for part, count in sizes.items():
        images = rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
        save_arrays(folder / f"{part}.safetensors", {"images": images, "labels": np.arange(count) % classes})
    manifest = Manifest(
        source="noise",
        source_digest="",
        digest=hashlib.sha256(repr((sizes, size, classes)).encode()).hexdigest(),
        storage="arrays",
        root="",
        resize=False,
        num_classes=classes,
        class_names=tuple(map(str, range(classes))),
        image_shape=(3, size, size),
        mean=(0.5,) * 3,
        std=(0.29,) * 3,
        sizes=sizes,
        probe=tuple(range(min(val, 1000))),
    )
    write_json(folder / MANIFEST, manifest.written)
    return Dataset.open(folder)


def cifar(part: Part) -> tuple[Dataset, str]:
    """Images of CIFAR-10's shape and number, prepared, and what they are: those of the tar, or noise."""
    folder = part.scratch / "images" / "prepared"
    if part.smoke:
        return synthetic(folder, 36, 20, 20), "noise, a few images"
    if part.data is None:
        return synthetic(folder, CIFAR_TRAIN, CIFAR_VAL, CIFAR_TEST), "noise of CIFAR-10's shape and number"
    config = DataConfig(dataset=str(part.data), val_fraction=0.1, probe_size=1000)
    return _prepared(config, folder), f"the image folder of {part.data.name}"


def digits(part: Part) -> Dataset:
    """scikit-learn's digits, prepared."""
    return _prepared(DataConfig(probe_size=64), part.scratch / "digits")


def _prepared(config: DataConfig, folder: Path) -> Dataset:
    if not (folder / MANIFEST).is_file():
        prepare(config, folder, source_digest(config))
    return Dataset.open(folder)


def finished(path: Path) -> list[dict[str, Any]]:
    """The lines of students that are whole: a machine may have ended within the last one."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "id" in line:
            lines.append(line)
    return lines


def timed(part: Part, work: Callable[[], int]) -> tuple[float, int]:
    """Seconds that `work` takes, with what it leaves to the device, and what it returns."""
    part.wait()
    started = time.perf_counter()
    result = work()
    part.wait()
    return time.perf_counter() - started, result


def reason(error: BaseException) -> str:
    """An error in one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[-600:]}"


def said(words: str) -> None:
    """Print at once."""
    print(words, flush=True)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def calibrated(network: torch.nn.Module, shape: tuple[int, ...], device: str, batches: int = 4) -> torch.nn.Module:
    """A network that was never trained, on the device, with the statistics of noise: without, its logits are far off."""
    import torch

    generator = torch.Generator().manual_seed(0)
    network = network.to(device).train()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over the batches
    with torch.no_grad():
        for _ in range(batches):
            network(torch.randn(16, *shape, generator=generator).to(device))
    for norm, before in zip(norms, momentum, strict=True):
        norm.momentum = before
    return network.eval()
