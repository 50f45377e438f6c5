"""The command that makes a route of checkpoints."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from pipelines.cli.options import integers, parameter_options
from rco.config.parameters import PARAMETERS, read_group
from rco.core.errors import InputError


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--epochs", required=True, help="epoch of each checkpoint, in order: 10,20,40")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="folder for the route")
@click.option("--decay-epochs", default="", help="epochs after which that training decayed its learning rate")
@click.option("--dataset", required=True, help="as in `rco run`: the data set that the students will learn from")
@parameter_options(name for name, p in PARAMETERS.items() if "source" in (name, p.chooser))
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
    flags: dict[str, Any],
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
    from rco.data.dataset import Dataset
    from rco.data.prepare import prepare
    from rco.data.sources.kinds import check_source, source_digest
    from rco.models.config import ModelConfig
    from rco.models.spec import NetworkSpec
    from rco.training import device
    from rco.training import route as routes
    from rco.training.config import ComputeConfig

    numbers = integers("epochs", epochs)
    if len(numbers) != len(checkpoints):
        raise InputError("epochs", epochs, f"names {len(numbers)} epochs for {len(checkpoints)} checkpoints", "Give one each")
    if output.exists() and any(output.iterdir()):
        raise InputError("output", str(output), "is not empty", "Name a new folder")
    config = read_group("data", {**flags, "dataset": dataset, "image_size": image_size, "open_classes": open_classes})
    check_source(config)
    compute = device.resolve(ComputeConfig())
    device.prepare_process(compute)
    with TemporaryDirectory() as scratch:
        click.echo(f"preparing {dataset}")
        prepare(config, Path(scratch) / "data", source_digest(config))
        data = Dataset.open(Path(scratch) / "data")
        spec = NetworkSpec.of(ModelConfig(model=teacher, stem=teacher_stem, embedding_dim=teacher_embedding_dim), data.manifest)
        click.echo(f"measuring {len(checkpoints)} checkpoints of {teacher}")
        route = routes.import_route(
            list(zip(numbers, checkpoints, strict=True)),
            data,
            spec,
            compute,
            output,
            decay_epochs=integers("decay_epochs", decay_epochs),
        )
    for c in route.checkpoints:
        click.echo(f"  epoch {c.epoch}: validation accuracy {100 * c.val_accuracy:.2f} %")
    click.echo(f"the route is in {output}; use it with: rco run --route {output} --teacher {teacher} --dataset {dataset}")
