"""What cannot work is refused before it costs anything, and what can is resolved to settings that say all and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rco.config.filing import Filing
from rco.config.parameters import RunConfig
from rco.core.errors import InputError
from rco.core.settings import from_dict
from rco.models.route import Route
from rco.tasks.check import check
from rco.tasks.preflight import preflight
from rco.tasks.settings import BranchTasks, DataSettings, Settings, TeacherSettings
from tests.in_process import changed, run_of, settings_of, stages_needed


def settings(**flat: Any) -> Settings:
    return settings_of(flat)


def pictures(root: Path, classes: dict[str, int], size: int = 16) -> Path:
    rng = np.random.default_rng(0)
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({"dataset": "cifar11"}, "dataset = 'cifar11'"),
        ({"dataset": "mnist", "data_root": "/nonexistent"}, "download"),
        ({"teacher": "resnet33"}, "teacher = 'resnet33'"),
        ({"student": "vgg13"}, "student = 'vgg13'"),  # 8x8 images are too small for it
        ({"strategy": "equal-interval", "n_anchors": 12}, "n_anchors = 12: is more than the 11 checkpoints"),
        ({"strategy": "explicit", "anchor_epochs": [5, 40]}, "epoch 5 is not on the route"),
        ({"strategy": "explicit", "anchor_epochs": [4, 8]}, "converged teacher"),
        ({"first_epoch": 5}, "first_epoch = 5"),
        ({"epochs": 3, "warmup_epochs": 0}, "less than one epoch for each of 4 stages"),
        ({"epochs": 80, "milestones": [30, 60]}, "in stages of 20 epochs"),
        ({"epochs": 80, "warmup_epochs": 25}, "in stages of 20 epochs"),
        ({"route": "/nonexistent"}, "route = '/nonexistent'"),
        ({"route": "file:///nonexistent"}, "/nonexistent"),
        ({"route": "ftp://host/route"}, "route = 'ftp://...'"),
        ({"student": "nothere:Net"}, "student = 'nothere:Net'"),
        ({"epochs": float("inf")}, "epochs = inf: is not int"),
    ],
)
def test_refused_in_words(flat: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        settings(**flat)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1500


def write_route(folder: Path) -> None:
    """One checkpoint of a digits-mlp for seven classes."""
    from rco.models.route import Checkpoint
    from rco.models.spec import NetworkSpec, save_network

    spec = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=7, image_size=8)
    digest = save_network(folder / "a.safetensors", spec.build(0), spec)
    point = Checkpoint(epoch=3, lr=None, train_loss=None, val_accuracy=0.5, file="a.safetensors", sha256=digest)
    Route.write(
        folder,
        network=spec,
        data_digest="x",
        checkpoints=[point],
        decay_epochs=[],
        history=[],
        probe_labels=np.zeros(2, np.int64),
        probe_logits=np.zeros((1, 2, 7), np.float32),
    )


def test_a_route_of_another_teacher_or_other_images_is_refused_before_anything_runs(tmp_path: Path) -> None:
    write_route(tmp_path)
    flat = {"route": str(tmp_path), "n_anchors": 1, "epochs": 4}
    with pytest.raises(InputError, match=r"teacher = 'digits-cnn-l': is not what .*digits-mlp"):
        settings(**flat)
    with pytest.raises(InputError, match=r"10 classes of images with 1 channel': is not what .*7 classes"):
        settings(**flat, teacher="digits-mlp")
    with (tmp_path / "a.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="damaged"):
        settings(**flat, teacher="digits-mlp")


NET = """
from torch import nn
def net(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))
"""


@pytest.mark.parametrize(("file", "model"), [("edited.py", "edited:net"), ("edits/nets.py", "edits.nets:net")])
def test_an_edit_of_the_users_own_model_changes_the_settings_that_use_it(
    file: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(NET)
    before = settings(student=model)
    assert settings(student=model) == before
    # Beside the factory: it may be imported from there.
    (tmp_path / file).with_name("blocks.py").write_text("width = 3\n")
    after = settings(student=model)
    assert changed(after, before) == {"init", "distill", "evaluate"}


def test_folders_that_cannot_be_learnt_from(tmp_path: Path) -> None:
    one = pictures(tmp_path / "one", {"cat": 5})
    with pytest.raises(InputError, match="one class"):
        settings(dataset=str(one), teacher="resnet8", student="resnet8")
    few = pictures(tmp_path / "few", {"cat": 5, "dog": 1})
    with pytest.raises(InputError, match="dog"):
        settings(dataset=str(few), teacher="resnet8", student="resnet8")


def test_a_pipeline_without_room_is_refused_before_training() -> None:
    with pytest.raises(InputError, match="compiled with 2"):
        preflight(run_of({}), compiled={"student": 2})


def test_greedy_needs_room_for_its_maximum() -> None:
    assert stages_needed({"n_anchors": 6}) == 6
    assert stages_needed({"strategy": "lr-decay"}) == 3


def test_each_tasks_settings_change_with_what_it_uses_and_nothing_else() -> None:
    base = settings()

    def differ(**flat: Any) -> set[str]:
        return changed(settings(**flat), base) - {"filing"}

    assert differ(tau=2.0) == {"anchors", "distill", "evaluate"}
    assert differ(lr=0.01) == {"distill"}
    assert differ(teacher_lr=0.01) == {"teacher"}
    assert differ(val_fraction=0.3) == {"data"}
    assert differ(seed=3) == {"init", "anchors", "distill", "evaluate"}
    assert differ(experiment="other") == set()
    assert differ(delta=2.0) == {"anchors", "distill"}
    assert differ(threads=7) == {"teacher", "init", "distill", "evaluate"}


def test_nothing_is_left_open() -> None:
    compute = settings().teacher.compute
    assert compute.device != "auto"
    assert compute.precision != "auto"
    assert compute.threads > 0


def test_a_local_route_may_be_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rco.tasks.validate import existing_route

    monkeypatch.setenv("HOME", str(tmp_path))
    write_route(tmp_path)
    for route in (str(tmp_path), f"file://{tmp_path}", "~"):
        found = existing_route(RunConfig.from_flat({"route": route}))
        assert found is not None
        assert found.epochs == (3,)


def test_an_edit_of_the_data_changes_the_settings(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "data", {"cat": 10, "dog": 10})
    flat = {"dataset": str(folder), "teacher": "resnet8", "student": "resnet8"}
    before = settings(**flat)
    assert settings(**flat) == before
    victim = folder / "cat" / "3.png"
    stat, content = victim.stat(), bytearray(victim.read_bytes())
    content[-20] ^= 1
    victim.write_bytes(content)
    import os

    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time do not tell
    assert settings(**flat).data.source_digest != before.data.source_digest


def test_the_check_task_returns_settings_that_kubeflow_can_carry() -> None:
    flat = json.loads(json.dumps(RunConfig().to_flat()))
    outputs = json.loads(json.dumps(check(flat, compiled={"student": 4})))
    tasks = [f"{task}_student" for task in BranchTasks.__dataclass_fields__]
    assert set(outputs) == {"data", "teacher", "filing", *tasks}
    assert "null" not in json.dumps(outputs)
    given = settings()
    assert from_dict(DataSettings, outputs["data"]) == given.data
    assert from_dict(TeacherSettings, outputs["teacher"]) == given.teacher
    assert from_dict(Filing, outputs["filing"]) == given.filing
    branch = {task: outputs[f"{task}_student"] for task in BranchTasks.__dataclass_fields__}
    assert from_dict(BranchTasks, branch) == given.branches["student"]


class TestNotebook:
    def test_the_method_in_three_calls(self, tmp_path: Path) -> None:
        import rco
        from rco.strategies.config import AnchorConfig
        from rco.training.config import TrainConfig
        from tests.conftest import CPU

        data = rco.prepare_dataset("digits", tmp_path / "data", probe_size=50)
        train = TrainConfig(epochs=4, batch_size=128)
        route = rco.train_route(data, "digits-cnn-s", tmp_path / "route", train=train, checkpoint_every=2, compute=CPU)
        assert isinstance(route, Route)
        anchors = AnchorConfig.of(strategy="equal-interval", n_anchors=2)
        student, rows = rco.distill_student("digits-mlp", route, data, anchors=anchors, train=train, compute=CPU)
        assert not student.training
        assert [(row["stage"], row["anchor_epoch"]) for row in rows] == [(1, 2), (1, 2), (2, 4), (2, 4)]

    def test_a_teacher_may_be_a_module(self, tmp_path: Path) -> None:
        import torch
        from torch import nn

        import rco
        from rco.strategies.config import AnchorConfig
        from rco.training.config import TrainConfig
        from tests.conftest import CPU

        data = rco.prepare_dataset("digits", tmp_path / "data", probe_size=50)
        train = TrainConfig(epochs=2, batch_size=128)
        mine = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
        before = [p.detach().clone() for p in mine.parameters()]
        options = {"train": train, "checkpoint_every": 1, "compute": CPU}
        route = rco.train_route(data, mine, tmp_path / "route", **options)
        assert all(torch.equal(a, b) for a, b in zip(before, mine.parameters(), strict=True))
        assert route.history[-1]["val_accuracy"] > 2 * 0.1  # of ten classes
        # The training began with the module's own weights: another begins elsewhere.
        other = rco.train_route(data, nn.Sequential(*[*mine[:3], nn.Linear(16, 10)]), tmp_path / "other", **options)
        assert other.checkpoints[0].sha256 != route.checkpoints[0].sha256
        assert rco.train_route(data, mine, tmp_path / "again", **options).checkpoints == route.checkpoints
        learning = {"anchors": AnchorConfig.of(strategy="equal-interval", n_anchors=2), "train": train, "compute": CPU}
        _, rows = rco.distill_student("digits-mlp", route, data, teacher=mine, **learning)
        assert [row["anchor_epoch"] for row in rows] == [1, 2]
        assert all(torch.equal(a, b) for a, b in zip(before, mine.parameters(), strict=True))
        with pytest.raises(InputError, match="Name it as teacher= to say that it may run"):
            rco.distill_student("digits-mlp", route, data, **learning)
        with pytest.raises(InputError, match=r"weights = .* has (unknown|other shapes)|lacks"):
            rco.distill_student("digits-mlp", route, data, teacher=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), **learning)
        for wrong, words in (
            (nn.Linear(64, 10), "teacher = 'torch.nn.modules.linear:Linear': does not work with 1x8x8 images"),
            (nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), r"yields a tensor of shape \(2, 9\) for 2 images"),
        ):
            with pytest.raises(InputError, match=words):
                rco.train_route(data, wrong, tmp_path / "wrong", **options)

    def test_importing_rco_is_light(self) -> None:
        import subprocess
        import sys

        code = "import rco, sys; sys.exit(any(m in sys.modules for m in ('torch', 'mlflow', 'kfp', 'boto3', 'matplotlib')))"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_choosing_an_anchor_needs_neither_torch_nor_mlflow(self) -> None:
        import subprocess
        import sys

        code = (
            "import rco.tasks.selection, rco.strategies.walk, rco.models.route, sys;"
            "sys.exit(any(m in sys.modules for m in ('torch', 'mlflow', 'boto3', 'matplotlib', 'sklearn')))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
