"""A process that forks others on request, each of them as fresh as if it had just been started, but with its modules imported.

    process of `serve`  = the parent: imports, forks, reports how a task ended; computes nothing
      +- worker         = what `serve` was given to do; asks for tasks through a `Client`
      +- a task, a task = forked from the parent, each a process of its own, in the group and session of all

A fork copies one thread, so locks that others hold stay locked for ever: the parent has one thread and has not touched CUDA,
or it does not fork (`_unfit`). What a task must not share with its parent is made anew in `_begin`: output, environment,
signals, random state. Whichever of parent and worker is killed, the tasks get SIGTERM.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import math
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

_PATIENCE = 30.0  # seconds for a task to write a resume point, once its worker has gone
_PR_SET_PDEATHSIG = 1
#: What the parent ignores. It ends when its worker has: a signal to the group is for the worker and the tasks.
_IGNORED = (signal.SIGTERM, signal.SIGINT)

Request = Mapping[str, Any]


def possible() -> bool:
    """Whether this system can: Linux can. (On macOS, system libraries do not survive a fork; a kernel before 5.3, without
    pidfd_open, cannot say which child has ended.)"""
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


class RefusedError(RuntimeError):
    """The parent is in no state to fork; a task can start cold."""


def serve(
    work: Callable[[Client], int],
    task: Callable[[Request], None],
    *,
    before: Sequence[Callable[[], None]] = (),
    meanwhile: Sequence[Callable[[], None]] = (),
) -> int:
    """Run `work` in a child, and fork a task whenever it asks for one. Returns the exit status of `work`, in the parent alone:
    children leave by SystemExit.

    Args:
        task: what a forked process does with a request.
        before: imports, in the parent, before the first task; they leave no thread behind.
        meanwhile: likewise, whenever no task is asked for.

    Raises:
        RefusedError: this process has several threads; nothing has been forked.
    """
    _end_blas_threads()
    inherited = {number: signal.getsignal(number) for number in _IGNORED}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = _fork(inherited)
    if not worker:
        ours.close()
        sys.exit(work(Client(theirs)))
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    theirs.close()
    parent = _Parent(ours, worker, inherited, task)
    for step in before:
        if not parent.worker_has_ended:
            parent.prepare(step)
    return parent.run(meanwhile)


class Client:
    """The worker's end: asks for tasks, as many at a time as it has threads for."""

    def __init__(self, parent: socket.socket) -> None:
        self._parent = parent
        self._running: set[socket.socket] = set()

    @property
    def busy(self) -> bool:
        """Whether a task is at work."""
        return bool(self._running)

    def run(self, request: Request, show: Callable[[str], None]) -> int:
        """Have a task forked, show its output line by line, and return its exit status; of a signal: minus its number.

        Args:
            request: JSON; of its keys `environment` is the whole environment of the task.

        Raises:
            RefusedError: the parent does not fork.
            RuntimeError: the parent has gone.
        """
        ours, theirs = socket.socketpair()
        reader, writer = os.pipe()
        self._running.add(ours)
        try:
            with ours, open(reader, encoding="utf-8", errors="replace") as output:
                with theirs, open(writer, "wb"):
                    socket.send_fds(self._parent, [b"."], [theirs.fileno(), writer])
                ours.sendall(json.dumps(request).encode())
                ours.shutdown(socket.SHUT_WR)
                for line in output:
                    show(line)
                reply = json.loads(_everything(ours) or "null")
        except OSError as error:
            raise RuntimeError(f"the process that starts tasks has gone ({error})") from error
        finally:
            self._running.discard(ours)
        if reply is None:
            raise RuntimeError("the process that starts tasks has gone")
        if "refused" in reply:
            raise RefusedError(reply["refused"])
        return int(reply["status"])


