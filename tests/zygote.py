"""Local runs that are forked from a process which has imported all that they import.

A run of a few seconds would spend most of its time on imports, and a session of tests has dozens of runs. So each worker of
pytest has a zygote: `start` asks it to be `python -m pipelines.cli` or `python -m pipelines.local` in a fork. The fork has its
own session, environment, output and exit status, as a new process has; what it does from there is what users get. Runs that
start from nothing: those of tests/release, tests/chaos, tests/integration, and the cold one of tests/pipeline/test_local.py.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import runpy
import select
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from pipelines.local import fork_server, run, warm

#: Names the socket to those whom the zygote has forked.
ADDRESS = "TESTS_ZYGOTE"
#: All but KFP, which is another one in a task (_KFP_RUNTIME) than in who starts it.
MODULES = (
    *(name for name in (*warm.FIRST, *warm.ALWAYS, *warm.SOMETIMES) if not name.startswith("kfp")),
    *("pipelines.cli.main", "pipelines.display", "pipelines.local.work", "kubernetes.client", "google.protobuf.json_format"),
)


class Process:
    """What tests and `pipelines.local` use of a `subprocess.Popen`."""

    def __init__(self, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._channel = socket.socket(socket.AF_UNIX)
        self._channel.connect(os.environ[ADDRESS])
        reader, writer = os.pipe()
        socket.send_fds(self._channel, [b"."], [writer])
        os.close(writer)
        request = {"module": module, "arguments": [*arguments], "environment": {**environment}, "folder": os.getcwd()}
        self._channel.sendall(json.dumps(request).encode())
        self._channel.shutdown(socket.SHUT_WR)
        self.stdout = open(reader, encoding="utf-8", errors="replace")  # noqa: SIM115 (as Popen's, for who reads it to close)
        self._answers = self._channel.makefile()
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._channel], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._channel.close()
        return self.returncode

    def communicate(self) -> str:
        """Everything it says, once it has ended."""
        with self.stdout:
            said = self.stdout.read()
        self.wait()
        return said


def start(command: list[str], environment: Mapping[str, str]) -> Process:
    """Start `python -m MODULE ...`; output and errors come in one pipe."""
    assert command[:2] == [sys.executable, "-m"]
    return Process(command[2], command[3:], environment)


def cli(*arguments: str, **environment: str) -> Process:
    """Start the command `rco`."""
    return start([sys.executable, "-m", "pipelines.cli", *arguments], {**os.environ, **environment})


@contextlib.contextmanager
def running() -> Iterator[None]:
    """Have a zygote until the end of the block, and local runs started by it."""
    with tempfile.TemporaryDirectory() as folder:
        address = Path(folder) / "socket"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(address))
            listening.listen(16)
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.zygote", str(listening.fileno())],
                pass_fds=[listening.fileno()],
                env={**os.environ, ADDRESS: str(address), "PYTHONUNBUFFERED": "1"},
            )
        os.environ[ADDRESS] = str(address)
        before, run._start = run._start, start  # type: ignore[assignment]
        try:
            yield
        finally:
            run._start = before
            del os.environ[ADDRESS]
            process.terminate()
            process.wait()


def _serve(listening: socket.socket) -> None:
    for step in warm._imports(MODULES):
        step()
        fork_server._end_blas_threads()
    gc.freeze()
    logging.root.handlers.clear()  # of an import's: a run begins with none
    logging.root.setLevel(logging.WARNING)
    channels: dict[int, tuple[int, socket.socket]] = {}  # by pidfd
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listening.fileno():
                channel, _ = listening.accept()
                pid = _fork(channel, listening, channels)
                channel.sendall(f"{pid}\n".encode())
                pidfd = os.pidfd_open(pid)
                channels[pidfd] = pid, channel
                poll.register(pidfd, select.POLLIN)
            else:
                poll.unregister(descriptor)
                pid, channel = channels.pop(descriptor)
                os.close(descriptor)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with channel, contextlib.suppress(OSError):
                    channel.sendall(f"{status}\n".encode())


def _fork(channel: socket.socket, listening: socket.socket, others: Mapping[int, tuple[int, socket.socket]]) -> int:
    _, (output,), _, _ = socket.recv_fds(channel, 1, 1)
    request = json.loads(b"".join(iter(lambda: channel.recv(1 << 16), b"")))
    pid = fork_server._fork({})
    if not pid:
        os.setsid()
        fork_server.disown()
        for other in (listening, channel, *(other for _, other in others.values())):
            other.close()
        for stream in (1, 2):
            os.dup2(output, stream)
        for descriptor in (output, *others):
            os.close(descriptor)
        _be(**request)
    os.close(output)
    return pid


def _be(module: str, arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> NoReturn:
    status = 1
    try:
        os.chdir(folder)
        own = {ADDRESS: os.environ[ADDRESS]}
        os.environ.clear()
        os.environ.update({**environment, **own})
        sys.argv = ["", *arguments]
        sys.path[1:1] = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else bool(end.code)
    except BaseException:
        traceback.print_exc()
    fork_server.leave(status)


if __name__ == "__main__":
    run._start = start  # type: ignore[assignment]
    _serve(socket.socket(fileno=int(sys.argv[1])))
