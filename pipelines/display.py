"""What a person sees of a run, here or elsewhere: lines, in a terminal a bar or a table as well, and at the end a table."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pipelines.cluster.tasks import Task, Tasks
    from rco.tasks.services import Finding

_EPOCH = re.compile(r"^\s*(?P<what>.+?): epoch (?P<done>\d+)/(?P<total>\d+), (?P<rest>.*)$")


class Display:
    """Shows progress: epochs move a bar in a terminal and are plain lines elsewhere; all else is lines."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rest]}"),
            TimeElapsedColumn(),
        )
        self.progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        self.bar: Any = None

    def __enter__(self) -> Display:
        self.progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def show(self, line: str) -> None:
        """Take one line of progress."""
        epoch = _EPOCH.match(line)
        if epoch and self.console.is_terminal:
            values: Any = {
                "completed": int(epoch["done"]),
                "total": int(epoch["total"]),
                "description": epoch["what"],
                "rest": epoch["rest"],
            }
            if self.bar is None:
                self.bar = self.progress.add_task(**values)
            else:
                self.progress.update(self.bar, **values)
            if epoch["done"] != epoch["total"]:
                return
        if self.bar is not None and not epoch:
            self.progress.remove_task(self.bar)
            self.bar = None
        self.console.print(line, markup=False)


class Watching:
    """Shows a run elsewhere: lines with the time of day; in a terminal, below them, its tasks as a table that lives."""

    def __init__(self, console: Console | None = None, *, on_error: bool = False) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, stderr=on_error)
        self.begun = time.monotonic()
        self.tasks: Tasks | None = None
        self.live = Live(get_renderable=self._table, console=self.console, transient=True, refresh_per_second=2)

    def __enter__(self) -> Watching:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.live.stop()
            if self.tasks is not None and self.tasks.tasks:
                self.console.print(task_table(self.tasks, len(self.tasks.tasks)), soft_wrap=False)

    def show(self, line: str) -> None:
        """Take one line of progress."""
        self.console.print(f"{time.strftime('%H:%M:%S')}  {line}", markup=False)

    def draw(self, tasks: Tasks) -> None:
        """Take all tasks as they now are."""
        self.tasks = tasks

    def _table(self) -> RenderableType:
        minutes, seconds = divmod(int(time.monotonic() - self.begun), 60)
        waited = Text(f"{minutes}:{seconds:02d}  (Ctrl-C leaves the run running)", style="dim")
        if self.tasks is None or not self.tasks.tasks:
            return waited
        return Group(task_table(self.tasks, max(3, self.console.height - 8)), waited)


_ENDED = ("succeeded", "from the cache", "failed", "not run")
_TASK_COLOURS = {"failed": "bold red", "succeeded": "green", "from the cache": "green", "running": "cyan"}


def task_table(tasks: Tasks, most: int) -> Table:
    """The tasks of a run, each once, in the order of its graph.

    Args:
        most: rows that there is room for: what has begun and not ended comes first, then what has ended last.
    """
    table = Table("within", "task", "state", "tries", "took")
    rows = list(tasks.tasks)
    if len(rows) > most:
        order = sorted(rows, key=lambda task: (task.state in _ENDED, task.state == "waiting", -_ended_at(task)))
        kept = {id(task) for task in order[: most - 1]}
        rows = [task for task in rows if id(task) in kept]
    for task in rows:
        within, _, name = task.label.rpartition(" ")
        took = "" if task.seconds is None else _clock(task.seconds)
        state = Text(task.state, style=_TASK_COLOURS.get(task.state, "dim"))
        table.add_row(Text(within), Text(name), state, str(task.attempts or ""), took)
    if len(rows) < len(tasks.tasks):
        table.add_row("", Text(f"and {len(tasks.tasks) - len(rows)} more", style="dim"), "", "", "")
    return table


def _ended_at(task: Task) -> float:
    return task.since.timestamp() if task.since is not None else 0.0


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def print_comparison(summary: dict[str, Any], home: Path) -> None:
    """A comparison as a table and a verdict, after a race with how it was run, and where to look next."""
    from rco.reporting.raced import TITLE
    from rco.reporting.side_by_side import headline, sentences, tables

    console = Console(highlight=False, soft_wrap=True)
    wide = Console(highlight=False, width=max(console.width, 150))
    console.print()
    made = tables(summary)
    for title in (TITLE, "Comparison"):
        if title not in made:
            continue
        heads, rows = made[title]
        table = Table(*heads, title=title if TITLE in made else None, title_justify="left")
        for row in rows:
            table.add_row(*row)
        wide.print(table)
    console.print(headline(summary), markup=False)
    for sentence in sentences(summary):
        console.print(f"- {sentence}", markup=False)
    console.print()
    last = home / "last-comparison"
    console.print(f"report     {last / 'report.html'}", markup=False)
    console.print(f"figures    {last / 'summary.json'}, {last / 'results.csv'}", markup=False)
    _print_tracking(console, summary)


_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red", "skipped": "dim"}


def print_findings(findings: list[Finding], console: Console | None = None) -> None:
    """What `rco doctor` found: a table in a terminal, lines elsewhere."""
    console = console or Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        for finding in findings:
            console.print(f"{finding.status:<8} {finding.name:<10} {finding.found}", markup=False)
            if finding.next_step:
                console.print(f"{'':<19} -> {finding.next_step}", markup=False)
        return
    table = Table("", "what", "found", "next step")
    for finding in findings:
        colour = _COLOURS[finding.status]
        cells = (finding.name, finding.found, finding.next_step)
        table.add_row(f"[{colour}]{finding.status}[/]", *map(Text, cells))
    console.print(table, soft_wrap=False)


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]], console: Console | None = None) -> None:
    """Rows of text: a table in a terminal, lines elsewhere. All but the first column are aligned to the right there."""
    console = console or Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        for first, *others in (heads, *rows):
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            console.print("  ".join([first.ljust(widths[0]), *cells]).rstrip(), markup=False)
        return
    table = Table(heads[0])
    for head in heads[1:]:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table, soft_wrap=False)


def _print_tracking(console: Console, summary: dict[str, Any]) -> None:
    if summary["parent_run_id"]:
        uri = summary["tracking_uri"]
        if uri == f"sqlite:///{Path('.rco').resolve()}/mlflow.db":
            how = "make ui"
        else:
            how = f"mlflow ui --backend-store-uri {uri}" if uri.startswith("sqlite:") else f"open {uri}"
        console.print(f"MLflow     {how}   (experiment {summary['experiment']}, run {summary['parent_run_id']})", markup=False)


def print_summary(summary: dict[str, Any], home: Path) -> None:
    """The result as tables, and where to look next."""
    from rco.reporting.in_depth import headline, tables

    console = Console(highlight=False, soft_wrap=True)
    wide = Console(highlight=False, width=max(console.width, 110))
    console.print()
    for title, (heads, rows) in tables(summary).items():
        table = Table(*heads, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        wide.print(table)
    console.print(headline(summary))
    console.print()
    registered = summary["registered"]
    champion = ", the champion" if registered.get("champion") else ""
    name = f"  (models:/{registered['name']}/{registered['version']} in the registry{champion})" if registered else ""
    console.print(f"student    {home / 'last-run' / 'student' / 'student.safetensors'}{name}", markup=False)
    console.print(f"report     {home / 'last-run' / 'report.html'}", markup=False)
    _print_tracking(console, summary)
