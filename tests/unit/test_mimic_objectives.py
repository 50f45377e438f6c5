"""DKD, DIST, standardised logits, hints: each against its paper's formula in float64, its gradient, and its properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor, nn

from rco.core.errors import InputError
from rco.models.taps import Output, Taps
from rco.objectives.at import attention_map
from rco.objectives.base import OBJECTIVES
from rco.objectives.config import ObjectiveConfig
from rco.objectives.dist import pearson_distance
from rco.objectives.dkd import decoupled
from rco.objectives.hint import comparable, make_regressor
from rco.objectives.make import Shapes, objective_from_shapes
from rco.objectives.route import Route, mimic_kl
from rco.objectives.stage import StageLoss
from rco.objectives.standardised import standardised
from tests.losses import route_loss

Array = NDArray[np.float64]

LABELS = [0, 1, 2, 3, 1]
TAU, LAM, W = 3.0, 5.0, 0.7


def softmax(z: Array, tau: float) -> Array:
    e = np.exp((z - z.max(axis=1, keepdims=True)) / tau)
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def kl(p: Array, q: Array) -> Array:
    return np.asarray((p * np.log(p / q)).sum(axis=1))


def cross_entropy(z: Array) -> float:
    return float(-np.log(softmax(z, 1.0)[np.arange(len(LABELS)), LABELS]).mean())


def dkd_reference(student: Array, anchor: Array, alpha: float, beta: float) -> dict[str, float]:
    """Zhao et al. 2022, equations 1 to 7."""
    tckd, nckd = [], []
    for s, t, y in zip(softmax(student, TAU), softmax(anchor, TAU), LABELS, strict=True):
        rest = [k for k in range(len(s)) if k != y]
        b_s, b_t = (np.array([[p[y], p[rest].sum()]]) for p in (s, t))
        hat_s, hat_t = (p[rest][None] / p[rest].sum() for p in (s, t))
        tckd.append(kl(b_t, b_s)[0])
        nckd.append(kl(hat_t, hat_s)[0])
    return {
        "label_loss": W * cross_entropy(student),
        "target_loss": LAM * alpha * float(np.mean(tckd)),
        "nontarget_loss": LAM * beta * float(np.mean(nckd)),
    }


def dist_reference(student: Array, anchor: Array, beta: float, gamma: float) -> dict[str, float]:
    """Huang et al. 2022, equations 6 to 10: one minus NumPy's correlation coefficient, row by row and column by column."""
    p_s, p_t = softmax(student, TAU), softmax(anchor, TAU)
    rows = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s, p_t, strict=True)]
    columns = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s.T, p_t.T, strict=True)]
    return {
        "label_loss": W * cross_entropy(student),
        "inter_loss": LAM * beta * float(np.mean(rows)),
        "intra_loss": LAM * gamma * float(np.mean(columns)),
    }


def standardised_reference(student: Array, anchor: Array) -> dict[str, float]:
    """Sun et al. 2024, algorithms 1 and 2."""
    z_s, z_t = ((z - z.mean(axis=1, keepdims=True)) / z.std(axis=1, keepdims=True) for z in (student, anchor))
    return {
        "label_loss": W * cross_entropy(student),
        "mimic_loss": LAM * float(kl(softmax(z_t, TAU), softmax(z_s, TAU)).mean()),
    }


REFERENCES: dict[str, tuple[dict[str, float], Callable[..., dict[str, float]]]] = {
    "dkd": ({"dkd_alpha": 1.5, "dkd_beta": 6.0}, lambda s, t: dkd_reference(s, t, 1.5, 6.0)),
    "dist": ({"dist_beta": 2.0, "dist_gamma": 0.5}, lambda s, t: dist_reference(s, t, 2.0, 0.5)),
    "standardised": ({}, standardised_reference),
}

logits = hnp.arrays(np.float64, (5, 4), elements=st.floats(-8, 8)).filter(
    # A row or column of one value has no standard deviation, and the formulas no value.
    lambda z: bool((z.std(axis=1) > 0.3).all() and (softmax(z, TAU).std(axis=0) > 0.01).all())
)


