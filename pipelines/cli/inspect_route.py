"""What `rco inspect` says of a route."""

from __future__ import annotations

import json
from pathlib import Path

import click

_MANIFEST = "manifest.json"


def is_route(folder: Path) -> bool:
    """Whether a folder is a route: one of images may have a manifest of its own, but not with checkpoints and a network."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and {"network", "checkpoints", "probe_sha256"} <= set(manifest)


def show_route(folder: Path, as_json: bool) -> None:
    """Print what a route's teacher is, what it takes, and its checkpoints, whose files are verified.

    Raises:
        InputError: it is not a whole route.
    """
    from rco.core.settings import jsonable
    from rco.models.route import Route

    route = Route.open(folder)
    route.verify()
    network = route.network
    if as_json:
        names = ("data_digest", "checkpoints", "decay_epochs", "mean", "std", "crop")
        about = {"route": str(folder), "network": network.written, **{name: getattr(route, name) for name in names}}
        click.echo(json.dumps(jsonable(about), indent=2))
        return
    stem = "" if network.stem == "auto" else f" ({network.stem} stem)"
    click.echo(f"{folder}: a route of {network.model}{stem}, {network.num_classes:,} classes")
    size, channels = network.image_size, network.in_channels
    colour = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
    part = "" if route.crop == 1 else f", the central {route.crop:g} of each side"
    numbers = ", ".join(f"{name} {','.join(f'{v:.4g}' for v in values)}" for name, values in _numbers(route.mean, route.std))
    click.echo(f"  its teacher takes {size}x{size} {colour} images{part}, normalised by {numbers or 'what it does not say'}")
    for c in route.checkpoints:
        decayed = ", then the learning rate drops" if c.epoch in route.decay_epochs else ""
        click.echo(f"  epoch {c.epoch}: validation accuracy {100 * c.val_accuracy:.2f} % ({c.file}){decayed}")
    click.echo(f"  digest of its data: {route.data_digest}")


def _numbers(mean: tuple[float, ...], std: tuple[float, ...]) -> list[tuple[str, tuple[float, ...]]]:
    return [("mean", mean), ("deviation", std)] if mean else []
