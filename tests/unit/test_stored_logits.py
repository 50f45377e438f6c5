"""Stored logits: the same student as with logits computed anew, shared by content, refused when too large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rco.core.errors import InputError
from rco.core.tensors import save_arrays
from rco.data import augment
from rco.data.dataset import Dataset
from rco.models.spec import NetworkSpec
from rco.objectives.config import ObjectiveConfig
from rco.training.anchor import FOLDER, StoredLogits, check_size
from rco.training.config import TrainConfig
from rco.training.distillation import ProbeTargets, train_stage
from rco.training.loop import fit
from tests.conftest import CPU
from tests.losses import route_loss

NETWORK = NetworkSpec(model="digits-cnn-s", stem="auto", in_channels=1, num_classes=10, image_size=8)
TRAIN = TrainConfig(epochs=4, batch_size=100, augment="shift")


def anchor() -> nn.Module:
    network = NETWORK.build(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.mul_(0.3)  # type: ignore[union-attr]
    return network


def stored(data: Dataset, views: int = 2, **options: Any) -> StoredLogits:
    split = data.split("train")
    return StoredLogits(anchor=anchor(), train=split, augment="shift", views=views, compute=CPU, batch_size=128, **options)


class Anew(StoredLogits):
    """Nothing is stored: every batch's logits are computed from its own images."""

    def prepare(self, view: int) -> None:
        split = self.train
        draws = augment.view_draws(self.augment, len(split), view)
        images, _, _ = (
            torch.cat(list(p)) if i < 2 else None for i, p in enumerate(zip(*split.indexed_batches(512), strict=True))
        )
        self.view, self.draws, self.images = view, draws, images

    def logits(self, view: int, rows: Any) -> torch.Tensor:
        mean, std = self.train.manifest.mean[0], self.train.manifest.std[0]
        pixels = ((self.images[rows] * std + mean) * 255).round().to(torch.uint8)  # type: ignore[index]
        moved = augment.transformed(pixels, self.augment, self.draws[rows]).float()
        with torch.no_grad():
            answer: torch.Tensor = self.anchor((moved / 255 - mean) / std)
        return answer


def student(data: Dataset, anchor_logits: StoredLogits, epochs: int = 4) -> tuple[nn.Module, list[dict[str, float]]]:
    network = NETWORK.build(0)
    rows = list(fit(network, data.split("train"), route_loss(4.0, 16.0), TRAIN, CPU, epochs=epochs, anchor=anchor_logits))
    return network, rows