def config(name: str, **more: Any) -> ObjectiveConfig:
    taps = {"student_tap": "a", "teacher_tap": "b"} if "student_tap" in OBJECTIVES[name].__dataclass_fields__ else {}
    return ObjectiveConfig.of(**{"objective": name, "tau": TAU, "lam": str(LAM), "label_weight": W, **taps, **more})


def made(name: str, shapes: Shapes = ((3, 4, 4), (5, 2, 2)), **more: Any) -> StageLoss:
    return objective_from_shapes(config(name, **more), Taps("a", "b"), shapes if name in ("hint", "at") else ((), ()))


def batch(name: str, **options: Any) -> tuple[Output, Output, Tensor]:
    g = torch.Generator().manual_seed(0)
    student, anchor = (2 * torch.randn(5, 4, generator=g, **options) for _ in range(2))
    if name not in ("hint", "at", "embedding"):
        return Output(student), Output(anchor), torch.tensor(LABELS)
    if name == "embedding":
        ours, theirs = (torch.randn(5, 3, generator=g, **options) for _ in range(2))
        return Output(student, ours), Output(anchor, theirs), torch.tensor(LABELS)
    guided, hint = torch.randn(5, 3, 4, 4, generator=g, **options), torch.randn(5, 5, 2, 2, generator=g, **options)
    return Output(student, guided), Output(anchor, hint), torch.tensor(LABELS)


@pytest.mark.parametrize("name", REFERENCES)
@given(student=logits, anchor=logits)
def test_loss_is_the_papers_formula(name: str, student: Array, anchor: Array) -> None:
    parameters, reference = REFERENCES[name]
    parts = made(name, **parameters)(Output(torch.from_numpy(student)), Output(torch.from_numpy(anchor)), torch.tensor(LABELS))
    expected = reference(student, anchor)
    assert set(parts) == set(expected)
    # The epsilon of standardised logits, beside a variance of 0.09 or more, is 6e-6 of them.
    tolerance = {"rel": 1e-4, "abs": 2e-4} if name == "standardised" else {"rel": 1e-9, "abs": 1e-9}
    for part, value in expected.items():
        assert parts[part].item() == pytest.approx(value, **tolerance), part


@pytest.mark.parametrize("name", OBJECTIVES.names)
def test_gradient_by_finite_differences(name: str) -> None:
    objective = made(name).double()
    student, anchor, labels = batch(name, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in student if x is not None]

    def total(*tensors: Tensor) -> Tensor:
        return torch.stack(list(objective(Output(*tensors), anchor, labels).values())).sum()

    assert torch.autograd.gradcheck(total, inputs)


def test_gradient_of_the_regressor_by_finite_differences() -> None:
    objective = made("hint").double()
    student, anchor, labels = batch("hint", dtype=torch.float64)
    names = [name for name, _ in objective.named_parameters()]
    assert names == ["own.weight", "own.bias"]

    def total(*tensors: Tensor) -> Tensor:
        parts = torch.func.functional_call(objective, dict(zip(names, tensors, strict=True)), (student, anchor, labels))
        return parts["hint_loss"]

    assert torch.autograd.gradcheck(total, tuple(objective.parameters()))


@pytest.mark.parametrize("name", OBJECTIVES.names)
def test_no_gradient_reaches_the_anchor(name: str) -> None:
    student, anchor, labels = batch(name)
    leaves = [x.requires_grad_() for output in (student, anchor) for x in output if x is not None]
    sum(made(name)(student, anchor, labels).values()).backward()  # type: ignore[union-attr]
    half = len(leaves) // 2
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in leaves[:half])
    assert all(x.grad is None for x in leaves[half:])


