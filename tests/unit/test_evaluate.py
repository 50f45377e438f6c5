from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from rco.core.errors import InputError
from rco.evaluation import classification as ev
from rco.evaluation.cost import count_macs, latency, parameter_count
from rco.models.predict import accuracy, predict, top_k_accuracy
from rco.reporting.measures import class_rows, class_table, class_title, further
from rco.strategies.hardness import kl

quick = settings(max_examples=50, deadline=None)

# --- slow references, written from the formulas ---------------------------------------------------------------------------


def softmax(row: np.ndarray, tau: float = 1.0) -> list[float]:
    z = [float(v) / tau for v in row]
    largest = max(z)
    e = [math.exp(v - largest) for v in z]
    return [v / math.fsum(e) for v in e]


def argmax(row: np.ndarray) -> int:
    return max(range(len(row)), key=lambda k: (row[k], -k))


def slow_cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return math.fsum(-math.log(softmax(row)[y]) for row, y in zip(logits, labels, strict=True)) / len(labels)


def slow_kl(teacher: np.ndarray, student: np.ndarray, tau: float) -> float:
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        total += math.fsum(p * (math.log(p) - math.log(q)) for p, q in zip(softmax(t, tau), softmax(s, tau), strict=True))
    return total / len(teacher)


def slow_ece(logits: np.ndarray, labels: np.ndarray, bins: int) -> float:
    total = 0.0
    for m in range(1, bins + 1):
        members = [
            (max(softmax(row)), argmax(row) == y)
            for row, y in zip(logits, labels, strict=True)
            if (m - 1) / bins < max(softmax(row)) <= m / bins
        ]
        if members:
            confidence = math.fsum(c for c, _ in members) / len(members)
            right = sum(r for _, r in members) / len(members)
            total += len(members) / len(labels) * abs(right - confidence)
    return total


def slow_top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    hits = 0
    for row, y in zip(logits, labels, strict=True):
        hits += y in sorted(range(len(row)), key=lambda c: (-row[c], c))[:k]
    return hits / len(labels)


# --- samples --------------------------------------------------------------------------------------------------------------


def sample(n: int = 200, classes: int = 7, scale: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than chance."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = scale * rng.standard_normal((n, classes)) + 1.5 * np.eye(classes)[labels]
    return logits.astype(np.float32), labels


@st.composite
def scored(draw: st.DrawFn, bound: float = 50) -> tuple[np.ndarray, np.ndarray]:
    """Any float32 logits, with many ties among them, and labels."""
    n, classes = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    value = st.floats(-bound, bound, width=32) | st.sampled_from([0.0, 1.0, -1.0])
    logits: np.ndarray = draw(hnp.arrays(np.float32, (n, classes), elements=value))
    return logits, draw(hnp.arrays(np.int64, n, elements=st.integers(0, classes - 1)))


@st.composite
def logit_pair(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    shape = draw(st.integers(1, 8)), draw(st.integers(1, 6))
    logits = hnp.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32))
    return draw(logits), draw(logits)


# --- measures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("classes", "scale"), [(2, 1.0), (7, 2.0), (30, 5.0)])
def test_measures_agree_with_their_formulas(classes: int, scale: float, seed: int) -> None:
    logits, labels = sample(classes=classes, scale=scale, seed=seed)
    assert accuracy(logits, labels) == pytest.approx(
        sum(argmax(r) == y for r, y in zip(logits, labels, strict=True)) / len(labels)
    )
    assert ev.cross_entropy(logits, labels) == pytest.approx(slow_cross_entropy(logits, labels), rel=1e-12)
    for bins in (1, 10, 15):
        assert ev.calibration_error(logits, labels, bins) == pytest.approx(slow_ece(logits, labels, bins), abs=1e-12)
    student, _ = sample(classes=classes, scale=scale, seed=seed + 100)
    for tau in (0.5, 1.0, 4.0):
        assert kl(logits, student, tau) == pytest.approx(slow_kl(logits, student, tau), rel=1e-10)


