"""Real servers for tests: started on a free port of the loopback interface, stopped with everything they started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PATIENCE = 180.0  # seconds until a server must answer; it imports all of MLflow, perhaps on a busy machine


class ServerError(RuntimeError):
    """A server did not start; the message ends with what it printed."""


def free_port() -> int:
    """A port that nothing listens on, from the operating system."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running(command: Sequence[str], health: str, log: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Run a server for the length of a `with` block.

    Args:
        command: it must stay in the foreground. It leads a process group of its own, which is ended at the end.
        health: an address that answers 200 once the server is ready.
        log: file for what it prints.
        environment: added to this process's.

    Raises:
        ServerError: it ended, or did not answer in time.
    """
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}, start_new_session=True
        )
    try:
        _wait(process, health, log)
        yield
    finally:
        _end_group(process)


def _wait(process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not _answers(health):
        if process.poll() is not None:
            raise ServerError(f"{process.args!r} ended with status {process.returncode}:\n{_tail(log)}")
        if time.monotonic() > deadline:
            raise ServerError(f"{process.args!r} did not answer at {health} within {PATIENCE:.0f} s:\n{_tail(log)}")
        time.sleep(0.2)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-30:])


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


@contextlib.contextmanager
def mlflow_server(folder: Path, *, database: Path | None = None) -> Iterator[str]:
    """`mlflow server` with SQLite, which also serves the artifacts; gives its address.

    Args:
        folder: for the database, the artifacts and the log.
        database: one that exists, in place of a new one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{(database or folder / 'mlflow.db').resolve()}"]
    command += ["--serve-artifacts", "--artifacts-destination", str((folder / "artifacts").resolve())]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with running(command, f"{address}/health", folder / "server.log", quiet):
        yield address


@contextlib.contextmanager
def served_model(uri: str, tracking_uri: str, folder: Path) -> Iterator[str]:
    """`mlflow models serve`, in this environment and without pickle; gives its address.

    Args:
        uri: "models:/NAME/VERSION".
        folder: for the log.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {
        # MLflow starts its scoring server by name.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "MLFLOW_TRACKING_URI": tracking_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with running(command, f"{address}/health", folder / "serve.log", environment):
        yield address
