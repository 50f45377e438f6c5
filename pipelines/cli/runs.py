"""Commands that run a pipeline on this machine, and deliver what its runs could not tell MLflow."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from pipelines.cli.options import (
    comparison_option,
    find_modules_here,
    home_option,
    no_cache_option,
    parameter_options,
    race_option,
    recipe_option,
)
from pipelines.cli.recipes import merged_comparison, merged_parameters
from rco.config.kinds import DEFAULTS, KINDS, REFERENCE, SHARED, SWEPT
from rco.config.parameters import PARAMETERS
from rco.core.errors import InputError


@click.command()
@recipe_option
@home_option
@no_cache_option
@parameter_options(PARAMETERS)
def run(flags: dict[str, Any], recipe: str | None, home: Path, no_cache: bool) -> None:
    """Run the whole pipeline on this machine.

    On Linux its tasks are forked from one process that has imported PyTorch and MLflow; RCO_WARM=0 starts each from nothing.
    """
    from pipelines.display import print_summary
    from pipelines.local.run import run as run_local

    parameters = merged_parameters(recipe, flags)
    print_summary(_execute(lambda show: run_local(parameters, home, cache=not no_cache, show=show)), home)


def _execute(work: Callable[[Callable[[str], None]], dict[str, Any]]) -> dict[str, Any]:
    """Do work that runs pipelines on this machine, and is given what shows its lines; failures end this process."""
    from pipelines.display import Display
    from pipelines.local.run import InterruptedRunError, RunFailedError

    try:
        with Display() as display:
            return work(display.show)
    except RunFailedError as error:
        click.echo(f"rco: {error}", err=True)
        sys.exit(error.code)
    except InterruptedRunError as error:
        click.echo(f"rco: stopped by {error}; what was finished is kept, run again to go on", err=True)
        sys.exit(128 + error.number)


def _compare(recipe: str | None, given: Mapping[str, Any], home: Path, no_cache: bool, race: bool = False) -> None:
    from pipelines.display import print_comparison
    from pipelines.local.race import race as run_race
    from pipelines.local.run import run as run_local

    parameters = merged_comparison(recipe, {name: value for name, value in given.items() if value is not None})
    if race:
        if no_cache:
            problem = "means nothing in a race: its rounds share one teacher by finding what the first has trained"
            raise InputError("no_cache", True, problem, "Leave it out, or give an empty --home")
        summary = _execute(lambda show: run_race(parameters, home, show=show))
    else:
        summary = _execute(lambda show: run_local(parameters, home, pipeline="comparison", cache=not no_cache, show=show))
    print_comparison(summary, home)


@click.command()
@comparison_option("branches")
@comparison_option("seeds")
@comparison_option("restart_like")
@race_option()
@recipe_option
@home_option
@no_cache_option
@parameter_options(SHARED, defaults=DEFAULTS)
def compare(
    flags: dict[str, Any],
    branches: str | None,
    seeds: str | None,
    restart_like: str | None,
    race: bool,
    recipe: str | None,
    home: Path,
    no_cache: bool,
) -> None:
    """Compare RCO with plain distillation: every branch, from one teacher, over several seeds.

    Each branch trains the same students for the same number of epochs. The table has means over the seeds and paired
    differences to kd with 95 % intervals; MLflow has a run for every student. What has been trained before is found:
    another branch, or another seed, trains itself alone.

    With --race the branches race over seeds by their accuracy on the validation part, and the worse half is dropped after
    every round. The winner and kd are then compared on seeds that nobody raced on; it costs no more than comparing all.
    """
    given = {**flags, "branches": branches, "seeds": seeds, "restart_like": restart_like}
    _compare(recipe, given, home, no_cache, race)


@click.command()
@click.option(
    "--strategy",
    default="greedy",
    show_default=True,
    metavar="A,B,...",
    help=f"branches to sweep, from: {', '.join(KINDS)}; kd is always among them",
)
@comparison_option("seeds")
@comparison_option("restart_like")
@race_option("A sweep compares its branches with several references", "Name branches of one comparison: rco compare --race")
@recipe_option
@home_option
@no_cache_option
@parameter_options(SHARED, several=SWEPT, defaults=DEFAULTS)
def sweep(
    flags: dict[str, Any],
    strategy: str,
    seeds: str | None,
    restart_like: str | None,
    recipe: str | None,
    home: Path,
    no_cache: bool,
) -> None:
    """Sweep students and their settings against one teacher: rco sweep --tau 2,4,8 --strategy greedy,equal-interval.

    Parameters of the student, its training, anchors and objective take several values (V,V; of parameters that are lists
    themselves V;V). Every combination is a branch, compared with kd at the same student, training and objective. Nothing
    is trained twice, and the teacher not at all if a comparison or a run with its settings came before (or with --route).
    """
    grid, single = split_axes(flags)
    kinds = [kind.strip() for kind in strategy.split(",") if kind.strip()]
    branches = kinds if REFERENCE in kinds else [REFERENCE, *kinds]
    _compare(
        recipe, {**single, "branches": branches, "seeds": seeds, "restart_like": restart_like, "grid": grid}, home, no_cache
    )


def split_axes(flags: Mapping[str, Any]) -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Flags with several values, and those with one."""
    grid: dict[str, list[str]] = {}
    single: dict[str, Any] = {}
    for name, value in flags.items():
        separator = ";" if PARAMETERS[name].kind is list else ","
        values = [part.strip() for part in value.split(separator) if part.strip()] if name in SWEPT else []
        if len(values) > 1:
            grid[name] = values
        else:
            single[name] = value
    return grid, single


@click.command()
@click.argument("reports", nargs=-1)
@home_option
@click.option("--anywhere", is_flag=True, help="deliver to MLFLOW_TRACKING_URI, even if another server was meant")
def sync(reports: tuple[str, ...], home: Path, anywhere: bool) -> None:
    """Deliver to MLflow what a server that was away has missed: epochs, anchors, figures, the registered student.

    REPORTS are folders or s3:// addresses of reports (on a cluster: the artifact `summary` of the task report). Without
    any: all runs of --home for which something waits. Nothing is delivered twice.
    """
    from pipelines.local.run import Home
    from rco.core.storage.transfer import fetch
    from rco.tasks.process import show_progress
    from rco.tasks.report import sync
    from rco.tracking import moved, outbox

    find_modules_here()
    local = Home(home.resolve())
    moved.settle(local.root)
    os.environ.update(local.environment)
    undelivered = sorted(path for path in local.root.glob("runs/*/report") if outbox.waiting(path))
    if not reports and not undelivered:
        click.echo("nothing waits for delivery")
    show_progress()
    kept = False
    with TemporaryDirectory() as scratch:
        given = [fetch(uri, Path(scratch) / str(number)) for number, uri in enumerate(reports)]
        for report in given or undelivered:
            run_id, problem = sync(report, anywhere=anywhere)
            click.echo(f"{report}: {f'not delivered, and kept ({problem})' if problem else f'delivered, run {run_id}'}")
            kept = kept or bool(problem)
    if kept:
        sys.exit(1)
