"""The images as they are built: what is in them, what is not, and what a change costs."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import mlflow
import pytest

from components.image import content_hash
from tests import servers
from tests.images.conftest import CANARY, ROOT, Built, Checkout, Engine, step

BOTH = pytest.mark.parametrize("which", ["rco", "mlflow"])


@pytest.mark.parametrize("name", ["Dockerfile", "extra.Dockerfile"])
def test_hadolint_finds_nothing(name: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), str(ROOT / "docker" / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_record_names_content_and_revision(built: Built, checkout: Checkout) -> None:
    content = content_hash(ROOT)
    tag = built.record["tag"]
    assert built.record["content"] == content
    assert re.fullmatch(rf"{content}-{checkout.revision[:12]}(-dirty)?", tag)
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=checkout.root, capture_output=True, text=True, check=True)
    assert "-dirty" not in tag or changed.stdout
    assert built.record == {
        "name": "rco-python",
        "tag": tag,
        "content": content,
        "reference": f"rco-python:{tag}",
        "mlflow": {"name": "rco-mlflow", "tag": tag, "reference": f"rco-mlflow:{tag}"},
    }


@BOTH
def test_labels_and_user(built: Built, checkout: Checkout, which: str) -> None:
    config = built.engine.inspect(getattr(built, which))["Config"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.title"] == {"rco": "rco-python", "mlflow": "rco-mlflow"}[which]
    assert labels["org.opencontainers.image.revision"].startswith(checkout.revision[:12])
    assert labels["org.opencontainers.image.version"] == "0.2.0"
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels.get("rco.content") == {"rco": built.record["content"], "mlflow": None}[which]
    # A number, so that Kubernetes can see that it is not root.
    assert re.fullmatch(r"[1-9]\d{3,}:\d+", config["User"])


# Looks at the whole file system as root: what must be nowhere in it.
_SEARCH = r"""
find / -xdev -type f -perm /6000 | sed 's/^/setuid or setgid: /'
find / -xdev -perm -0002 ! -type l ! -path /tmp | sed 's/^/world-writable: /'
for tool in cc gcc c++ g++ clang make cmake cargo git uv pip pip3; do
    command -v "$tool" | sed 's/^/tool: /'
done
find / -xdev \( -name 'pip-*.dist-info' -o -name 'uv-*.dist-info' -o -name .cache -o -name '*.egg-info' \) \
    | sed 's/^/left over: /'
find /tmp /root /var/cache/apt /var/lib/apt/lists -type f ! -name .bashrc ! -name .profile | sed 's/^/left over: /'
find /opt ! -perm -0004 ! -type l | sed 's/^/unreadable for others: /'
(find /opt/rco /opt/extra -name '*.py'; find /opt/venv/lib/python3.*/site-packages -mindepth 2 -maxdepth 2 -name __init__.py) \
    2>/dev/null | while read -r source; do
    [ -e "$(dirname "$source")/__pycache__/$(basename "$source" .py).cpython-311.pyc" ] || echo "not compiled: $source"
