"""Where the time of a whole local run goes: training, and everything else. Fails above the bar of 75 s for the latter.

    make bench-pipeline [ARGS="--runs 3"]

A run is `rco run` with the defaults (digits, four stages), without cache, in a directory of its own: from the command to the
summary, with the processes of all tasks, MLflow, plots and the registered student. Training is what the loops take that change
weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import HERE, machine, save, table

BAR = 75.0


def one(command: list[str]) -> dict[str, float]:
    """A run's seconds: wall, training, and what is neither."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RCO_", "MLFLOW_"))}
        started = time.perf_counter()
        done = subprocess.run([*command, "--home", str(home), "--no-cache"], env=environment, capture_output=True, text=True)
        wall = time.perf_counter() - started
        if done.returncode:
            raise SystemExit(f"the run failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        trained = training(home)
    return {"wall": wall, **trained, "everything else": wall - sum(trained.values())}


def training(home: Path) -> dict[str, float]:
    """Seconds of the training loops, from the records that the tasks leave."""
    longest: dict[str, dict[str, Any]] = {}
    for path in (home / "pipeline").rglob("record.json"):
        record = json.loads(path.read_text())
        if len(record["rows"]) > len(longest.get(record["key"], {"rows": ()})["rows"]):
            longest[record["key"]] = record
    seconds = {}
    for key, record in longest.items():
        images = record["data"]["sizes"]["train"]
        seconds[key] = sum(images / row["metrics"]["images_per_second"] for row in record["rows"])
    return seconds


def main() -> int:
    """Measure, print, write JSON. Exit status 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "pipeline.json")
    told = parser.parse_args()
    runs = []
    for number in range(told.runs):
        runs.append(one([str(Path(sys.executable).parent / "rco"), "run"]))
        print(f"run {number + 1} of {told.runs}: " + ", ".join(f"{k} {v:.1f} s" for k, v in runs[-1].items()), flush=True)
    medians = {part: statistics.median(run[part] for run in runs) for part in runs[0]}
    print(table(["part", "seconds (median)"], [[part, f"{seconds:.1f}"] for part, seconds in medians.items()]))
    save(told.output, {"machine": machine(), "bar_seconds": BAR, "median_seconds": medians, "runs": runs})
    return int(medians["everything else"] > BAR)


if __name__ == "__main__":
    sys.exit(main())
