"""How hard an anchor is for a student: KL on the probe set, from stored logits. NumPy only: a choice needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

#: H(i, i) is not trusted below this many nats when it divides (ours, see docs of `relative`).
FLOOR = 1e-4


def log_softmax(logits: NDArray[np.floating], tau: float) -> NDArray[np.float64]:
    """log P^tau over the last axis, in float64, shifted by the maximum so that no logit is too large."""
    z = np.asarray(logits, dtype=np.float64) / tau
    z = z - z.max(axis=-1, keepdims=True)
    result: NDArray[np.float64] = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return result


def mean_target(logits: NDArray[np.floating], tau: float) -> NDArray[np.float64]:
    """The logits (N, K) whose softened probabilities are the mean of those of several networks, as `rco.models.mean` has them.

    Args:
        logits: (m, N, K).
        tau: relaxation temperature, above 0.
    """
    log_p = log_softmax(logits, tau)
    top = log_p.max(axis=0)
    log_mean = top + np.log(np.exp(log_p - top).mean(axis=0))
    result: NDArray[np.float64] = tau * (log_mean - log_mean.mean(axis=-1, keepdims=True))
    return result


def stage_target(route_logits: NDArray[np.float32], anchors: Sequence[int], tau: float) -> NDArray[np.float32]:
    """The logits (N, K) that a stage aims at: its anchor's own, or of several their `mean_target`.

    Args:
        route_logits: (M, N, K), of every checkpoint.
        anchors: indices of the stage's on the route.
        tau: relaxation temperature, above 0.
    """
    chosen: NDArray[np.float32] = route_logits[list(anchors)]
    return chosen[0] if len(anchors) == 1 else mean_target(chosen, tau).astype(np.float32)


def kl(teacher_logits: NDArray[np.floating], student_logits: NDArray[np.floating], tau: float) -> float:
    """Mean over samples of KL(P_t^tau || P_s^tau): a sum over classes, a mean over samples, in nats.

    Args:
        teacher_logits: (N, K).
        student_logits: (N, K).
        tau: relaxation temperature, above 0.
    """
    return float(route_hardness(np.asarray(teacher_logits)[None], student_logits, tau)[0])


def route_hardness(route_logits: NDArray[np.floating], student_logits: NDArray[np.floating], tau: float) -> NDArray[np.float64]:
    """H(i, .) of one student for every checkpoint of a route (our definition; the paper searches by hardness too).

    H(i, j) = mean over the probe set of KL(P_{C_j}^tau || P_{S_i}^tau), S_i being the student as stage i left it.
    One checkpoint at a time, so that memory does not grow with the route.

    Args:
        route_logits: (M, N, K), the checkpoints' logits on the probe set.
        student_logits: (N, K), the student's on the same samples.
        tau: relaxation temperature, above 0.

    Returns:
        (M,) in nats.
    """
    if route_logits.shape[1:] != student_logits.shape:
        raise ValueError(
            f"logits of {route_logits.shape[1:]} and {student_logits.shape} are not of the same samples and classes"
        )
    log_student = log_softmax(student_logits, tau)
    values = np.empty(len(route_logits))
    for j, logits in enumerate(route_logits):
        log_teacher = log_softmax(logits, tau)
        divergence = (np.exp(log_teacher) * (log_teacher - log_student)).sum(axis=-1).mean()
        values[j] = max(divergence, 0.0)  # rounding may leave -1e-17
    return values


def relative(hardness: NDArray[np.float64], i: int) -> NDArray[np.float64]:
    """r(i, j) = H(i, j) / max(H(i, i), 1e-4), `i` being the index of the anchor just mimicked (our definition).

    The floor keeps a student that has matched its anchor to the last digit from making every other anchor infinitely hard.
    """
    return hardness / max(float(hardness[i]), FLOOR)


def relative_to_stage(hardness: NDArray[np.float64], mimicked: Sequence[int]) -> NDArray[np.float64] | None:
    """`relative` to the anchor of the stage before; None before the first stage, and after one with several anchors."""
    return relative(hardness, mimicked[0]) if len(mimicked) == 1 else None
