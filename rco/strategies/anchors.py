"""Which checkpoints of a route supervise the student, and for how many epochs.

That the route matters, and that an equal-interval choice, the points of learning-rate decay and a greedy search by hardness
are ways to choose, is the paper's (Jin et al. 2019). The exact definitions below are this project's. In all of them the
last anchor is the converged teacher, the last checkpoint of the route.

Everything here is a pure function of the route's epochs and, for the greedy search, of hardness values: no I/O, no torch.
To add a strategy: name it in `rco.strategies.config.STRATEGIES`, and add its anchors to `plan` (if they are known before the
first stage) or to `next_anchor` (if they depend on what the student has learnt).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.strategies.config import AnchorConfig
from rco.strategies.hardness import relative


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The anchor of one stage.

    Attributes:
        stage: counted from 1.
        index: of the checkpoint on the route, from 0.
        epoch: of the checkpoint.
        reason: why it was chosen, in words.
        last: this is the converged teacher, and no stage follows.
    """

    stage: int
    index: int
    epoch: int
    reason: str
    last: bool


def equal_interval(epochs: Sequence[int], n: int) -> tuple[int, ...]:
    """n anchors at equal spacing in epochs, the last one the converged teacher.

    Anchor k of n is the checkpoint nearest to epoch k * E / n (the earlier of two equally near), no checkpoint twice.

    Raises:
        InputError: more anchors than checkpoints.
    """
    if n > len(epochs):
        raise InputError(
            "n_anchors",
            n,
            f"is more than the {len(epochs)} checkpoints on the route",
            f"Use at most {len(epochs)}, or keep more",
        )
    chosen: list[int] = []
    above = len(epochs)  # indices from here on are taken or too late
    for k in range(n, 0, -1):
        target = k * epochs[-1] / n
        candidates = range(k - 1, above)  # leave room for the k - 1 anchors before this one
        above = min(candidates, key=lambda j: (abs(epochs[j] - target), j))
        chosen.append(epochs[above])
    return tuple(reversed(chosen))


def lr_decay(epochs: Sequence[int], decays: Sequence[int]) -> tuple[int, ...]:
    """The last checkpoint before each decay of the learning rate, then the converged teacher.

    Args:
        epochs: of the checkpoints on the route.
        decays: epochs after which the learning rate dropped.

    Raises:
        InputError: the route's learning rate never decayed, or the route has no checkpoint before a decay.
    """
    if not decays:
        raise InputError(
            "strategy",
            "lr-decay",
            "the route's learning rate was never decayed",
            "Use a multistep schedule or another strategy",
        )
    chosen: list[int] = []
    for decay in decays:
        before = [e for e in epochs if e <= decay]
        if not before:
            raise InputError(
                "strategy",
                "lr-decay",
                f"the route has no checkpoint up to the decay after epoch {decay}",
                "Keep earlier checkpoints",
            )
        chosen.append(before[-1])
    return tuple(dict.fromkeys((*chosen, epochs[-1])))


