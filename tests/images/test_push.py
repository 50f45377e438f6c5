"""`make push-images` against Debian's registry on the loopback interface: the digest that is noted is the registry's.

What is pushed is the small base image under the names of ours: compressing gigabytes would take minutes and prove no more.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.image import content_hash
from tests import servers
from tests.images.conftest import Checkout, Engine

TAG = "0123456789ab-fedcba987654"
_CONFIG = """
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("registry")
    port = servers.free_port()
    (folder / "config.yml").write_text(_CONFIG.format(folder=folder / "data", port=port))
    command = ["docker-registry", "serve", str(folder / "config.yml")]
    with servers.Server(command, lambda: servers.answers(f"http://127.0.0.1:{port}/v2/"), folder / "log"):
        yield f"127.0.0.1:{port}"


@pytest.fixture
def record(checkout: Checkout) -> Iterator[Path]:
    """build/image.json of a build of the code as it is."""
    path = checkout.root / "build" / "image.json"
    before = path.read_text() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    mlflow = {"name": "rco-mlflow", "tag": TAG, "reference": f"rco-mlflow:{TAG}"}
    own = {"name": "rco-python", "tag": TAG, "reference": f"rco-python:{TAG}"}
    path.write_text(json.dumps({**own, "content": content_hash(checkout.root), "mlflow": mlflow}))
    yield path
    if before is None:
        path.unlink()
    else:
        path.write_text(before)


def digest_at(registry: str, name: str) -> str:
    """What the registry itself calls the manifest of a tag."""
    place = f"http://{registry}/v2/team/{name}/manifests/{TAG}"
    accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
    with urllib.request.urlopen(urllib.request.Request(place, headers=accept, method="HEAD"), timeout=30) as response:
        return str(response.headers["Docker-Content-Digest"])


def test_the_digests_are_the_registrys(engine: Engine, checkout: Checkout, registry: str, record: Path) -> None:
    for name in ("rco-python", "rco-mlflow"):
        engine.docker("tag", checkout.base_image, f"{name}:{TAG}")
    # One more layer, or both images would have one digest.
    engine.docker("build", "-t", f"rco-mlflow:{TAG}", "-", input=f"FROM {checkout.base_image}\nLABEL x=y\n")
    said = checkout.make("push-images", f"REGISTRY={registry}/team")
    noted = checkout.record()
    digests = {name: digest_at(registry, name) for name in ("rco-python", "rco-mlflow")}
    assert len(set(digests.values())) == 2
    assert noted == {
        "name": f"{registry}/team/rco-python",
        "tag": TAG,
        "content": content_hash(checkout.root),
        "reference": f"{registry}/team/rco-python@{digests['rco-python']}",
        "mlflow": {
            "name": f"{registry}/team/rco-mlflow",
            "tag": TAG,
            "reference": f"{registry}/team/rco-mlflow@{digests['rco-mlflow']}",
        },
    }
    assert noted["reference"] in said
    # A cluster's view: nothing is there but the reference.
    for name in ("rco-python", "rco-mlflow"):
        engine.docker("rmi", f"{name}:{TAG}", f"{registry}/team/{name}:{TAG}")
    engine.docker("pull", noted["reference"])
    assert engine.run(noted["reference"], "python3", "-c", "print(6 * 7)") == "42\n"
    engine.docker("rmi", noted["reference"])


def test_an_older_build_is_not_pushed(checkout: Checkout, record: Path) -> None:
    record.write_text(json.dumps({**json.loads(record.read_text()), "content": "0" * 12}))
    said = checkout.make("push-images", "REGISTRY=127.0.0.1:1/team", check=False)
    assert "build/image.json = '000000000000': is an older state of the code. Run make build-images first" in said


def test_a_registry_that_is_not_there_is_an_error(engine: Engine, checkout: Checkout, record: Path) -> None:
    engine.docker("tag", checkout.base_image, f"rco-python:{TAG}")
    before = record.read_text()
    said = checkout.make("push-images", f"REGISTRY=127.0.0.1:{servers.free_port()}/team", check=False)
    assert "images: docker push ended with status 1; the reason is above" in said
    assert record.read_text() == before
