"""The command `rco`. Starts light: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from rco.comparison import DEFAULTS, KINDS, MOST, OPTIONS, REFERENCE, SHARED, SWEPT
from rco.config import PARAMETERS, Parameter
from rco.errors import InputError

RECIPES = Path(__file__).parent / "recipes"
_TYPES: dict[type, Any] = {int: int, float: float, str: str, list: str}


class Commands(click.Group):
    """Bad input is one paragraph and exit status 2, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"rco: {error}", err=True)
            ctx.exit(2)


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
    import yaml

    known = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    path = known.get(name, Path(name))
    if not path.is_file():
        raise InputError("recipe", name, "is neither a recipe nor a file", f"Recipes: {', '.join(known)}")
    try:
        document = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            "recipe", str(path), f"is not YAML ({str(error).splitlines()[0]})", "Write one 'parameter: value' a line"
        ) from None
    if not isinstance(document, dict):
        raise InputError("recipe", str(path), "is not a mapping of parameters", "Write one 'parameter: value' a line")
    return document


def _parameters(recipe: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    from rco.config import RunConfig

    merged = {**(read_recipe(recipe) if recipe else {}), **flags}
    RunConfig.from_flat(merged)  # what can be refused without looking at data is refused at once
    return merged


recipe_option = click.option("--recipe", metavar="NAME|FILE", help="parameter file; flags win over it")
home_option = click.option(
    "--home", type=click.Path(path_type=Path), default=Path(".rco"), show_default=True, help="directory of local state"
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
        click.echo(f"rco: stopped by {error}; what was finished is in the cache, run again to go on", err=True)
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
    from rco.comparison import NOT_SHARED, Comparison

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
    from rco import outbox, storage, tasks

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
def compile_command(max_stages: int | None, slots: str, output: Path, comparison: Path) -> None:
    """Write both pipelines as YAML for Kubeflow Pipelines."""
    from pipelines.comparison import DEFAULT_SLOTS
    from pipelines.compile import compile_comparison, compile_rco
    from pipelines.rco import DEFAULT_STAGES

    sizes = _integers("slots", slots) or [*DEFAULT_SLOTS[:-1], max_stages or DEFAULT_SLOTS[-1]]
    if min(sizes) < 1 or len(sizes) > MOST:
        raise InputError("slots", slots, f"are not 1 to {MOST} numbers, 1 or more", "Write them as 1,1,1,4")
    click.echo(compile_rco(output, max_stages or DEFAULT_STAGES))
    click.echo(compile_comparison(comparison, sizes))


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

    from rco import engine
    from rco import teacher as teaching
    from rco.config import ComputeConfig, DataConfig, ModelConfig
    from rco.data import Dataset
    from rco.prepare import prepare
    from rco.sources import check_source, source_digest
    from rco.spec import NetworkSpec

    numbers = _integers("epochs", epochs)
    if len(numbers) != len(checkpoints):
        raise InputError("epochs", epochs, f"names {len(numbers)} epochs for {len(checkpoints)} checkpoints", "Give one each")
    if output.exists() and any(output.iterdir()):
        raise InputError("output", str(output), "is not empty", "Name a new folder")
    unseen = tuple(word.strip() for word in open_classes.split(",") if word.strip())
    config = DataConfig(dataset=dataset, data_root=data_root, image_size=image_size, open_classes=unseen)
    check_source(config)
    compute = engine.resolve(ComputeConfig())
    engine.prepare_process(compute)
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
