"""From settings to the loss of a stage."""

from __future__ import annotations

from torch import nn

from rco.models.taps import Taps, feature_shape
from rco.objectives.base import Shape
from rco.objectives.config import ObjectiveConfig
from rco.objectives.stage import StageLoss

Shapes = tuple[Shape, Shape]


def make_objective(
    config: ObjectiveConfig,
    student: nn.Module,
    anchor: nn.Module,
    image_shape: tuple[int, ...],
    *,
    anchor_shape: tuple[int, ...] = (),
    seed: int = 0,
) -> StageLoss:
    """The loss that `config` describes. It is made once for a student: the objective's own weights go on from stage to stage.

    Args:
        student: left as it was; may lie on the meta device, as may the anchor.
        anchor: any anchor of the route: they differ in weights alone.
        image_shape: (C, H, W), of what the student takes.
        anchor_shape: likewise of the anchor; empty: the same.
        seed: of the objective's own weights, if it has any.

    Raises:
        InputError: a tap that names no module, features that cannot be compared, or a network without an embedding for an
            objective that mimics it.
    """
    if not config.needs_anchor:
        return StageLoss(config)
    taps = config.objective.taps(student, anchor)
    shapes: Shapes = ((), ())
    if taps.student:
        shapes = (
            feature_shape(student, taps.student, image_shape, "student_tap"),
            feature_shape(anchor, taps.anchor, anchor_shape or image_shape, "teacher_tap"),
        )
    return objective_from_shapes(config, taps, shapes, seed=seed)


def objective_from_shapes(
    config: ObjectiveConfig, taps: Taps | None = None, shapes: Shapes = ((), ()), *, seed: int = 0
) -> StageLoss:
    """As `make_objective`, without networks.

    Args:
        taps: of the objective, if it compares features.
        shapes: of one sample's features at the taps of student and anchor.
        seed: of the objective's own weights, if it has any.

    Raises:
        InputError: features that cannot be compared.
    """
    if not config.needs_anchor:
        return StageLoss(config)
    return StageLoss(config, taps, config.objective.make_own(*shapes, taps or Taps(), seed))
