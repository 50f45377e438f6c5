"""Warm tasks: fork a task from a process that has imported PyTorch and MLflow, where KFP would start one that has yet to.

    process of `serve`  = the parent: imports, forks, reports how a task ended; computes nothing
      +- worker         = KFP runs the pipeline in it, and asks for tasks through a `Client`
      +- a task, a task = forked from the parent, each a process of its own

A fork copies one thread, so locks that others hold stay locked for ever: the parent has one thread and has not touched CUDA,
or it does not fork (`_unfit`), and the task starts cold. What a task must not share with its parent is made anew in `_begin`:
output, environment, signals, random state.

Variables of the environment:
    RCO_WARM   0: start every task cold
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
import runpy
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from rco.core.errors import InputError

SWITCH = "RCO_WARM"
_PATIENCE = 30.0  # seconds for a task to write a resume point, once its pipeline has gone
_PR_SET_PDEATHSIG = 1
#: What the parent ignores. It ends when its worker has: a signal to the group is for the worker and the tasks.
_IGNORED = (signal.SIGTERM, signal.SIGINT)

_EXECUTOR = "kfp.dsl.executor_main"
_SCRIPT = """program_path=$(mktemp -d)
printf "%s" "$0" > "$program_path/ephemeral_component.py"
_KFP_RUNTIME=true {python} -m {executor} --component_module_path "$program_path/ephemeral_component.py" "$@"
"""
#: Imported by the parent: what the worker needs too; what every task needs; and what some do, in the order in which they
#: come. A user's own modules are never among them: every task reads them as they are then.
FIRST = ("torch",)
ALWAYS = (
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "kfp.dsl.executor",
    "rco.comparison_tasks",
)
SOMETIMES = (
    "sklearn.datasets",
    "torchvision",
    "rco.api",
    "rco.models",
    "rco.augment",
    "safetensors.torch",
    "matplotlib.backends.backend_agg",
    "rco.report",
    "scipy.stats",
    "mlflow.pytorch",
    "torch.export._trace",
)

Request = Mapping[str, Any]


class RefusedError(RuntimeError):
    """The parent is in no state to fork; a task can start cold."""


def wanted() -> bool:
    """Whether tasks of this process are to start warm: on Linux, unless RCO_WARM=0. (On macOS, system libraries do not survive
    a fork; an old kernel, without pidfd_open, cannot say which child has ended.)

    Raises:
        InputError: RCO_WARM is neither 0 nor 1.
    """
    switch = os.environ.get(SWITCH, "") or "1"
    if switch not in ("0", "1"):
        raise InputError(SWITCH, switch, "must be 0 or 1", "0 starts every task of a local run cold")
    if switch == "0" or sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


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


def imports(names: Sequence[str]) -> list[Callable[[], None]]:
    """Functions that import a module each, without starting a thread."""
    return [partial(_import, name) for name in names]


def _import(name: str) -> None:
    # PyArrow's allocator would start a thread; KFP is imported as its executor imports it. What cannot be imported is left to
    # the task that needs it.
    variables = {"JE_ARROW_MALLOC_CONF": "background_thread:false", "_KFP_RUNTIME": "true"}
    with _variables(variables), contextlib.suppress(Exception):
        if name == "mlflow":
            from rco import tracking

            tracking.import_mlflow()
        else:
            importlib.import_module(name)


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set what is not set, for a while."""
    before = dict(os.environ)
    os.environ.update({**values, **before})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_component(request: Request) -> None:
    """Be KFP's executor of a lightweight component, as its command line would have it."""
    with TemporaryDirectory() as folder:
        program = Path(folder) / "ephemeral_component.py"
        program.write_text(request["source"])
        sys.argv = ["", "--component_module_path", str(program), *request["arguments"]]
        runpy.run_module(_EXECUTOR, run_name="__main__", alter_sys=True)


def start_tasks_through(client: Client) -> None:
    """Have KFP's subprocess runner ask `client` for its processes. What is not the command that KFP 2.17 makes for a
    lightweight component, or has variables of its own (libraries may read them when they are imported), starts cold."""
    from kfp.local import subprocess_task_handler as handler

    cold = handler.run_local_subprocess
    shell = ["sh", "-ec", _SCRIPT.format(python=sys.executable, executor=_EXECUTOR).split()]

    def run_local_subprocess(full_command: Sequence[str], env_vars: Mapping[str, str] | None = None) -> int:
        if env_vars or len(full_command) < 4 or [*full_command[:2], full_command[2].split()] != shell:
            return int(cold(full_command, env_vars))
        request = {
            "source": full_command[3],
            "arguments": list(full_command[4:]),
            "environment": {**os.environ, "_KFP_RUNTIME": "true"},
        }
        try:
            status = client.run(request, show=lambda line: print(line, end=""))
        except RefusedError as error:
            print(f"this task starts cold: {error}")
            return int(cold(full_command, env_vars))
        print("\n")
        return status

    handler.run_local_subprocess = run_local_subprocess
