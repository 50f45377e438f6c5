"""Build and push the images: `python docker/images.py build`, then `push`. Needs docker or podman, and nothing installed.

One tag for everything that a build makes: the content hash that caches go by (`components.image.content_hash`), then the git
revision, then what else makes it differ: `0123456789ab-fedcba987654-dirty-cpu-x76543210`. What was built is in
build/image.json, which `rco compile` reads:

    {"name": "rco-python", "tag": "...", "content": "0123456789ab", "reference": "NAME:TAG, or NAME@sha256:... once pushed",
     "mlflow": {"name": "rco-mlflow", "tag": "...", "reference": "..."}}
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from components.image import content_hash  # noqa: E402
from rco.core.errors import InputError  # noqa: E402

DOCKERFILE, EXTRA_DOCKERFILE = ROOT / "docker" / "Dockerfile", ROOT / "docker" / "extra.Dockerfile"
RECORD = ROOT / "build" / "image.json"
#: Target of the Dockerfile -> name of its image. KFP's subprocess runner wants "python" in the name of a Python image.
NAMES = {"rco": "rco-python", "mlflow": "rco-mlflow"}
#: What a build may be lent: the secret's name -> the variable that names the file, as pip, uv and OpenSSL know it.
LENT = {"ca": "SSL_CERT_FILE", "pip.conf": "PIP_CONFIG_FILE", "uv.toml": "UV_CONFIG_FILE"}
#: Of a user's package, what is neither hashed nor copied.
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "*.pyc", "*.egg-info", "build", "dist", "node_modules")
# What must hold in a container as on a cluster. What is installed is compared with what every distribution asks for, so that a
# user's package whose needs are not in the lock is found here and not after hours of training.
_SOUND = """
import importlib.metadata, os, sys
from packaging.requirements import Requirement
lacking = []
for found in importlib.metadata.distributions():
    for text in found.requires or ():
        need = Requirement(text)
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if not version or not need.specifier.contains(version, prereleases=True):
            lacking.append(f"{found.name} needs {need.name}{need.specifier}, and there is {version or 'none'}")
if os.getuid() == 0:
    lacking.append("the image's user is root")
if lacking:
    sys.exit("; ".join(lacking))
"""
_SOUND_RCO = """
import rco, rco.tasks.check, pipelines.cli.main, torch, torchvision, mlflow, kfp, onnx, onnxruntime, onnxscript
from components.image import content_hash
if content_hash() != sys.argv[1]:
    sys.exit(f"the image holds {content_hash()}, the checkout {sys.argv[1]}")
"""
_SOUND_MLFLOW = "import mlflow, psycopg2, boto3"


class EngineError(RuntimeError):
    """docker or podman did not do what it was asked; what it printed has been shown."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The command that builds, runs and pushes.

    Attributes:
        command: docker, podman, or the path of either.
        podman: it is podman, whatever its name.
    """

    command: str
    podman: bool

    @classmethod
    def of(cls, command: str) -> Engine:
        """Find the command and the engine behind it.

        Raises:
            InputError: there is no such command, or its engine does not answer.
        """
        if not shutil.which(command):
            raise InputError("DOCKER", command, "is not a command here", "Install docker or podman: make ... DOCKER=podman")
        version = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
        asked = subprocess.run([command, "info"], capture_output=True, text=True, check=False)
        if asked.returncode:
            reason = (asked.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError("DOCKER", command, f"has no engine that answers ({reason})", "Start it, or set DOCKER_HOST")
        return cls(command=command, podman="podman" in version.lower())

    def run(self, *words: str) -> None:
        """Run a command of the engine; what it prints is shown.

        Raises:
            EngineError: it failed.
        """
        # Engines older than 23 need to be told of the builder that knows --mount.
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        if code := subprocess.run([self.command, *words], env=environment, check=False).returncode:
            raise EngineError(f"{Path(self.command).name} {words[0]} ended with status {code}; the reason is above")

    def build(self, context: Path, dockerfile: Path, tag: str, arguments: dict[str, str], more: Sequence[str]) -> None:
        """Build one image, with what the environment lends."""
        words = ["build", "--file", str(dockerfile), "--tag", tag]
        for name, variable in LENT.items():
            if path := os.environ.get(variable):
                words += ["--secret", f"id={name},src={path}"]
        for name, value in arguments.items():
            words += ["--build-arg", f"{name}={value}"]
        self.run(*words, *more, str(context))

    def try_out(self, reference: str, *command: str) -> None:
        """Run a command as a cluster would: the image's own user, nothing writable but /tmp; no network."""
        self.run("run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp:mode=1777", reference, *command)

    def push(self, reference: str) -> str:
        """Push; returns the digest that the registry answers to."""
        repository = reference.rpartition(":")[0]
        if self.podman:
            with tempfile.TemporaryDirectory() as scratch:
                self.run("push", "--digestfile", f"{scratch}/digest", reference)
                return Path(scratch, "digest").read_text().strip()
        self.run("push", reference)
        said = subprocess.run(
            [self.command, "image", "inspect", "--format", "{{json .RepoDigests}}", reference],
            capture_output=True,
            text=True,
            check=True,
        )
        for known in json.loads(said.stdout):
            name, _, digest = known.partition("@")
            if name == repository:
                return str(digest)
        raise EngineError(f"{reference} was pushed, but the engine knows no digest of it")


