"""How cost grows: with the batch, the data, the classes, the number of anchors, and the length of the route.

    make bench-growth

Throughput is of ResNet-32 -> ResNet-8 on random 32x32 pictures. The greedy search reads kept probe logits: its cost has to be
linear in the number of checkpoints: the exponent of a power law through the measured times is printed and held to a bar.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, floor, machine, median_seconds, prepare, save, table

#: A power law's exponent above this is not linear any more.
LINEAR = 1.15


def speed(setup: Any, rounds: int, views: int = 0) -> float:
    """Images a second of this project's step: the median epoch."""
    from contenders import ours

    epoch = ours(setup, views=views)
    images = epoch()
    return images / median_seconds(epoch, rounds)


def throughput(threads: int, rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Images a second over batch size, data size and number of classes, computed and with kept logits."""
    usual = {"batch": 64, "images": 1024, "classes": 10}
    cases = {
        "batch": (16, 64, 256, 1024),
        "images": (512, 1024, 4096),
        "classes": (10, 100, 1000),
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    for what, values in cases.items():
        for value in values:
            case = {**usual, what: value}
            if what == "classes":
                case["images"] = max(case["images"], 4 * value)
            with tempfile.TemporaryDirectory() as scratch:
                images = prepare(Path(scratch), None, case["images"], classes=case["classes"])
                setup = types.SimpleNamespace(
                    folder=scratch, batch=case["batch"], threads=threads, teacher="resnet32", student="resnet8", device="cpu"
                )
                row = {what: value, "train_images": images, "images_per_second": speed(setup, rounds)}
                row["kept_images_per_second"] = speed(setup, rounds, views=1)
            rows.setdefault(what, []).append(row)
            print(
                f"{what} {value}: {row['images_per_second']:.0f}, kept {row['kept_images_per_second']:.0f} images/s", flush=True
            )
    return rows


def search(rounds: int) -> tuple[list[dict[str, Any]], float]:
    """Seconds of one step of the greedy search over routes of growing length, and the exponent of their growth."""
    from rco.strategies.hardness import route_hardness

    rng = np.random.default_rng(0)
    images, classes = 1000, 100
    student = rng.normal(size=(images, classes)).astype(np.float32)
    rows = []
    for length in (10, 20, 40, 80, 160, 320):
        route = rng.normal(size=(length, images, classes)).astype(np.float32)
        seconds = median_seconds(lambda route=route: route_hardness(route, student, 4.0), rounds)  # type: ignore[misc]
        rows.append({"checkpoints": length, "seconds": seconds, "ms_per_checkpoint": 1e3 * seconds / length})
    return rows, exponent([r["checkpoints"] for r in rows], [r["seconds"] for r in rows])


def anchors(rounds: int) -> list[dict[str, Any]]:
    """Seconds of a student's 48 epochs on digits in 1 to 12 stages: what a stage costs beside its training."""
    import rco
    from rco.strategies.config import AnchorConfig
    from rco.training.config import TrainConfig

    rows: list[dict[str, Any]] = [{"anchors": n, "seconds": []} for n in (1, 2, 4, 8, 12)]
    with tempfile.TemporaryDirectory() as scratch:
        data = rco.prepare_dataset("digits", f"{scratch}/data")
        route = rco.train_route(
            data, "digits-cnn-l", f"{scratch}/route", train=TrainConfig(epochs=12, lr=0.05, augment="shift"), checkpoint_every=1
        )
        train = TrainConfig(epochs=48, lr=0.05, augment="shift")
        for _ in range(rounds):
            for row in rows:
                choice = AnchorConfig.of(strategy="equal-interval", n_anchors=row["anchors"])
                started = time.perf_counter()
                rco.distill_student("digits-cnn-s", route, data, anchors=choice, train=train)
                row["seconds"].append(time.perf_counter() - started)
    return [{"anchors": row["anchors"], "seconds": float(np.median(row["seconds"]))} for row in rows]


def route_lengths() -> tuple[list[dict[str, Any]], float]:
    """Seconds to keep routes of growing length: weights (ResNet-32), checksums and probe logits; and the exponent."""
    from rco.models.route import Checkpoint, Route, checkpoint_file
    from rco.models.spec import NetworkSpec, save_network

    spec = NetworkSpec(model="resnet32", stem="auto", in_channels=3, num_classes=10, image_size=32)
    model = spec.build(0)
    logits = np.zeros((1000, 10), dtype=np.float32)
    rows = []
    for length in (10, 20, 40, 80, 160):

        def keep(length: int = length) -> None:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                points = []
                for epoch in range(1, length + 1):
                    file = checkpoint_file(epoch)
                    digest = save_network(folder / file, model, spec, epoch=epoch)
                    points.append(Checkpoint(epoch=epoch, lr=0.1, train_loss=1.0, val_accuracy=0.5, file=file, sha256=digest))
                Route.write(
                    folder,
                    network=spec,
                    data_digest="0" * 64,
                    checkpoints=points,
                    decay_epochs=(),
                    history=(),
                    probe_labels=np.zeros(1000, dtype=np.int64),
                    probe_logits=np.stack([logits] * length),
                )
                Route.open(folder).verify()

        seconds = median_seconds(keep, 3)
        rows.append({"checkpoints": length, "seconds": seconds, "ms_per_checkpoint": 1e3 * seconds / length})
    return rows, exponent([r["checkpoints"] for r in rows], [r["seconds"] for r in rows])


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """b of seconds = a * sizes^b, by least squares in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def shown(rows: list[dict[str, Any]]) -> str:
    """A table of rows that have the same keys."""
    heads = list(rows[0])
    return table(
        [head.replace("_", " ") for head in heads],
        [
            [f"{r[h]:,}" if isinstance(r[h], int) else f"{r[h]:,.4g}" if r[h] < 100 else f"{r[h]:,.0f}" for h in heads]
            for r in rows
        ],
    )


def main() -> int:
    """Measure, print, write JSON. Exit status 1 if the search's or the route's cost is not linear."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "growth.json")
    told = parser.parse_args()
    import torch

    torch.set_num_threads(told.threads)
    searched, search_exponent = search(told.rounds)
    kept, kept_exponent = route_lengths()
    staged = anchors(told.rounds)
    speeds = throughput(told.threads, told.rounds)
    document = {
        "machine": machine(),
        "floor": floor(told.threads),
        "throughput": speeds,
        "greedy_search": {"rows": searched, "exponent": search_exponent},
        "route_keeping": {"rows": kept, "exponent": kept_exponent},
        "anchors": staged,
    }
    for rows in (*speeds.values(), searched, kept, staged):
        print("\n" + shown(rows))
    print(f"\ngreedy search: seconds ~ checkpoints^{search_exponent:.2f}")
    print(f"keeping a route: seconds ~ checkpoints^{kept_exponent:.2f}")
    save(told.output, document)
    return int(max(search_exponent, kept_exponent) > LINEAR)


if __name__ == "__main__":
    sys.exit(main())
