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

#: Pods at most, and bytes of the package at most: a parameter is some 430 bytes.
BARS = {"run": (38, 120_000), "comparison": (78, 200_000)}


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
            missed |= stock.pods > BARS[name][0] or size > BARS[name][1]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=2) + "\n")
    print(f"bars ({', '.join(f'{n}: {pods} pods, {size // 1000} kB' for n, (pods, size) in BARS.items())}): "
          f"{'MISSED' if missed else 'kept'}")  # fmt: skip
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
