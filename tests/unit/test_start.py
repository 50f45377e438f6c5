"""Weights to begin with: from wherever they lie, in whatever names, with their head or a new one; and fine-tuning."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from rco.core import download as downloads
from rco.core.errors import InputError
from rco.models import pretrained
from rco.models.build import build_network
from rco.models.config import StartConfig
from rco.models.head import head_paths
from rco.models.importing import read_network
from rco.models.keymaps import densenet
from rco.models.spec import NetworkSpec, load_network, save_network
from rco.tasks.settings import StartSettings
from rco.tasks.weights import check_start, initial_networks
from tests.in_process import Walk, changed, settings_of

DIGITS = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=10, image_size=8)
FAST = {
    **{"teacher": "digits-mlp", "student": "digits-mlp", "threads": 1, "workers": 0, "device": "cpu", "epochs": 1},
    **{"teacher_epochs": 1, "checkpoint_every": 1, "strategy": "explicit", "anchor_epochs": [1]},
}


def same(a: nn.Module, b: nn.Module, but: str = "nothing") -> bool:
    """Whether two networks have the same weights, but for those whose names begin so."""
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith(but))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Weights for these ten classes."""
    save_network(tmp_path / "trained.safetensors", DIGITS.build(7), DIGITS)
    return tmp_path / "trained.safetensors"


# --- the head ---


@pytest.mark.parametrize(
    "name",
    [
        "digits-cnn-s",
        "resnet8",
        "torchvision/squeezenet1_1",
        "torchvision/mobilenet_v3_small",
        "torchvision/shufflenet_v2_x0_5",
    ],
)
def test_the_head_is_what_depends_on_the_number_of_classes(name: str) -> None:
    shape: dict[str, Any] = {"in_channels": 3, "image_size": 64, "stem": "auto"}
    with torch.device("meta"):
        ten, eleven = (build_network(name, num_classes=k, **shape) for k in (10, 11))
    larger = eleven.state_dict()
    depends = {key.rpartition(".")[0] for key, tensor in ten.state_dict().items() if tensor.shape != larger[key].shape}
    assert set(head_paths(ten, 10)) == depends
    with pytest.raises(InputError, match="12 classes"):
        head_paths(ten, 12)


def test_an_embedding_before_the_classifier_is_of_the_head() -> None:
    network = build_network("digits-mlp", in_channels=1, num_classes=10, image_size=8, embedding_dim=6)
    assert head_paths(network, 10)[0].rpartition(".")[2] == "embedding"
    assert len(head_paths(network, 10)) == 2
    assert len(head_paths(build_network("digits-mlp", in_channels=1, num_classes=10, image_size=8), 10)) == 1


def test_a_network_without_layers_has_no_head() -> None:
    with pytest.raises(InputError, match="no linear layer"):
        head_paths(nn.Sequential(nn.Flatten(), nn.ReLU()))


# --- reading ---


@pytest.mark.parametrize("classes", [10, 4])
def test_a_new_head_leaves_the_body_as_it_was_trained(classes: int, tmp_path: Path) -> None:
    source = replace(DIGITS, num_classes=classes).build(7)
    torch.save({"model": {f"module.{name}": tensor for name, tensor in source.state_dict().items()}}, tmp_path / "w.pth")
    found = read_network(tmp_path / "w.pth", DIGITS, new_head=True, seed=3)
    (head,) = head_paths(found.model, 10)
    assert same(found.model, source, but=head)
    drawn = DIGITS.build(3).state_dict()
    assert all(torch.equal(found.model.state_dict()[name], drawn[name]) for name in drawn if name.startswith(head))
    assert not same(found.model, DIGITS.build(3))
    assert any("is new, for 10 classes" in note for note in found.notes)


def test_the_literatures_names_and_another_head() -> None:
    spec = NetworkSpec(model="resnet8", stem="auto", in_channels=3, num_classes=10, image_size=32)
    from rco.models.weights import load_content, namings_of

    theirs = namings_of(replace(spec, num_classes=100).build(1))[1]
    model = spec.build(2)
    load_content(model, dict(theirs), "w", image_size=32, but=head_paths(model, 10))
    assert same(model, replace(spec, num_classes=100).build(1), but=head_paths(model, 10)[0])