@dataclass(frozen=True, kw_only=True)
class Version:
    """Where a build comes from.

    Attributes:
        content: hash of everything that decides what a task computes.
        revision: of git, "-dirty" if what goes into an image differs from it; "" outside a git checkout.
        version: of the project.
        source: address of the repository, without credentials; "" if it is not known.
    """

    content: str
    revision: str
    version: str
    source: str

    @classmethod
    def of_checkout(cls) -> Version:
        """What is there now."""
        inputs = [*_allowed(), "docker"]
        revision = _git("rev-parse", "--short=12", "HEAD")
        if revision and _git("status", "--porcelain", "--", *inputs):
            revision += "-dirty"
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        return cls(
            content=content_hash(),
            revision=revision,
            version=project["version"],
            source=public_address(_git("remote", "get-url", "origin")),
        )

    def tag(self, *variants: str) -> str:
        """The tag of a build; variants are what else makes it differ."""
        return "-".join(part for part in (self.content, self.revision, *variants) if part)


def _allowed() -> Iterator[str]:
    """What .dockerignore lets into a build."""
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            yield line[1:]


def _git(*words: str) -> str:
    """What git prints; "" if it fails or is not there."""
    try:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def public_address(remote: str) -> str:
    """A git remote as the address of a page, without credentials; "" for one that others cannot reach."""
    if found := re.fullmatch(r"[\w.-]+@([\w.-]+):(.+)", remote):
        remote = f"https://{found[1]}/{found[2]}"
    parts = urlsplit(remote)
    if parts.scheme not in ("http", "https", "ssh") or not parts.hostname:
        return ""
    return f"https://{parts.hostname}{parts.path.removesuffix('.git')}"


def tree_hash(folder: Path) -> str:
    """Hex digest (8 characters) of the names and contents of all files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:8]


def build(
    engine: Engine,
    *,
    targets: Sequence[str] = tuple(NAMES),
    base_image: str = "",
    torch_backend: str = "",
    extra: Path | None = None,
    more: Sequence[str] = (),
) -> dict[str, dict[str, str]]:
    """Build images and try them out; returns name, tag and reference of each. Both together are noted in build/image.json.

    Args:
        targets: of the Dockerfile.
        base_image: in place of the Dockerfile's.
        torch_backend: "cpu", "cu126", ...: PyTorch from its own index, in place of PyPI's build.
        extra: a user's package, added to the image without its dependencies.
        more: further words for `docker build`.

    Raises:
        InputError: extra is no folder, or is empty.
        EngineError: a build failed, or an image is not sound.
    """
    version = Version.of_checkout()
    base = {"BASE_IMAGE": base_image} if base_image else {}
    with tempfile.TemporaryDirectory() as scratch:
        context = Path(scratch)
        if extra:
            _take_extra(extra, context)
        tags = {target: version.tag(torch_backend if target == "rco" else "") for target in targets}
        for target, tag in tags.items():
            arguments = base | {"REVISION": version.revision or "unknown", "VERSION": version.version, "SOURCE": version.source}
            if target == "rco":
                arguments |= {"TORCH_BACKEND": torch_backend, "CONTENT": version.content}
            engine.build(ROOT, DOCKERFILE, f"{NAMES[target]}:{tag}", arguments, ["--target", target, *more])
        if extra and "rco" in tags:
            below, tags["rco"] = tags["rco"], version.tag(torch_backend, f"x{tree_hash(context / 'package')}")
            arguments = base | {"IMAGE": f"{NAMES['rco']}:{below}"}
            engine.build(context, EXTRA_DOCKERFILE, f"{NAMES['rco']}:{tags['rco']}", arguments, more)
    images = {
        target: {"name": NAMES[target], "tag": tag, "reference": f"{NAMES[target]}:{tag}"} for target, tag in tags.items()
    }
    if "rco" in images:
        engine.try_out(images["rco"]["reference"], "python", "-c", _SOUND + _SOUND_RCO, version.content)
        engine.try_out(images["rco"]["reference"], "rco", "--help")
    if "mlflow" in images:
        engine.try_out(images["mlflow"]["reference"], "python", "-c", _SOUND + _SOUND_MLFLOW)
    if set(images) == set(NAMES):
        _record(version.content, images)
    return images


def _take_extra(extra: Path, context: Path) -> None:
    """Copy a user's package and what its Dockerfile needs into a folder."""
    if not extra.is_dir() or not any(extra.iterdir()):
        raise InputError("EXTRA", str(extra), "is not a folder with a package", "Name the folder that holds pyproject.toml")
    shutil.copytree(extra, context / "package", ignore=IGNORED)
    shutil.copy(ROOT / "docker" / "lent.sh", context)


