"""The group of all commands."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from pipelines.cli.clean import clean
from pipelines.cli.cluster import compile_command, submit, upload, wait
from pipelines.cli.inspect import inspect
from pipelines.cli.machine import doctor
from pipelines.cli.manifests import cluster
from pipelines.cli.route import import_route
from pipelines.cli.runs import compare, run, sweep, sync
from pipelines.cli.ship import export, predict, serve
from rco.config.plugins import failures
from rco.core.errors import InputError, disk_full


class Commands(click.Group):
    """Bad input is one paragraph and exit status 2, never a traceback; so is a full disk, with 1."""

    def invoke(self, ctx: click.Context) -> Any:
        for problem in failures():
            click.echo(f"rco: warning: {problem}", err=True)
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


for command in (
    run,
    compare,
    sweep,
    export,
    predict,
    serve,
    inspect,
    sync,
    clean,
    compile_command,
    submit,
    upload,
    wait,
    cluster,
    doctor,
    import_route,
):
    main.add_command(command)
