"""Label smoothing, class weights, balanced sampling, clipped gradients and the moving average of a student."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from rco.config.filing import Filing
from rco.config.parameters import RunConfig
from rco.core.errors import InputError, UnusedError
from rco.core.tensors import load_state
from rco.data.dataset import Dataset
from rco.data.order import balanced_order
from rco.evaluation.measured import read_evaluation
from rco.models.taps import Output
from rco.models.weights import state_digest
from rco.objectives.stage import label_loss, labels_only
from rco.tasks import register as registering
from rco.tasks.process import read_settings
from rco.tasks.students import EMA, STUDENT, seed_folder
from rco.tracking.context import Context
from rco.tracking.record import Record
from rco.tracking.registry import Promotion
from rco.training.balance import class_weights
from rco.training.config import TrainConfig
from rco.training.ema import Ema
from rco.training.loop import Trainer, fit
from rco.training.resume_points import ResumePoints
from tests.conftest import CPU
from tests.in_process import Walk

quick = settings(max_examples=25, deadline=None)
TRAIN = TrainConfig.of(epochs=2, batch_size=512, lr=0.05, schedule="constant")
LABELS = hnp.arrays(np.int64, st.integers(4, 40), elements=st.integers(0, 4))


def small(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


def trained(data: Dataset, config: TrainConfig, **more: Any) -> tuple[nn.Module, list[dict[str, float]]]:
    network = small()
    return network, list(fit(network, data.split("train"), labels_only(), config, CPU, epochs=2, **more))


# --- the labels' term -----------------------------------------------------------------------------------------------------


@quick
@given(st.integers(0, 2**20), st.floats(0, 0.9), st.booleans())
def test_label_loss_is_that_of_its_formula(seed: int, smoothing: float, mixed: bool) -> None:
    """The sum over classes, image by image, written out."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    weights = torch.rand(4, generator=generator, dtype=torch.float64) + 0.1
    shares = torch.rand(3, 4, generator=generator, dtype=torch.float64)
    shares = shares / shares.sum(1, keepdim=True) if mixed else nn.functional.one_hot(shares.argmax(1), 4).double()
    for class_weight in (weights, None):
        total = 0.0
        for row, share in zip(logits.tolist(), shares.tolist(), strict=True):
            log = [z - math.log(sum(map(math.exp, row))) for z in row]
            for k, part in enumerate(share):
                weight = 1.0 if class_weight is None else float(class_weight[k])
                total += part * weight * (-(1 - smoothing) * log[k] - smoothing * sum(log) / 4) / 3
        found = label_loss(Output(logits), shares if mixed else shares.argmax(1), smoothing, class_weight)
        assert float(found) == pytest.approx(total)


@quick
@given(LABELS)
def test_balanced_weights_let_every_class_count_as_much(labels: np.ndarray) -> None:
    weights = class_weights(labels, 6)
    of_classes = [weights[labels][labels == k].sum() for k in np.unique(labels)]
    assert of_classes == pytest.approx([len(labels) / len(of_classes)] * len(of_classes), rel=1e-5)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-5)
    assert weights[5] == 1


@quick
@given(LABELS, st.integers(0, 99))
def test_balanced_order_shows_every_class_and_every_image_of_it_as_often(labels: np.ndarray, seed: int) -> None:
    order = balanced_order(labels, np.random.default_rng(seed))
    assert len(order) == len(labels)
    of_classes = np.bincount(labels[order])[np.unique(labels)]
    assert of_classes.max() - of_classes.min() <= 1
    shown = np.bincount(order, minlength=len(labels))
    for k in np.unique(labels):
        assert shown[labels == k].max() - shown[labels == k].min() <= 1
    assert (balanced_order(labels, np.random.default_rng(seed)) == order).all()


# --- the loop -------------------------------------------------------------------------------------------------------------