def explicit(epochs: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """The user's own list, which must lie on the route and end at the converged teacher.

    Raises:
        InputError: an epoch that is not on the route, or a list that stops short of the converged teacher.
    """
    for epoch in wanted:
        if epoch not in epochs:
            raise InputError(
                "anchor_epochs",
                list(wanted),
                f"epoch {epoch} is not on the route",
                f"The route has epochs {', '.join(map(str, epochs))}",
            )
    if wanted[-1] != epochs[-1]:
        raise InputError(
            "anchor_epochs",
            list(wanted),
            f"does not end at the converged teacher (epoch {epochs[-1]})",
            f"Add {epochs[-1]} as the last anchor",
        )
    return tuple(wanted)


def plan(config: AnchorConfig, epochs: Sequence[int], decays: Sequence[int]) -> tuple[int, ...] | None:
    """The anchors' epochs if they are known before the first stage; None for the greedy search.

    Raises:
        InputError: the strategy cannot be followed on this route.
    """
    match config.strategy:
        case "equal-interval":
            return equal_interval(epochs, config.n_anchors)
        case "lr-decay":
            return lr_decay(epochs, decays)
        case "explicit":
            return explicit(epochs, config.anchor_epochs)
    if config.first_epoch and config.first_epoch not in epochs:
        raise InputError(
            "first_epoch", config.first_epoch, "is not on the route", f"The route has epochs {', '.join(map(str, epochs))}"
        )
    return None


def stage_count(config: AnchorConfig, epochs: Sequence[int], decays: Sequence[int]) -> int:
    """How many stages the strategy needs (greedy: may need)."""
    planned = plan(config, epochs, decays)
    return len(planned) if planned is not None else min(config.n_anchors, len(epochs))


def stage_epochs(total: int, stages: int, stage: int, *, last: bool) -> int:
    """Student epochs of one stage: floor(total / stages); the last stage gets the rest (ours).

    The sum over the stages of a run is `total`, also when a greedy search arrives at the converged teacher early.
    """
    share = total // stages
    return total - (stage - 1) * share if last else share


def greedy(
    config: AnchorConfig, epochs: Sequence[int], chosen: Sequence[int], hardness: NDArray[np.float64] | None, stages: int
) -> tuple[int, str]:
    """Index and reason of the next anchor of the greedy search (ours; the paper searches greedily by hardness as well).

    From the anchor i just mimicked, walk up the route while the relative hardness r(i, j) <= delta; the last checkpoint that
    passed is next. If none passed it is i + 1, so that the route always advances. The first anchor is `first_epoch`; the
    last stage takes the converged teacher.

    Args:
        chosen: indices of the anchors of the stages before this one.
        hardness: (M,) of H(i, .) for the student as stage i left it; None before the first stage.
        stages: the most stages there may be.
    """
    end = len(epochs) - 1
    if len(chosen) + 1 >= stages:
        return end, "the last stage takes the converged teacher"
    if not chosen:
        first = epochs.index(config.first_epoch) if config.first_epoch else 0
        return first, f"the first anchor is {'first_epoch' if config.first_epoch else 'the first checkpoint of the route'}"
    if hardness is None:
        raise ValueError("the greedy search needs the student's hardness after the first stage")
    i = chosen[-1]
    r = relative(hardness, i)
    j = i
    while j < end and r[j + 1] <= config.delta:
        j += 1
    if j == i:
        return i + 1, f"r = {r[i + 1]:.2f} > {config.delta:g}: none is easy enough, so the next one"
    stopped = "the end of the route" if j == end else f"epoch {epochs[j + 1]} has r = {r[j + 1]:.2f}"
    return j, f"r = {r[j]:.2f} <= {config.delta:g}; {stopped}"


def next_anchor(
    config: AnchorConfig,
    epochs: Sequence[int],
    decays: Sequence[int],
    *,
    chosen: Sequence[int] = (),
    hardness: NDArray[np.float64] | None = None,
) -> Choice | None:
    """The anchor of the stage that follows those in `chosen` (their indices on the route); None when the route has been walked.

    Raises:
        InputError: the strategy cannot be followed on this route.
    """
    epochs = tuple(epochs)
    end = len(epochs) - 1
    if chosen and chosen[-1] == end:
        return None
    stage = len(chosen) + 1
    planned = plan(config, epochs, decays)
    if planned is None:
        index, reason = greedy(config, epochs, chosen, hardness, stage_count(config, epochs, decays))
    else:
        index = epochs.index(planned[stage - 1])
        last = index == end
        match config.strategy:
            case "equal-interval":
                reason = f"nearest to {stage}/{len(planned)} of the {epochs[-1]} epochs"
            case "lr-decay":
                reason = "the converged teacher" if last else f"last checkpoint before decay {stage} of the learning rate"
            case _:
                reason = "named in anchor_epochs"
    return Choice(stage=stage, index=index, epoch=epochs[index], reason=reason, last=index == end)
