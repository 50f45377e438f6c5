"""Where the time of whole local runs goes: training, and everything else. Fails above the bar of 30 s for the latter.

    make bench-pipeline [ARGS="--runs 3 --cold"]

Measured are `rco run` (digits, four stages) and `rco compare` (six branches, three seeds) with the defaults, without cache, in
a directory of their own: from the command to the summary, with the processes of all tasks, MLflow, plots and the registered
student. Training is what the loops take that change weights. CPU seconds are those of all processes together; they depend less
on what else the machine does. The bar is for two cores that do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import HERE, machine, save, table

BAR = 30.0
COMMANDS = {"run": ["run"], "comparison": ["compare"]}


def one(command: list[str], *, cold: bool = False) -> dict[str, float]:
    """Seconds of a command: wall, CPU, training, and the wall seconds that are not training."""
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "home"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RCO_", "MLFLOW_"))}
        environment["RCO_WARM"] = "0" if cold else "1"
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*command, "--home", str(home), "--no-cache"], env=environment, capture_output=True, text=True)
        wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        trained = sum(training(home).values())
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "training": trained, "everything else": wall - trained}


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
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--cold", action="store_true", help="every task imports what it needs; the bar is not asked for")
    parser.add_argument("--output", type=Path, default=None)
    told = parser.parse_args()
    rco = str(Path(sys.executable).parent / "rco")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in told.commands}
    for number in range(told.runs):
        for name in told.commands:
            runs[name].append(one([rco, *COMMANDS[name]], cold=told.cold))
            seconds = ", ".join(f"{part} {value:.1f} s" for part, value in runs[name][-1].items())
            print(f"{name} {number + 1} of {told.runs}: {seconds}", flush=True)
    medians = {
        name: {part: statistics.median(run[part] for run in measured) for part in measured[0]}
        for name, measured in runs.items()
    }
    heads = ["seconds (median)", *next(iter(medians.values()))]
    print(table(heads, [[name, *(f"{value:.1f}" for value in parts.values())] for name, parts in medians.items()]))
    output = told.output or HERE / "results" / ("pipeline-cold.json" if told.cold else "pipeline.json")
    save(output, {"machine": machine(), "bar_seconds": BAR, "median_seconds": medians, "runs": runs})
    return int(not told.cold and any(parts["everything else"] > BAR for parts in medians.values()))


if __name__ == "__main__":
    sys.exit(main())