@quick
@given(scored())
def test_top_k_agrees_with_sorting_ties_included(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    values = [top_k_accuracy(logits, labels, k) for k in range(1, logits.shape[1] + 1)]
    assert values == [slow_top_k(logits, labels, k) for k in range(1, logits.shape[1] + 1)]
    assert values == sorted(values)
    assert values[-1] == 1.0
    assert values[0] == accuracy(logits, labels) == (logits.argmax(axis=1) == labels).mean()


def test_one_logit_for_all_classes_is_one_guess() -> None:
    labels = np.arange(10)
    assert accuracy(np.zeros((10, 10)), labels) == pytest.approx(0.1)
    assert top_k_accuracy(np.zeros((10, 10)), labels, 5) == pytest.approx(0.5)


@quick
@given(logit_pair(), st.floats(0.25, 20), st.floats(-1e4, 1e4))
def test_congruence_kl_is_a_divergence(pair: tuple[np.ndarray, np.ndarray], tau: float, shift: float) -> None:
    teacher, student = pair
    value = kl(teacher, student, tau)
    assert 0 <= value < math.inf
    assert kl(teacher, teacher, tau) == 0
    # A constant added to a sample's logits leaves its distribution as it is.
    assert kl(teacher, teacher.astype(np.float64) + shift, tau) == pytest.approx(0, abs=1e-9)
    assert kl(teacher, student.astype(np.float64) + shift, tau) == pytest.approx(value, rel=1e-6, abs=1e-9)


def test_congruence_kl_sums_over_classes_and_averages_over_samples() -> None:
    teacher, student = sample(classes=5)[0], sample(classes=5, seed=1)[0]
    value = kl(teacher, student, 2.0)
    assert kl(np.tile(teacher, (3, 1)), np.tile(student, (3, 1)), 2.0) == pytest.approx(value)
    # (1, 0) against (1/2, 1/2) is log 2, whatever the number of classes without mass.
    never = [-1e4] * 8
    assert kl(np.array([[0, -1e4, *never]]), np.array([[0.0, 0.0, *never]]), 1.0) == pytest.approx(math.log(2))


def test_congruence_kl_takes_the_teacher_first() -> None:
    sure, unsure = np.array([[8.0, 0.0]]), np.array([[0.0, 0.0]])
    assert kl(sure, unsure, 1.0) < math.log(2) < kl(unsure, sure, 1.0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_extreme_logits_stay_finite(dtype: type[np.floating]) -> None:
    logits = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 0], [0, 0, 1e4]], dtype=dtype)
    labels = np.array([0, 0, 2])
    assert ev.cross_entropy(logits, labels) == pytest.approx(2e4 / 3)
    assert kl(logits, -logits, 1.0) == pytest.approx((2e4 + 2e4 + 1e4 + math.log(2)) / 3)
    assert ev.calibration_error(logits, labels) == pytest.approx(1 / 3)
    json.dumps(ev.measure(logits, labels, 3), allow_nan=False)


@quick
@given(scored(bound=1e4), st.integers(1, 20))
def test_ece_is_a_fraction_and_its_bins_hold_every_sample(case: tuple[np.ndarray, np.ndarray], bins: int) -> None:
    logits, labels = case
    assert 0 <= ev.calibration_error(logits, labels, bins) <= 1
    table = ev.reliability(logits, labels, bins)
    assert table.samples.sum() == len(labels)
    held = table.samples > 0
    assert np.isnan(table.accuracy[~held]).all()
    assert np.isnan(table.confidence[~held]).all()
    assert np.sum(table.accuracy[held] * table.samples[held]) / len(labels) == pytest.approx(accuracy(logits, labels))
    upper = np.arange(1, bins + 1) / bins
    assert (table.confidence[held] <= upper[held] + 1e-12).all()
    assert (table.confidence[held] > upper[held] - 1 / bins - 1e-12).all()


def test_ece_of_a_calibrated_model_is_zero() -> None:
    # 80 % sure and right 8 times of 10; 60 % sure and right 6 times of 10.
    logits = np.log([[0.8, 0.2]] * 10 + [[0.4, 0.6]] * 10)
    labels = np.array([0] * 8 + [1] * 2 + [1] * 6 + [0] * 4)
    assert ev.calibration_error(logits, labels) == pytest.approx(0, abs=1e-12)
    table = ev.reliability(logits, labels, 10)
    assert table.confidence[[5, 7]] == pytest.approx([0.6, 0.8])
    assert table.samples[[5, 7]].tolist() == [10, 10]


def test_ece_of_a_sure_and_wrong_model_is_one() -> None:
    assert ev.calibration_error(1e4 * np.eye(3), np.array([1, 2, 0])) == pytest.approx(1)


def test_bins_are_closed_above() -> None:
    # A top probability of exactly 1/2 belongs to (0, 1/2], as in the paper.
    assert ev.reliability(np.zeros((1, 2)), np.array([0]), 2).samples.tolist() == [1, 0]


