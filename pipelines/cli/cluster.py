"""Commands that compile the pipelines, and run them on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from pipelines.cli.options import comparison_option, gathered, no_cache_option, parameter_options, race_option, recipe_option
from pipelines.cli.service import (
    Target,
    WatchOptions,
    cluster_errors,
    connect,
    end,
    target_options,
    upload_package,
    watch,
    watch_options,
)
from pipelines.cli.submission import ComparisonOptions, describe, in_seconds
from rco.config.branches import Comparison
from rco.config.kinds import COMPILED
from rco.config.parameters import PARAMETERS
from rco.config.shape import DEFAULT_STAGES, Shape
from rco.core.errors import InputError

deployment_option = click.option(
    "--deployment",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="what your cluster gives to tasks: GPU, memory, secrets (docs/deployment.md)  [runs anywhere, without a GPU]",
)
max_stages_option = click.option(
    "--max-stages",
    type=click.IntRange(1),
    default=None,
    help="stages the pipeline has room for  [4, or what the run needs]",
)
grid_option = click.option("--grid", default=None, metavar="JSON", help='of a comparison: a sweep, as {"tau": [2, 4]}')


@click.command(name="compile")
@click.option(
    "--max-stages",
    type=click.IntRange(1),
    default=None,
    help="stages the pipelines have room for: the most anchors that a run, or a greedy branch, may use  [4]",
)
@comparison_option("branches")
@grid_option
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/pipelines/rco.yaml"), show_default=True)
@click.option(
    "--comparison", type=click.Path(path_type=Path), default=Path("build/pipelines/comparison.yaml"), show_default=True
)
@deployment_option
def compile_command(
    max_stages: int | None,
    branches: str | None,
    grid: str | None,
    output: Path,
    comparison: Path,
    deployment: Path | None,
) -> None:
    """Write both pipelines as YAML for Kubeflow Pipelines.

    A comparison is compiled for its branches; all else is a parameter of both when they run. Their image is RCO_IMAGE, else the
    one that make build-images built, by digest if it has been pushed.
    """
    # What is wrong is refused before KFP is imported.
    options = ComparisonOptions(branches=branches, seeds=None, restart_like=None, grid=grid).given()
    compared = Comparison.of(options)
    cluster = _cluster(deployment)
    from pipelines.cluster.sizes import shape_for
    from pipelines.compile import compile_to

    click.echo(f"image: {cluster.image}")
    click.echo(compile_to(output, Shape.of_run(max_stages or DEFAULT_STAGES), cluster))
    click.echo(compile_to(comparison, shape_for(compared, max_stages, run=False), cluster))


def _cluster(deployment: Path | None) -> Any:
    """The cluster that a pipeline is compiled for; bad input is refused before KFP is imported."""
    from pipelines.cluster.deployment import read_deployment

    site = read_deployment(deployment)
    from pipelines.cluster.placement import Cluster
    from pipelines.compile import image_to_run

    return Cluster(deployment=site, image=image_to_run(warn=lambda line: click.echo(f"rco: {line}", err=True)))


@click.command()
@click.option("--pipeline", type=click.Choice(["rco", "comparison"]), default="rco", show_default=True)
@click.option("--package", type=click.Path(path_type=Path), help="a compiled pipeline, in place of compiling one")
@gathered("target", Target, *target_options)
@click.option("--name", default="", help="of the run  [student, strategy and time]")
@click.option("--service-account", default="", help="of Kubernetes, for the run's pods  [KFP's]")
@click.option("--pipeline-root", default="", help="where KFP keeps the run's artifacts, such as s3://bucket/prefix  [KFP's]")
@deployment_option
@max_stages_option
@no_cache_option
@click.option("--wait/--no-wait", "waiting", default=True, show_default=True, help="watch the run to its end")
@gathered("watching", WatchOptions, *watch_options)
@click.option("--terminate", metavar="RUN", help="end this run, and what MLflow has open of it; nothing is submitted")
@click.option("--dry-run", is_flag=True, help="show what would be sent, as JSON; nothing is connected to")
@gathered(
    "comparison",
    ComparisonOptions,
    comparison_option("branches"),
    comparison_option("seeds"),
    comparison_option("restart_like"),
    grid_option,
)
@race_option(
    "Which branches go on is known only as it runs, and a cluster's pipeline is compiled before", "Run rco compare --race"
)
@recipe_option
@parameter_options(PARAMETERS)
def submit(
    flags: dict[str, Any],
    pipeline: str,
    package: Path | None,
    target: Target,
    name: str,
    deployment: Path | None,
    max_stages: int | None,
    no_cache: bool,
    waiting: bool,
    watching: WatchOptions,
    terminate: str | None,
    dry_run: bool,
    comparison: ComparisonOptions,
    recipe: str | None,
    **kubernetes: str,
) -> None:
    """Run a pipeline on a cluster, with Kubeflow Pipelines.

    Compiles the pipeline, uploads it as a version of its own (called by its sha256; one that is there already is not sent
    again), starts a run with these parameters, and watches it. Its KFP experiment is called as the MLflow one is.
    Who you are is told by the variables KFP_EXISTING_TOKEN, KFP_COOKIES and others (docs/cluster.md), never by an option.

    Exit status: 0 the run succeeded (--no-wait: was started), 1 it did not, 2 bad input, 3 KFP cannot be reached or does not
    let you in, 4 --timeout is over and the run goes on, 130 Ctrl-C; the run goes on.
    """
    options = comparison.given()
    in_seconds(watching.timeout)  # before anything is compiled
    if terminate:
        with cluster_errors():
            end(connect(target), terminate, watching)
        return
    several = pipeline == "comparison"
    compiled_with = {"deployment": deployment, "max_stages": max_stages}
    compiled_with |= {name: options.get(name) for name in COMPILED if several}
    if package and (given := {name: value for name, value in compiled_with.items() if value}):
        name, value = next(iter(given.items()))
        raise InputError(name, value, "changes nothing about a package", "Leave --package out")
    given_package: Any = None
    if package:
        from pipelines.cluster.package import Package

        given_package = Package.read(package)
    compared = given_package.compared if package else None
    wanted = describe(several, recipe, flags, options, max_stages, compared)
    if package and several != (compared is not None):
        kind = "a comparison" if compared is not None else "no comparison"
        remedy = f"Give --pipeline {'rco' if several else 'comparison'}"
        raise InputError("pipeline", pipeline, f"is not what is in {package}, which is {kind}", remedy)

    from pipelines.cluster.package import compile_package, uncached
    from pipelines.cluster.submit import Request, run_name, shown

    request = Request(
        name=name or run_name(wanted.label), experiment=wanted.experiment, parameters=wanted.parameters, **kubernetes
    )
    with TemporaryDirectory() as scratch:
        if package:
            compiled = uncached(given_package, Path(scratch)) if no_cache else given_package
        else:
            compiled = compile_package(wanted.shape, Path(scratch), _cluster(deployment), cache=not no_cache)
        compiled.check(wanted.parameters)
        if dry_run:
            click.echo(shown(compiled, request, target.endpoint or "", target.namespace or ""))
            return
        _warn_of_size(compiled)
        _start(compiled, request, target, watching if waiting else None)


def _warn_of_size(package: Any) -> None:
    """Say it before a workflow is made that will be larger than KFP's list of tasks bears."""
    from pipelines.cluster.workflow import LARGEST, count

    workflow = count(*package.documents)
    if workflow.total > LARGEST:
        grows = f"this run's workflow grows to some {workflow.total / 1e6:.1f} MB on KFP as it comes ({workflow.pods} pods)"
        then = "above 1 MB KFP's list of tasks stops; the run goes on (docs/cluster.md#large-workflows)"
        click.echo(f"rco: {grows}: {then}", err=True)


