"""What each task of a run copies into its pod and out of it: bytes of its artifacts, measured in the home of a local run.

On a cluster KFP copies every input of a task from the store onto the pod's disk before it begins, and every output back when it
has ended. The artifacts are the same here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

#: Artifacts that go by another name where they are made.
MADE_AS = {"students": ("students", "distilled"), "evaluation_student": ("evaluation",)}


def main() -> int:
    """Measure, show, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path, help="of a run (rco run --home), the last of which is measured")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "disk.json")
    given = parser.parse_args()
    runs = sorted((given.home / "pipeline").glob("route-constrained-optimization-[0-9]*"))
    if not runs:
        parser.error(f"{given.home} holds no run: rco run --home {given.home}")
    results = measured(runs[-1])
    print("| task | in, kB | out, kB |")
    print("| --- | --- | --- |")
    for task, (taken, made) in results.items():
        print(f"| {task} | {taken / 1000:,.0f} | {made / 1000:,.0f} |")
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(json.dumps({t: {"in": i, "out": o} for t, (i, o) in results.items()}, indent=2) + "\n")
    return 0


def measured(run: Path) -> dict[str, tuple[int, int]]:
    """Bytes that a task of each component takes and makes: of the largest, where there are several."""
    from pipelines.pipeline import make_pipeline
    from rco.config.shape import Shape

    components = make_pipeline(Shape.of_run(1)).pipeline_spec.components
    found: dict[str, tuple[int, int]] = {}
    for name, component in components.items():
        if not component.executor_label:
            continue
        task = name.removeprefix("comp-")
        taken = sum(largest(run, "*", MADE_AS.get(n, (n,))) for n in component.input_definitions.artifacts)
        made = sum(largest(run, f"{task}*", (n,)) for n in component.output_definitions.artifacts)
        found[task] = (taken, made)
    return found


def largest(run: Path, tasks: str, names: tuple[str, ...]) -> int:
    """Bytes of the largest artifact of these names."""
    places = [place for name in names for place in run.glob(f"{tasks}/{name}")]
    return max((sum(f.stat().st_size for f in [place, *place.rglob("*")] if f.is_file()) for place in places), default=0)


if __name__ == "__main__":
    sys.exit(main())