@quick
@given(scored())
def test_confusion_counts_every_sample_once(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, labels = case
    classes = logits.shape[1]
    counts = ev.confusion(logits, labels, classes)
    expected = np.zeros((classes, classes), int)
    for row, y in zip(logits, labels, strict=True):
        expected[y, argmax(row)] += 1
    assert (counts == expected).all()
    assert counts.sum() == len(labels)
    assert counts.trace() / len(labels) == pytest.approx(accuracy(logits, labels))
    recalls = ev.per_class_accuracy(logits, labels, classes)
    for k in range(classes):
        own = labels == k
        assert recalls[k] == pytest.approx(accuracy(logits[own], labels[own]) if own.any() else math.nan, nan_ok=True)


def test_confusion_rows_are_true_classes() -> None:
    counts = ev.confusion(np.array([[0.0, 0.0, 5.0]]), np.array([1]), 3)
    assert np.argwhere(counts).tolist() == [[1, 2]]


@pytest.mark.parametrize("labels_dtype", [np.uint8, np.int32])
def test_small_label_types_do_not_overflow(labels_dtype: type) -> None:
    classes = 200  # 199 * 200 fits neither in uint8 nor in int16
    counts = ev.confusion(np.eye(classes), np.arange(classes).astype(labels_dtype), classes)
    assert (counts == np.eye(classes)).all()


GOOD = (np.zeros((3, 4)), np.array([0, 1, 3]))
BAD: list[tuple[np.ndarray, np.ndarray, str]] = [
    (np.zeros((2, 4)), GOOD[1], "logits"),
    (np.zeros(3), GOOD[1], "logits"),
    (np.zeros((0, 4)), np.zeros(0, int), "logits"),
    (np.array([[0.0, math.nan]]), np.array([0]), "logits"),
    (np.array([[0.0, math.inf]]), np.array([0]), "logits"),
    (GOOD[0], np.array([0, 1, 4]), "labels"),
    (GOOD[0], np.array([0, 1, -1]), "labels"),
    (GOOD[0], np.array([0.0, 1.0, 2.0]), "labels"),
]


@pytest.mark.parametrize("measure", [accuracy, ev.cross_entropy, ev.calibration_error, ev.reliability])
@pytest.mark.parametrize(("logits", "labels", "parameter"), BAD)
def test_measures_refuse_what_has_no_answer(
    measure: Callable[[np.ndarray, np.ndarray], object], logits: np.ndarray, labels: np.ndarray, parameter: str
) -> None:
    with pytest.raises(InputError) as raised:
        measure(logits, labels)
    assert raised.value.parameter == parameter


def test_arguments_out_of_range_are_refused() -> None:
    for k in (0, 5):
        with pytest.raises(InputError, match="number of classes"):
            top_k_accuracy(*GOOD, k)
    with pytest.raises(InputError, match="classes"):
        ev.confusion(*GOOD, 5)
    with pytest.raises(InputError, match="bins"):
        ev.reliability(*GOOD, 0)


def test_measures_need_no_torch() -> None:
    code = """
import sys, numpy as np
from rco.evaluation.classification import measure
measure(np.eye(3), np.arange(3), 3)
sys.exit("torch" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- models ---------------------------------------------------------------------------------------------------------------


class TensorSplit:
    """A split in memory, in stored order."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y
        self.seeds: list[int | None] = []

    def batches(
        self, batch_size: int, *, device: str, seed: int | None, workers: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.seeds.append(seed)
        for i in range(0, len(self.x), batch_size):
            yield self.x[i : i + batch_size].to(device), self.y[i : i + batch_size].to(device)


def network(classes: int = 8) -> nn.Sequential:
    """Convolution, BatchNorm with statistics of its own, dropout; its parameters have gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, classes)
    )
    model.train()
    model(torch.randn(16, 3, 8, 8)).square().mean().backward()
    return model


def split(n: int = 37, classes: int = 8) -> TensorSplit:
    torch.manual_seed(1)
    return TensorSplit(torch.randn(n, 3, 8, 8), torch.randint(0, classes, (n,)))


def condition(model: nn.Module) -> dict[str, object]:
    """All that an observer could find changed."""
    found: dict[str, object] = {f"mode of {n}": m.training for n, m in model.named_modules()}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        grad = None if tensor.grad is None else tensor.grad.tolist()
        found[name] = (id(tensor), tensor.tolist(), str(tensor.device), tensor.requires_grad, grad, tensor._version)
    return found


def test_predict_is_the_model_in_evaluation_mode_in_stored_order() -> None:
    model, data = network(), split()
    logits, labels = predict(model, data, batch_size=16)
    assert (logits.dtype.name, labels.dtype.name) == ("float32", "int64")
    assert data.seeds == [None]
    assert (labels == data.y.numpy()).all()
    expected = np.stack([model.eval()(x[None])[0].detach().numpy() for x in data.x])
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_predict_in_bf16_is_close_and_float32() -> None:
    model, data = network(), split()
    exact, _ = predict(model, data)
    rough, _ = predict(model, data, precision="bf16")
    assert rough.dtype == np.float32
    assert not np.array_equal(rough, exact)
    np.testing.assert_allclose(rough, exact, atol=0.05)


def test_predict_refuses_an_empty_split_and_an_unknown_precision() -> None:
    with pytest.raises(InputError, match="no images"):
        predict(network(), split(0))
    with pytest.raises(InputError, match="fp16"):
        predict(network(), split(), precision="fp16")


OBSERVERS: dict[str, Callable[[nn.Module], object]] = {
    "predict": lambda m: predict(m, split()),
    "count_macs": lambda m: count_macs(m, (3, 8, 8)),
    "latency": lambda m: latency(m, (3, 8, 8), repeats=2, warmup=1),
    "parameter_count": parameter_count,
}


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("frozen_layer", [None, 1])
def test_observing_a_model_leaves_it_as_it_was(name: str, frozen_layer: int | None) -> None:
    model = network()
    if frozen_layer is not None:
        model[frozen_layer].eval()  # a BatchNorm that its owner keeps in evaluation mode
    before = condition(model)
    OBSERVERS[name](model)
    assert condition(model) == before
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no answer")


@pytest.mark.parametrize("name", ["predict", "count_macs", "latency"])
def test_a_model_that_fails_is_left_as_it_was_too(name: str) -> None:
    model = Failing().train()
    with pytest.raises(RuntimeError, match="no answer"):
        OBSERVERS[name](model)
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


class Counter(nn.Module):
    """Writes to a buffer even in evaluation mode."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x


def test_count_macs_leaves_buffers_that_evaluation_writes_to() -> None:
    model = Counter()
    assert count_macs(model, (3, 8, 8)) == 0
    assert model.calls == 0


MACS = {
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 10)), 192 * 10),
    "linear without bias": (nn.Sequential(nn.Flatten(), nn.Linear(192, 10, bias=False)), 192 * 10),
    "convolution": (nn.Conv2d(3, 16, 3, padding=1), 8 * 8 * 16 * 3 * 9),
    "strided": (nn.Conv2d(3, 16, 3, padding=1, stride=2), 4 * 4 * 16 * 3 * 9),
    "depthwise": (nn.Conv2d(3, 3, 3, padding=1, groups=3), 8 * 8 * 3 * 9),
    "two layers": (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)),
        36 * 4 * 27 + 36 * 2 * 4,
    ),
    "nothing that multiplies": (nn.ReLU(), 0),
}


