"""What speaks against a teacher from elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rco.data.config import DataConfig
from rco.data.dataset import Dataset
from rco.data.prepare import prepare
from rco.models.config import ModelConfig
from rco.models.spec import NetworkSpec
from rco.training import device
from rco.training.config import ComputeConfig
from rco.training.doubts import doubts
from rco.training.route import import_route

NAMES = tuple(sorted(str(number) for number in range(1, 13)))  # 1, 10, 11, 12, 2, ...
NATURAL = sorted(NAMES, key=int)


def answers(labels: np.ndarray, called: np.ndarray, right: float, rng: np.random.Generator) -> np.ndarray:
    """Logits of a teacher that calls class k called[k], and is right on that part of the images."""
    classes = len(called)
    predicted = np.where(rng.random(len(labels)) < right, called[labels], rng.integers(0, classes, len(labels)))
    return np.eye(classes, dtype=np.float32)[predicted]


def test_natural_order_is_named() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 20)
    called = np.array([NATURAL.index(name) for name in NAMES])
    (said,) = doubts(answers(labels, called, 1.0, rng), labels, NAMES)
    assert "right on 8.3 %" in said
    assert "would be on 100.0 % if classes were numbered in natural order: set class_order = natural" in said
    back = np.array([sorted(NATURAL).index(name) for name in NATURAL])
    (said,) = doubts(answers(labels, back, 0.9, rng), labels, NATURAL)
    assert "in sorted order: set class_order = sorted" in said


def test_another_order_is_told_class_by_class() -> None:
    labels = np.repeat(np.arange(4), 20)
    (said,) = doubts(answers(labels, np.array([1, 0, 3, 2]), 1.0, np.random.default_rng(0)), labels, ("a", "b", "c", "d"))
    assert "right on 0.0 % of the validation images, and would be on 100.0 %" in said
    assert "(its 0 is 'b', here 1, its 1 is 'a', here 0, its 2 is 'd', here 3, ...)" in said


@given(st.integers(2, 20), st.floats(0.55, 1), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_teacher_that_goes_with_the_data_is_not_doubted(classes: int, right: float, seed: int) -> None:
    labels = np.repeat(np.arange(classes), 30)
    logits = answers(labels, np.arange(classes), right, np.random.default_rng(seed))
    assert doubts(logits, labels, [f"class {k}" for k in range(classes)]) == []


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_chance_is_warned_of(classes: int) -> None:
    labels = np.repeat(np.arange(classes), 10)
    logits = np.eye(classes, dtype=np.float32)[np.zeros(len(labels), int)]
    (said,) = doubts(logits, labels, [str(k) for k in range(classes)])
    assert f"is right on {100 / classes:.1f} % of the validation images, no better than chance" in said
    assert "image_mean" in said


def test_an_imported_route_is_doubted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(DataConfig(), tmp_path / "data", "x")
    data = Dataset.open(tmp_path / "data")
    spec = NetworkSpec.of(ModelConfig(model="digits-mlp"), data.manifest)
    network = spec.build(0)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    monkeypatch.setattr(logging.getLogger("rco"), "propagate", True)
    with caplog.at_level(logging.WARNING, "rco"):
        import_route([(1, tmp_path / "a.pt")], data, spec, device.resolve(ComputeConfig(device="cpu")), tmp_path / "route")
    assert "no better than chance" in caplog.text
