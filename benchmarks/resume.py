"""What resume points cost: to write one, to read one, and in % of training at the default interval. Fails above 1 %.

    make bench-resume

Networks train for some steps with a point after each; the calls that write are timed, as is the copy of the weights that is
made after every epoch for the case that the next one diverges. The data are random; nothing here depends on them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import HERE, machine, prepare, save, table

SHARE = 0.01
#: name -> side of its images, images in a batch. A point does not depend on the batch; the big network's steps are long.
NETWORKS = {"digits-cnn-l": (8, 64), "resnet32": (32, 64), "torchvision/resnet50": (32, 8)}


def measure(name: str, root: Path, steps: int, threads: int) -> dict[str, Any]:
    """Seconds a point, to read one, a copy, a step; bytes of a point."""
    from rco.data.dataset import Dataset
    from rco.models.config import ModelConfig
    from rco.models.spec import NetworkSpec
    from rco.objectives.stage import labels_only
    from rco.training.config import ComputeConfig, TrainConfig
    from rco.training.device import prepare_process, resolve
    from rco.training.loop import fit
    from rco.training.resume_points import MINUTES, ResumePoints

    compute = resolve(ComputeConfig(threads=threads, device="cpu", workers=0))
    prepare_process(compute)
    side, batch = NETWORKS[name]
    prepare(root, None, batch * steps, side)
    data = Dataset.open(root / "prepared")
    spec = NetworkSpec.of(ModelConfig(model=name), data.manifest)
    train = TrainConfig.of(epochs=1, batch_size=batch, schedule="constant", augment="crop")
    taken: list[float] = []
    computed: list[float] = []

    class Timed(ResumePoints):
        def keep(self) -> None:
            started, worked = time.perf_counter(), time.process_time()
            super().keep()
            taken.append(time.perf_counter() - started)
            computed.append(time.process_time() - worked)

    model = spec.build(0)
    points = Timed(str(root / "points"), {}, every=0)
    started = time.perf_counter()
    list(fit(model, data.split("train"), labels_only(), train, compute, epochs=1, checkpointer=points))
    trained = time.perf_counter() - started - sum(taken)
    copying = time.perf_counter()
    copy = {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()}
    copying = time.perf_counter() - copying
    size = max(path.stat().st_size for path in (root / "points").iterdir())
    returning = time.perf_counter()
    found = ResumePoints(str(root / "points"), {}).take("training")
    assert found["progress"]["epoch"] == 2
    returning = time.perf_counter() - returning
    point = statistics.median(taken)
    return {
        "network": name,
        "parameters": sum(value.numel() for value in copy.values()),
        "bytes": size,
        "points": len(taken),
        "seconds_a_point": point,
        "seconds_slowest_point": max(taken),
        "processor_seconds_a_point": statistics.median(computed),
        "seconds_to_read_one": returning,
        "seconds_a_copy": copying,
        "seconds_a_step": trained / len(taken),
        "share": point / (60 * MINUTES),
    }


def main() -> int:
    """Measure, print, write JSON. Exit status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "resume.json")
    told = parser.parse_args()
    measured = []
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as scratch:
            measured.append(measure(name, Path(scratch), told.steps, told.threads))
    rows = [
        [
            m["network"],
            f"{m['bytes'] / 1e6:.1f}",
            f"{1e3 * m['seconds_a_point']:.0f}",
            f"{1e3 * m['seconds_slowest_point']:.0f}",
            f"{1e3 * m['processor_seconds_a_point']:.0f}",
            f"{1e3 * m['seconds_to_read_one']:.0f}",
            f"{1e3 * m['seconds_a_copy']:.1f}",
            f"{1e3 * m['seconds_a_step']:.0f}",
            f"{100 * m['share']:.3f} %",
        ]
        for m in measured
    ]
    heads = [
        "network",
        "MB a point",
        "ms a point",
        "slowest",
        "of it computing",
        "ms to read one",
        "ms a copy",
        "ms a step",
        "of training, every 5 min",
    ]
    print(table(heads, rows))
    save(told.output, {"machine": machine(), "bar_share": SHARE, "networks": measured})
    return int(any(m["share"] > SHARE for m in measured))


if __name__ == "__main__":
    sys.exit(main())