class _Parent:
    """Forks on request and reports exit statuses, until the worker has ended and so has every task."""

    def __init__(
        self, requests: socket.socket, worker: int, signals: Mapping[signal.Signals, Any], task: Callable[[Request], None]
    ) -> None:
        self.requests, self.signals, self.task = requests, signals, task
        self.worker = os.pidfd_open(worker)
        self.children: dict[int, tuple[int, socket.socket | None]] = {self.worker: (worker, None)}  # by pidfd
        self.poll = select.poll()
        self.poll.register(requests, select.POLLIN)
        self.poll.register(self.worker, select.POLLIN)

    @property
    def worker_has_ended(self) -> bool:
        return bool(os.waitid(os.P_PIDFD, self.worker, os.WEXITED | os.WNOHANG | os.WNOWAIT))

    def prepare(self, step: Callable[[], None]) -> None:
        step()
        _end_blas_threads()
        gc.freeze()  # objects that the collector never visits stay in pages that all processes share

    def run(self, meanwhile: Sequence[Callable[[], None]]) -> int:
        steps = deque(meanwhile)
        status = None
        deadline = math.inf
        while self.children:
            left = 0.0 if steps else deadline - time.monotonic()
            events = self.poll.poll(None if math.isinf(left) else max(0.0, left) * 1000)
            if not events and steps:
                self.prepare(steps.popleft())
            elif not events:
                self._signal(signal.SIGKILL)
                deadline = math.inf
            for descriptor, _ in events:
                if descriptor == self.requests.fileno():
                    self._accept()
                elif descriptor == self.worker:  # nobody waits for the tasks any more
                    status = self._reap(descriptor)
                    self._signal(signal.SIGTERM)
                    steps.clear()
                    deadline = time.monotonic() + _PATIENCE
                else:
                    self._reap(descriptor)
        assert status is not None
        return status if status >= 0 else 128 - status

    def _signal(self, number: int) -> None:
        for descriptor in self.children:
            signal.pidfd_send_signal(descriptor, number)

    def _accept(self) -> None:
        _, descriptors, _, _ = socket.recv_fds(self.requests, 1, 2, socket.MSG_CMSG_CLOEXEC)
        if not descriptors:  # the worker's end is closed
            self.poll.unregister(self.requests)
            return
        channel, output = socket.socket(fileno=descriptors[0]), descriptors[1]
        try:
            pid = _fork(self.signals)
        except (RefusedError, OSError) as error:
            os.close(output)
            _everything(channel)  # what is unread when a socket is closed takes the answer with it
            _answer(channel, {"refused": str(error)})
            return
        if not pid:
            self._leave()
            _begin(self.task, channel, output)
        os.close(output)
        descriptor = os.pidfd_open(pid)
        self.children[descriptor] = pid, channel
        self.poll.register(descriptor, select.POLLIN)

    def _leave(self) -> None:
        """In a child: let go of what is the parent's. An end that a task held open would look alive when the parent is not."""
        self.requests.close()
        for descriptor, (_, channel) in self.children.items():
            os.close(descriptor)
            if channel:
                channel.close()

    def _reap(self, descriptor: int) -> int:
        pid, channel = self.children.pop(descriptor)
        self.poll.unregister(descriptor)
        os.close(descriptor)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if channel:
            _answer(channel, {"status": status})
        return status


def disown() -> None:
    """In a child: leave it to the parent to clear up, at the end, what it had before the fork."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        finalizer.atexit = False


def _unfit() -> str | None:
    """Why this process must not fork, if it must not."""
    threads = [Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in os.listdir("/proc/self/task")]
    if len(threads) > 1:
        return f"there are {len(threads)} threads in the process that starts tasks: {', '.join(threads)}"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "CUDA is in use in the process that starts tasks"
    return None


def _end_blas_threads() -> None:
    """OpenBLAS starts threads when it is loaded, ends them whenever its process forks, and starts them again when they are
    needed: a fork for nothing leaves us with one thread, and every task with all that it would have."""
    if len(os.listdir("/proc/self/task")) == 1:
        return
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)


def _fork(signals: Mapping[signal.Signals, Any]) -> int:
    """Fork; the child gets `signals`, and SIGTERM when its parent dies."""
    if problem := _unfit():
        raise RefusedError(problem)
    sys.stdout.flush()
    sys.stderr.flush()
    parent, before = os.getpid(), signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = -1
    try:
        pid = os.fork()
        if not pid:
            for number, handler in signals.items():
                signal.signal(number, handler)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def _begin(task: Callable[[Request], None], channel: socket.socket, output: int) -> NoReturn:
    """In a child: become a process as fresh as if it had just been started, and do what is asked."""
    status = 1
    try:
        disown()
        for stream in (1, 2):
            os.dup2(output, stream)
        os.close(output)
        with channel:
            request = json.loads(_everything(channel))
        os.environ.clear()
        os.environ.update(request["environment"])
        importlib.invalidate_caches()  # a module may have been written since the parent looked
        if "numpy" in sys.modules:  # `random` does this by itself; PyTorch begins with the same state in every process
            sys.modules["numpy"].random.seed()
        task(request)
        status = 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            status = end.code or 0
        else:
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    leave(status)


def leave(status: int) -> NoReturn:
    """End this process as the interpreter does, but for taking all modules apart: it costs seconds, and makes some of them
    complain."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are not daemons
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _answer(channel: socket.socket, reply: Mapping[str, Any]) -> None:
    with channel, contextlib.suppress(OSError):  # the worker may have gone
        channel.sendall(json.dumps(reply).encode())


def _everything(channel: socket.socket) -> bytes:
    return b"".join(iter(lambda: channel.recv(1 << 16), b""))
