"""A container engine of the tests' own, a base image made here, and the project's images, built once for all tests.

Needs root, and Debian's docker.io, debootstrap and docker-registry. Nothing is pulled. What cannot start is a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = os.environ.get("DOCKER", "/usr/bin/docker")  # Debian's: it has the builder that its engine needs
CANARY = "canary-5f1c9e"  # lent to the build, and to be found in nothing that it makes
BASE = "python-standin:3.11"
_GIB = 2**30
_NEEDED_GIB = 17  # 14.3 were used at most when it was measured
# Taken when the tests start, before anything is removed from the environment.
_ENVIRONMENT = dict(os.environ)


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Print how long a step took."""
    started = time.monotonic()
    yield
    print(f"[images] {time.monotonic() - started:5.0f} s  {name}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Engine:
    """A running dockerd.

    Attributes:
        host: what DOCKER_HOST must be.
        environment: for every command that talks to it.
    """

    host: str
    environment: dict[str, str]

    def docker(self, *words: str, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run a docker command; a failure shows what it printed."""
        done = subprocess.run([DOCKER, *words], env=self.environment, capture_output=True, text=True, check=False, **more)
        assert not check or done.returncode == 0, f"docker {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done

    def run(self, image: str, *command: str, options: tuple[str, ...] = (), check: bool = True) -> str:
        """What a command prints in a container without a network, its root file system read-only."""
        confined = ("--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp:mode=1777")
        done = self.docker("run", *confined, *options, image, *command, check=check)
        return done.stdout + ("" if check else done.stderr)

    def inspect(self, image: str) -> dict[str, Any]:
        """What the engine knows of an image."""
        found: dict[str, Any] = json.loads(self.docker("image", "inspect", image).stdout)[0]
        return found


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """dockerd with its own socket, data and process id; no bridge, no firewall rules. RCO_ENGINE_HOME keeps its data."""
    kept = _ENVIRONMENT.get("RCO_ENGINE_HOME")
    home = Path(kept or tempfile.mkdtemp(prefix="rco-engine-", dir="/var/tmp"))
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    assert kept or free > _NEEDED_GIB * _GIB, f"the images need {_NEEDED_GIB} GiB in {home}, which has {free / _GIB:.0f}"
    host = f"unix://{home}/docker.sock"
    command = ["dockerd", "-H", host, "--data-root", f"{home}/data", "--exec-root", f"{home}/exec", "-p", f"{home}/docker.pid"]
    command += ["--bridge=none", "--iptables=false", "--ip6tables=false", "--storage-driver=overlay2"]
    with step("start the engine"), (home / "dockerd.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        running = Engine(host, {**_ENVIRONMENT, "DOCKER_HOST": host, "DOCKER_BUILDKIT": "1", "DOCKER": DOCKER})
        try:
            _await_engine(running, process, home / "dockerd.log")
        except BaseException:
            _end(process)
            raise
    try:
        yield running
    finally:
        with step("end the engine and remove what it kept"):
            _end(process)
            _unmount_below(home)
            if not kept:  # minutes on a slow disk; nobody has to wait for it
                subprocess.run(["setsid", "--fork", "rm", "-rf", "--one-file-system", str(home)], check=True)


def _await_engine(engine: Engine, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if process.poll() is None and engine.docker("info", check=False).returncode == 0:
            return
        if process.poll() is not None:
            break
        time.sleep(0.2)
    pytest.fail(f"dockerd did not start (is this root?):\n{log.read_text()[-3000:]}", pytrace=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)


def _unmount_below(home: Path) -> None:
    """dockerd leaves the mount of its network namespace behind."""
    places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([place for place in places if Path(place).is_relative_to(home)]):
        subprocess.run(["umount", place], check=True)


# What python:3.11-slim gives: Debian with Python, its venv module, ca-certificates, and pip below /usr/local.
_PIP = """
wheel=$(echo /usr/share/python-wheels/pip-*.whl)
PYTHONPATH=$wheel python3 -m pip install -q --break-system-packages --no-index --root-user-action ignore "$wheel"
rm -rf /var/cache/apt/* /var/lib/apt/lists/*
"""


@pytest.fixture(scope="session")
def base_image(engine: Engine) -> str:
    """A stand-in for python:3.11-slim, made by debootstrap; its archive is kept in the user's cache."""
    if engine.docker("image", "inspect", BASE, check=False).returncode == 0:
        return BASE
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rco"
    archive = cache / "python-standin-bookworm-1.tar"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with step("debootstrap a base image"), tempfile.TemporaryDirectory(dir=cache) as scratch:
            root, packed = Path(scratch) / "root", Path(scratch) / "packed.tar"
            packages = "--include=ca-certificates,python3,python3-venv"
            for command in (
                ["debootstrap", "--variant=minbase", packages, "bookworm", str(root)],
                ["chroot", str(root), "sh", "-euc", _PIP],
                [
                    "tar",
                    "-C",
                    str(root),
                    "--exclude=./dev/*",
                    "--exclude=./proc/*",
                    "--exclude=./sys/*",
                    "-cf",
                    str(packed),
                    ".",
                ],
            ):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            packed.rename(archive)
    with step("import the base image"):
        engine.docker("import", str(archive), BASE)
    return BASE


@dataclass(frozen=True)
class Checkout:
    """A copy of the working tree that tests may change.

    Attributes:
        root: its folder.
        revision: what it was copied from.
        lent: files with the canary in them, by the variable that names them.
    """

    root: Path
    revision: str
    lent: dict[str, str]
    engine: Engine
    base_image: str

    def make(self, target: str, *settings: str, check: bool = True) -> str:
        """Run make as a user would; returns what it printed."""
        environment = {**self.engine.environment, **self.lent, "RCO_BUILD_TOKEN": CANARY}
        command = ["make", target, f"PYTHON={sys.executable}", f"DOCKER={DOCKER}", f"BASE_IMAGE={self.base_image}"]
        done = subprocess.run(
            [*command, "ARGS=--network host", *settings],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout[-6000:]
        assert check or done.returncode != 0, "this had to fail\n" + done.stdout[-6000:]
        return done.stdout

    def record(self) -> dict[str, Any]:
        """build/image.json."""
        document: dict[str, Any] = json.loads((self.root / "build" / "image.json").read_text())
        return document


@pytest.fixture(scope="session")
def checkout(engine: Engine, base_image: str, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """The working tree as it is, in a git checkout of its own."""
    root = tmp_path_factory.mktemp("checkout") / "rco"
    subprocess.run(["git", "clone", "-q", "--no-checkout", str(ROOT), str(root)], check=True)
    subprocess.run(["git", "reset", "-q"], cwd=root, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    return Checkout(root, said.stdout.strip(), _lend(tmp_path_factory.mktemp("lent")), engine, base_image)


def _lend(folder: Path) -> dict[str, str]:
    """What this machine's builds need (authorities, settings of pip and of uv), each with the canary in it."""
    lent = {}
    for variable, name in {"SSL_CERT_FILE": "ca.pem", "PIP_CONFIG_FILE": "pip.conf", "UV_CONFIG_FILE": "uv.toml"}.items():
        known = Path(_ENVIRONMENT.get(variable) or ("/etc/ssl/certs/ca-certificates.crt" if name == "ca.pem" else os.devnull))
        text = known.read_text()
        (folder / name).write_text(f"# {CANARY}\n{text}")
        lent[variable] = str(folder / name)
    return lent


@dataclass(frozen=True)
class Built:
    """The images, built once.

    Attributes:
        record: build/image.json after the build.
        log: what the build printed.
    """

    engine: Engine
    record: dict[str, Any]
    log: str

    @property
    def rco(self) -> str:
        """Reference of the image that tasks run in."""
        return str(self.record["reference"])

    @property
    def mlflow(self) -> str:
        """Reference of the tracking server's image."""
        return str(self.record["mlflow"]["reference"])


@pytest.fixture(scope="session")
def built(engine: Engine, checkout: Checkout) -> Built:
    """`make build-images`."""
    with step("make build-images"):
        log = checkout.make("build-images")
    return Built(engine, checkout.record(), log)