@pytest.mark.parametrize("name", OBJECTIVES.names)
def test_labels_and_mimicry_have_weights_of_their_own(name: str) -> None:
    student, anchor, labels = batch(name)
    base, labelled, mimicking = (
        made(name, **weights)(student, anchor, labels) for weights in ({}, {"label_weight": 2 * W}, {"lam": str(3 * LAM)})
    )
    scaled = {part for part in base if part not in ("label_loss", "hint_loss", "attention_loss")}
    for part, value in base.items():
        assert labelled[part].item() == pytest.approx(value.item() * (2 if part == "label_loss" else 1))
        assert mimicking[part].item() == pytest.approx(value.item() * (3 if part in scaled else 1))
    nothing = made(name, label_weight=0.0)(student, anchor, labels)
    assert nothing["label_loss"].item() == 0


@pytest.mark.parametrize("name", OBJECTIVES.names)
def test_half_precision_is_computed_in_float32(name: str) -> None:
    student, anchor, labels = batch(name)
    half = [Output(*(None if x is None else x.bfloat16() for x in output)) for output in (student, anchor)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = made(name)(*half, labels)
    exact = made(name)(student, anchor, labels)
    assert all(part.dtype is torch.float32 for part in parts.values())
    for part, value in exact.items():
        assert parts[part].item() == pytest.approx(value.item(), rel=0.05), part


@pytest.mark.parametrize("name", OBJECTIVES.names)
def test_the_anchor_is_required(name: str) -> None:
    student, _, labels = batch(name)
    with pytest.raises(ValueError, match="anchor"):
        made(name)(student, None, labels)


@pytest.mark.parametrize("name", OBJECTIVES.names)
def test_extreme_logits_give_finite_losses_and_gradients(name: str) -> None:
    """A sure anchor has probabilities that float32 rounds to 0 and 1; a head that starts at zero has equal logits."""
    for student_logits, anchor_logits in (
        (torch.zeros(5, 4), 200 * torch.eye(4)[LABELS]),
        (200 * torch.eye(4)[LABELS], -200 * torch.eye(4)[LABELS]),
        (torch.zeros(5, 4), torch.zeros(5, 4)),
    ):
        student, anchor, labels = batch(name)
        leaf = student_logits.clone().requires_grad_()
        parts = made(name)(student._replace(logits=leaf), anchor._replace(logits=anchor_logits), labels)
        sum(parts.values()).backward()  # type: ignore[union-attr]
        assert all(torch.isfinite(part) for part in parts.values())
        assert torch.isfinite(leaf.grad).all()  # type: ignore[arg-type]


class TestDKD:
    @given(student=logits, anchor=logits)
    def test_kl_is_tckd_and_what_is_left_of_nckd(self, student: Array, anchor: Array) -> None:
        """The paper's equation 5: KL = TCKD + (1 - p_t) NCKD, sample by sample."""
        target, others = decoupled(torch.from_numpy(student), torch.from_numpy(anchor), torch.tensor(LABELS), TAU)
        p, q = softmax(anchor, TAU), softmax(student, TAU)
        sure = p[np.arange(len(LABELS)), LABELS]
        np.testing.assert_allclose(target.numpy() + (1 - sure) * others.numpy(), kl(p, q), rtol=1e-8, atol=1e-12)

    def test_alpha_is_tckd_alone_and_beta_nckd_alone(self) -> None:
        student, anchor, labels = batch("dkd", dtype=torch.float64)
        target = made("dkd", dkd_alpha=1.0, dkd_beta=0.0)(student, anchor, labels)
        assert target["nontarget_loss"] == 0
        assert target["target_loss"] > 0
        # The others' part does not see the target's logit at all.
        moved = student.logits.clone()
        moved[torch.arange(5), labels] += 7
        before, after = (made("dkd")(Output(z), anchor, labels)["nontarget_loss"] for z in (student.logits, moved))
        torch.testing.assert_close(before, after)

    def test_two_classes_leave_nothing_but_the_target(self) -> None:
        student, anchor = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
        target, others = decoupled(student, anchor, torch.tensor([0, 1, 1, 0, 1, 0]), 2.0)
        assert (others == 0).all()
        torch.testing.assert_close(target.mean(), mimic_kl(student, anchor, 2.0))


class TestDIST:
    @given(p=logits, q=logits, scale=st.floats(0.1, 10), shift=st.floats(-5, 5), dim=st.sampled_from([0, 1]))
    def test_blind_to_positive_affine_maps_of_either_side(
        self, p: Array, q: Array, scale: float, shift: float, dim: int
    ) -> None:
        a, b = torch.from_numpy(softmax(p, TAU)), torch.from_numpy(softmax(q, TAU))
        torch.testing.assert_close(
            pearson_distance(scale * a + shift, b, dim), pearson_distance(a, b, dim), atol=1e-6, rtol=1e-6
        )
        torch.testing.assert_close(
            pearson_distance(b, scale * a + shift, dim), pearson_distance(a, b, dim), atol=1e-6, rtol=1e-6
        )

    def test_zero_for_the_same_relations_and_two_for_the_opposite(self) -> None:
        a = torch.rand(8, 10, dtype=torch.float64)
        for dim in (0, 1):
            torch.testing.assert_close(pearson_distance(a, 3 * a + 1, dim), torch.zeros(a.shape[1 - dim]).double())
            torch.testing.assert_close(pearson_distance(a, -a, dim), torch.full((a.shape[1 - dim],), 2.0).double())

    def test_inter_looks_along_classes_and_intra_along_the_batch(self) -> None:
        anchor = Output(torch.randn(5, 4, dtype=torch.float64))
        permuted = Output(anchor.logits[[1, 2, 3, 4, 0]])
        same = made("dist")(anchor, anchor, torch.tensor(LABELS))
        assert same["inter_loss"].item() == pytest.approx(0, abs=1e-9)
        assert same["intra_loss"].item() == pytest.approx(0, abs=1e-9)
        constant = Output(torch.randn(1, 4, dtype=torch.float64).expand(5, 4))
        parts = made("dist")(constant, constant, torch.tensor(LABELS))
        assert parts["inter_loss"].item() == pytest.approx(0, abs=1e-9)
        assert parts["intra_loss"].item() == pytest.approx(LAM), "a class that never varies relates to nothing: distance 1"
        assert made("dist")(permuted, anchor, torch.tensor(LABELS))["inter_loss"] > 0.1


class TestStandardised:
    @given(student=logits, anchor=logits, scale=st.floats(1, 20), shift=st.floats(-50, 50))
    def test_blind_to_shift_and_scale_of_either_side(self, student: Array, anchor: Array, scale: float, shift: float) -> None:
        s, t = torch.from_numpy(student), torch.from_numpy(anchor)

        def mimicry(a: Tensor, b: Tensor) -> float:
            return float(made("standardised")(Output(a), Output(b), torch.tensor(LABELS))["mimic_loss"])

        assert mimicry(scale * s + shift, t) == pytest.approx(mimicry(s, t), abs=1e-3)
        assert mimicry(s, scale * t + shift) == pytest.approx(mimicry(s, t), abs=1e-3)
        assert mimicry(s, 5 * s - 3) == pytest.approx(0, abs=1e-3)

    def test_mean_zero_and_deviation_one(self) -> None:
        z = standardised(7 + 3 * torch.randn(64, 10, dtype=torch.float64))
        torch.testing.assert_close(z.mean(1), torch.zeros(64).double(), atol=1e-12, rtol=0)
        torch.testing.assert_close(z.std(1, correction=0), torch.ones(64).double(), atol=1e-5, rtol=0)


class TestHint:
    def test_is_half_the_mean_square_of_the_regressed_difference(self) -> None:
        """FitNets' equation 3 with a 1x1 convolution written out, over the number of elements."""
        student, anchor, labels = batch("hint", dtype=torch.float64)
        objective = made("hint", hint_weight=30.0).double()
        assert student.features is not None
        assert anchor.features is not None
        guided, hint = student.features.numpy(), anchor.features.numpy()
        weight, bias = (p.detach().numpy() for p in objective.parameters())
        pooled = guided.reshape(5, 3, 2, 2, 2, 2).mean(axis=(3, 5))  # 4x4 to the hint's 2x2
        regressed = np.einsum("oi,bihw->bohw", weight[:, :, 0, 0], pooled) + bias[None, :, None, None]
        expected = 30.0 * 0.5 * ((hint - regressed) ** 2).mean()
        parts = objective(student, anchor, labels)
        assert parts["hint_loss"].item() == pytest.approx(expected, rel=1e-9)
        logits = route_loss(TAU, LAM, W)(student, anchor, labels)
        assert {name: parts[name].item() for name in logits} == {name: part.item() for name, part in logits.items()}

    @pytest.mark.parametrize(
        ("student", "anchor", "student_size", "anchor_size"),
        [
            ((2, 3, 8, 8), (2, 5, 4, 4), (4, 4), (4, 4)),
            ((2, 3, 4, 4), (2, 5, 8, 8), (4, 4), (4, 4)),
            ((2, 3, 7, 5), (2, 5, 4, 6), (4, 5), (4, 5)),
            ((2, 3, 4, 4), (2, 5), (), ()),
            ((2, 3), (2, 5, 4, 4), (), ()),
            ((2, 7, 3), (2, 7, 5), None, None),
        ],
    )
    def test_sizes_meet_at_the_smaller(self, student: Any, anchor: Any, student_size: Any, anchor_size: Any) -> None:
        s, t = comparable(torch.randn(student), torch.randn(anchor))
        if student_size is not None:
            assert (s.shape, t.shape) == ((2, 3, *student_size), (2, 5, *anchor_size))
        regressed = make_regressor(student[1:], anchor[1:], Taps("a", "b"), 0)(s)
        assert regressed.shape == t.shape

    def test_pooling_keeps_means_and_leaves_equal_sizes_alone(self) -> None:
        s, t = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)
        pooled, same = comparable(s, t)
        assert same is t
        torch.testing.assert_close(pooled.mean((2, 3)), s.mean((2, 3)))

    def test_regressor_is_a_convolution_between_maps_and_linear_otherwise(self) -> None:
        taps = Taps("a", "b")
        conv = make_regressor((3, 8, 8), (5, 4, 4), taps, 0)
        assert isinstance(conv, nn.Conv2d)
        assert (conv.in_channels, conv.out_channels, conv.kernel_size) == (3, 5, (1, 1))
        for shapes in (((3,), (5,)), ((3, 8, 8), (5,)), ((3,), (5, 4, 4)), ((7, 3), (7, 5))):
            linear = make_regressor(*shapes, taps, 0)
            assert isinstance(linear, nn.Linear)
            assert (linear.in_features, linear.out_features) == (3, 5)

    @pytest.mark.parametrize("shapes", [((7, 3), (6, 3)), ((7, 3), (3,)), ((3, 4, 4), (7, 3)), ((1, 2, 3, 4), (1, 2, 3, 4))])
    def test_features_that_cannot_be_compared_are_refused(self, shapes: Shapes) -> None:
        with pytest.raises(InputError, match=r"student_tap = 'a': yields features of shape .* teacher_tap = 'b'"):
            objective_from_shapes(config("hint"), Taps("a", "b"), shapes)

    def test_regressor_is_a_function_of_the_seed_and_nothing_else(self) -> None:
        def weights(seed: int) -> Tensor:
            return next(
                objective_from_shapes(config("hint"), Taps("a", "b"), ((3, 4, 4), (5, 2, 2)), seed=seed).parameters()
            ).detach()

        first = weights(1)
        state = torch.get_rng_state()
        torch.rand(3)
        assert torch.equal(first, weights(1))
        assert not torch.equal(first, weights(2))
        torch.set_rng_state(state)
        weights(1)
        assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"

    def test_needs_features(self) -> None:
        student, anchor, labels = batch("hint")
        with pytest.raises(ValueError, match="features"):
            made("hint")(Output(student.logits), anchor, labels)