def push(engine: Engine, registry: str) -> dict[str, dict[str, str]]:
    """Push what was built last; returns name, tag and reference of each, now by digest, as build/image.json has them too.

    Args:
        registry: host, port and path below which the images go: "registry.example:5000/team".

    Raises:
        InputError: registry is no such name, nothing was built, or the code has changed since.
        EngineError: a push failed.
    """
    registry = registry.rstrip("/")
    if not re.fullmatch(r"[a-zA-Z0-9.-]+(:\d+)?(/[a-z0-9._-]+)*", registry):
        raise InputError("REGISTRY", registry, "is not a registry's name", "Write HOST[:PORT][/PATH], without https://")
    built = read_record()
    if built["content"] != content_hash():
        raise InputError("build/image.json", built["content"], "is an older state of the code", "Run make build-images first")
    pushed = {}
    for target, image in {"rco": built, "mlflow": built["mlflow"]}.items():
        name = f"{registry}/{NAMES[target]}"
        engine.run("tag", f"{NAMES[target]}:{image['tag']}", f"{name}:{image['tag']}")
        digest = engine.push(f"{name}:{image['tag']}")
        pushed[target] = {"name": name, "tag": image["tag"], "reference": f"{name}@{digest}"}
    _record(built["content"], pushed)
    return pushed


def read_record() -> dict[str, Any]:
    """build/image.json.

    Raises:
        InputError: there is none.
    """
    try:
        document: dict[str, Any] = json.loads(RECORD.read_text())
    except FileNotFoundError:
        raise InputError("build/image.json", str(RECORD), "does not exist", "Run make build-images first") from None
    return document


def _record(content: str, images: dict[str, dict[str, str]]) -> None:
    document = {**images["rco"], "content": content, "mlflow": images["mlflow"]}
    RECORD.parent.mkdir(exist_ok=True)
    fresh = RECORD.with_suffix(".new")
    fresh.write_text(json.dumps(document, indent=2) + "\n")
    fresh.replace(RECORD)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build and push the images.")
    parser.add_argument("action", choices=("build", "push", "tag"), help="tag prints what a build would be named now")
    parser.add_argument("--docker", default="docker", help="docker, podman, or the path of either")
    parser.add_argument("--only", choices=tuple(NAMES), help="build one image, and note nothing")
    parser.add_argument("--base-image", default="", help="in place of the Dockerfile's")
    parser.add_argument("--torch-backend", default="", help="cpu, cu126, ...: PyTorch from its own index")
    parser.add_argument("--extra", type=Path, help="folder of a package to add")
    parser.add_argument("--registry", default="", help="where to push: HOST[:PORT][/PATH]")
    parser.add_argument("--more", default="", help="further words for `docker build`")
    given = parser.parse_args()
    if given.action == "tag":
        print(Version.of_checkout().tag())
        return 0
    try:
        engine = Engine.of(given.docker)
        if given.action == "push":
            images = push(engine, given.registry)
        else:
            images = build(
                engine,
                targets=[given.only] if given.only else tuple(NAMES),
                base_image=given.base_image,
                torch_backend=given.torch_backend,
                extra=given.extra,
                more=shlex.split(given.more),
            )
    except InputError as error:
        print(f"images: {error}", file=sys.stderr)
        return 2
    except EngineError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    print("\n".join(image["reference"] for image in images.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
