"""What each setting of augmentation and regularisation costs: processor time of an epoch, beside one without any.

    python benchmarks/settings.py [--images N] [--rounds N]

A ResNet-8 learns labels on random 32x32 colour images in memory, on one thread. With a teacher of 64 pixels the images are kept
and augmented at that size, and the student's are made of them. The settings take turns; of each the fastest round counts. It is
processor time, not time on the clock: what else the machine does is not in it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import HERE, machine, prepare, save, table

#: Name -> what is set beside batch size 64 and augment = crop-flip.
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "auto_augment = randaugment": {"auto_augment": "randaugment"},
    "auto_augment = trivialaugment": {"auto_augment": "trivialaugment"},
    "erasing = 0.25": {"erasing": 0.25},
    "mixup = 0.2": {"mixup": 0.2},
    "cutmix = 1": {"cutmix": 1.0},
    "label_smoothing = 0.1": {"label_smoothing": 0.1},
    "class_balance = weights": {"class_balance": "weights"},
    "class_balance = sampling": {"class_balance": "sampling"},
    "clip_norm = 1": {"clip_norm": 1.0},
    "ema_decay = 0.999": {"ema_decay": 0.999},
    "teacher_image_size = 64": {"teacher_image_size": 64},
}


def seconds(root: Path, rounds: int, setting: dict[str, dict[str, Any]]) -> tuple[dict[str, list[float]], int]:
    """Processor seconds of each round of each setting, and the images of an epoch."""
    from rco.data.dataset import Dataset
    from rco.models.config import ModelConfig
    from rco.models.spec import NetworkSpec
    from rco.objectives.stage import labels_only
    from rco.training.config import ComputeConfig, TrainConfig
    from rco.training.device import prepare_process, resolve
    from rco.training.ema import Ema
    from rco.training.loop import fit

    compute = resolve(ComputeConfig(device="cpu", threads=1))
    prepare_process(compute)
    data, larger = (Dataset.open(root / kept / "prepared") for kept in ("32", "64"))
    split, spec = data.split("train"), NetworkSpec.of(ModelConfig(model="resnet8"), data.manifest)
    resized = larger.seen_by(replace(larger.input, size=32)).split("train")
    taken: dict[str, list[float]] = {name: [] for name in setting}
    for _ in range(rounds):
        for name, values in setting.items():
            own = dict(values)
            decay, images = own.pop("ema_decay", 0.0), resized if own.pop("teacher_image_size", 0) else split
            train = TrainConfig.of(epochs=2, batch_size=64, lr=0.05, schedule="constant", augment="crop-flip", **own)
            epochs = fit(spec.build(0), images, labels_only(), train, compute, epochs=2, ema=Ema(decay) if decay else None)
            next(epochs)  # the first epoch warms up
            started = time.process_time()
            next(epochs)
            taken[name].append(time.process_time() - started)
    return taken, len(split)


def main() -> int:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "settings.json")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for size in (32, 64):
            prepare(Path(scratch) / str(size), None, told.images, size)
        taken, images = seconds(Path(scratch), told.rounds, SETTINGS)
    best = {name: min(rounds) for name, rounds in taken.items()}
    plain = best["none"]
    rows = [[name, f"{1e3 * s / images:.2f}", f"{100 * (s / plain - 1):+.0f} %"] for name, s in best.items()]
    print(table(["setting", "ms an image", "to none"], rows))
    save(told.output, {"machine": machine(), "images": images, "seconds_of_an_epoch": taken})
    return 0


if __name__ == "__main__":
    sys.exit(main())