class TestAttention:
    def test_loss_is_the_authors_code_with_numpy(self) -> None:
        student, anchor, labels = batch("at", dtype=torch.float64)
        parts = made("at", at_beta=7.0)(student, anchor, labels)
        assert student.features is not None
        assert anchor.features is not None

        def attention(x: Array) -> Array:
            q = (x**2).sum(axis=1).reshape(len(x), -1)
            return np.asarray(q / np.sqrt((q**2).sum(axis=1, keepdims=True)))

        pooled = student.features.numpy().reshape(5, 3, 2, 2, 2, 2).mean(axis=(3, 5))  # 4x4 to the anchor's 2x2
        expected = 7.0 * ((attention(pooled) - attention(anchor.features.numpy())) ** 2).mean()
        assert parts["attention_loss"].item() == pytest.approx(expected, rel=1e-9)
        logits = route_loss(TAU, LAM, W)(student, anchor, labels)
        assert {name: parts[name].item() for name in logits} == {name: part.item() for name, part in logits.items()}

    def test_channels_and_sizes_of_activations_do_not_matter(self) -> None:
        x = torch.randn(3, 4, 5, 5)
        torch.testing.assert_close(attention_map(x), attention_map(7 * x))
        torch.testing.assert_close(attention_map(x), attention_map(torch.cat([x, x], dim=1)))
        torch.testing.assert_close(attention_map(x).square().sum(1), torch.ones(3))

    def test_it_has_no_weights_and_may_leave_out_the_logits(self) -> None:
        objective = made("at", lam="0", label_weight=0.0)
        assert not list(objective.parameters())
        assert objective.needs_anchor
        assert float(objective(*batch("at"))["attention_loss"]) > 0

    @pytest.mark.parametrize(
        ("shapes", "words"), [(((3,), (5, 2, 2)), "student_tap = 'a'"), (((3, 4, 4), (7, 5)), "teacher_tap = 'b'")]
    )
    def test_features_that_are_no_maps_are_refused(self, shapes: Shapes, words: str) -> None:
        with pytest.raises(InputError, match=words):
            objective_from_shapes(config("at"), Taps("a", "b"), shapes)


