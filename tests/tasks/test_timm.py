"""timm's networks by name: as teacher and as student, and their published weights."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from rco.core.errors import InputError
from rco.models import pretrained
from rco.models.build import build_network, check_network
from rco.models.config import StartConfig
from rco.models.head import head_paths
from rco.models.spec import NetworkSpec, load_network, save_network
from rco.tasks.preflight import code_digest
from rco.tasks.weights import check_start
from tests.in_process import Walk, settings_of

VIT, CNN = "timm/test_vit", "timm/test_efficientnet"  # the smallest that timm has
SHAPE: dict[str, Any] = {"in_channels": 1, "num_classes": 10, "image_size": 32}
FAST: dict[str, Any] = {
    **{"dataset": "digits", "image_size": 32, "threads": 1, "workers": 0, "device": "cpu", "teacher": VIT},
    **{"strategy": "explicit", "anchor_epochs": [1], "epochs": 1, "probe_size": 32},
    **{"test_fraction": 0.6},
}


def test_a_vision_transformer_teaches_cnns_route_and_all(tmp_path: Path) -> None:
    first = Walk(tmp_path / "ours", **FAST, teacher_epochs=1, checkpoint_every=1, student="digits-cnn-s")
    first.prepare()
    first.teach()
    first.follow()
    spec = NetworkSpec(model=VIT, stem="auto", **SHAPE)
    teacher = load_network(first.route / "epoch-0001.safetensors")  # built by its name alone
    assert teacher(torch.zeros(2, 1, 32, 32)).shape == (2, 10)

    second = Walk(tmp_path / "timm", **FAST, route=str(first.route), student=CNN)
    second.dataset = first.dataset
    second.teach()
    second.follow()
    student = load_network(second.student / "student.safetensors").state_dict()
    drawn = replace(spec, model=CNN).build(0).state_dict()
    assert student.keys() == drawn.keys()
    assert not torch.equal(student["classifier.weight"], drawn["classifier.weight"])


@pytest.mark.parametrize("name", [VIT, CNN, "timm/test_efficientnet.r160_in1k"])
def test_networks_take_classes_channels_and_size(name: str) -> None:
    check_network(name, **SHAPE)
    network, same = (build_network(name, **SHAPE, seed=1) for _ in range(2))
    weights = same.state_dict()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in network.state_dict().items())
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert head_paths(network, 10)
    embedding = build_network(name, **SHAPE, embedding_dim=6)
    assert head_paths(embedding, 10)[0].endswith(".embedding")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/tets_vit", "Did you mean 'timm/test_vit'"),
        ("timm/../x", "is not a network of timm"),
        ("timm/test_vit.nothing", "has no such tag. Name one of: timm/test_vit.r160_in1k"),
        ("timm/", "is not a network of timm"),
    ],
)
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_network(name, **SHAPE, parameter="teacher")
    assert caught.value.parameter == "teacher"


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(InputError, match=r"student = 'timm/test_vit'"):
        check_network(VIT, in_channels=1, num_classes=10, image_size=8, parameter="student")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"Install it: pip install 'rco\[timm\]'"):
        build_network(VIT, **SHAPE)


def test_its_version_is_a_key() -> None:
    import timm

    assert code_digest(VIT) == f"timm {timm.__version__}"
    assert code_digest("digits-mlp") == ""


# --- published weights ---


def test_addresses_are_asked_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    found = pretrained.published("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", "teacher_weights")
    assert found.url.endswith("/timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetensors")
    assert (found.mean, found.std, found.num_classes) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1000)
    with pytest.raises(
        InputError, match=r"teacher_weights = .*has no such tag. Name one of: timm/vit_tiny_patch16_384\.augreg"
    ):
        pretrained.published("timm/vit_tiny_patch16_384.nothing", "teacher_weights")
    monkeypatch.setenv("HF_ENDPOINT", "http://mirror/")
    assert pretrained.published(VIT, "teacher_weights").url.startswith("http://mirror/timm/test_vit")


def test_weights_from_the_hub_are_known_by_the_hash_that_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Any
) -> None:
    spec = NetworkSpec(model=CNN, stem="auto", in_channels=3, num_classes=1000, image_size=32)
    source = spec.build(4)
    save_network(tmp_path / "model.safetensors", source, spec)
    content = (tmp_path / "model.safetensors").read_bytes()
    digest = hashlib.sha256(content).hexdigest()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(302)
            self.send_header("X-Linked-ETag", f'"{digest}"')
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    monkeypatch.setenv("RCO_WEIGHTS", str(tmp_path / "cache"))
    start, ours = StartConfig(weights="pretrained", head="new"), replace(spec, num_classes=3)
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        found = check_start("teacher", start, ours)
        server.shutdown()
    assert found is not None
    assert found.sha256 == digest
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert check_start("teacher", start, ours) == found  # it lies there
    assert "cannot be asked for the hash" in said()
    monkeypatch.setenv("RCO_WEIGHTS", str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"teacher_weights = 'pretrained': cannot be asked .*Put the file there yourself, as"):
        check_start("teacher", start, ours)


def test_images_are_normalised_as_the_weights_were_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Any) -> None:
    for name in ("a", "b"):
        for i in range(20):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    from rco.tasks import weights

    monkeypatch.setattr(weights, "check_start", lambda *_: None)
    flat = {"dataset": str(tmp_path), "teacher": CNN, "teacher_weights": "pretrained", "teacher_head": "new"}
    data = settings_of(flat).data.data
    assert data.image_mean == ("0.485", "0.456", "0.406")
    assert data.image_std == ("0.229", "0.224", "0.225")
    assert f"images are normalised as for {pretrained.published(CNN, '').name}" in said()
    both = {**flat, "student": VIT, "student_weights": "pretrained", "student_head": "new"}
    settings = settings_of(both)
    assert settings.data.data.image_mean == ("0.5", "0.5", "0.5"), "as the student's weights were trained"
    assert settings.teacher.teacher_input is not None
    assert settings.teacher.teacher_input.image_mean == ("0.485", "0.456", "0.406"), "as the teacher's were"
    assert settings.filing.parameters["teacher_image_std"] == ["0.229", "0.224", "0.225"]
    assert settings_of({**both, "image_mean": "0.5", "image_std": "0.25"}).data.data.image_mean == ("0.5",)
