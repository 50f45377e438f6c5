"""The command `rco`. Starts light: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

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


def pipeline_parameters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options for every pipeline parameter. Only those that the user gave reach the command, as `flags`."""

    def with_flags(**given: Any) -> Any:
        flags = {name: given.pop(name) for name in PARAMETERS}
        return command(flags={name: value for name, value in flags.items() if value is not None}, **given)

    with_flags.__doc__, with_flags.__name__ = command.__doc__, command.__name__
    with_flags.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]
    for p in reversed(PARAMETERS.values()):
        with_flags = click.option(*_flag(p), p.name, **_kind(p), default=None, help=f"{p.help}  [{_shown(p.default)}]")(
            with_flags
        )
    return with_flags


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


@main.command()
@recipe_option
@home_option
@click.option("--no-cache", is_flag=True, help="run every task, also what has not changed")
@pipeline_parameters
def run(flags: dict[str, Any], recipe: str | None, home: Path, no_cache: bool) -> None:
    """Run the whole pipeline on this machine."""
    from pipelines.display import Display, print_summary
    from pipelines.local import InterruptedRunError, RunFailedError
    from pipelines.local import run as run_local

    parameters = _parameters(recipe, flags)
    try:
        with Display() as display:
            summary = run_local(parameters, home, cache=not no_cache, show=display.show)
    except RunFailedError as error:
        click.echo(f"rco: {error}", err=True)
        sys.exit(error.code)
    except InterruptedRunError as error:
        click.echo(f"rco: stopped by {error}; what was finished is in the cache, run again to go on", err=True)
        sys.exit(128 + error.number)
    print_summary(summary, home)


@main.command(name="compile")
@click.option(
    "--max-stages",
    type=click.IntRange(1),
    default=None,
    help="stages the pipeline has room for  [as many as needed, 4 or more]",
)
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/pipelines/rco.yaml"), show_default=True)
def compile_command(max_stages: int | None, output: Path) -> None:
    """Write the pipeline as YAML for Kubeflow Pipelines."""
    from pipelines.compile import compile_rco
    from pipelines.rco import DEFAULT_STAGES

    click.echo(compile_rco(output, max_stages or DEFAULT_STAGES))


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
