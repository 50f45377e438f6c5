"""The command that says what is in a data set or a checkpoint, without a training."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from pipelines.cli.inspect_route import is_route, show_route
from pipelines.cli.options import parameter_options
from rco.config.parameters import PARAMETERS, read_group
from rco.core.errors import InputError
from rco.core.settings import jsonable

_CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pkl", ".pth.tar")


@click.command(name="inspect")
@click.argument("target")
@parameter_options(name for name, p in PARAMETERS.items() if p.group == "data" and name != "dataset")
@click.option("--json", "as_json", is_flag=True, help="print what was found as JSON")
def inspect(target: str, flags: dict[str, Any], as_json: bool) -> None:
    """Say what is in TARGET, a data set (as --dataset of `rco run`), a checkpoint or a route; nothing is trained.

    Of a data set: which folder is taken for which part, what is left out and why, sizes, balance of the classes, files that
    cannot be read, duplicates. All of it is read once, as before a training, into a temporary folder that is removed again.
    """
    if target.lower().endswith(_CHECKPOINTS) and not Path(target).is_dir():
        _refuse_flags(flags, "a checkpoint")
        from pipelines.cli.inspect_checkpoint import show

        show(Path(target), as_json)
        return
    if is_route(Path(target)):
        _refuse_flags(flags, "a route")
        show_route(Path(target), as_json)
        return
    from rco.data.prepare import prepare
    from rco.data.sources.kinds import check_source, source_digest
    from rco.tasks.process import show_progress

    config = read_group("data", {**flags, "dataset": target})
    info = check_source(config)
    if not as_json:
        show_progress()
    with TemporaryDirectory(prefix="rco-inspect-") as scratch:
        manifest = prepare(config, Path(scratch), source_digest(config))
    if info.image_shape != manifest.image_shape:  # a file that was looked at before has changed
        raise InputError("dataset", target, "changes while it is read", "Inspect it again when it is at rest")
    found = {
        "dataset": target,
        "source": config.source.plugin_name,
        "digest": manifest.digest,
        "num_classes": manifest.num_classes,
        "class_names": list(manifest.class_names),
        "image_shape": list(manifest.image_shape),
        "mean": list(manifest.mean),
        "std": list(manifest.std),
        "sizes": manifest.sizes,
        "stored_as": manifest.storage,
        "account": jsonable(manifest.account),
    }
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    channels, height, width = manifest.image_shape
    colour = "grey" if channels == 1 else "colour"
    click.echo(f"{target}: {manifest.num_classes:,} classes of {width}x{height} {colour} images (source {found['source']})")
    for line in manifest.account.lines:
        click.echo(f"  {line}")
    click.echo(f"  digest of the prepared data: {manifest.digest}")


def _refuse_flags(flags: dict[str, Any], what: str) -> None:
    for name, value in flags.items():
        raise InputError(name, value, f"means nothing for {what}", "Leave it out")
