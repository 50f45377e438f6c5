"""From settings to an objective.

All objectives are w H(y, P_s) + lambda * (a mimic term): `label_weight` is w, `lam` is lambda.
To add one, see CONTRIBUTING.md.
"""

from __future__ import annotations

from torch import nn

from rco.models.embeddings import embedding_path
from rco.models.taps import Taps, feature_shape
from rco.objectives.base import Objective
from rco.objectives.config import ObjectiveConfig
from rco.objectives.dist import DISTLoss
from rco.objectives.dkd import DKDLoss
from rco.objectives.embedding import EmbeddingLoss
from rco.objectives.hint import HintLoss, make_regressor
from rco.objectives.route import Labels, RouteLoss
from rco.objectives.standardised import StandardisedLoss

Shapes = tuple[tuple[int, ...], tuple[int, ...]]


def taps_of(config: ObjectiveConfig, student: nn.Module, anchor: nn.Module) -> Taps:
    """The modules whose features an objective compares: the embeddings, those that `config` names, or none.

    Raises:
        InputError: a network without an embedding, for an objective that mimics it.
    """
    if config.objective == "embedding" and config.needs_anchor:
        return Taps(embedding_path(student), embedding_path(anchor))
    return Taps(config.student_tap, config.teacher_tap)


def feature_shapes(
    config: ObjectiveConfig, student: nn.Module, anchor: nn.Module, image_shape: tuple[int, ...]
) -> Shapes | None:
    """Shapes of one sample's features in student and anchor at the taps that `config` names; None: it names none.

    Args:
        student: left as it was; may lie on the meta device, as may the anchor.
        image_shape: (C, H, W).

    Raises:
        InputError: a tap that names no module, or one whose output cannot be used.
    """
    if not config.student_tap:
        return None
    return (
        feature_shape(student, config.student_tap, image_shape, "student_tap"),
        feature_shape(anchor, config.teacher_tap, image_shape, "teacher_tap"),
    )


def make_objective(
    config: ObjectiveConfig, student: nn.Module, anchor: nn.Module, image_shape: tuple[int, ...], *, seed: int = 0
) -> Objective:
    """The objective that `config` describes. It is made once for a student: its own weights go on from stage to stage.

    Args:
        student: left as it was; may lie on the meta device, as may the anchor.
        anchor: any anchor of the route: they differ in weights alone.
        image_shape: (C, H, W).
        seed: of the objective's own weights, if it has any.

    Raises:
        InputError: a tap that cannot be used, or features that cannot be compared.
    """
    shapes = feature_shapes(config, student, anchor, image_shape)
    return objective_from_shapes(config, taps_of(config, student, anchor), shapes, seed=seed)


def objective_from_shapes(
    config: ObjectiveConfig, taps: Taps | None = None, shapes: Shapes | None = None, *, seed: int = 0
) -> Objective:
    """As `make_objective`, without networks.

    With lambda = 0 nothing is mimicked: only the labels supervise (and the hint, if that is the objective).

    Args:
        taps: of `taps_of`, for objectives that compare features.
        shapes: of `feature_shapes`, for objectives that map features onto others.
        seed: of the objective's own weights, if it has any.

    Raises:
        InputError: features that cannot be compared.
    """
    tau, lambda_, weight = config.tau, config.lambda_, config.label_weight
    if not config.needs_anchor:
        return Labels(weight)
    match config.objective:
        case "embedding":
            return EmbeddingLoss(lambda_, taps or Taps(), weight)
        case "standardised":
            return StandardisedLoss(tau, lambda_, weight)
        case "dkd":
            return DKDLoss(tau, lambda_, config.dkd_alpha, config.dkd_beta, weight)
        case "dist":
            return DISTLoss(tau, lambda_, config.dist_beta, config.dist_gamma, weight)
        case "hint":
            if taps is None or shapes is None:
                raise ValueError("the hint loss needs the taps and the shapes of the features")
            return HintLoss(RouteLoss(tau, lambda_, weight), config.hint_weight, taps, make_regressor(*shapes, taps, seed))
    return RouteLoss(tau, lambda_, weight)