def test_a_head_that_is_the_whole_network_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onlyhead.py").write_text(
        "from torch import nn\ndef net(num_classes):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = replace(DIGITS, model="onlyhead:net")
    save_network(tmp_path / "w.safetensors", spec.build(0), spec)
    with pytest.raises(InputError, match="student_head = 'new': leaves nothing"):
        check_start("student", StartConfig(weights=str(tmp_path / "w.safetensors"), head="new"), spec)


def test_published_densenets_have_their_old_names() -> None:
    with torch.device("meta"):
        names = list(build_network("torchvision/densenet121", in_channels=3, num_classes=2, image_size=64).state_dict())
    found = densenet.key_map(names)
    assert found is not None
    assert found.names["features.denseblock1.denselayer1.norm1.weight"] == "features.denseblock1.denselayer1.norm.1.weight"
    assert found.names["classifier.bias"] == "classifier.bias"


# --- refusals, in words that name the role's parameters ---


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none.pth", r"teacher_weights = .*does not exist"),
        (lambda folder: folder, r"teacher_weights = .*folder without weights"),
        (lambda folder: _saved(folder, replace(DIGITS, num_classes=4)), r"are for 4 classes.*Set teacher_head = new"),
        (lambda folder: _saved(folder, replace(DIGITS, model="digits-cnn-s")), r"teacher_weights = .*another model"),
        (lambda folder: _written(folder, b"garbage"), r"teacher_weights = .*cannot be read as plain weights"),
        (lambda folder: "pretrained", r"teacher_weights = 'pretrained': says nothing for digits-mlp"),
        (lambda folder: "models:/nobody/1", r"teacher_weights = 'models:/nobody/1'.*Set MLFLOW_TRACKING_URI"),
    ],
)
def test_refused_in_words(make: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        check_start("teacher", StartConfig(weights=str(make(tmp_path))), DIGITS)


def _saved(folder: Path, spec: NetworkSpec) -> Path:
    save_network(folder / "w.safetensors", spec.build(0), spec)
    return folder / "w.safetensors"


def _written(folder: Path, content: bytes) -> Path:
    (folder / "w.pth").write_bytes(content)
    return folder / "w.pth"


def test_another_stem_is_named(tmp_path: Path) -> None:
    spec = NetworkSpec(model="torchvision/resnet18", stem="imagenet", in_channels=3, num_classes=3, image_size=32)
    start = StartConfig(weights=str(_saved(tmp_path, spec)))
    with pytest.raises(InputError, match=r"student_stem = 'auto': .*Set student_stem = imagenet"):
        check_start("student", start, replace(spec, stem="auto"))


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({"teacher_head": "new"}, "teacher_head = 'new': means nothing without weights"),
        ({"student_head": "fresh"}, "student_head = 'fresh'"),
        ({"student_weights": "s3://key:secret@bucket/w"}, "student_weights = 's3://...': holds credentials"),
        ({"route": "r", "teacher_weights": "w.pth"}, "teacher_weights = 'w.pth': means nothing beside route"),
        ({"body_lr_factor": 0}, "body_lr_factor = 0"),
        ({"teacher_body_lr_factor": -1}, "teacher_body_lr_factor = -1"),
    ],
)
def test_settings_that_cannot_work(flat: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        settings_of(flat)
    assert words in str(caught.value)


def test_weights_that_changed_since_the_check_are_refused(trained: Path) -> None:
    start = check_start("teacher", StartConfig(weights=str(trained)), DIGITS)
    assert start == StartSettings(weights=str(trained), head="keep", sha256=hashlib.sha256(trained.read_bytes()).hexdigest())
    ((_, model),) = initial_networks("teacher", start, DIGITS, (0,))
    assert same(model, DIGITS.build(7))
    save_network(trained, DIGITS.build(8), DIGITS)
    with pytest.raises(InputError, match=r"teacher_weights.*has changed since the check"):
        list(initial_networks("teacher", start, DIGITS, (0,)))


# --- a run ---


def test_the_weights_are_keys_of_the_tasks_that_begin_with_them(trained: Path) -> None:
    plain, started = settings_of(FAST), settings_of({**FAST, "student_weights": str(trained)})
    assert changed(plain, started) == {"init", "filing"}
    save_network(trained, DIGITS.build(8), DIGITS)
    assert changed(started, settings_of({**FAST, "student_weights": str(trained)})) == {"init"}
    teaching = settings_of({**FAST, "teacher_weights": str(trained)})
    assert changed(plain, teaching) == {"teacher", "filing"}
    assert "start" not in plain.outputs()["teacher"]


def test_a_run_begins_with_a_checkpoint_of_a_route_and_fine_tunes_it(tmp_path: Path) -> None:
    def walked(name: str, **more: Any) -> Walk:
        walk = Walk(tmp_path / name, **FAST, **more)
        walk.prepare()
        walk.teach()
        walk.follow()
        return walk

    first = walked("first")
    checkpoint = str(first.route / "epoch-0001.safetensors")
    # A rate that moves nothing shows where the training began; the head moves with another one.
    still = {"teacher_lr": 1e-1, "teacher_body_lr_factor": 1e-12, "lr": 1e-12, "teacher_weight_decay": 0.0}
    second = walked("second", teacher_weights=checkpoint, student_weights=checkpoint, student_head="new", **still)
    spec = replace(DIGITS, model="digits-mlp")
    before, tuned = (load_network(w.route / "epoch-0001.safetensors", spec=spec) for w in (first, second))
    (head,) = head_paths(before, 10)
    body = [name for name, _ in before.named_parameters() if not name.startswith(f"{head}.")]
    for name in body:
        torch.testing.assert_close(tuned.state_dict()[name], before.state_dict()[name], rtol=0, atol=1e-6)
    assert not torch.allclose(tuned.state_dict()[f"{head}.weight"], before.state_dict()[f"{head}.weight"], atol=1e-3)
    student = load_network(second.student / "student.safetensors", spec=spec).state_dict()
    for name in body:
        torch.testing.assert_close(student[name], before.state_dict()[name], rtol=0, atol=1e-5)
    torch.testing.assert_close(student[f"{head}.weight"], DIGITS.build(0).state_dict()[f"{head}.weight"], rtol=0, atol=1e-5)


def test_a_factor_of_one_is_the_training_without_it() -> None:
    from rco.objectives.stage import labels_only
    from rco.training.config import TrainConfig
    from rco.training.learner import Learner
    from rco.training.optimizers.state import FACTOR, make_optimizer

    learner = Learner(DIGITS.build(0), labels_only())
    (group,) = make_optimizer(learner, TrainConfig()).param_groups
    assert FACTOR not in group
    body, head = make_optimizer(learner, TrainConfig(body_lr_factor=0.1)).param_groups
    assert (body[FACTOR], head.get(FACTOR)) == (0.1, None)
    assert len(body["params"]) + len(head["params"]) == len(group["params"])
    assert [p.shape[0] for p in head["params"]] == [10, 10]


# --- published weights, from a server on the loopback interface ---


class _Server(BaseHTTPRequestHandler):
    """Serves `content`; of the first answers, `cut` break off after so many bytes."""

    content: ClassVar[bytes] = b""
    cut: ClassVar[list[int]] = []
    ranges: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        self.ranges.append(asked)
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if begin >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{len(self.content) - 1}/{len(self.content)}")
        self.send_header("Content-Length", str(len(self.content) - begin))
        self.end_headers()
        end = begin + self.cut.pop(0) if self.cut else len(self.content)
        self.wfile.write(self.content[begin:end])

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[_Server], str]]:
    handler = type("Handler", (_Server,), {"cut": [], "ranges": []})
    monkeypatch.setattr(downloads, "_PAUSE", 0.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=partial(serving.serve_forever, 0.01), daemon=True).start()
        yield handler, f"http://127.0.0.1:{serving.server_port}/file-{'0' * 8}.pth"
        serving.shutdown()


