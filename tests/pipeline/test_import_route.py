"""`rco import-route`: what trainings leave behind becomes a route, or nothing."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import rco
from pipelines.cli.main import main
from rco.models.predict import predict
from rco.models.route import Route
from rco.models.spec import NetworkSpec
from tests.in_process import settings_of
from tests.literature import CLASSES, NETWORKS, shaken

SPEC = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=10, image_size=8)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Of a training that counts its epochs from 0."""
    folder = tmp_path / "saved"
    folder.mkdir()
    for epoch in (0, 4, 9):
        torch.save({"epoch": epoch, "model": SPEC.build(epoch).state_dict()}, folder / f"epoch_{epoch}.pt")
    torch.save({"model": SPEC.build(1).state_dict()}, folder / "best.pt")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of as many classes as the literature's networks have here."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"class{label:02d}").mkdir()
        for i in range(6):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label:02d}" / f"{i}.png")
    return folder


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, ["import-route", *map(str, words)])


def hint(done: Result) -> dict[str, Any]:
    """The parameters of the command in the last line."""
    assert done.exit_code == 0, done.output
    words = iter(shlex.split(done.output.splitlines()[-1].split("use it with: ")[1]))
    assert (next(words), next(words)) == ("rco", "run")
    return {flag.removeprefix("--").replace("-", "_"): next(words) for flag in words}


def test_a_folder_whose_epochs_are_counted_from_0(checkpoints: Path, tmp_path: Path) -> None:
    done = invoke(checkpoints, "--dataset=digits", "--teacher=digits-mlp", f"--output={tmp_path / 'my route'}")
    assert hint(done) == {"route": str(tmp_path / "my route"), "teacher": "digits-mlp", "dataset": "digits"}
    assert "left out, for they say no epoch: best.pt" in done.output
    assert "these epochs are counted from 0, a route's from 1: 0 is 1, and so on" in done.output
    assert Route.open(tmp_path / "my route").epochs == (1, 5, 10)
    for line in ("epoch 1: validation", "epoch 5: validation", "(epoch_9.pt)"):
        assert line in done.output


def test_some_epochs_of_a_folder(checkpoints: Path, tmp_path: Path) -> None:
    common = (checkpoints, "--dataset=digits", "--teacher=digits-mlp", f"--output={tmp_path / 'route'}")
    done = invoke(*common, "--epochs=4,8")
    assert done.exit_code == 2
    assert "epochs = 8: is not an epoch of the checkpoints in" in done.output
    assert "They are: 0, 4, 9" in done.output
    assert hint(invoke(*common, "--epochs=4,9"))
    assert Route.open(tmp_path / "route").epochs == (4, 9)


@pytest.mark.parametrize("more", [(), ("--teacher-embedding-dim=6", "--open-classes=7,8,9")])
@pytest.mark.parametrize("count", [1, 5])
def test_the_last_line_can_be_followed(more: tuple[str, ...], count: int, tmp_path: Path) -> None:
    spec = NetworkSpec(**{**SPEC.written, "num_classes": 7, "embedding_dim": 6}) if more else SPEC
    for epoch in range(1, count + 1):
        torch.save(spec.build(epoch).state_dict(), tmp_path / f"e{epoch}.pt")
    done = invoke(tmp_path, "--dataset=digits", "--teacher=digits-mlp", *more, f"--output={tmp_path / 'route'}")
    assert settings_of(hint(done)).teacher.route == str(tmp_path / "route")


def test_the_last_line_has_what_the_data_need(pictures: Path, tmp_path: Path) -> None:
    torch.save(NETWORKS["resnet8"]().state_dict(), tmp_path / "epoch_3.pth")
    data = (f"--dataset={pictures}", "--source=folder", "--image-size=32")
    done = invoke(tmp_path, *data, "--teacher=resnet8", f"--output={tmp_path / 'route'}")
    flat = hint(done)
    assert (flat["dataset"], flat["source"], flat["image_size"]) == (str(pictures), "folder", "32")
    settings_of(flat)


