"""The blocks of README.md and docs/ can be run: all that are not marked with a reason are, page by page and in order, each page
in a checkout of its own. How blocks are marked, and what else must be true of the pages: tests/unit/test_docs.py.

What the blocks print, to compare it with what the pages show or to put it there (a page alone has all cores, as a reader has):

    make test-release ARGS="-k 'docs and README'"        # or data, models, ...: a page by its name
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.test_docs import PAGES, ROOT, RUNNABLE, SHELLS, Block, blocks

_AT_ONCE = 2  # each on a core of its own: two that compute with two threads each would wait for each other
_LIMIT = 300  # seconds for one block, ten times what any of them takes
#: Pages that take longest, in this order, so that none of them is left alone at the end.
_LONGEST = ("README.md", "run.md", "comparison.md")
# Widths of tables, as on a wide terminal.
_COLUMNS = "160"
# Of the environment. A `make run` must not take the ARGS of the `make` that runs this test for its own.
_KEPT = ("LANG", "LC_ALL", "TMPDIR", "USER", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Ran:
    """A block that was run, and what came of it."""

    block: Block
    status: int
    seconds: float
    printed: str


def checkout(folder: Path) -> Path:
    """The tracked files of this checkout with what is changed in them, and its environment, which `make` finds up to date."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before = min((ROOT / ".venv" / stamp).stat().st_mtime for stamp in (".uv", ".run")) - 1
    for name in filter(None, listed.split("\0")):
        if (source := ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            shutil.copymode(source, target)
            os.utime(target, (before, before))
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


def run_page(page: Path, folder: Path, environment: Mapping[str, str]) -> list[Ran]:
    """Run a page's blocks one after the other; the first that fails is the last."""
    checkout(folder)
    ran = []
    for block in blocks(page):
        if block.language not in RUNNABLE or block.reason:
            continue
        shell = ["bash", "-euo", "pipefail", "-c"] if block.language in SHELLS else [str(folder / ".venv/bin/python"), "-c"]
        started = time.monotonic()
        try:
            done = subprocess.run(
                [*shell, block.script],
                cwd=folder,
                env={**environment, "PYTHONPATH": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=_LIMIT,
            )
            status, printed = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            status, printed = 124, f"{error}"
        ran.append(Ran(block, status, time.monotonic() - started, printed))
        if status:
            break
    return ran


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[Path, Future[list[Ran]]]]:
    """What is known of the pages that were asked for, as they are run."""
    asked = {item.callspec.params["page"] for item in request.session.items if item.path == Path(__file__)}  # type: ignore[attr-defined]
    ordered = sorted(asked, key=lambda page: _LONGEST.index(page.name) if page.name in _LONGEST else len(_LONGEST))
    environment = {
        **{name: os.environ[name] for name in _KEPT if name in os.environ},
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
        "COLUMNS": _COLUMNS,
    }
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    at_once = min(_AT_ONCE, len(cores), len(ordered)) or 1
    free = iter(cores)
    own_core = (lambda: os.sched_setaffinity(0, {next(free)})) if at_once > 1 else None  # of this thread and what it starts
    with ThreadPoolExecutor(at_once, initializer=own_core) as pool:
        yield {page: pool.submit(run_page, page, tmp_path_factory.mktemp(page.stem), environment) for page in ordered}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_do_what_the_page_says(page: Path, running: Mapping[Path, Future[list[Ran]]]) -> None:
    ran = running[page].result()
    for one in ran:
        print(f"\n=== {one.block.where}, {one.seconds:.0f} s\n{one.block.text}---\n{one.printed}", file=sys.stderr)
    assert [f"{one.block.where} ended with {one.status}" for one in ran if one.status] == []
