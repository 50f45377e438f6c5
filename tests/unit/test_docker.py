"""What docker/images.py and docker/stack.py decide without an engine; tests/images has the rest."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rco.core.errors import InputError

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    """A script of docker/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docker_{name}", ROOT / "docker" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


images, stack = script("images"), script("stack")


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("https://host.example/team/rco.git", "https://host.example/team/rco"),
        ("https://me:token@host.example/team/rco", "https://host.example/team/rco"),
        ("git@host.example:team/rco.git", "https://host.example/team/rco"),
        ("ssh://git@host.example:2222/team/rco.git", "https://host.example/team/rco"),
        ("/home/me/rco", ""),
        ("file:///home/me/rco", ""),
        ("../rco", ""),
        ("", ""),
    ],
)
def test_a_remote_becomes_a_public_address(remote: str, address: str) -> None:
    assert images.public_address(remote) == address


def test_a_tag_says_what_makes_a_build_differ() -> None:
    version = images.Version(content="0123456789ab", revision="fedcba987654-dirty", version="1", source="")
    assert version.tag("") == "0123456789ab-fedcba987654-dirty"
    assert version.tag("cpu", "x76543210") == "0123456789ab-fedcba987654-dirty-cpu-x76543210"
    unversioned = images.Version(content="0123456789ab", revision="", version="1", source="")
    assert unversioned.tag() == "0123456789ab"


def test_the_hash_of_a_package_is_of_what_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    (source / "nets").mkdir(parents=True)
    (source / "nets" / "__init__.py").write_text("x = 1\n")

    def copied(name: str) -> tuple[str, set[str]]:
        context = tmp_path / name
        context.mkdir()
        images._take_extra(source, context)
        files = {p.relative_to(context).as_posix() for p in context.rglob("*") if p.is_file()}
        return images.tree_hash(context / "package"), files

    first, files = copied("a")
    assert files == {"lent.sh", "package/nets/__init__.py"}
    (source / ".env").write_text("TOKEN=x")
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text("x")
    (source / "nets" / "__pycache__").mkdir()
    (source / "nets" / "__pycache__" / "x.pyc").write_text("x")
    assert copied("b") == (first, files)
    (source / "nets" / "__init__.py").write_text("x = 2\n")
    assert copied("c")[0] != first


@pytest.mark.parametrize("name", ["", "https://registry.example", "registry.example/Team", "registry.example/team:tag", "a b"])
def test_a_registry_is_a_name(name: str) -> None:
    with pytest.raises(InputError, match="is not a registry's name"):
        images.push(images.Engine(command="true", podman=False), name)


def test_nothing_is_pushed_that_was_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "RECORD", tmp_path / "image.json")
    with pytest.raises(InputError, match="Run make build-images first"):
        images.push(images.Engine(command="true", podman=False), "registry.example/team")


def test_podman_is_asked_for_the_digest_that_it_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = "sha256:" + "0" * 64
    podman = tmp_path / "podman"
    podman.write_text(f'#!/bin/sh\nif [ "$2" = --digestfile ]; then printf {digest} > "$3"; fi\n')
    podman.chmod(0o755)
    record = tmp_path / "image.json"
    monkeypatch.setattr(images, "RECORD", record)
    built = {"name": "rco-python", "tag": "t", "reference": "rco-python:t"}
    record.write_text(json.dumps({**built, "content": images.content_hash(), "mlflow": built}))
    pushed = images.push(images.Engine(command=str(podman), podman=True), "registry.example/team/")
    assert pushed["rco"]["reference"] == f"registry.example/team/rco-python@{digest}"
    noted: dict[str, Any] = json.loads(record.read_text())
    assert noted["reference"] == pushed["rco"]["reference"]
    assert noted["mlflow"] == pushed["mlflow"]


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "SETTINGS", tmp_path / ".env")
    monkeypatch.delenv("MLFLOW_PORT", raising=False)
    assert stack.address() == "http://127.0.0.1:5000"
    (tmp_path / ".env").write_text("# MLFLOW_PORT=1\nMLFLOW_PORT=5055\n")
    assert stack.address() == "http://127.0.0.1:5055"
    monkeypatch.setenv("MLFLOW_PORT", "5066")
    assert stack.address() == "http://127.0.0.1:5066"


@pytest.mark.parametrize("missing", stack.NEEDED)
def test_the_stack_asks_for_each_password(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "SETTINGS", tmp_path / ".env")
    for name in stack.NEEDED:
        monkeypatch.setenv(name, "" if name == missing else "x")
    with pytest.raises(InputError, match=f"{missing} = '': is not set"):
        stack.compose("true", "up")


def test_nothing_in_the_images_lets_mlflow_unpickle() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    shared = text[text.index("AS base") : text.index("AS mlflow")]
    assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false" in shared
    assert text.count("FROM base AS ") == 2, "both images have it"
    assert text.count("MLFLOW_ALLOW_PICKLE_DESERIALIZATION") == 1
    assert "MLFLOW_ALLOW_PICKLE_DESERIALIZATION" not in (ROOT / "docker" / "compose.yaml").read_text()


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ("postgresql://me:p%40ss@db:5432/mlflow?sslmode=require", "postgresql+psycopg2://me:p%40ss@db:5432/mlflow?sslmode=require"),
        ("postgres://db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("postgresql+psycopg2://db/mlflow", "postgresql+psycopg2://db/mlflow"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("postgresql://me:a b'\"$x@db/mlflow", "postgresql+psycopg2://me:a b'\"$x@db/mlflow"),
    ],
)  # fmt: skip
def test_the_image_of_mlflow_takes_postgresqls_plain_address(given: str, known: str) -> None:
    """SQLAlchemy 2.1 takes postgresql:// for psycopg 3; the image has psycopg2."""
    code = "import json, os, sys; print(json.dumps([os.environ['MLFLOW_BACKEND_STORE_URI'], *sys.argv[1:]]))"
    words = ["server", f"--backend-store-uri={given}", "--registry-store-uri", given, "--port", "5000"]
    done = subprocess.run(
        ["sh", str(ROOT / "docker" / "mlflow.sh"), sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", "MLFLOW_BACKEND_STORE_URI": given},
    )
    assert json.loads(done.stdout) == [
        *(known, "server", f"--backend-store-uri={known}", "--registry-store-uri", known, "--port", "5000")
    ]


def test_the_image_has_the_driver_that_its_entry_point_names() -> None:
    assert "psycopg2-binary" in (ROOT / "docker" / "mlflow-requirements.in").read_text().split()
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["sh", "/opt/mlflow/start.sh"]' in text
    copied = {word for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for word in line.split()}
    assert copied <= set(images._allowed()), ".dockerignore lets all of it into the build"
