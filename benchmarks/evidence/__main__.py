"""Measure whether the route pays, plan by plan; and write the pages that say what was found.

make evidence PLAN=gap-digits HOURS=2 [DATA=DIR] [ARGS="--jobs 2 --settings NAME"]
make evidence-pages
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch are imported, here and in the workers

from benchmarks.evidence.page import PAGES, put_into, readme_table, render
from benchmarks.evidence.plan import PLANS, read_plan
from benchmarks.evidence.prediction import points_of, read_rule, render_prediction
from benchmarks.evidence.records import RECORDS, read_records
from benchmarks.evidence.run import Run
from benchmarks.evidence.train import Places
from rco.core.errors import InputError, choice

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train what a plan's records lack")
    run.add_argument("plan", help=f"one of {', '.join(sorted(p.stem for p in PLANS.glob('*.yaml')))}; or a file")
    run.add_argument(
        "--hours", type=float, default=2.0, help="no student is begun that would not be finished then (%(default)s)"
    )
    run.add_argument("--data", type=Path, help="folder with the archives that the plan's subsets are cut from")
    run.add_argument("--jobs", type=int, default=2, help="processes at once, of one thread each (%(default)s)")
    run.add_argument("--settings", default="", help="only these settings of the plan, comma-separated")
    run.add_argument("--cache", type=Path, default=ROOT / ".rco" / "evidence", help="for data and teachers (%(default)s)")
    run.add_argument("--records", type=Path, help="file of the records (records/PLAN.jsonl)")
    commands.add_parser("pages", help="write the pages of all plans, and README's table, from the records")
    told = parser.parse_args(arguments)
    try:
        return _pages() if told.command == "pages" else _run(told)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


def _run(told: argparse.Namespace) -> int:
    plan = read_plan(told.plan)
    only = tuple(filter(None, told.settings.split(",")))
    for name in only:
        choice("settings", name, tuple(plan.settings))
    if told.jobs < 1 or not told.hours > 0:
        raise InputError("jobs", told.jobs, f"and hours = {told.hours:g} must be above 0", "Give --jobs 2 --hours 2")
    places = Places(cache=told.cache.resolve(), source=told.data.resolve() if told.data else None)
    records = told.records or RECORDS / f"{plan.name}.jsonl"
    return Run(plan, records, places, ends=time.time() + 3600 * told.hours, jobs=told.jobs, only=only).go()


def _pages() -> int:
    plans = [read_plan(path) for path in sorted(PLANS.glob("*.yaml"))]
    known = [(plan, read_records(RECORDS / f"{plan.name}.jsonl")) for plan in plans]
    PAGES.mkdir(exist_ok=True)
    for plan, records in known:
        (PAGES / f"{plan.name}.md").write_text(render(plan, records))
    (PAGES / "prediction.md").write_text(render_prediction(read_rule(), points_of(known)))
    readme = ROOT / "README.md"
    readme.write_text(put_into(readme.read_text(), readme_table(known)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
