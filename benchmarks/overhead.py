"""What keeping the route and tracking cost, in seconds and in % of training. Fails above 3 %, or 0.1 s an anchor.

    make bench-overhead [ARGS="--data DIR"]

ResNet-32 trains with every epoch's checkpoint kept, then ResNet-8 learns from anchors of it, all in MLflow (a local database).
The calls that save weights, write the route, and talk to MLflow are timed. The epochs here are short (1,500 images where CIFAR
has 50,000) and every one is kept, so the share is an upper limit.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from harness import HERE, machine, prepare, save, table

SHARE, ANCHOR = 0.03, 0.1


@contextmanager
def timed(owner: Any, name: str, taken: dict[str, list[float]]) -> Iterator[None]:
    """Note how long each call of owner.name takes."""
    real: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(real)
    def call(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return real(*args, **kwargs)
        finally:
            taken.setdefault(name, []).append(time.perf_counter() - started)

    with mock.patch.object(owner, name, call):
        yield


def measure(root: Path, epochs: int, threads: int) -> dict[str, Any]:
    """Train a teacher and a student; seconds of training, and of every kind of call beside it."""
    from rco.data.dataset import Dataset
    from rco.models.config import ModelConfig
    from rco.models.route import Route
    from rco.models.spec import NetworkSpec, load_network
    from rco.objectives.config import ObjectiveConfig
    from rco.tasks.selection import write_anchor
    from rco.tracking.context import Context
    from rco.tracking.record import Record
    from rco.tracking.runs import open_parent
    from rco.tracking.tracker import tracked
    from rco.training import distillation, teacher
    from rco.training.config import ComputeConfig, TrainConfig
    from rco.training.device import prepare_process, resolve

    compute = resolve(ComputeConfig(threads=threads))
    prepare_process(compute)
    data = Dataset.open(root / "prepared")
    images = min(len(data.split("train")), data.split("train").num_batches(64) * 64)
    taken: dict[str, list[float]] = {}
    trained = 0.0
    context = Context(
        tracking_uri=f"sqlite:///{root}/mlflow.db", pipeline_run="bench", artifact_root=(root / "artifacts").as_uri()
    )
    open_parent(context, "bench", "bench", {})
    about = {"name": "bench", "source": "bench", "digest": data.manifest.digest}
    spec = NetworkSpec.of(ModelConfig(model="resnet32"), data.manifest)
    train = TrainConfig(epochs=epochs, batch_size=64, lr=0.05, augment="crop-flip")

    with timed(teacher, "save_network", taken), timed(Route, "write", taken):
        record = Record(key="teacher", params={}, data=about)
        opened = time.perf_counter()
        with tracked(context, record) as tracker:
            taken["open a run"] = [time.perf_counter() - opened]
            for row in teacher.train_teacher(data, spec, train, compute, checkpoint_every=1, folder=root / "route"):
                trained += images / row["images_per_second"]
                with timed(tracker, "log", taken):
                    tracker.log(row["epoch"], {k: float(v) for k, v in row.items() if k != "epoch"})
            closing = time.perf_counter()
        taken["close a run"] = [time.perf_counter() - closing]
    route = Route.open(root / "route")
    _, logits = route.probe()
    student = NetworkSpec.of(ModelConfig(model="resnet8"), data.manifest).build(0)
    opened = time.perf_counter()
    with tracked(context, Record(key="student", params={}, data=about)) as tracker:
        taken["open a run"].append(time.perf_counter() - opened)
        for stage in range(4):
            i = (stage + 1) * len(route.checkpoints) // 4 - 1
            write_anchor(root / f"anchor-{stage}", route, i)
            with timed(tracker, "log_anchor", taken):
                tracker.log_anchor(root / f"anchor-{stage}")
            point = route.checkpoints[i]
            anchor = load_network(route.folder / point.file, expected_sha256=point.sha256, spec=spec)
            for row in distillation.train_stage(
                student,
                anchor,
                data,
                ObjectiveConfig(),
                train,
                compute,
                distillation.ProbeTargets(logits[i], logits[-1]),
                stage=stage + 1,
                epochs=epochs // 4,
                first_epoch=1 + stage * (epochs // 4),
            ):
                trained += images / row["images_per_second"]
                with timed(tracker, "log", taken):
                    tracker.log(row["epoch"], {k: float(v) for k, v in row.items() if k != "epoch"})
        closing = time.perf_counter()
    taken["close a run"].append(time.perf_counter() - closing)
    return {"training": trained, "calls": taken, "images": images}


NAMES = {"save_network": "save a checkpoint", "write": "write the route", "log": "log an epoch", "log_anchor": "log an anchor"}


def main() -> int:
    """Measure, print, write JSON. Exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder CLASS/* of 32x32 pictures (default: random ones)")
    parser.add_argument("--images", type=int, default=1536)
    parser.add_argument("--epochs", type=int, default=8, help="of the teacher, and of the student over its four stages")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "overhead.json")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), told.data, told.images)
        measured = measure(Path(scratch), told.epochs, told.threads)
    training, calls = measured["training"], measured["calls"]
    rows = [
        [NAMES.get(name, name), str(len(s)), f"{1e3 * statistics.median(s):.1f}", f"{100 * sum(s) / training:.2f} %"]
        for name, s in calls.items()
    ]
    share = sum(map(sum, calls.values())) / training
    print(table(["call", "times", "median ms", "of training"], [*rows, ["all", "", "", f"{100 * share:.2f} %"]]))
    anchor = statistics.median(calls["anchor"])
    document = {"machine": machine(), "share": share, "bar_share": SHARE, "anchor_seconds": anchor, **measured}
    save(told.output, document)
    return int(share > SHARE or anchor > ANCHOR)


if __name__ == "__main__":
    sys.exit(main())