def test_looked_up_and_computed_logits_give_the_same_student(data: Dataset) -> None:
    anew = Anew(anchor=anchor(), train=data.split("train"), augment="shift", views=2, compute=CPU, batch_size=128)
    exact, half = stored(data, dtype=torch.float32), stored(data)
    rows = np.arange(100)
    for view in (0, 1):
        for logits in (anew, exact, half):
            logits.prepare(view)
        expected = anew.logits(view, rows)
        torch.testing.assert_close(exact.logits(view, rows), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(half.logits(view, rows), expected, rtol=1e-3, atol=1e-4)
    computed, losses = student(data, anew)
    for looked_up in (exact, half):
        other, rows_of_it = student(data, looked_up)
        assert [row["loss"] for row in rows_of_it] == pytest.approx([row["loss"] for row in losses], rel=2e-4)
        for name, tensor in computed.state_dict().items():
            # A ReLU's kink makes much of a rounding, on some processors already of the float32's.
            torch.testing.assert_close(other.state_dict()[name], tensor, rtol=2e-2, atol=2e-2)
    other, _ = student(data, stored(data, views=1))
    assert any((other.state_dict()[n].float() - t.float()).abs().max() > 0.05 for n, t in computed.state_dict().items()), (
        "with other views it is another student"
    )


def test_each_view_is_computed_once(data: Dataset) -> None:
    anchor_logits = stored(data, views=3)
    asked: list[int] = []
    anchor_logits.anchor.register_forward_hook(lambda *_: asked.append(1))
    student(data, anchor_logits)
    assert anchor_logits.computed == 3
    assert len(asked) == 3 * -(-len(data.split("train")) // 128)


def test_a_view_is_a_function_of_view_and_image() -> None:
    many, few = augment.view_draws("shift", 50, 1), augment.view_draws("shift", 20, 1)
    np.testing.assert_array_equal(many[:20], few)
    assert not np.array_equal(many, augment.view_draws("shift", 50, 2))


def test_views_come_back_whatever_the_seed_and_the_order(data: Dataset) -> None:
    def images(seed: int, epoch: int, view: int) -> torch.Tensor:
        split = data.split("train")
        found = list(split.indexed_batches(64, seed=seed, epoch=epoch, augment="shift", view=view))
        x, rows = torch.cat([x for x, _, _ in found]), np.concatenate([r for _, _, r in found])
        assert not np.array_equal(rows, np.sort(rows)), "the order is still random"
        return x[np.argsort(rows)]

    assert torch.equal(images(0, 1, 1), images(5, 7, 1))
    assert not torch.equal(images(0, 1, 1), images(0, 1, 2))


def test_logits_are_shared_by_content(data: Dataset, tmp_path: Path) -> None:
    first = stored(data, anchor_id="a", folder=tmp_path)
    student(data, first)
    assert first.computed == 2
    again, other = stored(data, anchor_id="a", folder=tmp_path), stored(data, anchor_id="b", folder=tmp_path)
    ours, theirs = student(data, again)[0].state_dict(), student(data, stored(data))[0].state_dict()
    assert again.computed == 0
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other.prepare(0)
    assert other.computed == 1, "another anchor's logits are others"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("damage", [b"", b"junk" * 50])
def test_damaged_or_foreign_files_are_made_again(data: Dataset, tmp_path: Path, damage: bytes) -> None:
    stored(data, anchor_id="a", folder=tmp_path).prepare(0)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    file.write_bytes(damage)
    again = stored(data, anchor_id="a", folder=tmp_path)
    again.prepare(0)
    assert (again.computed, file.read_bytes()) == (1, good)
    save_arrays(file, {"logits": np.zeros((3, 10), np.float16)})
    again = stored(data, anchor_id="a", folder=tmp_path)
    again.prepare(0)
    assert again.computed == 1


def test_the_stage_stores_them_and_shares_them(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    targets = ProbeTargets(*np.zeros((2, 64, 10), np.float32))

    def stage(seed: int, views: int) -> list[dict[str, Any]]:
        train = TrainConfig(epochs=3, batch_size=128, augment="shift", seed=seed)
        objective = ObjectiveConfig(views=views)
        return list(
            train_stage(
                NETWORK.build(seed),
                anchor(),
                data,
                objective,
                train,
                CPU,
                targets,
                stage=1,
                epochs=3,
                first_epoch=1,
                anchor_id="x",
            )
        )

    stage(0, 2)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(before) == 2
    rows = stage(1, 2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert rows[-1]["loss"] < rows[0]["loss"]
    stage(0, 0)
    assert len(list(tmp_path.iterdir())) == 2, "without views nothing is stored"


def test_too_many_are_refused_with_the_number_that_fits() -> None:
    assert check_size(4, 1000, 10) == pytest.approx(0.08)
    with pytest.raises(InputError, match=r"views = 1000000000: keeps .* GiB of logits \(50,000 images, 100 classes\)"):
        check_size(10**9, 50_000, 100)


@pytest.mark.parametrize(
    "objective", [{"objective": "hint", "student_tap": "a", "teacher_tap": "a"}, {"objective": "embedding", "lam": "1"}]
)
def test_objectives_that_need_features_refuse_them(objective: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"views = 2: keeps logits, but objective = "):
        ObjectiveConfig.of(views=2, **objective)
    with pytest.raises(InputError, match="views"):
        ObjectiveConfig(views=-1)