def test_each_setting_reaches_the_training_and_none_does_by_default(data: Dataset) -> None:
    plain, _ = trained(data, TRAIN)
    off, _ = trained(data, TRAIN.with_values(label_smoothing=0.0, class_balance="none", clip_norm=0.0))
    assert state_digest(off) == state_digest(plain)
    for changed in ({"label_smoothing": 0.1}, {"class_balance": "weights"}, {"class_balance": "sampling"}, {"clip_norm": 0.1}):
        assert state_digest(trained(data, TRAIN.with_values(**changed))[0]) != state_digest(plain), changed


def test_a_step_is_no_longer_than_the_clipped_gradient(data: Dataset) -> None:
    config = TRAIN.with_values(clip_norm=0.01, momentum=0.0, weight_decay=0.0, batch_size=2048)
    network = small()
    before = copy.deepcopy(network)
    trainer = Trainer(network, data.split("train"), labels_only(), config, CPU, epochs=1, first_epoch=1, anchor=None)
    list(trainer.epochs())
    length = sum((a - b).square().sum() for a, b in zip(network.parameters(), before.parameters(), strict=True)).sqrt()
    assert length.item() == pytest.approx(trainer.steps_per_epoch * config.lr * config.clip_norm, rel=1e-3)


def test_balanced_sampling_is_a_function_of_seed_and_epoch(data: Dataset) -> None:
    split = data.split("train")
    options: dict[str, Any] = {"seed": 3, "epoch": 2, "augment": "shift", "balanced": True}
    whole = list(split.indexed_batches(100, **options))
    labels = torch.cat([y for _, y, _ in whole])
    counts = torch.bincount(labels)
    assert int(counts.max() - counts.min()) <= 1 + len(split) % 100
    for (x, _, rows), (again, _, same) in zip(whole[3:], split.indexed_batches(100, skip=3, **options), strict=True):
        assert torch.equal(x, again)
        assert (rows == same).all()


# --- the moving average ---------------------------------------------------------------------------------------------------


@quick
@given(st.floats(0.01, 0.99), st.lists(st.floats(-5, 5), min_size=1, max_size=6))
def test_the_average_is_that_of_its_formula(decay: float, values: list[float]) -> None:
    network, ema = nn.Linear(1, 1), Ema(decay)
    ema.begin(network)
    expected = values[0]
    for i, value in enumerate(values):
        with torch.no_grad():
            network.weight.fill_(value)
        ema.update(network)
        expected = decay * expected + (1 - decay) * value if i else value
    assert ema.network.weight.item() == pytest.approx(expected, abs=1e-5)  # type: ignore[arg-type]
    assert not any(p.requires_grad for p in ema.network.parameters())


def test_the_average_changes_no_training_and_survives_an_interruption(data: Dataset, tmp_path: Path) -> None:
    plain, _ = trained(data, TRAIN)
    whole = Ema(0.9)
    network, _ = trained(data, TRAIN, ema=whole)
    assert state_digest(network) == state_digest(plain)
    assert state_digest(whole.network) != state_digest(plain)

    class StoppedError(Exception):
        pass

    class Stops(ResumePoints):
        left = 4

        def keep(self) -> None:
            super().keep()
            self.left -= 1
            if not self.left:
                raise StoppedError

    with pytest.raises(StoppedError):
        trained(data, TRAIN, ema=Ema(0.9), checkpointer=Stops(str(tmp_path), {}, every=0.0))
    resumed = Ema(0.9)
    network, rows = trained(data, TRAIN, ema=resumed, checkpointer=ResumePoints(str(tmp_path), {}, every=1e9))
    assert len(rows) == 1, "the first epoch was trained before"
    assert state_digest(network) == state_digest(plain)
    assert state_digest(resumed.averaged) == state_digest(whole.averaged)