def _start(package: Any, request: Any, target: Target, watching: WatchOptions | None) -> None:
    from pipelines.cluster.submit import links, start

    as_json = watching is not None and watching.as_json
    with cluster_errors():
        try:
            service = connect(target)
            run = start(service, package, upload_package(service, package, as_json), request)
        except KeyboardInterrupt:
            click.echo(f"rco: stopped; if the run {request.name!r} is there, it goes on", err=True)
            sys.exit(130)
        for line in (
            f"experiment {request.experiment}",
            f"name       {request.name}",
            *links(service, run, request.experiment),
        ):
            click.echo(line, err=as_json)
        if watching:
            watch(service, run.run_id, watching, package.tasks)


@click.command()
@click.argument("packages", nargs=-1, type=click.Path(path_type=Path))
@gathered("target", Target, *target_options)
@deployment_option
@max_stages_option
def upload(packages: tuple[Path, ...], target: Target, deployment: Path | None, max_stages: int | None) -> None:
    """Upload pipelines to Kubeflow Pipelines without running them: PACKAGES, or both of ours, compiled now.

    Each becomes a version of the pipeline of its name, called by its sha256; what is there already is not sent again.
    """
    from pipelines.cluster.package import Package, compile_package
    from pipelines.cluster.sizes import shape_for

    with TemporaryDirectory() as scratch, cluster_errors():
        if packages:
            compiled = [Package.read(path) for path in packages]
        else:
            cluster = _cluster(deployment)
            compared = shape_for(Comparison.of({}), max_stages, run=False)
            shapes = (Shape.of_run(max_stages or DEFAULT_STAGES), compared)
            compiled = [compile_package(shape, Path(scratch), cluster) for shape in shapes]
        service = connect(target)
        for package in compiled:
            upload_package(service, package)


@click.command()
@click.argument("run_id")
@gathered("target", Target, *target_options)
@gathered("watching", WatchOptions, *watch_options)
def wait(run_id: str, target: Target, watching: WatchOptions) -> None:
    """Watch a run on a cluster to its end; the exit status is that of `rco submit`.

    What MLflow still has open of a run that has ended is ended there too (MLFLOW_TRACKING_URI).
    """
    in_seconds(watching.timeout)
    with cluster_errors():
        service = connect(target)
        click.echo(f"run        {service.link(f'runs/details/{run_id}') or run_id}", err=watching.as_json)
        watch(service, run_id, watching)
