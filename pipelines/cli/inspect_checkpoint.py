"""What `rco inspect` says of a checkpoint."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

_SHOWN = 6


def show(path: Path, as_json: bool) -> None:
    """Print what a checkpoint holds, which of our networks it fits, and what stands in the way.

    Raises:
        InputError: it cannot be read.
    """
    from rco.models.inspection import inspect_checkpoint

    found = inspect_checkpoint(path)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    epoch = "" if found.epoch is None else f", of epoch {found.epoch}"
    click.echo(f"{path}: {path.stat().st_size / 2**20:.1f} MiB{epoch}")
    if not found.places:
        click.echo("  it holds no tensors")
    for place in found.places:
        where = place.name or "at the top"
        click.echo(f"  {where}: {place.tensors:,} tensors, {place.numbers:,} numbers ({', '.join(place.first)}, ...)")
        if place.fits:
            more = f" and {len(place.fits) - _SHOWN} more" if len(place.fits) > _SHOWN else ""
            click.echo(f"    fits {', '.join(place.fits[:_SHOWN])}{more}")
        else:
            click.echo(f"    fits none of our networks; nearest that was tried: {place.problem or 'none'}")