def test_a_download_goes_on_where_it_broke_off_and_is_whole(server: tuple[type[_Server], str], tmp_path: Path) -> None:
    handler, url = server
    handler.content, handler.cut = bytes(range(256)) * 40, [1000, 500]
    digest = hashlib.sha256(handler.content).hexdigest()
    path = downloads.download(url, tmp_path / "deep" / "file.pth", digest[:8])
    assert path.read_bytes() == handler.content
    assert handler.ranges == ["", "bytes=1000-", "bytes=1500-"]
    assert downloads.download("http://127.0.0.1:1/never", path, digest) == path  # it is there
    assert [each.name for each in path.parent.iterdir() if each.suffix == ".part"] == []


def test_what_was_left_of_another_file_is_not_kept(server: tuple[type[_Server], str], tmp_path: Path) -> None:
    handler, url = server
    handler.content = b"right" * 100
    digest = hashlib.sha256(handler.content).hexdigest()
    (tmp_path / ".f.pth.part").write_bytes(b"wrong" * 50)
    assert downloads.download(url, tmp_path / "f.pth", digest).read_bytes() == handler.content
    (tmp_path / ".g.pth.part").write_bytes(b"wrong" * 100)  # as long as the whole
    assert downloads.download(url, tmp_path / "g.pth", digest).read_bytes() == handler.content