done
"""


@BOTH
def test_nothing_gives_rights_away_and_nothing_is_left_over(built: Built, which: str) -> None:
    found = built.engine.run(getattr(built, which), "sh", "-c", _SEARCH, options=("--user", "0"))
    assert found == ""


def test_the_search_finds_what_it_looks_for(built: Built) -> None:
    plant = "chmod u+s /usr/bin/find; mkdir -m 777 /opt/open; printf x > /usr/bin/gcc; chmod 755 /usr/bin/gcc;"
    plant += " mkdir /opt/.cache; printf x > /root/x; printf x > /opt/rco/new.py; chmod 600 /opt/rco/new.py;"
    done = built.engine.docker("run", "--rm", "--network", "none", "--user", "0", built.rco, "sh", "-c", plant + _SEARCH)
    kinds = {line.split(":")[0] for line in done.stdout.splitlines()}
    assert kinds == {"setuid or setgid", "world-writable", "tool", "left over", "unreadable for others", "not compiled"}


def layers_with_canary(engine: Engine, reference: str) -> list[str]:
    """The files of an image's layers that hold the canary; what a later layer hides or removes is looked at too."""
    known = engine.inspect(reference)
    data = known["GraphDriver"]["Data"]
    folders = [data["UpperDir"], *data["LowerDir"].split(":")]
    assert len(folders) == len(known["RootFS"]["Layers"])
    with step(f"search {len(folders)} layers of {reference}"):
        done = subprocess.run(["grep", "-rlaF", CANARY, *folders], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


@BOTH
def test_what_the_build_was_lent_is_in_no_layer(built: Built, which: str) -> None:
    reference = getattr(built, which)
    assert CANARY not in built.log
    assert CANARY not in built.engine.docker("history", "--no-trunc", reference).stdout
    assert CANARY not in json.dumps(built.engine.inspect(reference))
    assert layers_with_canary(built.engine, reference) == []


def test_a_canary_in_the_history_would_be_found(built: Built, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {built.mlflow}\nUSER 0\nRUN echo {CANARY} > /opt/x && rm /opt/x\n")
    built.engine.docker("build", "--network", "none", "-t", "leaky", str(tmp_path))
    assert CANARY in built.engine.docker("history", "--no-trunc", "leaky").stdout


def test_a_canary_in_a_layer_would_be_found(built: Built, tmp_path: Path) -> None:
    # In two pieces, so that the history does not have it, and removed by a later layer, so that the image does not.
    plant = f"RUN printf %s%s {CANARY[:6]} {CANARY[6:]} > /opt/x"
    (tmp_path / "Dockerfile").write_text(f"FROM {built.mlflow}\nUSER 0\n{plant}\nRUN rm /opt/x\n")
    built.engine.docker("build", "--network", "none", "-t", "leaky-layer", str(tmp_path))
    assert CANARY not in built.engine.docker("history", "--no-trunc", "leaky-layer").stdout
    (found,) = layers_with_canary(built.engine, "leaky-layer")
    assert found.endswith("/opt/x")


def test_any_user_can_use_it(built: Built) -> None:
    program = "import os, getpass, tempfile, rco.tasks.check, mlflow, matplotlib.pyplot, torch._inductor.codecache;"
    program += "print(os.getuid(), getpass.getuser(), tempfile.gettempdir(), os.path.expanduser('~'))"
    said = built.engine.run(built.rco, "python", "-c", program, options=("--user", "1234567:0", "--cap-drop", "ALL"))
    assert said.split() == ["1234567", "rco", "/tmp", "/tmp"]


def test_the_command_and_all_three_packages_are_there(built: Built) -> None:
    assert "Usage: rco" in built.engine.run(built.rco)
    program = "import rco, components.image as i, pipelines.pipeline; print(i.IMAGE);"
    program += "print(rco.__file__, i.__file__, pipelines.__file__)"
    name, places = built.engine.run(built.rco, "python", "-c", program).splitlines()
    assert name == f"rco-python:{built.record['content']}"
    assert all(place.startswith("/opt/rco/") for place in places.split())


def test_what_is_installed_is_what_the_lock_says(built: Built) -> None:
    program = "import importlib.metadata as m; [print(d.name.lower().replace('_', '-').replace('.', '-'), d.version)"
    program += " for d in m.distributions()]"
    said = built.engine.run(built.rco, "python", "-c", program).split("\n")
    installed = {tuple(line.split()) for line in said if line}
    lock = (ROOT / "requirements.lock").read_text()
    locked = set(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))
    assert installed - locked == {("rco", "0.2.0")}
    assert {"torch", "torchvision", "mlflow", "kfp", "boto3"} <= {name for name, _ in installed}


def layers(engine: Engine, image: str) -> list[str]:
    found: list[str] = engine.inspect(image)["RootFS"]["Layers"]
    return found


def test_a_change_of_code_leaves_the_dependencies_alone(built: Built, checkout: Checkout) -> None:
    source = checkout.root / "rco" / "core" / "errors.py"
    before = source.read_text()
    try:
        source.write_text(before + "# changed\n")
        with step("make build-images after a change of code"):
            checkout.make("build-images")
        record = checkout.record()
    finally:
        source.write_text(before)
    assert record["content"] != built.record["content"]
    assert record["tag"].endswith("-dirty")
    old, new = layers(built.engine, built.rco), layers(built.engine, record["reference"])
    sizes = built.engine.docker("history", "--human=false", "--format", "{{.Size}}", record["reference"]).stdout.split()
    kept = sum(1 for a, b in zip(old, new, strict=True) if a == b)
    heavy = [i for i, size in enumerate(s for s in reversed(sizes) if int(s)) if int(size) > 10**9]
    assert len(heavy) == 1, "one layer holds all dependencies"
    assert heavy[0] < kept < len(new), "the same layers up to the dependencies, others after them"
    assert record["mlflow"]["tag"] == record["tag"]
    assert layers(built.engine, record["mlflow"]["reference"]) == layers(built.engine, built.mlflow)


PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "mynets"
version = "1"
dependencies = {needs}
[tool.setuptools]
package-dir = {{ "" = "src" }}
packages = ["mynets"]
"""
NET = """
import torch
class Net(torch.nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))
"""


def package(folder: Path, needs: list[str]) -> Path:
    (folder / "src" / "mynets").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT.format(needs=needs))
    (folder / "src" / "mynets" / "__init__.py").write_text("")
    (folder / "src" / "mynets" / "nets.py").write_text(NET)
    (folder / ".env").write_text(f"TOKEN={CANARY}\n")
    return folder


def model_of(built: Built, image: str) -> str:
    program = "from mynets.nets import Net; import mynets; print(sum(p.numel() for p in Net(10).parameters()), mynets.__file__)"
    return built.engine.run(image, "python", "-c", program)


def test_a_users_package_is_added(built: Built, checkout: Checkout, tmp_path: Path) -> None:
    folder = package(tmp_path / "mine", needs=["torch", "numpy>=1"])
    with step("make build-images EXTRA=..."):
        checkout.make("build-images", f"EXTRA={folder}")
    record = checkout.record()
    assert re.fullmatch(re.escape(built.record["tag"]) + "-x[0-9a-f]{8}", record["tag"])
    assert model_of(built, record["reference"]).split() == ["650", "/opt/extra/mynets/__init__.py"]
    assert layers(built.engine, record["reference"])[:-1] == layers(built.engine, built.rco)
    upper = built.engine.inspect(record["reference"])["GraphDriver"]["Data"]["UpperDir"]
    assert subprocess.run(["grep", "-rlaF", CANARY, upper], check=False).returncode == 1
    assert built.engine.run(record["reference"], "sh", "-c", _SEARCH, options=("--user", "0")) == ""


def test_a_package_that_needs_what_is_not_locked_is_refused(built: Built, checkout: Checkout, tmp_path: Path) -> None:
    said = checkout.make("build-images", f"EXTRA={package(tmp_path / 'mine', needs=['no-such-thing>=2'])}", check=False)
    assert "mynets needs no-such-thing>=2, and there is none" in said


def test_the_same_by_hand(built: Built, tmp_path: Path) -> None:
    package(tmp_path / "mine", needs=[])
    (tmp_path / "Dockerfile").write_text(f"FROM {built.rco}\nCOPY mine/src/mynets /opt/extra/mynets\n")
    built.engine.docker("build", "--network", "none", "-t", "by-hand", str(tmp_path))
    assert model_of(built, "by-hand").startswith("650 /opt/extra/mynets")


@pytest.mark.parametrize(
    ("target", "settings", "words"),
    [
        ("build-images", ["DOCKER=no-such-docker"], "DOCKER = 'no-such-docker': is not a command here"),
        ("build-images", ["EXTRA=/nonexistent"], "is not a folder with a package"),
        (
            "push-images",
            ["REGISTRY=https://registry.example"],
            "REGISTRY = 'https://registry.example': is not a registry's name",
        ),
        ("push-images", [], "REGISTRY = '': is not a registry's name"),
    ],
)
def test_bad_settings_are_one_line(checkout: Checkout, target: str, settings: list[str], words: str) -> None:
    said = checkout.make(target, *settings, check=False)
    assert words in said
    assert "Traceback" not in said


def test_an_engine_that_does_not_answer_is_named(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checkout.engine.environment, "DOCKER_HOST", "unix:///nonexistent.sock")
    assert "has no engine that answers" in checkout.make("build-images", check=False)


def test_the_tracking_server_answers(built: Built) -> None:
    port = servers.free_port()
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", "sqlite:////tmp/mlflow.db", "--artifacts-destination", "/tmp/artifacts"]
    confined = ["--network", "host", "--read-only", "--tmpfs", "/tmp:mode=1777", "--cap-drop", "ALL"]
    name = built.engine.docker("run", "--detach", *confined, built.mlflow, *command).stdout.strip()
    try:
        place = f"http://127.0.0.1:{port}"
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{place}/health", timeout=5) as response:
                assert response.read() == b"OK"
                break
            time.sleep(0.5)
        client = mlflow.MlflowClient(place)
        run = client.create_run(client.create_experiment("images"))
        client.log_text(run.info.run_id, "kept", "note.txt")
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
    finally:
        said = built.engine.docker("logs", name).stdout
        built.engine.docker("rm", "--force", name)
        print(said[-2000:])