@pytest.mark.parametrize(("code", "name"), [("RepDistiller", "resnet8"), ("mdistiller", "wrn-16-1")])
def test_what_the_literature_s_code_saves(code: str, name: str, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    torch.manual_seed(0)
    theirs = [shaken(NETWORKS[name]()) for _ in range(2)]
    for epoch, network in zip((40, 120), theirs, strict=True):
        saved = {"epoch": epoch, "best_acc": torch.tensor(71.5), "optimizer": {"state": {}, "param_groups": [{"lr": 0.05}]}}
        if code == "RepDistiller":
            torch.save({**saved, "model": network.state_dict()}, folder / f"ckpt_epoch_{epoch}.pth")
            continue
        state = {f"module.student.{key}": tensor for key, tensor in network.state_dict().items()}
        torch.save({**saved, "model": state}, folder / f"epoch_{epoch}")
        torch.save({"model": network.state_dict()}, folder / f"student_{epoch}")
    if code == "mdistiller":
        torch.save({**saved, "model": state}, folder / "latest")
    done = invoke(folder, f"--dataset={pictures}", "--image-size=32", f"--teacher={name}", f"--output={tmp_path / 'route'}")
    assert done.exit_code == 0, done.output
    route = Route.open(tmp_path / "route")
    assert route.epochs == (40, 120)
    # The answers on the probe images are those of the literature's networks.
    data = rco.prepare_dataset(str(pictures), tmp_path / "data", image_size=32)
    for network, ours in zip(theirs, route.probe()[1], strict=True):
        wanted, _ = predict(network, data.probe(), device="cpu", precision="fp32", workers=0)
        np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_network_in_the_current_folder(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_mine.py").write_text(
        "from rco.models.build import build_network\ndef net(**kwargs):\n    return build_network('digits-mlp', **kwargs)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    done = invoke(checkpoints, "--dataset=digits", "--teacher=of_mine:net", "--output=route")
    assert hint(done) == {"route": "route", "teacher": "of_mine:net", "dataset": "digits"}
    settings_of(hint(done))
    sys.modules.pop("of_mine")


def test_a_failed_import_leaves_nothing(checkpoints: Path, tmp_path: Path) -> None:
    torch.save(NETWORKS["resnet8"]().state_dict(), checkpoints / "epoch_12.pt")
    before = sorted(tmp_path.rglob("*"))
    done = invoke(checkpoints, "--dataset=digits", "--teacher=digits-mlp", f"--output={tmp_path / 'a' / 'route'}")
    assert done.exit_code == 2
    assert "epoch_12.pt" in done.output
    assert "belong to another model" in done.output
    assert sorted(tmp_path.rglob("*")) == before
    (checkpoints / "epoch_12.pt").unlink()
    assert hint(invoke(checkpoints, "--dataset=digits", "--teacher=digits-mlp", f"--output={tmp_path / 'a' / 'route'}"))


def test_what_is_wrong_is_said_before_anything_is_prepared(checkpoints: Path, tmp_path: Path) -> None:
    common = ("--dataset=digits", "--teacher=digits-mlp")
    for words, more in (
        ("is missing", (tmp_path / "no", f"--output={tmp_path / 'route'}")),
        ("is not empty", (checkpoints, f"--output={checkpoints}")),
        ("are not in the names", (checkpoints / "best.pt", f"--output={tmp_path / 'route'}")),
    ):
        done = invoke(*common, *more)
        assert done.exit_code == 2
        assert words in done.output
        assert "preparing" not in done.output


def test_a_published_set_may_be_downloaded() -> None:
    assert "--download / --no-download" in invoke("--help").output


def test_a_teacher_of_another_input_is_imported_and_inspected(tmp_path: Path) -> None:
    saved = tmp_path / "epoch_3.pt"
    torch.save(
        NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=10, image_size=16).build(0).state_dict(), saved
    )
    out = tmp_path / "route"
    takes = ("--teacher-image-size", 16, "--teacher-image-mean", 0.5, "--teacher-image-std", 0.25)
    flat = hint(invoke(saved, "--output", out, "--dataset", "digits", "--teacher", "digits-mlp", *takes))
    assert not [name for name in flat if name.startswith("teacher_image")], "the route says it"
    route = Route.open(out)
    assert (route.network.image_size, route.mean, route.std) == (16, (0.5,), (0.25,))
    settings = settings_of({**flat, "device": "cpu"})
    assert settings.data.kept_size == 16
    shown = CliRunner().invoke(main, ["inspect", str(out)])
    assert "its teacher takes 16x16 grey images, normalised by mean 0.5, deviation 0.25" in shown.output
    assert "epoch 3: validation accuracy" in shown.output
    machine = json.loads(CliRunner().invoke(main, ["inspect", str(out), "--json"]).output)
    assert (machine["network"]["image_size"], machine["mean"], machine["crop"]) == (16, [0.5], 1.0)
    refused = CliRunner().invoke(main, ["inspect", str(out), "--image-size", "8"])
    assert "image_size = 8: means nothing for a route" in f"{refused.output}{refused.exception}"