def test_another_file_than_was_published_is_refused(server: tuple[type[_Server], str], tmp_path: Path) -> None:
    handler, url = server
    handler.content = b"something else"
    with pytest.raises(InputError, match=r"is not what was published: its sha256 does not begin with 00000000\. Put the file"):
        downloads.download(url, tmp_path / "f.pth", "0" * 8)
    assert not (tmp_path / "f.pth").exists()
    (tmp_path / "f.pth").write_bytes(b"by hand, wrong")
    with pytest.raises(InputError, match="is not the file that was published"):
        downloads.download(url, tmp_path / "f.pth", "0" * 8)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/w.pth", "file:///etc/passwd"])
def test_without_the_network_a_clear_word_and_where_to_put_the_file(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_PAUSE", 0.0)
    with pytest.raises(InputError) as caught:
        downloads.download(url, tmp_path / "w.pth", "0" * 8)
    assert "cannot be downloaded: " in str(caught.value)
    assert f"Put the file there yourself, as {tmp_path / 'w.pth'}" in str(caught.value)


def test_pretrained_weights_are_downloaded_checked_and_read_with_a_new_head(
    server: tuple[type[_Server], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = server
    spec = NetworkSpec(model="torchvision/squeezenet1_1", stem="imagenet", in_channels=3, num_classes=1000, image_size=64)
    source = spec.build(5)
    torch.save(source.state_dict(), tmp_path / "made.pth")
    handler.content = (tmp_path / "made.pth").read_bytes()
    digest = hashlib.sha256(handler.content).hexdigest()
    real = pretrained.published(spec.model, "student_weights")
    known = replace(real, url=url, sha256=digest[:8])
    monkeypatch.setattr(pretrained, "published", lambda *_: known)
    monkeypatch.setenv("RCO_WEIGHTS", str(tmp_path / "cache"))
    ours = replace(spec, num_classes=3)
    with pytest.raises(InputError, match=r"are for 1,000 classes.*Set student_head = new"):
        check_start("student", StartConfig(weights="pretrained"), ours)
    start = check_start("student", StartConfig(weights="pretrained", head="new"), ours)
    assert start is not None
    assert start.sha256 == digest
    ((_, model),) = initial_networks("student", start, ours, (0,))
    assert same(model, source, but="classifier.1")
    assert len(handler.ranges) == 1  # it is downloaded once


def test_every_network_of_torchvision_says_address_and_hash_of_its_weights() -> None:
    from rco.models.families import torchvision

    for name in torchvision.list_names():
        found = pretrained.published(f"torchvision/{name}", "teacher_weights")
        assert found.url.startswith("https://")
        assert len(found.sha256) >= 8
        assert len(found.mean) == len(found.std) == 3
        assert found.num_classes == 1000


def test_a_body_without_a_head_has_no_rate_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "headless.py").write_text(
        "from torch import nn\n\n\ndef net(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(192, num_classes), nn.Linear(num_classes, 10))\n"
        "    \n\ndef wide(num_classes):\n"
        "    body = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes + 2))\n"
        "    return nn.Sequential(body, nn.AdaptiveAvgPool1d(num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert settings_of({**FAST, "student": "headless:net", "body_lr_factor": 0.1})
    with pytest.raises(InputError, match=r"body_lr_factor = 0.1: the student's head is not found for 10 classes"):
        settings_of({**FAST, "student": "headless:wide", "body_lr_factor": 0.1})
