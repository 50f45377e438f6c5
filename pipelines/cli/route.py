"""The command that makes a route of checkpoints."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from pipelines.cli.options import find_modules_here, integers, parameter_options
from rco.config.parameters import PARAMETERS, read_group
from rco.core.errors import InputError


@click.command()
@click.argument("checkpoints", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--epochs", default="", help="of files, the epoch of each, in order: 10,20,40; of a folder, the epochs to take")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="folder for the route")
@click.option("--decay-epochs", default="", help="epochs after which that training decayed its learning rate")
@click.option("--dataset", required=True, help="as in `rco run`: the data set that the students will learn from")
@parameter_options(
    name
    for name, p in PARAMETERS.items()
    if "source" in (name, p.chooser) or name in ("image_mean", "image_std") or p.group == "teacher_input"
)
@click.option("--image-size", type=int, default=0, show_default=True)
@click.option("--teacher", required=True, help="the model that the checkpoints are weights of")
@click.option("--teacher-stem", default="auto", show_default=True)
@click.option("--teacher-embedding-dim", type=int, default=0, show_default=True)
@click.option("--open-classes", default="", help="as in `rco run`: classes that this teacher was not trained on")
@click.option(
    "--weights", default="", metavar="PLACE", help="of several networks in a file, where the one is that is meant: model_ema"
)
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
    weights: str,
) -> None:
    """Make a route from the CHECKPOINTS of a training that is over: a folder of them, or files.

    Each is a safetensors or torch file of any trainer, of which tensors alone are taken. Their epochs are found in their names
    (ckpt_epoch_40.pth, epoch_40, model_40.pt) or in the files, unless --epochs gives them. One checkpoint gives plain
    distillation. The last line says how to use the route.
    """
    from rco.data.dataset import Dataset
    from rco.data.network_input import NetworkInput, kept_for
    from rco.data.prepare import prepare
    from rco.data.sources.kinds import check_source, source_digest
    from rco.models.config import ModelConfig
    from rco.models.spec import NetworkSpec
    from rco.training import device
    from rco.training import route as routes
    from rco.training.config import ComputeConfig

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError("output", str(output), "is not empty", "Name a new folder")
    files = _files(checkpoints, integers("epochs", epochs))
    find_modules_here()
    given = {**flags, "dataset": dataset, "image_size": image_size, "open_classes": open_classes}
    config, asked = read_group("data", given), read_group("teacher_input", given)
    student = check_source(config).image_shape[1]
    kept = kept_for(asked.image_size or student, asked.image_crop or 1.0)
    if larger := kept > student:
        config = config.with_values(image_size=student)
    compute = device.resolve(ComputeConfig())
    device.prepare_process(compute)
    with TemporaryDirectory() as scratch:
        click.echo(f"preparing {dataset}")
        prepare(config, Path(scratch) / "data", source_digest(config), kept_size=kept if larger else 0)
        data = Dataset.open(Path(scratch) / "data")
        data = data.seen_by(NetworkInput.asked(asked, data.manifest))
        spec = NetworkSpec.of(ModelConfig(model=teacher, stem=teacher_stem, embedding_dim=teacher_embedding_dim), data.manifest)
        click.echo(f"measuring {len(files)} checkpoints of {teacher}")
        decays = integers("decay_epochs", decay_epochs)
        route = routes.import_route(files, data, spec, compute, output, decay_epochs=decays, choice=weights)
    if route.epochs[0] != files[0][0]:
        click.echo(f"these epochs are counted from 0, a route's from 1: {files[0][0]} is {route.epochs[0]}, and so on")
    for c, (_, path) in zip(route.checkpoints, files, strict=True):
        click.echo(f"  epoch {c.epoch}: validation accuracy {100 * c.val_accuracy:.2f} % ({path.name})")
    networks = {"teacher": teacher, "teacher_stem": route.network.stem, "teacher_embedding_dim": teacher_embedding_dim}
    if open_classes:  # which are found by embeddings: the students need them too
        networks["student_embedding_dim"] = teacher_embedding_dim
    # What the teacher takes is in the route now.
    command = _command({"route": output, **networks, **{n: v for n, v in given.items() if PARAMETERS[n].group == "data"}})
    click.echo(f"the route is in {output}; use it with: {command}")


def _files(checkpoints: Sequence[Path], epochs: Sequence[int]) -> Sequence[tuple[int, Path]]:
    """(epoch, file) in the order of the epochs, as given or found."""
    from rco.training.checkpoint_files import find_checkpoints

    for path in checkpoints:
        if not path.exists():
            raise InputError("checkpoint", str(path), "is missing", "Check the path")
    if epochs and not any(path.is_dir() for path in checkpoints):
        if len(epochs) != len(checkpoints):
            shown = ",".join(map(str, epochs))
            raise InputError("epochs", shown, f"names {len(epochs)} epochs for {len(checkpoints)} checkpoints", "Give one each")
        return list(zip(epochs, checkpoints, strict=True))
    found = find_checkpoints(checkpoints)
    if found.left_out:
        more = f" and {len(found.left_out) - 3} more" if len(found.left_out) > 3 else ""
        click.echo(f"left out, for they say no epoch: {', '.join(found.left_out[:3])}{more}")
    if not epochs:
        return found.files
    by_epoch = dict(found.files)
    if missing := [epoch for epoch in epochs if epoch not in by_epoch]:
        known = ", ".join(map(str, by_epoch))
        raise InputError("epochs", missing[0], f"is not an epoch of the checkpoints in {checkpoints[0]}", f"They are: {known}")
    return [(epoch, by_epoch[epoch]) for epoch in epochs]


def _command(given: Mapping[str, Any]) -> str:
    """`rco run` with these parameters; those that are as in any run are left out, but for the names of teacher and data."""
    words = ["rco", "run"]
    for name, value in given.items():
        default = PARAMETERS[name].default
        if name not in ("teacher", "dataset") and (value == default or (isinstance(default, list) and not value)):
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, str(value)]
    return shlex.join(words)
