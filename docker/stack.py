"""Start and stop the services of compose.yaml: `python docker/stack.py up`, `down`, `address`. Nothing need be installed."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rco.core.errors import InputError  # noqa: E402

COMPOSE, SETTINGS = ROOT / "docker" / "compose.yaml", ROOT / "docker" / ".env"
NEEDED = ("POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY")
PATIENCE = 300.0  # seconds until MLflow must answer; the first start makes its tables


def settings() -> dict[str, str]:
    """What docker/.env says, and over it the environment, as compose sees it."""
    lines = SETTINGS.read_text().splitlines() if SETTINGS.exists() else []
    pairs = (line.partition("=") for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {**{name.strip(): value.strip().strip("\"'") for name, _, value in pairs}, **os.environ}


def address() -> str:
    """Where clients on this machine find MLflow."""
    return f"http://127.0.0.1:{settings().get('MLFLOW_PORT') or 5000}"


def compose(command: str, *words: str) -> None:
    """Run a compose command.

    Raises:
        InputError: compose is not there, or a password is not set.
        subprocess.CalledProcessError: it failed, and has said why.
    """
    known = settings()
    for name in NEEDED:
        if not known.get(name):
            raise InputError(
                name, "", "is not set, and has no default", "Copy docker/env.example to docker/.env and fill it in"
            )
    options = ["--project-name", "rco", "--file", str(COMPOSE)]
    if SETTINGS.exists():
        options += ["--env-file", str(SETTINGS)]
    try:
        subprocess.run([*shlex.split(command), *options, *words], check=True)
    except FileNotFoundError:
        raise InputError("COMPOSE", command, "is not a command here", "Install docker compose, or name one") from None


def up(command: str) -> None:
    """Start everything; returns when MLflow answers.

    Raises:
        TimeoutError: it did not.
    """
    compose(command, "up", "--detach")
    deadline = time.monotonic() + PATIENCE
    while not _answers(f"{address()}/health"):
        if time.monotonic() > deadline:
            compose(command, "ps")
            raise TimeoutError(f"MLflow does not answer at {address()}; its log: {command} -f {COMPOSE} -p rco logs mlflow")
        time.sleep(1)


def _answers(place: str) -> bool:
    try:
        with urllib.request.urlopen(place, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Start and stop MLflow, PostgreSQL and the S3-compatible store.")
    parser.add_argument("action", choices=("up", "down", "address"))
    parser.add_argument("--compose", default="docker compose", help="the compose command")
    parser.add_argument("--more", default="", help="further words for `compose down`")
    given = parser.parse_args()
    try:
        if given.action == "up":
            up(given.compose)
            print(f"MLflow: {address()}\nuse it with: make run STACK=compose, or MLFLOW_TRACKING_URI={address()} rco run ...")
        elif given.action == "down":
            compose(given.compose, "down", *shlex.split(given.more))
        else:
            print(address())
    except InputError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"stack: {given.compose} ended with status {error.returncode}; the reason is above", file=sys.stderr)
        return 1
    except TimeoutError as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
