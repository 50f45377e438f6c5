"""Runs a reader on many inputs and judges each: a result or InputError, soon, in bounded memory, no side effects.

A process for readers: its address space is limited, an audit hook sees what they open, and a folder of sentinels must stay as
it is. That an input needs more memory than there is may be said of no input: what is too large must be known before it is
tried. To fuzz one more reader, add an entry to `tests.fuzz.readers.READERS`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from rco.core.errors import InputError

SECONDS, ROOM = 20, 3 * 2**30  # of computing for one input; of address space beside what is taken when a reader begins
WAITING = 120  # seconds of a clock for one input: a machine that does something else is no fault of a reader
MOST_MIB = 1024  # really used for one input
_CHUNK = 2500  # inputs for which Hypothesis remembers what it has tried; that memory is not the reader's


@dataclass(frozen=True)
class Reader:
    """One reader and its inputs.

    Attributes:
        cases: given a folder for seeds, the strategy of its inputs.
        read: writes an input below a folder and reads it from there. Raises InputError, or nothing.
        writes: what may be written and left below that folder, the input with it: a pattern of relative paths.
    """

    cases: Callable[[Path], st.SearchStrategy[Any]]
    read: Callable[[Any, Path], object]
    writes: str = ".*"


@dataclass
class Figures:
    """What came of it.

    Attributes:
        most_mib: the most memory that one input has taken.
    """

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    most_mib: float = 0.0


class MisbehavedError(Exception):
    """A reader did what none may do."""


class _TooSlowError(BaseException):
    """No reader may catch it."""


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = {"os.mkdir": (0,), "os.remove": (0,), "os.rename": (0, 1), "os.rmdir": (0,), "os.symlink": (1,), "os.link": (1,)}
_PATHS |= {"os.truncate": (0,), "shutil.rmtree": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,)}
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.spawn",
    "os.putenv",
    "subprocess.Popen",
    "socket.",
    "pickle.find_class",  # of every unpickler of the standard library, and all that are built upon it
)


class Watch:
    """An audit hook that notes what is written elsewhere than it may be, and every process or connection that is begun.

    Args:
        scratch: the folder for temporary files, where anything may be written.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.on = str(scratch), False
        self.work, self.writes = str(scratch), re.compile("")
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event.startswith(_FORBIDDEN):
            self.seen.append(event)
        elif event == "open" and isinstance(args[2], int) and args[2] & _WRITING and not isinstance(args[0], int):
            self._note(event, args[0])
        elif event in _PATHS:
            for i in _PATHS[event]:
                self._note(event, args[i], args[-1] if event not in ("os.truncate", "shutil.rmtree") else -1)

    def _note(self, event: str, path: Any, folder: Any = -1) -> None:
        if isinstance(path, int):
            return
        base = f"/proc/self/fd/{folder}" if isinstance(folder, int) and folder >= 0 else os.getcwd()
        above, name = os.path.split(os.path.join(os.path.realpath(base), os.fsdecode(path)).rstrip("/"))
        where = os.path.join(os.path.realpath(above), name)
        if not self.may_write(where) and where != os.devnull:
            self.seen.append(f"{event} {os.fsdecode(path)!r}")

    def may_write(self, where: str) -> bool:
        """Whether a reader may write to a path, which is without links but for its last part."""
        if Path(where).is_relative_to(self.scratch):
            return True
        return Path(where).is_relative_to(self.work) and bool(self.writes.fullmatch(os.path.relpath(where, self.work)))

    @contextlib.contextmanager
    def watching(self, work: Path, writes: str) -> Iterator[None]:
        """Look on; MisbehavedError if there was anything to see.

        Args:
            work, writes: below which folder may be written, and what; see `Reader`.
        """
        self.seen.clear()
        self.work, self.writes = str(work), re.compile(writes, re.DOTALL)
        self.on = True
        try:
            yield
        finally:
            self.on = False
        # Not every write is told to the hook: libraries that are not Python have their own ways.
        self.seen += [f"left {str(path)!r}" for path in work.rglob("*") if not self.may_write(str(path))]
        if self.seen:
            raise MisbehavedError(f"side effects: {self.seen[:5]}")


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    began, computed = time.monotonic(), time.process_time()

    def late(number: int, frame: FrameType | None) -> None:
        if time.process_time() - computed < SECONDS and time.monotonic() - began < WAITING:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            return
        raise _TooSlowError(f"still reading after {SECONDS} s of computing, or {WAITING} s of waiting")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _tree(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*"))


def fuzz(reader: Reader, examples: int, start: int, watch: Watch, base: Path) -> Figures:
    """Run a reader.

    Args:
        examples: how many inputs at most; fewer if there are no more.
        start: the seed of the inputs.
        base: a new folder.

    Raises:
        AssertionError, Exception: what the reader did wrong, with the smallest input that was found for it.
    """
    sentinels, work = base / "sentinels", base / "work"
    for folder in (sentinels, work, base / "seeds"):
        folder.mkdir(parents=True)
    (sentinels / "untouched").write_text("as it was")
    figures, before = Figures(), _tree(sentinels)
    cases = reader.cases(base / "seeds")

    def judge(case: Any) -> None:
        figures.inputs += 1
        shutil.rmtree(work)
        work.mkdir()
        with _in_time(), _measured(figures), watch.watching(work, reader.writes), _never_short_of_memory():
            try:
                reader.read(case, work)
            except InputError as error:
                figures.refused += 1
                said = str(error)
            else:
                said = ""
        assert said.isprintable(), "a message that a terminal cannot show"
        assert _tree(sentinels) == before, "a file outside the target was touched"
        assert {p.name for p in base.iterdir()} == {"sentinels", "work", "seeds"}, "a file outside the target was made"
        assert not any(Path(tempfile.gettempdir()).iterdir()), "a temporary file was left behind"
        assert "rco_fuzz_canary" not in sys.modules, "code was imported because a file named it"

    started = time.monotonic()
    for k in range(0, examples, _CHUNK):
        limited()
        one = settings(
            max_examples=min(_CHUNK, examples - k),
            deadline=None,
            database=None,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        seed(start + k)(one(given(cases)(judge)))()
    figures.seconds = time.monotonic() - started
    return figures


def _short_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from or in, says that there was no memory."""
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or cause in seen:
            continue
        seen.append(cause)
        waiting += [cause.__cause__, cause.__context__]
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM):
            return True
        if isinstance(cause, RuntimeError) and re.search("not enough memory|can't allocate|bad_alloc", str(cause)):
            return True
    return False


@contextlib.contextmanager
def _never_short_of_memory() -> Iterator[None]:
    """MisbehavedError if an InputError was made of a lack of memory, even of one that the reader has dealt with since."""
    make = InputError.__init__
    told: list[str] = []

    def made(self: InputError, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if _short_of_memory(sys.exception()):
            told.append(str(self))

    InputError.__init__ = made  # type: ignore[method-assign]
    try:
        yield
    except InputError as error:
        if _short_of_memory(error):
            told.append(str(error))
        raise
    finally:
        InputError.__init__ = make  # type: ignore[method-assign]
        if told:
            raise MisbehavedError(f"there was not enough memory: {told[0]}")


@contextlib.contextmanager
def _measured(figures: Figures) -> Iterator[None]:
    """Note how much memory was used at most, beside what was used before; MisbehavedError if that was too much."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is used now
    before = _peak_mib()
    try:
        yield
    finally:
        taken = _peak_mib() - before
        figures.most_mib = max(figures.most_mib, taken)
        if taken > MOST_MIB:
            raise MisbehavedError(f"it took {taken:.0f} MiB")


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def limited() -> None:
    """Leave this process `ROOM` more address space than it has taken by now."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))


@contextlib.contextmanager
def scene() -> Iterator[tuple[Path, Watch]]:
    """A folder that is this process's whole world, and a module on its path that nobody may import."""
    memory = Path("/dev/shm")  # thousands of small files, each flushed to disk: half the time would go into that
    there = memory if memory.is_dir() and shutil.disk_usage(memory).free > 2 * ROOM else None
    with tempfile.TemporaryDirectory(prefix="rco-fuzz-", dir=there) as name:
        world = Path(name).resolve()
        sys.dont_write_bytecode = True  # of what a reader imports
        (world / "code").mkdir()
        (world / "code" / "rco_fuzz_canary.py").write_text("def factory(**_):\n    raise SystemExit('ran')\n")
        (world / "tmp").mkdir()
        sys.path.append(str(world / "code"))
        tempfile.tempdir = str(world / "tmp")
        yield world, Watch(world / "tmp")
