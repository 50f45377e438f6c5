"""How large the workflows of a run and of the default comparison are: pods, nodes, bytes of spec and of status.

Counted, not measured (`pipelines.cluster.workflow`): the same on every machine. Ends with status 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

#: Pods at most, bytes of the package, and of the workflow's spec. A run's spec is over 100 kB: 21 kB are KFP's own templates.
BARS = {"run": (38, 100_000, 130_000), "comparison": (78, 180_000, 180_000)}


def main() -> int:
    """Count, show, write; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results") / "workflow.json")
    output = parser.parse_args().output
    os.environ["RCO_IMAGE"] = "registry.example.com/team/rco-python@sha256:" + "0" * 64
    from pipelines.cluster.sizes import shape_for
    from pipelines.cluster.workflow import workflow_of
    from pipelines.compile import compile_to
    from rco.config.branches import Comparison
    from rco.config.shape import DEFAULT_STAGES, Shape

    shapes = {"run": Shape.of_run(DEFAULT_STAGES), "comparison": shape_for(Comparison.of({}), run=False)}
    shapes["run of two stages"] = Shape.of_run(2)
    missed, results = False, {}
    print("| pipeline | pods | package, kB | nodes | spec, kB | status, kB | nodes without KFP's defaults | status, kB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with TemporaryDirectory() as scratch:
        for name, shape in shapes.items():
            path = compile_to(Path(scratch) / f"{name}.yaml", shape)
            size, stock, plain = path.stat().st_size, workflow_of(path), workflow_of(path, doubled=False)
            figures = (stock.pods, size // 1000, stock.nodes, stock.spec // 1000, stock.status // 1000)
            print(f"| {name} | {' | '.join(map(str, figures))} | {plain.nodes} | {plain.status // 1000} |")
            results[name] = {"package": size, "kfp": asdict(stock), "without_defaults": asdict(plain)}
            missed |= any(found > bar for found, bar in zip((stock.pods, size, stock.spec), BARS.get(name, ()), strict=False))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n")
    bars = (f"{n}: {pods} pods, {size // 1000} kB, spec {spec // 1000} kB" for n, (pods, size, spec) in BARS.items())
    print(f"bars ({'; '.join(bars)}): {'MISSED' if missed else 'kept'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