@pytest.mark.parametrize("name", MACS)
def test_macs_of_known_layers(name: str) -> None:
    model, expected = MACS[name]
    assert count_macs(model, (3, 8, 8)) == expected


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2)
        attended: torch.Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return attended


@pytest.mark.parametrize("frozen", [False, True])
def test_macs_of_attention_are_counted_though_it_could_run_fused(frozen: bool) -> None:
    tokens, width = 6, 16
    model = Attention(width).requires_grad_(not frozen)
    projections = tokens * width * width * 4  # query, key, value, output
    products = 2 * tokens * tokens * width  # scores, and their use on the values
    assert count_macs(model, (tokens, 4, 4)) == projections + products


def test_macs_of_a_half_precision_model_are_the_same() -> None:
    model = nn.Conv2d(3, 4, 3)
    assert count_macs(model.bfloat16(), (3, 8, 8)) == 36 * 4 * 27


def test_parameters_are_counted_once_and_frozen_ones_too() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, shared, nn.BatchNorm1d(4))
    shared.requires_grad_(False)
    assert parameter_count(model) == 4 * 4 + 4 + 2 * 4


class Sleeper(nn.Module):
    """Takes a known time, each pass longer than the one before; knows how it was called."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self.step, self.calls = step, 0
        self.seen: set[tuple[tuple[int, ...], bool, bool]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.add((tuple(x.shape), self.training, torch.is_inference_mode_enabled()))
        time.sleep(self.step * self.calls)
        return x


def test_latency_is_the_time_of_a_pass_after_warm_up() -> None:
    model = Sleeper(0.002)
    result = latency(model, (1, 2, 3), batch_size=4, repeats=5, warmup=3)
    assert (model.calls, result.repeats) == (8, 5)
    assert model.seen == {((4, 1, 2, 3), False, True)}
    # Passes 4 to 8 sleep 8, 10, 12, 14, 16 ms; a busy machine only adds.
    assert 12 <= result.median_ms < 1000
    assert 15 <= result.p95_ms < 1000
    assert result.median_ms < result.p95_ms


def test_latency_ends_in_time() -> None:
    slow = Sleeper(0.02)
    assert latency(slow, (1, 2, 2), repeats=1000, warmup=1000, seconds=0.2).repeats >= 1
    assert slow.calls < 10
    hopeless = Sleeper(0.05)
    assert latency(hopeless, (1, 2, 2), seconds=0.01).repeats == 1
    assert hopeless.calls == 2


@pytest.mark.parametrize("name", ["repeats", "warmup", "batch_size"])
def test_latency_refuses_to_time_nothing(name: str) -> None:
    with pytest.raises(InputError, match=name):
        latency(nn.ReLU(), (1, 2, 2), **{name: 0})  # type: ignore[arg-type]


def test_latency_elsewhere_times_a_copy() -> None:
    model = nn.Linear(4, 4)
    latency(model, (1, 2, 4), device="meta", repeats=1, warmup=1)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


# --- evaluate -------------------------------------------------------------------------------------------------------------


def test_evaluate_reports_every_measure_as_json() -> None:
    model, data = network(), split()
    result = ev.evaluate(model, data, num_classes=8, batch_size=10)
    logits, labels = predict(model, data, batch_size=10)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["n"] == 37
    assert result["accuracy"] == accuracy(logits, labels)
    assert result["top5"] == top_k_accuracy(logits, labels, 5)
    assert result["cross_entropy"] == ev.cross_entropy(logits, labels)
    assert result["ece"] == ev.calibration_error(logits, labels)
    assert np.sum(result["confusion"]) == 37
    assert {*result} == {
        *("n", "accuracy", "top5", "cross_entropy", "ece", "per_class_accuracy", "confusion"),
        *("balanced_accuracy", "macro_f1", "per_class"),
    }


def test_top_5_of_five_classes_is_left_out_and_absent_classes_are_null() -> None:
    result = ev.measure(np.eye(5)[:3], np.arange(3), 5)
    assert "top5" not in result
    assert result["per_class_accuracy"] == [1.0, 1.0, 1.0, None, None]
    assert result["per_class"][4] == {"precision": None, "recall": None, "f1": None, "n": 0}


@quick
@given(st.data())
def test_measures_of_the_classes_are_those_of_the_confusion_matrix(data: st.DataObject) -> None:
    classes = data.draw(st.integers(2, 6))
    truth = data.draw(hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, classes - 1)))
    guess = data.draw(hnp.arrays(np.int64, len(truth), elements=st.integers(0, classes - 1)))
    result = ev.measure(np.eye(classes)[guess], truth, classes)
    counts = np.array(result["confusion"])
    recalls, f1s = [], []
    for k, row in enumerate(result["per_class"]):
        true, called, both = counts[k].sum(), counts[:, k].sum(), counts[k, k]
        assert row["n"] == true
        assert row["recall"] == (pytest.approx(both / true) if true else None)
        assert row["precision"] == (pytest.approx(both / called) if called else None)
        assert row["f1"] == (pytest.approx(2 * both / (true + called)) if true + called else None)
        recalls += [both / true] if true else []
        f1s += [2 * both / (true + called)] if true + called else []
    assert result["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert result["macro_f1"] == pytest.approx(np.mean(f1s))


def test_a_report_has_the_weakest_of_very_many_classes_and_top_5_from_ten_classes_on() -> None:
    rows = [{"precision": 0.5, "recall": 0.5, "f1": k / 200, "n": 3} for k in range(150)]
    names = [f"class {k}" for k in range(150)]
    heads, shown = class_table(names, rows, rows)
    assert [row[0] for row in shown] == names[:100]
    assert {len(row) for row in shown} == {len(heads)}
    assert "100 of 150" in class_title(names)
    assert "of 3" not in class_title(names[:3])
    assert [row["class"] for row in class_rows(names, rows, rows)] == names
    figures = {"balanced_accuracy": 0.5, "macro_f1": 0.25, "top5": 0.75}
    assert further(figures, 9) == {"balanced_accuracy": 0.5, "macro_f1": 0.25}
    assert further(figures, 10) == figures
    assert further({"accuracy": 0.5}, 10) == {}, "an evaluation of 0.1, which may wait in an outbox"