def test_a_run_measures_and_registers_the_average_and_goes_on_from_the_last_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"teacher": "digits-mlp", "student": "digits-mlp", "teacher_epochs": 2, "checkpoint_every": 1, "epochs": 4}
    told |= {"n_anchors": 2, "strategy": "equal-interval", "batch_size": 512, "teacher_batch_size": 512, "device": "cpu"}
    walk = Walk(tmp_path / "a", **told, ema_decay=0.8, registered_weights="ema", label_smoothing=0.1, class_balance="weights")
    walk.prepare()
    walk.teach()
    record = walk.walk()
    assert [row["metrics"].keys() >= {"val_accuracy_ema"} for row in record.rows] == [True] * 4
    last, averaged = (load_state(walk.student / name)[0] for name in (STUDENT, EMA))
    assert not all(torch.equal(last[name], averaged[name]) for name in last)
    walk.evaluate()
    evaluation = read_evaluation(seed_folder(walk.evaluation, 0), in_depth=True)
    assert evaluation["student_ema"]["n"] == evaluation["student"]["n"]
    summary = walk.report()
    assert summary["student_ema"]["accuracy"] == evaluation["student_ema"]["accuracy"]
    page = (tmp_path / "a/report/report.html").read_text()
    assert "student, EMA" in page
    assert "macro F1" in page
    assert (tmp_path / "a/report/per_class.csv").read_text().startswith("class,test_images,student_precision,")
    registered: dict[str, Any] = {}

    def register(context: Context, name: str, model: nn.Module, record: Record, **more: Any) -> str:
        registered.update(more, answer=model(torch.from_numpy(more["example"])), state=load_state(more["weights"])[0])
        return "1"

    def promote(*_: Any, **more: Any) -> Promotion:
        registered.update(more)
        return Promotion(True, "it is the first")

    monkeypatch.setattr(registering, "register", register)
    monkeypatch.setattr(registering, "registered_version", lambda *_: None)
    monkeypatch.setattr(registering, "promote", promote)
    monkeypatch.setattr(Context, "from_environment", lambda: Context(tracking_uri="sqlite:///none.db", pipeline_run="test"))
    filing = read_settings(Filing, walk.settings["filing"])
    registering.register_from(filing, student=walk.student, evaluation=seed_folder(walk.evaluation, 0))
    assert all(torch.equal(registered["state"][name], averaged[name]) for name in averaged)
    assert registered["weights"].name == STUDENT, "`rco export` and `rco.load` find it under this name"
    assert torch.allclose(registered["answer"], torch.from_numpy(registered["expected"]), atol=1e-4)
    assert registered["accuracy"] == summary["student_ema"]["accuracy"]
    monkeypatch.undo()
    plain = Walk(tmp_path / "b", **told, label_smoothing=0.1, class_balance="weights")
    plain.dataset, plain.route, plain.index = walk.dataset, walk.route, walk.index
    plain.walk()
    without = load_state(plain.student / STUDENT)[0]
    assert all(torch.equal(last[name], without[name]) for name in last), "each stage goes on from the last weights"


# --- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"teacher_label_smoothing": -0.1}, "teacher_label_smoothing"),
        ({"clip_norm": -1}, "clip_norm"),
        ({"class_balance": "weight"}, "class_balance"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"registered_weights": "ema"}, "registered_weights"),
        ({"registered_weights": "best"}, "registered_weights"),
    ],
)
def test_what_cannot_work_is_refused(values: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError) as refused:
        RunConfig.from_flat(values)
    assert refused.value.parameter == name


@pytest.mark.parametrize("values", [{"label_smoothing": 0.1}, {"class_balance": "weights"}, {"class_balance": "sampling"}])
def test_what_concerns_labels_is_refused_without_a_label_term(values: dict[str, Any]) -> None:
    with pytest.raises(UnusedError, match="label_weight = 0"):
        RunConfig.from_flat({**values, "label_weight": 0})
    RunConfig.from_flat({f"teacher_{name}": value for name, value in values.items()} | {"label_weight": 0})