class TestSettings:
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"objective": "dkdd"}, "objective = 'dkdd': is not known. Did you mean 'dkd'"),
            ({"label_weight": -1.0}, "label_weight = -1.0"),
            ({"label_weight": float("nan")}, "label_weight = nan"),
            ({"label_weight": 0.0, "lam": "0"}, "nothing to learn from"),
            ({"objective": "dkd", "dkd_beta": -1.0}, "dkd_beta = -1.0"),
            ({"objective": "dist", "dist_gamma": float("inf")}, "dist_gamma = inf"),
            ({"dkd_beta": 4.0}, "dkd_beta = 4.0: means nothing with objective = route. Leave it out, or set objective = dkd"),
            ({"objective": "dist", "dkd_alpha": 2.0}, "set objective = dkd"),
            ({"objective": "dkd", "student_tap": "stage1"}, "set objective = at or hint"),
            ({"objective": "embedding"}, "lam = 'tau^2': is the factor of a temperature"),
            ({"objective": "hint", "teacher_tap": "stage1"}, "student_tap = '': is empty"),
            ({"objective": "hint", "student_tap": "stage1", "teacher_tap": " "}, "teacher_tap = ' ': is empty"),
            ({"objective": "hint", "student_tap": "a", "teacher_tap": "b", "hint_weight": 0.0}, "hint_weight = 0.0"),
        ],
    )
    def test_bad_ones_are_refused_by_name(self, given: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError) as caught:
            ObjectiveConfig.of(**given)
        assert words in str(caught.value)

    def test_the_default_is_the_papers_loss(self) -> None:
        objective = objective_from_shapes(ObjectiveConfig())
        assert objective.config.objective == Route()
        assert (objective.config.tau, objective.config.lambda_, objective.config.label_weight) == (4.0, 16.0, 1.0)
        assert objective.taps == Taps("", "")
        assert not list(objective.parameters())
