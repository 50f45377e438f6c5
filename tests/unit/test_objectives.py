"""The loss against the formula, its gradient against finite differences, and every known mistake of others."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rco.models.taps import Output
from rco.objectives.config import ObjectiveConfig
from rco.objectives.route import mimic_kl
from rco.objectives.stage import labels_only
from tests.losses import route_loss


def softmax(z: list[float], tau: float) -> list[float]:
    top = max(z)
    e = [math.exp((v - top) / tau) for v in z]
    return [v / sum(e) for v in e]


def reference(student: np.ndarray, anchor: np.ndarray, labels: list[int], tau: float, lam: float) -> tuple[float, float]:
    """H(y, P_s) and lambda * KL(P_t^tau || P_s^tau), written from the formula with loops, in float64."""
    cross_entropy = divergence = 0.0
    for s, t, y in zip(student.tolist(), anchor.tolist(), labels, strict=True):
        cross_entropy -= math.log(softmax(s, 1.0)[y])
        p_t, p_s = softmax(t, tau), softmax(s, tau)
        divergence += sum(a * (math.log(a) - math.log(b)) for a, b in zip(p_t, p_s, strict=True))
    return cross_entropy / len(labels), lam * divergence / len(labels)


logits = hnp.arrays(np.float64, (5, 4), elements=st.floats(-8, 8))


@given(student=logits, anchor=logits, tau=st.floats(0.5, 20), lam=st.floats(1e-3, 100))
def test_loss_is_the_formula(student: np.ndarray, anchor: np.ndarray, tau: float, lam: float) -> None:
    labels = [0, 1, 2, 3, 1]
    parts = route_loss(tau, lam)(Output(torch.from_numpy(student)), Output(torch.from_numpy(anchor)), torch.tensor(labels))
    label_loss, mimic_loss = reference(student, anchor, labels, tau, lam)
    assert parts["label_loss"].item() == pytest.approx(label_loss, rel=2e-4, abs=1e-4)
    assert parts["mimic_loss"].item() == pytest.approx(mimic_loss, rel=2e-4, abs=1e-4 * (1 + lam))


def test_gradient_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    student, anchor = (torch.randn(4, 6, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
    labels = torch.tensor([0, 5, 2, 2])
    tau, lam = 3.0, 7.0
    leaf = student.float().requires_grad_()
    torch.stack(list(route_loss(tau, lam)(Output(leaf), Output(anchor.float()), labels).values())).sum().backward()
    step = 1e-5
    for i in range(4):
        for j in range(6):
            moved = [student.clone(), student.clone()]
            moved[0][i, j] += step
            moved[1][i, j] -= step
            up, down = (sum(reference(m.numpy(), anchor.numpy(), labels.tolist(), tau, lam)) for m in moved)
            assert leaf.grad[i, j].item() == pytest.approx((up - down) / (2 * step), rel=1e-3, abs=1e-5)


def test_gradient_of_the_mimic_term_is_known_in_closed_form() -> None:
    """d/dz_s of KL = (P_s^tau - P_t^tau) / (tau B): with lambda = tau^2 it is tau (P_s - P_t) / B."""
    student, anchor = torch.randn(8, 10, requires_grad=True), torch.randn(8, 10)
    mimic_kl(student, anchor, 4.0).backward()
    expected = (torch.softmax(student / 4, 1) - torch.softmax(anchor / 4, 1)) / (4 * 8)
    torch.testing.assert_close(student.grad, expected)


def test_kl_is_zero_for_equal_distributions_and_grows_with_distance() -> None:
    z = torch.randn(16, 10)
    assert mimic_kl(z, z + 3.0, 2.0).item() == pytest.approx(0, abs=1e-6)
    assert mimic_kl(z, 2 * z, 2.0) > mimic_kl(z, 1.5 * z, 2.0) > 0


def test_direction_is_teacher_to_student() -> None:
    student, teacher = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    third, p = 1 / 3, softmax([4, 0, 0], 1)
    assert mimic_kl(student, teacher, 1.0).item() == pytest.approx(sum(third * math.log(third / b) for b in p), rel=1e-5)


class TestMistakesOfOthers:
    """Each would pass unnoticed in a run that merely does not crash."""

    def test_log_probabilities_as_kl_target_would_be_nan(self) -> None:
        student, anchor = torch.randn(8, 10), torch.randn(8, 10)
        wrong = F.kl_div(F.log_softmax(student, 1), F.log_softmax(anchor, 1), reduction="batchmean")
        assert not torch.isfinite(wrong) or wrong < 0
        right = mimic_kl(student, anchor, 1.0)
        assert torch.isfinite(right)
        assert right > 0

    @pytest.mark.parametrize("classes", [2, 10, 100])
    def test_kl_is_summed_over_classes_not_averaged(self, classes: int) -> None:
        teacher = torch.full((3, classes), -50.0)
        teacher[:, 0] = 50.0  # one-hot: KL against a uniform student is log K
        assert mimic_kl(torch.zeros(3, classes), teacher, 1.0).item() == pytest.approx(math.log(classes), rel=1e-5)

    def test_cross_entropy_takes_logits_not_probabilities(self) -> None:
        confident = torch.tensor([[20.0, 0.0, 0.0]])
        # With probabilities fed in, the loss could not fall below log(e + 2) - 1 = 0.55 for three classes.
        assert labels_only()(Output(confident), None, torch.tensor([0]))["label_loss"] < 1e-6

    def test_no_gradient_reaches_the_anchor(self) -> None:
        anchor = torch.randn(4, 3, requires_grad=True)
        student = torch.randn(4, 3, requires_grad=True)
        sum(route_loss(2.0, 4.0)(Output(student), Output(anchor), torch.tensor([0, 1, 2, 0])).values()).backward()
        assert anchor.grad is None
        assert student.grad is not None


def test_lambda_is_used_as_written_and_tau_squared_is_only_a_default() -> None:
    student, anchor, labels = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    one = route_loss(5.0, 1.0)(Output(student), Output(anchor), labels)["mimic_loss"]
    assert one.item() == pytest.approx(mimic_kl(student, anchor, 5.0).item())
    assert ObjectiveConfig(tau=5.0).lambda_ == 25.0
    assert ObjectiveConfig(tau=5.0, lam="2.5").lambda_ == 2.5


def test_bf16_logits_are_compared_in_float32() -> None:
    student, anchor = torch.randn(4, 100), torch.randn(4, 100)
    half = mimic_kl(student.bfloat16(), anchor.bfloat16(), 4.0)
    assert half.dtype is torch.float32
    assert half.item() == pytest.approx(mimic_kl(student, anchor, 4.0).item(), rel=0.05)


def test_the_anchor_is_required() -> None:
    with pytest.raises(ValueError, match="anchor"):
        route_loss(4.0, 16.0)(Output(torch.zeros(1, 2)), None, torch.tensor([0]))
