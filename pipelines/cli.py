"""The command `rco`. Starts light: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from rco.config.branches import DEFAULTS, KINDS, MOST, OPTIONS, REFERENCE, SHARED, SWEPT
from rco.config.parameters import PARAMETERS, Parameter
from rco.core.errors import InputError, disk_full
from rco.training.config import DEVICES

RECIPES = Path(__file__).parent / "recipes"
#: Exit statuses of commands that work with a cluster; bad input is 2.
RUN_FAILED, NO_SERVICE, STILL_RUNNING = 1, 3, 4
_TYPES: dict[type, Any] = {int: int, float: float, str: str, list: str}


class Commands(click.Group):
    """Bad input is one paragraph and exit status 2, never a traceback; so is a full disk, with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"rco: {error}", err=True)
            ctx.exit(2)
        except OSError as error:
            if full := disk_full(error, [Path.cwd(), tempfile.gettempdir()]):
                click.echo(f"rco: {full}", err=True)
                ctx.exit(1)
            raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def main() -> None:
    """Route Constrained Optimization: distil a student along its teacher's training route."""


def parameter_options(
    names: Iterable[str], several: Collection[str] = (), defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options for pipeline parameters. Only those that the user gave reach the command, as `flags`.

    Args:
        several: those that take several values, as text.
        defaults: where the pipeline's defaults are not a run's.
    """
    shown = [PARAMETERS[name] for name in names]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def with_flags(**given: Any) -> Any:
            flags = {p.name: given.pop(p.name) for p in shown}
            return command(flags={name: value for name, value in flags.items() if value is not None}, **given)

        with_flags.__doc__, with_flags.__name__ = command.__doc__, command.__name__
        with_flags.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
        for p in reversed(shown):
            kind = {"metavar": "V;V" if p.kind is list else "V,V"} if p.name in several else _kind(p)
            default = (defaults or {}).get(p.name, p.default)
            with_flags = click.option(*_flag(p), p.name, **kind, default=None, help=f"{p.help}  [{_shown(default)}]")(
                with_flags
            )
        return with_flags

    return decorate


def _flag(p: Parameter) -> list[str]:
    name = "--" + p.name.replace("_", "-")
    if p.kind is bool:
        return [f"{name}/--no-{p.name.replace('_', '-')}"]
    return [name, "--lambda"] if p.name == "lam" else [name]


def _kind(p: Parameter) -> dict[str, Any]:
    if p.kind is bool:
        return {}
    return {"type": _TYPES[p.kind], "metavar": "A,B,..." if p.kind is list else p.kind.__name__.upper()}


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def read_recipe(name: str) -> dict[str, Any]:
    """Parameters from a recipe: the name of one that comes with the project, or a YAML file.

    Raises:
        InputError: no such recipe, not a mapping, or parameters that do not exist.
    """
    from pipelines.yamlfile import read_yaml

    known = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    path = known.get(name, Path(name))
    if not path.is_file():
        raise InputError("recipe", name, "is neither a recipe nor a file", f"Recipes: {', '.join(known)}")
    remedy = "Write one 'parameter: value' a line"
    document = read_yaml(path, "recipe", remedy)
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
        raise InputError("recipe", str(path), "is not a mapping of parameters", remedy)
    return document


def _parameters(recipe: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    from rco.config.parameters import RunConfig

    merged = {**(read_recipe(recipe) if recipe else {}), **flags}
    RunConfig.from_flat(merged)  # what can be refused without looking at data is refused at once
    return merged


recipe_option = click.option("--recipe", metavar="NAME|FILE", help="parameter file; flags win over it")
home_option = click.option(
    "--home", type=click.Path(path_type=Path), default=Path(".rco"), show_default=True, help="directory of local state"
)
deployment_option = click.option(
    "--deployment",
    type=click.Path(path_type=Path),
    default=None,
    metavar="FILE",
    help="what your cluster gives to tasks: GPU, memory, secrets (docs/deployment.md)  [runs anywhere, without a GPU]",
)
no_cache_option = click.option("--no-cache", is_flag=True, help="run every task, also what has not changed")


@main.command()
@recipe_option
@home_option
@no_cache_option
@parameter_options(PARAMETERS)
def run(flags: dict[str, Any], recipe: str | None, home: Path, no_cache: bool) -> None:
    """Run the whole pipeline on this machine."""
    from pipelines.display import print_summary

    parameters = _parameters(recipe, flags)
    print_summary(_execute("run", parameters, home, no_cache), home)


def _execute(pipeline: str, parameters: Mapping[str, Any], home: Path, no_cache: bool) -> dict[str, Any]:
    """Run a pipeline on this machine; failures end this process."""
    from pipelines.display import Display
    from pipelines.local import InterruptedRunError, RunFailedError
    from pipelines.local import run as run_local

    try:
        with Display() as display:
            return run_local(parameters, home, pipeline=pipeline, cache=not no_cache, show=display.show)
    except RunFailedError as error:
        click.echo(f"rco: {error}", err=True)
        sys.exit(error.code)
    except InterruptedRunError as error:
        click.echo(f"rco: stopped by {error}; what was finished is kept, run again to go on", err=True)
        sys.exit(128 + error.number)


def _option(name: str, flag: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    o = OPTIONS[name]
    return click.option(
        f"--{flag or name.replace('_', '-')}",
        name,
        default=None,
        metavar="A,B,..." if o.kind is list else "TEXT",
        help=f"{o.help}  [{_shown(o.default)}]",
    )


def _compare(recipe: str | None, given: Mapping[str, Any], home: Path, no_cache: bool) -> None:
    from pipelines.display import print_comparison
    from rco.config.branches import NOT_SHARED, Comparison

    # A recipe may be of a single run: what means nothing here is left out.
    read = {name: value for name, value in (read_recipe(recipe) if recipe else {}).items() if name not in NOT_SHARED}
    parameters = {**read, **{name: value for name, value in given.items() if value is not None}}
    Comparison.of(parameters)  # what can be refused without looking at data is refused at once
    print_comparison(_execute("comparison", parameters, home, no_cache), home)


@main.command()
@_option("branches")
@_option("seeds")
@_option("restart_like")
@recipe_option
@home_option
@no_cache_option
@parameter_options(SHARED, defaults=DEFAULTS)
def compare(
    flags: dict[str, Any],
    branches: str | None,
    seeds: str | None,
    restart_like: str | None,
    recipe: str | None,
    home: Path,
    no_cache: bool,
) -> None:
    """Compare RCO with plain distillation: every branch, from one teacher, over several seeds.

    Each branch trains the same students for the same number of epochs. The table has means over the seeds and paired
    differences to kd with 95 % intervals; MLflow has a run for every student. What has not changed comes from the
    cache: another branch trains only itself, but another seed trains all branches again.
    """
    given = {**flags, "branches": branches, "seeds": seeds, "restart_like": restart_like}
    _compare(recipe, given, home, no_cache)


@main.command()
@click.option(
    "--strategy",
    default="greedy",
    show_default=True,
    metavar="A,B,...",
    help=f"branches to sweep, from: {', '.join(KINDS)}; kd is always among them",
)
@_option("seeds")
@_option("restart_like")
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


@main.command()
@click.argument("reports", nargs=-1)
@home_option
@click.option("--anywhere", is_flag=True, help="deliver to MLFLOW_TRACKING_URI, even if another server was meant")
def sync(reports: tuple[str, ...], home: Path, anywhere: bool) -> None:
    """Deliver to MLflow what a server that was away has missed: epochs, anchors, figures, the registered student.

    REPORTS are folders or s3:// addresses of reports (on a cluster: the artifact `summary` of the task report). Without
    any: all runs of --home for which something waits. Nothing is delivered twice.
    """
    import os
    from tempfile import TemporaryDirectory

    from pipelines.local import Home
    from rco.core import storage
    from rco.tasks import run as tasks
    from rco.tracking import outbox

    place = Home(home.resolve())
    os.environ.update(place.environment)
    here = sorted(path for path in place.root.glob("runs/*/report") if outbox.waiting(path))
    if not reports and not here:
        click.echo("nothing waits for delivery")
    tasks.show_progress()
    away = False
    with TemporaryDirectory() as scratch:
        given = [storage.fetch(uri, Path(scratch) / str(number)) for number, uri in enumerate(reports)]
        for report in given or here:
            run_id = tasks.sync(report, anywhere=anywhere)
            click.echo(f"{report}: {f'delivered, run {run_id}' if run_id else 'the server is still away; all is kept'}")
            away = away or not run_id
    if away:
        sys.exit(1)


@main.command(name="compile")
@click.option(
    "--max-stages",
    type=click.IntRange(1),
    default=None,
    help="stages the pipeline has room for: the most anchors that a run may use  [4]",
)
@click.option(
    "--slots",
    default="",
    metavar="A,B,...",
    help="of the comparison: one number a branch, 1 for most, for a greedy one its stages  [1,1,1,1,1,4]",
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/pipelines/rco.yaml"), show_default=True)
@click.option(
    "--comparison", type=click.Path(path_type=Path), default=Path("build/pipelines/comparison.yaml"), show_default=True
)
@deployment_option
def compile_command(max_stages: int | None, slots: str, output: Path, comparison: Path, deployment: Path | None) -> None:
    """Write both pipelines as YAML for Kubeflow Pipelines.

    Their image is RCO_IMAGE, else the one that make build-images built, by digest if it has been pushed.
    """
    given = _sizes(slots)
    cluster = _cluster(deployment)
    from pipelines.comparison import DEFAULT_SLOTS
    from pipelines.compile import compile_comparison, compile_rco
    from pipelines.rco import DEFAULT_STAGES

    sizes = given or [*DEFAULT_SLOTS[:-1], max_stages or DEFAULT_SLOTS[-1]]
    click.echo(f"image: {cluster.image}")
    click.echo(compile_rco(output, max_stages or DEFAULT_STAGES, cluster))
    click.echo(compile_comparison(comparison, sizes, cluster))


def _cluster(deployment: Path | None) -> Any:
    """The cluster that a pipeline is compiled for; bad input is refused before KFP is imported."""
    from pipelines.deployment import read_deployment

    site = read_deployment(deployment)
    from pipelines.compile import image_to_run
    from pipelines.platform import Cluster

    return Cluster(deployment=site, image=image_to_run(warn=lambda line: click.echo(f"rco: {line}", err=True)))


def _cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--namespace", envvar="KFP_NAMESPACE", show_envvar=True, help="your profile's, where KFP serves several users"
        ),
        click.option(
            "--endpoint",
            envvar=["KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT"],
            show_envvar=True,
            help="address of KFP, such as http://localhost:8080; without one, the cluster of this pod or of kubectl",
        ),
    ):
        command = option(command)
    return command


max_stages_option = click.option(
    "--max-stages", type=click.IntRange(1), default=None, help="stages the pipeline has room for  [4, or what the run needs]"
)
slots_option = click.option("--slots", default="", metavar="A,B,...", help="of the comparison, as in `rco compile`")
wait_timeout_option = click.option(
    "--timeout", metavar="90m|12h|...", help="how long to wait at most; the run goes on  [as long as it takes]"
)


@main.command()
@click.option("--pipeline", type=click.Choice(["rco", "comparison"]), default="rco", show_default=True)
@click.option("--package", type=click.Path(path_type=Path), help="a compiled pipeline, in place of compiling one")
@_cluster_options
@click.option("--name", default="", help="of the run  [student, strategy and time]")
@click.option("--service-account", default="", help="of Kubernetes, for the run's pods  [KFP's]")
@click.option("--pipeline-root", default="", help="where KFP keeps the run's artifacts, such as s3://bucket/prefix  [KFP's]")
@deployment_option
@max_stages_option
@slots_option
@no_cache_option
@click.option("--wait/--no-wait", "waiting", default=True, show_default=True, help="watch the run to its end")
@wait_timeout_option
@click.option("--dry-run", is_flag=True, help="show what would be sent, as JSON; nothing is connected to")
@_option("branches")
@_option("seeds")
@_option("restart_like")
@click.option("--grid", default=None, metavar="JSON", help='of a comparison: a sweep, as {"tau": [2, 4]}')
@recipe_option
@parameter_options(PARAMETERS)
def submit(
    flags: dict[str, Any],
    pipeline: str,
    package: Path | None,
    endpoint: str | None,
    namespace: str | None,
    name: str,
    service_account: str,
    pipeline_root: str,
    deployment: Path | None,
    max_stages: int | None,
    slots: str,
    no_cache: bool,
    waiting: bool,
    timeout: str | None,
    dry_run: bool,
    branches: str | None,
    seeds: str | None,
    restart_like: str | None,
    grid: str | None,
    recipe: str | None,
) -> None:
    """Run a pipeline on a cluster, with Kubeflow Pipelines.

    Compiles the pipeline, uploads it as a version of its own (called by its sha256; one that is there already is not sent
    again), starts a run with these parameters, and watches it. Its KFP experiment is called as the MLflow one is.
    Who you are is told by the variables KFP_EXISTING_TOKEN, KFP_COOKIES and others (docs/cluster.md), never by an option.

    Exit status: 0 the run succeeded (--no-wait: was started), 1 it did not, 2 bad input, 3 KFP cannot be reached or does not
    let you in, 4 --timeout is over and the run goes on, 130 Ctrl-C; the run goes on.
    """
    options = {"branches": branches, "seeds": seeds, "restart_like": restart_like, "grid": _mapping("grid", grid)}
    options = {key: value for key, value in options.items() if value is not None}
    seconds = _seconds(timeout)  # before anything is compiled
    if package and (deployment or max_stages or slots):
        given = "deployment" if deployment else "max_stages" if max_stages else "slots"
        raise InputError(given, deployment or max_stages or slots, "changes nothing about a package", "Leave --package out")
    comparison = pipeline == "comparison"
    parameters, experiment, what, size = _submission(comparison, recipe, flags, options, max_stages, slots)

    from tempfile import TemporaryDirectory

    from pipelines.submit import Package, Request, compile_package, run_name, shown, uncached

    request = Request(
        name=name or run_name(what),
        experiment=experiment,
        parameters=parameters,
        service_account=service_account,
        pipeline_root=pipeline_root,
    )
    with TemporaryDirectory() as scratch:
        if package:
            compiled = Package.read(package)
            compiled = uncached(compiled, Path(scratch)) if no_cache else compiled
        else:
            cluster = _cluster(deployment)
            compiled = compile_package(comparison, size, Path(scratch), cluster, cache=not no_cache)
        compiled.check(parameters)
        if dry_run:
            click.echo(shown(compiled, request, endpoint or "", namespace or ""))
            return
        _submit(compiled, request, endpoint, namespace, waiting, seconds)


def _submit(
    package: Any, request: Any, endpoint: str | None, namespace: str | None, waiting: bool, seconds: float | None
) -> None:
    from pipelines.submit import links, start

    with _cluster_errors():
        try:
            service = _connect(endpoint, namespace)
            run = start(service, package, _upload(service, package), request)
        except KeyboardInterrupt:
            click.echo(f"rco: stopped; if the run {request.name!r} is there, it goes on", err=True)
            sys.exit(130)
        click.echo(f"experiment {request.experiment}")
        click.echo(f"name       {request.name}")
        for line in links(service, run, request.experiment):
            click.echo(line)
        if waiting:
            _watch(service, run.run_id, seconds)


@main.command()
@click.argument("packages", nargs=-1, type=click.Path(path_type=Path))
@_cluster_options
@deployment_option
@max_stages_option
@slots_option
def upload(
    packages: tuple[Path, ...],
    endpoint: str | None,
    namespace: str | None,
    deployment: Path | None,
    max_stages: int | None,
    slots: str,
) -> None:
    """Upload pipelines to Kubeflow Pipelines without running them: PACKAGES, or both of ours, compiled now.

    Each becomes a version of the pipeline of its name, called by its sha256; what is there already is not sent again.
    """
    from tempfile import TemporaryDirectory

    from pipelines.comparison import DEFAULT_SLOTS
    from pipelines.rco import DEFAULT_STAGES
    from pipelines.submit import Package, compile_package

    with TemporaryDirectory() as scratch, _cluster_errors():
        if packages:
            compiled = [Package.read(path) for path in packages]
        else:
            cluster = _cluster(deployment)
            sizes = _sizes(slots) or [*DEFAULT_SLOTS[:-1], max_stages or DEFAULT_SLOTS[-1]]
            compiled = [
                compile_package(False, [max_stages or DEFAULT_STAGES], Path(scratch), cluster),
                compile_package(True, sizes, Path(scratch), cluster),
            ]
        service = _connect(endpoint, namespace)
        for package in compiled:
            _upload(service, package)


@main.command()
@click.argument("run_id")
@_cluster_options
@wait_timeout_option
def wait(run_id: str, endpoint: str | None, namespace: str | None, timeout: str | None) -> None:
    """Watch a run on a cluster to its end; the exit status is that of `rco submit`."""
    seconds = _seconds(timeout)
    with _cluster_errors():
        service = _connect(endpoint, namespace)
        click.echo(f"run        {service.link(f'runs/details/{run_id}')}")
        _watch(service, run_id, seconds)


def _connect(endpoint: str | None, namespace: str | None) -> Any:
    import kfp

    from pipelines.service import Service

    _quiet()
    service = Service(endpoint, namespace)
    major, minor = (int(number) for number in kfp.__version__.split(".")[:2])
    if service.older_than((major, minor)):
        told = (
            f"KFP there is {service.version}, older than the {kfp.__version__} that compiles: it may refuse what is new to it"
        )
        click.echo(f"rco: {told}", err=True)
    if namespace and not service.multi_user:
        click.echo(f"rco: KFP there serves one user; the namespace {namespace} is not used", err=True)
    return service


def _quiet() -> None:
    """Keep the libraries' own words off the screen: what goes wrong is told once, in ours."""
    import logging

    for name in ("urllib3", "google.auth"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _upload(service: Any, package: Any) -> Any:
    from pipelines.submit import upload

    uploaded = upload(service, package)
    click.echo(f"pipeline   {package.name}   {service.link(f'pipelines/details/{uploaded.pipeline_id}')}")
    click.echo(f"version    {package.version}   ({'uploaded' if uploaded.new else 'was there'})")
    return uploaded


def _watch(service: Any, run_id: str, seconds: float | None) -> None:
    from pipelines.display import Watching
    from pipelines.service import ServiceError
    from pipelines.submit import SUCCEEDED, StillRunningError, again, failures, state_of
    from pipelines.submit import wait as wait_for

    try:
        with Watching() as watching:
            run = wait_for(service, run_id, watching.show, timeout=seconds)
    except KeyboardInterrupt:
        click.echo("\n".join(again(service, run_id)), err=True)
        sys.exit(130)
    except (StillRunningError, ServiceError, InputError) as error:
        click.echo(f"rco: {error}", err=True)
        click.echo("\n".join(again(service, run_id)), err=True)
        sys.exit(STILL_RUNNING if isinstance(error, StillRunningError) else NO_SERVICE)
    state = state_of(run)
    if state == SUCCEEDED:
        click.echo("the run succeeded")
        return
    click.echo(f"rco: the run ended as {state}", err=True)
    for line in failures(run, service.namespace):
        click.echo(f"  {service.clean(line)}", err=True)
    sys.exit(RUN_FAILED)


@contextlib.contextmanager
def _cluster_errors() -> Iterator[None]:
    """Trouble with a cluster is one paragraph and an exit status."""
    from pipelines.service import ServiceError
    from pipelines.submit import RunGoneError

    try:
        yield
    except ServiceError as error:
        click.echo(f"rco: {error}", err=True)
        sys.exit(2 if error.status in (400, 409, 413, 422) else NO_SERVICE)
    except RunGoneError as error:
        click.echo(f"rco: {error}", err=True)
        sys.exit(RUN_FAILED)


def _submission(
    comparison: bool,
    recipe: str | None,
    flags: Mapping[str, Any],
    options: Mapping[str, Any],
    max_stages: int | None,
    slots: str,
) -> tuple[dict[str, Any], str, str, list[int]]:
    """A run's parameters, those that were given, typed; its experiment; what it is, for its name; the pipeline's size."""
    from pipelines.sizes import slots_for, stages_for
    from rco.config.parameters import RunConfig

    if not comparison:
        if options:
            name, value = next(iter(options.items()))
            raise InputError(name, value, "is of the comparison alone", "Add --pipeline comparison, or leave it out")
        merged = _parameters(recipe, flags)
        config = RunConfig.from_flat(merged)
        flat = config.to_flat()
        return (
            {name: flat[name] for name in merged},
            flat["experiment"],
            f"{flat['student']} {flat['strategy']}",
            [stages_for(config, max_stages)],
        )
    from rco.config.branches import NOT_SHARED, Comparison

    for name in NOT_SHARED:
        if name in flags:
            raise InputError(name, flags[name], "means nothing in a comparison", "Leave it out; its branches set it")
    # A recipe may be of a single run: what means nothing here is left out.
    read = {name: value for name, value in (read_recipe(recipe) if recipe else {}).items() if name not in NOT_SHARED}
    given = {**read, **flags, **options}
    wanted = Comparison.of(given)
    full = wanted.to_parameters()
    return (
        {name: full[name] for name in given if name in full},
        full.get("experiment", PARAMETERS["experiment"].default),
        f"comparison {full.get('student', PARAMETERS['student'].default)}",
        slots_for(wanted, _sizes(slots) or None, max_stages),
    )


def _sizes(slots: str) -> list[int]:
    sizes = _integers("slots", slots)
    if sizes and (min(sizes) < 1 or len(sizes) > MOST):
        raise InputError("slots", slots, f"are not 1 to {MOST} numbers, 1 or more", "Write them as 1,1,1,4")
    return sizes


def _mapping(name: str, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        document = None
    if not isinstance(document, dict):
        raise InputError(name, text, "is not a mapping of parameters to lists", 'Give {"tau": [2, 4]}')
    return document


def _seconds(text: str | None) -> float | None:
    """A length of time as people write it."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?", text.strip())
    if not match or float(match[1]) == 0:
        raise InputError("timeout", text, "is not a length of time", "Write it as 90m, 12h or 2d; a number alone is seconds")
    return float(match[1]) * {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


@main.command()
@home_option
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True, help="cuda: a GPU must be there")
@click.option(
    "--s3", "addresses", multiple=True, metavar="URI", help="s3://BUCKET/PREFIX to write to and read from; repeatable"
)
@_cluster_options
@click.option("--limit", type=click.FloatRange(1), default=120, show_default=True, help="seconds that a check may take")
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON")
def doctor(
    home: Path,
    device: str,
    addresses: tuple[str, ...],
    endpoint: str | None,
    namespace: str | None,
    limit: float,
    as_json: bool,
) -> None:
    """Check this machine and the services that it is told to use; leaves nothing behind.

    Python, libraries, PyTorch, GPU and driver, memory and disk; and as far as the environment or the options name them,
    MLflow (a run and an artifact are written, read and deleted), S3 (an object likewise; clocks are compared), Kubeflow
    Pipelines, and the image. Ends with status 1 if something is wrong; each line says what to do next.
    """
    import logging

    for address in addresses:
        if not address.startswith("s3://"):
            raise InputError("s3", address, "is not an s3:// address", "Write s3://BUCKET/PREFIX")
    logging.disable()  # the libraries' own words may hold secrets, and come between the lines
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # somebody waits, and can ask again
    from dataclasses import asdict

    from pipelines.doctor import checks
    from rco.tasks.services import healthy
    from rco.tasks.services import run as examine

    findings = examine(checks(home, device, addresses, endpoint, namespace, limit), limit + 1)
    right = healthy(findings)
    if as_json:
        click.echo(json.dumps({"ok": right, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        from pipelines.display import print_findings

        print_findings(findings)
    sys.stdout.flush()
    sys.exit(0 if right else 1)


@main.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--epochs", required=True, help="epoch of each checkpoint, in order: 10,20,40")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="folder for the route")
@click.option("--decay-epochs", default="", help="epochs after which that training decayed its learning rate")
@click.option("--dataset", required=True, help="as in `rco run`: the data set that the students will learn from")
@click.option("--data-root", default=PARAMETERS["data_root"].default, show_default=True)
@click.option("--image-size", type=int, default=0, show_default=True)
@click.option("--teacher", required=True, help="the model that the checkpoints are weights of")
@click.option("--teacher-stem", default="auto", show_default=True)
@click.option("--teacher-embedding-dim", type=int, default=0, show_default=True)
@click.option("--open-classes", default="", help="as in `rco run`: classes that this teacher was not trained on")
def import_route(
    checkpoints: tuple[Path, ...],
    epochs: str,
    output: Path,
    decay_epochs: str,
    dataset: str,
    data_root: str,
    image_size: int,
    teacher: str,
    teacher_stem: str,
    teacher_embedding_dim: int,
    open_classes: str,
) -> None:
    """Make a route from CHECKPOINTS of a training that is over, oldest first.

    Each is a state dict: safetensors, or a torch file read with weights_only. One checkpoint gives plain distillation.
    Use the route with `rco run --route OUTPUT --teacher NAME --dataset NAME`.
    """
    from tempfile import TemporaryDirectory

    from rco.data.config import DataConfig
    from rco.data.dataset import Dataset
    from rco.data.prepare import prepare
    from rco.data.sources import check_source, source_digest
    from rco.models.config import ModelConfig
    from rco.models.spec import NetworkSpec
    from rco.training import device
    from rco.training import teacher as teaching
    from rco.training.config import ComputeConfig

    numbers = _integers("epochs", epochs)
    if len(numbers) != len(checkpoints):
        raise InputError("epochs", epochs, f"names {len(numbers)} epochs for {len(checkpoints)} checkpoints", "Give one each")
    if output.exists() and any(output.iterdir()):
        raise InputError("output", str(output), "is not empty", "Name a new folder")
    unseen = tuple(word.strip() for word in open_classes.split(",") if word.strip())
    config = DataConfig(dataset=dataset, data_root=data_root, image_size=image_size, open_classes=unseen)
    check_source(config)
    compute = device.resolve(ComputeConfig())
    device.prepare_process(compute)
    with TemporaryDirectory() as scratch:
        click.echo(f"preparing {dataset}")
        prepare(config, Path(scratch) / "data", source_digest(config))
        data = Dataset.open(Path(scratch) / "data")
        spec = NetworkSpec.of(ModelConfig(model=teacher, stem=teacher_stem, embedding_dim=teacher_embedding_dim), data.manifest)
        click.echo(f"measuring {len(checkpoints)} checkpoints of {teacher}")
        route = teaching.import_route(
            list(zip(numbers, checkpoints, strict=True)),
            data,
            spec,
            compute,
            output,
            decay_epochs=_integers("decay_epochs", decay_epochs),
        )
    for c in route.checkpoints:
        click.echo(f"  epoch {c.epoch}: validation accuracy {100 * c.val_accuracy:.2f} %")
    click.echo(f"the route is in {output}; use it with: rco run --route {output} --teacher {teacher} --dataset {dataset}")


def _integers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(name, text, "is not a list of whole numbers", "Write them as 10,20,40") from None


if __name__ == "__main__":
    main()
