"""Any objective can be the stage's: along a route, in the library and in the tasks, the same bits, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rco.config.parameters import RunConfig
from rco.core.errors import InputError
from rco.core.tensors import load_state, save_model
from rco.data.dataset import Dataset
from rco.models.route import Route
from rco.models.spec import NetworkSpec, load_network
from rco.objectives.base import OBJECTIVES
from rco.objectives.config import ObjectiveConfig
from rco.objectives.hint import Hint
from rco.objectives.make import make_objective
from rco.objectives.stage import StageLoss
from rco.strategies.config import AnchorConfig
from rco.tasks import students
from rco.training.anchor import LiveAnchor
from rco.training.config import TrainConfig
from rco.training.distillation import ProbeTargets, distill_route, train_stage
from rco.training.loop import fit
from rco.training.teacher import train_teacher
from tests.conftest import CPU
from tests.in_process import Walk, changed, settings_of

NETWORK = NetworkSpec(model="digits-cnn-s", stem="auto", in_channels=1, num_classes=10, image_size=8, embedding_dim=6)
ANCHORS = AnchorConfig.of(strategy="explicit", anchor_epochs=(1, 2))
TRAIN = TrainConfig(epochs=4, batch_size=256, augment="shift")
# From 8 channels of 8x8 to 16 of 4x4.
TAPS = {"student_tap": "stage1", "teacher_tap": "stage2"}


def config(name: str, **more: Any) -> ObjectiveConfig:
    own: dict[str, Any] = {"hint": TAPS, "at": TAPS, "embedding": {"lam": "0.1"}}.get(name, {})
    return ObjectiveConfig.of(**{"objective": name, **own, **more})


@pytest.fixture(scope="module")
def route(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Route:
    folder = tmp_path_factory.mktemp("route")
    list(train_teacher(data, NETWORK, TrainConfig(epochs=2, batch_size=128), CPU, checkpoint_every=1, folder=folder))
    return Route.open(folder)


def walked(route: Route, data: Dataset, objective: ObjectiveConfig, **more: Any) -> tuple[nn.Module, list[dict[str, Any]]]:
    student = NETWORK.build(0)
    options = {"anchors": ANCHORS, "train": TRAIN, **more}
    return student, list(distill_route(student, route, data, objective=objective, compute=CPU, **options))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestRoute:
    @pytest.mark.parametrize("name", OBJECTIVES.names)
    def test_two_stages_twice_are_the_same_to_the_last_bit(self, route: Route, data: Dataset, name: str) -> None:
        student, rows = walked(route, data, config(name))
        torch.rand(5)
        again, rows_again = walked(route, data, config(name))
        assert same(state(student), state(again))
        for row, other in zip(rows, rows_again, strict=True):
            assert {k: v for k, v in row.items() if k != "images_per_second"} == {
                k: v for k, v in other.items() if k != "images_per_second"
            }
        assert [row["anchor_epoch"] for row in rows] == [1, 1, 2, 2]
        assert rows[1]["loss"] < rows[0]["loss"]
        parts = {k for k in rows[0] if k.endswith("_loss")}
        assert "label_loss" in parts
        assert len(parts) >= 2
        assert all(row["loss"] == pytest.approx(sum(row[k] for k in parts)) for row in rows)

    def test_every_objective_leads_elsewhere(self, route: Route, data: Dataset) -> None:
        ends = [
            torch.cat([t.flatten().double() for t in state(walked(route, data, config(n))[0]).values()])
            for n in OBJECTIVES.names
        ]
        for i, a in enumerate(ends):
            assert all(not torch.equal(a, b) for b in ends[i + 1 :])

    def test_the_student_is_a_student_and_no_more(self, route: Route, data: Dataset) -> None:
        student, _ = walked(route, data, config("hint"))
        assert list(state(student)) == list(state(NETWORK.build(0)))
        assert all(not m._forward_hooks and not m._forward_pre_hooks for m in student.modules())

    def test_hint_alone_moves_what_lies_before_the_tap_and_nothing_else(self, route: Route, data: Dataset) -> None:
        student, _ = walked(
            route, data, config("hint", label_weight=0.0, lam="0"), train=TrainConfig(epochs=2, batch_size=256, weight_decay=0)
        )
        initial, final = state(NETWORK.build(0)), state(student)
        moved = {name.split(".")[0] for name in dict(student.named_parameters()) if not torch.equal(initial[name], final[name])}
        assert moved == {"stage1"}

    def test_student_learns_the_hint(self, route: Route, data: Dataset) -> None:
        _, rows = walked(
            route, data, config("hint"), anchors=AnchorConfig.of(n_anchors=1), train=TrainConfig(epochs=6, batch_size=64)
        )
        assert rows[-1]["hint_loss"] < 0.7 * rows[0]["hint_loss"]

    def test_a_teachers_own_weights_are_left_alone_by_taps(self, route: Route, data: Dataset, tmp_path: Path) -> None:
        anchor = load_network(route.folder / route.checkpoints[-1].file)
        before = save_model(tmp_path / "a.safetensors", anchor)
        student = NETWORK.build(0)
        stage(student, anchor, data, config("hint"))
        assert save_model(tmp_path / "b.safetensors", anchor) == before
        assert all(p.grad is None for p in anchor.parameters())
        assert all(not m._forward_hooks for m in anchor.modules())

    def test_kl_columns_and_hardness_stay_those_of_the_logits_at_tau(self, route: Route, data: Dataset) -> None:
        from rco.strategies.hardness import kl
        from rco.training.distillation import probe_logits

        student, rows = walked(route, data, config("standardised", tau=2.0))
        _, logits = route.probe()
        assert rows[-1]["kl_to_teacher"] == pytest.approx(kl(logits[-1], probe_logits(student, data, CPU), 2.0), rel=1e-4)


def stage(
    student: nn.Module,
    anchor: nn.Module,
    data: Dataset,
    objective: ObjectiveConfig,
    number: int = 1,
    loss: StageLoss | None = None,
) -> None:
    logits = np.zeros((64, 10), dtype=np.float32)
    targets = ProbeTargets(logits, logits)
    options = {"stage": number, "epochs": 2, "first_epoch": 2 * number - 1, "loss": loss}
    list(train_stage(student, anchor, data, objective, TRAIN, CPU, targets, **options))


class TestWhatAnObjectiveLearns:
    def test_goes_on_in_the_next_stage(self, route: Route, data: Dataset) -> None:
        hint = config("hint")
        anchors = [load_network(route.folder / c.file) for c in route.checkpoints]
        by_hand, fresh = NETWORK.build(0), NETWORK.build(0)
        loss = make_objective(hint, by_hand, anchors[0], data.manifest.image_shape, seed=TRAIN.seed)
        made = state(loss)
        stage(by_hand, anchors[0], data, hint, 1, loss)
        learnt = state(loss)
        assert not same(made, learnt), "the regressor is trained"
        stage(by_hand, anchors[1], data, hint, 2, loss)
        assert same(state(by_hand), state(walked(route, data, hint)[0]))
        # A regressor made anew in stage 2 leads elsewhere: what goes on matters.
        stage(fresh, anchors[0], data, hint, 1)
        stage(fresh, anchors[1], data, hint, 2)
        assert not same(state(fresh), state(by_hand))

    def test_is_made_of_the_trainings_seed(self, route: Route, data: Dataset) -> None:
        student, anchor = NETWORK.build(0), NETWORK.build(1)
        first, again, other = (
            state(make_objective(config("hint"), student, anchor, data.manifest.image_shape, seed=seed)) for seed in (1, 1, 2)
        )
        assert same(first, again)
        assert not same(first, other)

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_is_optimised_as_the_student_is(self, data: Dataset, optimizer: str) -> None:
        """One step written out: the regressor is in the same optimiser, at the same rate."""
        settings = TrainConfig.of(epochs=1, batch_size=len(data.split("train")), optimizer=optimizer, schedule="constant")
        student, anchor, twin = NETWORK.build(0), NETWORK.build(1).eval(), NETWORK.build(0)
        hint = config("hint", label_weight=0.0, lam="0", hint_weight=200.0)
        ours, theirs = (make_objective(hint, student, anchor, data.manifest.image_shape, seed=settings.seed) for _ in range(2))
        live = LiveAnchor(anchor, data.manifest.image_shape, CPU.device, ours.taps.anchor)
        list(fit(student, data.split("train"), ours, settings, CPU, epochs=1, anchor=live))
        parameters = [*twin.parameters(), *theirs.parameters()]
        made: Any = (
            torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
            if optimizer == "sgd"
            else torch.optim.AdamW(parameters, lr=0.05, weight_decay=5e-4)
        )
        ((x, _),) = data.split("train").batches(settings.batch_size, seed=0, epoch=1)
        twin.train()
        guided = nn.functional.adaptive_avg_pool2d(twin[0](x), 4)  # type: ignore[index]
        with torch.no_grad():
            hinted = anchor[1](anchor[0](x))  # type: ignore[index]
        (100 * nn.functional.mse_loss(theirs.own(guided), hinted)).backward()
        made.step()
        for name, tensor in state(theirs).items():
            torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-4, atol=3e-5)


FLAT: dict[str, Any] = {
    "teacher": "digits-cnn-s",
    "student": "digits-cnn-s",
    "teacher_embedding_dim": 6,
    "student_embedding_dim": 6,
    "epochs": 4,
    "batch_size": 256,
    "strategy": "explicit",
    "anchor_epochs": [1, 2],
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "workers": 0,
    "probe_size": 64,
}


class Stages(Walk):
    """The tasks of a run, by hand, as the components call them; the pipeline has room for three steps."""

    def __init__(self, folder: Path, digits: Path, route: Route, **parameters: Any) -> None:
        super().__init__(folder, **{**FLAT, "route": str(route.folder), **parameters})
        self.dataset, self.steps = digits, 3
        self.teach()
        self.init()

    def run(self, steps: int) -> None:
        for k in range(1, steps + 1):
            self.select(k)
            self.distil(k)

    def of_step(self, k: int) -> Path:
        return self.folder / f"students-{k}" / "seed-0"

    def weights(self, k: int, file: str = students.STUDENT) -> dict[str, Tensor]:
        return load_state(self.of_step(k) / file)[0]


class TestTasks:
    def test_the_regressor_goes_from_stage_to_stage_beside_the_student(
        self, digits: Path, route: Route, data: Dataset, tmp_path: Path
    ) -> None:
        stages = Stages(tmp_path, digits, route, objective="hint", **TAPS)
        stages.run(3)  # the third passes through
        assert not (stages.of_step(0) / students.OBJECTIVE).exists()
        first, second = stages.weights(1, students.OBJECTIVE), stages.weights(2, students.OBJECTIVE)
        assert set(first) == {"own.weight", "own.bias"}
        assert not same(first, second)
        assert same(stages.weights(3, students.OBJECTIVE), second), "a stage that passes the student through passes this too"
        assert set(stages.weights(2)) == set(NETWORK.build(0).state_dict()), "the student's file holds the student"
        # The tasks, each a process of its own, and the library, all in memory, are the same method.
        student, _ = walked(route, data, config("hint"), train=RunConfig.from_flat(FLAT).student_train)
        assert same(stages.weights(2), state(student))

    def test_a_regressor_that_was_lost_is_not_made_anew_in_silence(self, digits: Path, route: Route, tmp_path: Path) -> None:
        stages = Stages(tmp_path, digits, route, objective="hint", **TAPS)
        stages.run(1)
        (stages.student / students.OBJECTIVE).unlink()
        stages.select(2)
        with pytest.raises(InputError, match=r"objective\.safetensors.*is missing"):
            stages.distil(2)

    def test_objectives_that_learn_nothing_keep_nothing(self, digits: Path, route: Route, tmp_path: Path) -> None:
        stages = Stages(tmp_path, digits, route, objective="dkd")
        stages.run(1)
        assert sorted(p.name for p in stages.student.iterdir()) == [
            "inputs.json",
            "probe.safetensors",
            "record.json",
            "student.safetensors",
        ]


class TestPreflight:
    def refused(self, **flat: Any) -> str:
        with pytest.raises(InputError) as caught:
            settings_of({"objective": "hint", **flat})
        return str(caught.value)

    def test_taps_that_name_no_module_list_the_near_ones(self) -> None:
        message = self.refused(student_tap="stag2", teacher_tap="stage2")
        assert message.startswith("student_tap = 'stag2': names no module of the network. Did you mean 'stage2'")
        assert "stage1, stage2, pool, flatten, classifier" in message
        message = self.refused(student_tap="stage2", teacher_tap="input:stage9")
        assert message.startswith("teacher_tap = 'input:stage9': names no module of the network. Did you mean 'stage")

    def test_features_that_cannot_be_compared(self) -> None:
        message = self.refused(
            dataset="digits",
            image_size=32,
            student="torchvision/vit_b_32",
            student_tap="encoder",
            teacher="resnet8",
            teacher_tap="stage2",
        )
        assert (
            "student_tap = 'encoder': yields features of shape (2, 768), which cannot be compared with (32, 16, 16)" in message
        )

    def test_of_the_teacher_whose_route_is_given(self, route: Route) -> None:
        flat = {
            "route": str(route.folder),
            "teacher": "digits-cnn-s",
            "teacher_embedding_dim": 6,
            "student_tap": "stage2",
            "n_anchors": 2,
        }
        # digits-cnn-l has a third stage, this route's teacher has not.
        assert "teacher_tap = 'stage3': names no module" in self.refused(**flat, teacher_tap="stage3")
        flat |= {"objective": "hint", "teacher_tap": "stage2"}
        chosen = settings_of(flat).branches["student"].distill.stage.objective.objective
        assert chosen == Hint(student_tap="stage2", teacher_tap="stage2")

    def test_the_users_own_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "tapped_nets.py").write_text(
            "from torch import nn\ndef net(num_classes):\n"
            "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, num_classes))\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        flat = {"student": "tapped_nets:net", "teacher_tap": "stage2"}
        assert "student_tap = '3': names no module" in self.refused(**flat, student_tap="3")
        settings_of({"objective": "hint", **flat, "student_tap": "1"})

    def test_the_objective_is_a_matter_of_the_stage_alone(self) -> None:
        base = settings_of({})
        for flat in ({"objective": "dkd"}, {"objective": "dist", "dist_beta": 2.0}, {"label_weight": 0.5}):
            assert changed(settings_of(flat), base) == {"distill", "filing"}
