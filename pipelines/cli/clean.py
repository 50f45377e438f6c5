"""The command that shows what a home holds, and removes what is asked for."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import home_option
from rco.core.errors import InputError

if TYPE_CHECKING:
    from pipelines.local.holdings import Thing


@click.command()
@home_option
@click.option("--older-than", metavar="AGE", help="remove what was not written or used for so long: 12h, 30d, 8w")
@click.option(
    "--keep-last", type=click.IntRange(0), metavar="N", help="of the runs, the newest N stay; without an age, the others go"
)
@click.option("--what", metavar="A,B,...", help="of these alone: runs, cache, results, logits, images, resume  [all]")
@click.option("--dry-run", is_flag=True, help="list what would go, and remove nothing")
@click.option("--yes", is_flag=True, help="do not ask")
@click.option("--json", "as_json", is_flag=True, help="print it as JSON")
def clean(
    home: Path, older_than: str | None, keep_last: int | None, what: str | None, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Show what a home holds; with --older-than or --keep-last, remove what nobody needs.

    A run in progress keeps all that it has made or found; last-run, last-comparison and a report that waits for rco sync
    stay, and so do downloaded data and all that MLflow has: what you delete there, mlflow gc removes. Whatever goes, the
    next run is right: it computes anew what it does not find.
    """
    from pipelines.local.clean import Wanted, a_home, remove
    from pipelines.local.holdings import holdings
    from rco.tracking import moved

    wanted = Wanted.of(older_than, keep_last, what)
    root = a_home(home)
    if wanted is None and (dry_run or yes):
        raise InputError("older_than", None, "is needed to remove anything", "Add --older-than 30d, or --keep-last 5 for runs")
    if wanted is not None and not (dry_run or yes) and (as_json or not _can_ask()):
        raise InputError("yes", False, "nobody can be asked here", "Add --yes, or --dry-run to see what would go")
    try:
        moved.settle(root)
        things = holdings(root)
        if wanted is None:
            _show(root, things, as_json)
            return
        going, needed = wanted.choose(things)
        if not as_json:
            _list(root, going, needed, "would go" if dry_run else "to remove")
        removed = None
        if going and not dry_run:
            if not yes and not click.confirm("Remove this?"):
                click.echo("nothing was removed")
                sys.exit(1)
            removed = remove(root, wanted, {thing.name for thing in going})
    except OSError as error:
        where = error.filename or root
        click.echo(f"rco: {where} cannot be used ({error.strerror}): see to its owner and permissions", err=True)
        sys.exit(1)
    if as_json:
        gone = going if dry_run else removed.things if removed else []
        troubles = removed.troubles if removed else []
        document = {"home": str(root), "dry_run": dry_run, "removed": [_described(root, thing) for thing in gone]}
        click.echo(json.dumps({**document, "troubles": troubles}, indent=2))
    elif removed:
        click.echo(f"removed {_counted(removed.things)}")
    for trouble in removed.troubles if removed else ():
        click.echo(f"rco: {trouble}", err=True)
    sys.exit(1 if removed and removed.troubles else 0)


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _show(root: Path, things: Sequence[Thing], as_json: bool) -> None:
    from pipelines.display import print_rows
    from pipelines.local.holdings import KINDS, STAYS
    from rco.tracking import moved

    deleted = moved.deleted_runs(root)
    kinds: dict[str, dict[str, Any]] = {}
    for kind in (*KINDS, *STAYS):
        of_kind = [thing for thing in things if thing.kind == kind]
        kinds[kind] = {
            "count": len(of_kind),
            "bytes": sum(thing.size for thing in of_kind),
            "oldest": _day(min((thing.touched for thing in of_kind), default=None)),
            "newest": _day(max((thing.touched for thing in of_kind), default=None)),
        }
    if as_json:
        click.echo(json.dumps({"home": str(root), "holds": kinds, "deleted_in_mlflow": deleted}, indent=2))
        return
    print_rows(
        ("what", "count", "size", "oldest", "newest", "goes"),
        [
            (kind, f"{k['count']:,}", _size(k["bytes"]), k["oldest"], k["newest"], "when asked" if kind in KINDS else "never")
            for kind, k in kinds.items()
        ],
    )
    click.echo(f"{root} holds {_size(sum(thing.size for thing in things))}; --older-than 30d or --keep-last 5 make room")
    if deleted:
        address = shlex.quote(moved.database_uri(root))
        click.echo(f"MLflow keeps what {deleted} runs have that were deleted in it; this removes it:")
        click.echo(f"mlflow gc --backend-store-uri {address} --tracking-uri {address}")


def _list(root: Path, going: Sequence[Thing], needed: Sequence[Thing], heading: str) -> None:
    for thing in going:
        name = thing.paths[-1].relative_to(root)
        click.echo(f"{thing.kind:<8} {_size(thing.size):>10}  {_day(thing.touched)}  {name}")
    for thing in needed:
        click.echo(f"stays: {thing.paths[-1].relative_to(root)} ({thing.needed})")
    click.echo(f"{heading}: {_counted(going)}" if going else "there is nothing to remove")


def _described(root: Path, thing: Thing) -> dict[str, Any]:
    paths = [str(path.relative_to(root)) for path in thing.paths]
    return {"what": thing.kind, "paths": paths, "bytes": thing.size, "last_used": _day(thing.touched)}


def _counted(things: Sequence[Thing]) -> str:
    return f"{len(things):,} {'thing' if len(things) == 1 else 'things'}, {_size(sum(thing.size for thing in things))}"


def _day(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
