"""`stage_schedule`: one schedule and one optimiser over all stages, in the library and through the tasks, or none of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rco
from rco.config.branches import Comparison, make_branches
from rco.config.parameters import RunConfig
from rco.core.errors import InputError, UnusedError
from rco.core.files import sha256_of
from rco.data.dataset import Dataset
from rco.models.route import Route
from rco.models.spec import NetworkSpec
from rco.objectives.stage import labels_only
from rco.strategies.config import AnchorConfig
from rco.tasks.students import OPTIMIZER, load_optimizer, save_optimizer
from rco.tasks.validate import restarts, stages_on
from rco.training.config import TrainConfig
from rco.training.distillation import distill_route
from rco.training.loop import OneSchedule, fit
from rco.training.resume_points import ResumePoints
from rco.training.schedule import learning_rate
from rco.training.teacher import train_teacher
from tests.conftest import CPU
from tests.in_process import Walk

SPEC = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=10, image_size=8, embedding_dim=0)
TRAIN = TrainConfig(epochs=4, batch_size=256, augment="shift")
TWO = {"strategy": "explicit", "anchor_epochs": (1, 2)}
#: A run of two stages, in words.
FLAT: dict[str, Any] = {
    **{"teacher": "digits-mlp", "teacher_epochs": 2, "teacher_batch_size": 256, "checkpoint_every": 1},
    **{"student": "digits-mlp", "epochs": 4, "batch_size": 256, "strategy": "explicit", "anchor_epochs": [1, 2]},
    **{"device": "cpu", "precision": "fp32", "threads": 1, "workers": 0, "probe_size": 64},
}


@pytest.fixture(scope="module")
def route(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Route:
    folder = tmp_path_factory.mktemp("route")
    list(train_teacher(data, SPEC, TrainConfig(epochs=2, batch_size=256), CPU, checkpoint_every=1, folder=folder))
    return Route.open(folder)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(t, b.state_dict()[name]) for name, t in a.state_dict().items())


def walked(route: Route, data: Dataset, train: TrainConfig = TRAIN, **anchors: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
    student = SPEC.build(0)
    return student, list(distill_route(student, route, data, anchors=AnchorConfig.of(**anchors), train=train, compute=CPU))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_two_trainings_with_one_schedule_are_one_training(data: Dataset, optimizer: str) -> None:
    """The definition: if nothing but the cut happens between two stages, nothing happens."""
    train = TRAIN.with_values(optimizer=optimizer, lr=0.01, warmup_epochs=1.5)
    whole, cut, restarted = SPEC.build(0), SPEC.build(0), SPEC.build(0)
    split = data.split("train")
    rows = list(fit(whole, split, labels_only(), train, CPU, epochs=4))
    over, of_parts = OneSchedule(4), []
    for first in (1, 3):
        of_parts += fit(cut, split, labels_only(), train, CPU, epochs=2, first_epoch=first, one_schedule=over)
        list(fit(restarted, split, labels_only(), train, CPU, epochs=2, first_epoch=first))
    assert same(whole, cut)
    assert not same(whole, restarted)
    assert [row["lr"] for row in rows] == [row["lr"] for row in of_parts]


@pytest.mark.parametrize("strategy", [TWO, {"strategy": "greedy", "n_anchors": 2}, {"strategy": "worthy", "n_anchors": 2}])
def test_the_rate_is_that_of_one_training_whatever_the_strategy(route: Route, data: Dataset, strategy: dict[str, Any]) -> None:
    """A greedy search need not know its stages: all of them together have the student's epochs."""
    _, rows = walked(route, data, **strategy, stage_schedule="continuous")
    steps = -(-len(data.split("train")) // TRAIN.batch_size)
    rates = [learning_rate(TRAIN, step, steps_per_epoch=steps, epochs=4) for step in range(steps - 1, 4 * steps, steps)]
    assert [row["lr"] for row in rows] == rates
    assert len({row["stage"] for row in rows}) == 2


def test_restart_is_the_default_and_each_stage_then_has_the_whole_schedule(route: Route, data: Dataset) -> None:
    student, rows = walked(route, data, **TWO)
    named, _ = walked(route, data, **TWO, stage_schedule="restart")
    assert same(student, named)
    assert [row["lr"] for row in rows] == [row["lr"] for row in rows[:2]] * 2


class _KilledError(BaseException):
    pass


class _Mortal(ResumePoints):
    """Dies when it has written so many points."""

    lives = 10**9

    def keep(self) -> None:
        super().keep()
        _Mortal.lives -= 1
        if not _Mortal.lives:
            raise _KilledError


def test_an_interrupted_walk_goes_on_with_the_optimiser(
    route: Route, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"train": TRAIN, "anchors": AnchorConfig.of(**TWO, stage_schedule="continuous"), "compute": CPU}
    whole, _ = rco.distill_student("digits-mlp", route, data, **options)
    steps = -(-len(data.split("train")) // TRAIN.batch_size)
    monkeypatch.setattr("rco.api.ResumePoints", lambda *a, **k: _Mortal(*a, every=0, **k))
    for points in (2 * steps, 2 * steps + 1):  # the last of the first stage, and the first of the second
        monkeypatch.setattr(_Mortal, "lives", points)
        folder = tmp_path / str(points)
        with pytest.raises(_KilledError):
            rco.distill_student("digits-mlp", route, data, resume=folder, **options)
        again, _ = rco.distill_student("digits-mlp", route, data, resume=folder, **options)
        assert same(whole, again), points


def test_stages_that_are_tasks_of_their_own_hand_the_optimiser_on(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RCO_RESULTS", str(tmp_path / "results"))
    run = Walk(tmp_path / "run", **FLAT, stage_schedule="continuous")
    run.dataset = digits
    run.teach()
    run.follow()
    first, last = (tmp_path / "run" / f"students-{k}" / "seed-0" for k in (1, 2))
    assert (first / OPTIMIZER).is_file()
    assert not (last / OPTIMIZER).exists(), "nobody goes on with it"
    config = RunConfig.from_flat({**FLAT, "stage_schedule": "continuous"})
    student = NetworkSpec.of(config.student, Dataset.open(digits).manifest).build(0)
    walk = {"anchors": config.anchors, "train": config.student_train, "compute": config.compute}
    list(distill_route(student, Route.open(run.route), Dataset.open(digits), objective=config.objective, **walk))
    assert _weights(last).keys() == student.state_dict().keys()
    assert all(torch.equal(t, student.state_dict()[name]) for name, t in _weights(last).items()), "as in one process"

    before = sha256_of(last / "student.safetensors")
    again = Walk(tmp_path / "again", **FLAT, stage_schedule="continuous")
    again.dataset = digits
    monkeypatch.setattr("rco.training.distillation.train_stage", None)  # found, not trained
    again.teach()
    again.follow()
    assert (tmp_path / "again" / "students-1" / "seed-0" / OPTIMIZER).is_file()
    assert sha256_of(tmp_path / "again" / "students-2" / "seed-0" / "student.safetensors") == before


def _weights(folder: Path) -> dict[str, Tensor]:
    from rco.core.tensors import load_state

    return load_state(folder / "student.safetensors")[0]


def test_an_optimiser_that_is_missing_or_of_another_student_is_refused(data: Dataset, tmp_path: Path, digits: Path) -> None:
    with pytest.raises(InputError, match="is missing"):
        load_optimizer(tmp_path)
    save_optimizer(tmp_path, {"0": {"momentum_buffer": torch.zeros(3)}})
    over = OneSchedule(4, load_optimizer(tmp_path))
    with pytest.raises(InputError, match="of another training"):
        list(fit(SPEC.build(0), data.split("train"), labels_only(), TRAIN, CPU, epochs=2, first_epoch=3, one_schedule=over))
    from rco.core.tensors import save_state

    save_state(tmp_path / OPTIMIZER, {"0": torch.zeros(1)}, {"state": [1]})
    with pytest.raises(InputError, match="holds no state"):
        load_optimizer(tmp_path)


class TestSettings:
    def test_another_word(self) -> None:
        with pytest.raises(InputError, match=r"stage_schedule.*restart"):
            RunConfig.from_flat({"stage_schedule": "continous"})

    def test_a_warm_up_must_fit_into_a_stage_only_where_stages_restart(self) -> None:
        flat = {"strategy": "equal-interval", "n_anchors": 2, "epochs": 8, "warmup_epochs": 5}
        with pytest.raises(InputError, match="in stages of 4 epochs"):
            stages_on(RunConfig.from_flat(flat), (4, 8), ())
        assert stages_on(RunConfig.from_flat({**flat, "stage_schedule": "continuous"}), (4, 8), ()) == 2

    def test_baselines_have_no_stages_that_could_share_one(self) -> None:
        asked = {"branches": ["kd", "kd-restart", "equal-interval"], "stage_schedule": "continuous"}
        branches = {b.kind: b for b in Comparison.of(asked).branches}
        assert {k: b.config.anchors.stage_schedule for k, b in branches.items()} == {
            "kd": "restart",
            "kd-restart": "restart",
            "equal-interval": "continuous",
        }
        assert [b.name for b in branches.values()] == ["kd", "kd-restart", "equal-interval"]

    def test_a_sweep_has_one_baseline_for_both(self) -> None:
        kinds = ("kd", "kd-restart", "equal-interval")
        names = [b.name for b in make_branches({}, kinds, grid={"stage_schedule": ["restart", "continuous"]})]
        assert names == ["kd", "kd-restart", "equal-interval", "equal-interval stage_schedule=continuous"]

    def test_what_reaches_nothing_is_refused(self) -> None:
        with pytest.raises(UnusedError, match="stage_schedule"):
            Comparison.of({"branches": ["kd", "scratch"], "stage_schedule": "continuous"})

    def test_restarts_like_a_continuous_branch_still_restart(self) -> None:
        asked = {"branches": ["kd", "kd-restart", "equal-interval"], "stage_schedule": "continuous", "n_anchors": 2}
        by_kind = {b.kind: b for b in Comparison.of({**asked, "epochs": 8, "warmup_epochs": 5}).branches}
        with pytest.raises(InputError, match="in stages of 4 epochs"):
            restarts(by_kind["kd-restart"], (4, 8), ())
