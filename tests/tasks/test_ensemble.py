"""A stage with several anchors: its target against float64 references, what it costs, what it refuses, what is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import fx, nn

from rco.config.branches import Comparison
from rco.core.errors import InputError
from rco.data.dataset import Dataset
from rco.evaluation.measured import read_evaluation
from rco.models.mean import MeanTarget, mean_logits
from rco.models.route import Route
from rco.models.spec import NetworkSpec
from rco.objectives.config import ObjectiveConfig
from rco.objectives.route import mimic_kl
from rco.strategies.config import AnchorConfig
from rco.strategies.hardness import mean_target
from rco.tasks.process import log
from rco.training.anchor import LiveAnchor, StoredLogits
from rco.training.config import TrainConfig
from rco.training.distillation import anchor_of, distill_route
from rco.training.lean import lean
from rco.training.teacher import train_teacher
from tests.conftest import CPU
from tests.in_process import Walk, settings_of

NETWORK = NetworkSpec(model="digits-cnn-s", stem="auto", in_channels=1, num_classes=10, image_size=8)
TRAIN = TrainConfig(epochs=3, batch_size=128, augment="shift")
SEEDS = (1, 2, 3)

numbers = st.integers(0, 2**32 - 1)
temperatures = st.floats(0.05, 1e4)


@pytest.fixture(scope="module")
def route(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Route:
    folder = tmp_path_factory.mktemp("route")
    train = TrainConfig.of(epochs=6, lr=0.05, batch_size=128, milestones=(4,))
    list(train_teacher(data, NETWORK, train, CPU, checkpoint_every=1, folder=folder))
    return Route.open(folder)


def softmax(z: NDArray[np.float64], tau: float) -> NDArray[np.float64]:
    """By the formula, of logits small enough for it."""
    e = np.exp((z - z.max(-1, keepdims=True)) / tau)
    result: NDArray[np.float64] = e / e.sum(-1, keepdims=True)
    return result


class TestTarget:
    @given(numbers, st.integers(1, 5), temperatures, st.floats(0.1, 50))
    def test_its_softened_probabilities_are_the_mean(self, seed: int, m: int, tau: float, size: float) -> None:
        logits = np.random.default_rng(seed).normal(size=(m, 4, 6)) * size
        target = mean_target(logits, tau)
        np.testing.assert_allclose(softmax(target, tau), softmax(logits, tau).mean(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(target.mean(-1), 0, atol=1e-9 * max(tau, size))
        by_torch = mean_logits(torch.from_numpy(logits), tau).numpy()
        np.testing.assert_allclose(by_torch, target, rtol=1e-9, atol=1e-9 * max(tau, size))

    @given(numbers, temperatures)
    def test_of_one_it_is_that_one(self, seed: int, tau: float) -> None:
        logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 4, 6)))
        target = mean_logits(logits, tau)
        torch.testing.assert_close(target, logits[0] - logits[0].mean(-1, keepdim=True), rtol=1e-7, atol=1e-9 * max(tau, 1))

    @given(numbers, st.floats(0.5, 20))
    def test_the_loss_is_the_kl_to_the_mean_in_float64(self, seed: int, tau: float) -> None:
        rng = np.random.default_rng(seed)
        anchors, student = rng.normal(size=(3, 5, 4)) * 3, rng.normal(size=(5, 4)) * 3
        p, q = softmax(anchors, tau).mean(0), softmax(student, tau)
        expected = (p * (np.log(p) - np.log(q))).sum(-1).mean()
        loss = mimic_kl(torch.from_numpy(student), mean_logits(torch.from_numpy(anchors), tau), tau)
        assert loss.item() == pytest.approx(expected, rel=1e-7, abs=1e-12)

    def test_extreme_logits_stay_finite(self) -> None:
        logits = torch.tensor([[[1e4, 0.0, -1e4]], [[-1e4, 0.0, 1e4]]])
        target = mean_logits(logits, 1.0)
        assert torch.isfinite(target).all()
        torch.testing.assert_close(torch.softmax(target, -1), torch.tensor([[0.5, 0.0, 0.5]]))


def networks() -> list[nn.Module]:
    return [NETWORK.build(seed) for seed in SEEDS]


def mean(data: Dataset, tau: float = 4.0) -> nn.Module:
    return lean(MeanTarget(networks(), tau), data.manifest.image_shape, "cpu")


class TestCost:
    def counted(self, anchor: nn.Module) -> list[int]:
        """Receives the number of images of every forward pass of a member."""
        asked: list[int] = []
        assert isinstance(anchor, MeanTarget)
        for network in anchor.networks:
            network.register_forward_hook(lambda _, inputs, __: asked.append(len(inputs[0])))
        return asked

    def test_looked_up_live_it_is_a_forward_pass_for_each(self, data: Dataset) -> None:
        anchor = LiveAnchor(MeanTarget(networks(), 4.0), data.manifest.image_shape, "cpu", tap="networks.0")
        asked = self.counted(anchor.network)
        anchor.output(torch.zeros(7, 1, 8, 8), np.arange(7), None)
        assert asked == [7, 7, 7]

    def test_kept_it_is_averaged_once(self, data: Dataset, tmp_path: Path) -> None:
        split = data.split("train")

        def stored() -> StoredLogits:
            more = {"compute": CPU, "batch_size": 128, "anchor_id": "mean", "folder": tmp_path}
            return StoredLogits(anchor=MeanTarget(networks(), 4.0), train=split, augment="shift", views=2, **more)

        kept = stored()
        for epoch in (1, 2, 3, 4):
            view = kept.prepare_epoch(epoch)
        assert kept.computed == 2, "a view is computed once, for all epochs"
        (file, _) = sorted(tmp_path.iterdir())
        assert file.stat().st_size < 1.1 * len(split) * 10 * 2 + 1000, "one set of logits, not one for each anchor"
        again = stored()
        again.prepare_epoch(1)
        assert again.computed == 0
        # What is looked up is what the networks say, to half precision.
        x, _, rows = next(iter(split.indexed_batches(64, augment="shift", view=view)))
        torch.testing.assert_close(
            kept.output(x, rows, view).logits, MeanTarget(networks(), 4.0).eval()(x).detach(), rtol=2e-3, atol=2e-2
        )

    def test_folding_reaches_every_member(self, data: Dataset) -> None:
        folded = mean(data)
        assert isinstance(folded, fx.GraphModule)
        run = [type(folded.get_submodule(str(node.target))) for node in folded.graph.nodes if node.op == "call_module"]
        assert run.count(nn.Conv2d) == 3 * 2
        assert nn.BatchNorm2d not in run
        x = torch.rand(5, 1, 8, 8)
        with torch.inference_mode():
            torch.testing.assert_close(folded(x), MeanTarget(networks(), 4.0).eval()(x), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({}, "3 anchors teach at once: every training image costs 3 forward passes of the teacher an epoch"),
            ({"views": 4}, "3 anchors teach at once: their answers to 4 views are computed once, 3 forward passes each"),
        ],
    )
    def test_the_check_says_so_beforehand(
        self, more: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        monkeypatch.setattr(log, "info", lambda message, *values: said.append(message % values))
        Walk(tmp_path, strategy="checkpoint-ensemble", members=3, teacher_schedule="multistep", device="cpu", **more)
        assert any(words in line for line in said)


class TestStudent:
    def walked(self, route: Route, data: Dataset, objective: ObjectiveConfig | None = None, **anchors: Any) -> Any:
        student = NETWORK.build(0)
        settings = {"anchors": AnchorConfig.of(**anchors), "objective": objective, "train": TRAIN, "compute": CPU}
        rows = list(distill_route(student, route, data, **settings))
        return student.state_dict(), rows

    def test_one_member_is_plain_distillation_from_it(self, route: Route, data: Dataset) -> None:
        ensemble, rows = self.walked(route, data, strategy="checkpoint-ensemble", members=1, members_to=6)
        plain, expected = self.walked(route, data, strategy="explicit", anchor_epochs=(6,))
        for name, tensor in plain.items():
            assert torch.equal(ensemble[name], tensor)
        assert [row["kl_to_anchor"] for row in rows] == [row["kl_to_anchor"] for row in expected]

    def test_several_are_one_stage_with_one_schedule(self, route: Route, data: Dataset) -> None:
        ensemble, rows = self.walked(route, data, strategy="checkpoint-ensemble", members=3)
        assert [(row["stage"], row["anchor_epochs"]) for row in rows] == [(1, [1, 2, 4])] * 3
        last, _ = self.walked(route, data, strategy="checkpoint-ensemble", members=1)
        assert any(not torch.equal(ensemble[name], tensor) for name, tensor in last.items())

    def test_kept_answers_teach_what_live_ones_do(self, route: Route, data: Dataset) -> None:
        settings = {"strategy": "checkpoint-ensemble", "members": 2}
        _, rows = self.walked(route, data, ObjectiveConfig(views=3), **settings)
        files = [(route.folder / c.file, c.sha256) for c in (route.checkpoints[0], route.checkpoints[3])]
        _, name = anchor_of(files, NETWORK, ObjectiveConfig())
        assert name != anchor_of(files, NETWORK, ObjectiveConfig(tau=2.0))[1], "at another temperature the mean is another"
        assert name != anchor_of(files[::-1], NETWORK, ObjectiveConfig())[1] != files[0][1]
        assert len(rows) == 3
        assert rows[-1]["kl_to_anchor"] < rows[0]["kl_to_anchor"]

    def test_objectives_that_compare_features_refuse_it(self, route: Route) -> None:
        files = [(route.folder / c.file, c.sha256) for c in route.checkpoints[:2]]
        hint = ObjectiveConfig.of(objective="hint", student_tap="2", teacher_tap="2")
        with pytest.raises(InputError, match=r"objective = 'hint': compares features, but the stage has the mean of 2 anchors"):
            anchor_of(files, NETWORK, hint)
        flat = {"strategy": "checkpoint-ensemble", "objective": "hint", "student_tap": "pool", "teacher_tap": "pool"}
        with pytest.raises(InputError, match=r"objective = 'hint': compares features, but the stage has the mean of 4 anchors"):
            settings_of({"teacher_schedule": "multistep", **flat})

    def test_it_is_a_branch_of_a_comparison(self) -> None:
        comparison = Comparison.of({"branches": ["kd", "checkpoint-ensemble"], "grid": {"members": [2, 3]}})
        assert [branch.name for branch in comparison.branches] == [
            "kd",
            "checkpoint-ensemble members=2",
            "checkpoint-ensemble members=3",
        ]


def test_tasks_measure_the_converged_teacher_and_name_every_anchor(tmp_path: Path) -> None:
    walk = Walk(
        tmp_path,
        strategy="checkpoint-ensemble",
        members=2,
        members_to=2,
        teacher_epochs=4,
        teacher_schedule="constant",
        checkpoint_every=1,
        epochs=2,
        device="cpu",
        threads=1,
        workers=0,
    )
    walk.prepare()
    walk.teach()
    (stage,) = walk.walk().stages
    index = Route.open(walk.index)
    members = index.checkpoints[:2]
    assert [(a["epoch"], a["sha256"]) for a in stage["anchors"]] == [(c.epoch, c.sha256) for c in members]
    assert (stage["anchor_epoch"], stage["anchor_index"]) == (2, 1)
    images = len(Dataset.open(walk.dataset).split("train"))
    assert stage["teacher_forward_passes"] == 2 * 2 * images
    handed_out = sorted(path.name for path in walk.anchors.glob("epoch-*"))
    assert handed_out == [f"epoch-000{epoch}.safetensors" for epoch in (1, 2, 4)]
    walk.evaluate()
    # The teacher that the report speaks of is the last checkpoint, not the last anchor.
    from rco.evaluation.classification import measure
    from rco.models.predict import predict
    from rco.models.spec import load_network

    teacher = load_network(walk.route / index.checkpoints[-1].file, spec=index.network)
    logits, labels = predict(teacher, Dataset.open(walk.dataset).split("test"), device="cpu", precision="fp32", workers=0)
    evaluation = read_evaluation(walk.evaluation / "seed-0", in_depth=True)
    assert evaluation["teacher"]["accuracy"] == measure(logits, labels, 10)["accuracy"]
    summary = walk.report()
    assert [a["epoch"] for a in summary["stages"][0]["anchors"]] == [1, 2]
    assert "| 1 | 1, 2 |" in (walk.folder / "report" / "report.md").read_text()
