"""The cells of a sweep: which parameters matter to a branch, and which of them set it apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rco.config.kinds import BASELINES, KINDS
from rco.config.parameters import PARAMETERS, chosen_plugin
from rco.core.errors import InputError
from rco.objectives.base import OBJECTIVES
from rco.objectives.config import ObjectiveConfig


def changes_result(kind: str, name: str, chosen: Mapping[str, Any]) -> bool:
    """Whether a parameter changes what a branch computes. A plug-in reads its own parameters alone, a baseline's anchor is
    fixed, and where labels alone teach, nothing is read that concerns an anchor's answers.

    Args:
        kind: of the branch, or of the one whose stages it repeats.
        name: of the parameter.
        chosen: flat parameters of the branch; it says which plug-ins are chosen.
    """
    p = PARAMETERS[name]
    if name in KINDS[kind]:
        return False
    if p.chooser and chosen_plugin(p.chooser, {**chosen, **KINDS[kind]}) not in p.owners:
        return False
    if kind == "scratch":
        return p.group != "objective" or name == "label_weight"
    concerns_answers = p.group == "objective" and (bool(p.chooser) or name == "views")
    return not (concerns_answers and _labels_alone(chosen))


def _labels_alone(chosen: Mapping[str, Any]) -> bool:
    """Whether flat parameters let nothing be mimicked; what cannot be read is for their configuration to refuse."""
    try:
        weight = ObjectiveConfig(lam=str(chosen["lam"])).lambda_
    except InputError:
        return False
    name = str(chosen["objective"])
    return weight == 0 and name in OBJECTIVES.names and not OBJECTIVES[name].mimics_without_lambda


def axes_of(kind: str, point: Mapping[str, Any], base: Mapping[str, Any], restart_like: str) -> tuple[tuple[str, Any], ...]:
    """A branch's values on the axes that matter to it. Those that change nothing for this kind are left out, so that the
    branch appears once and not once a value.

    Args:
        point: axis -> value.
        base: the parameters that all branches share.
    """
    walked = restart_like if kind == "kd-restart" else kind
    return tuple(
        (name, tuple(value) if isinstance(value, list) else value)
        for name, value in point.items()
        if changes_result(walked, name, {**base, **point}) and not (name == "stage_schedule" and kind in BASELINES)
    )


def cell_of(kind: str, point: Mapping[str, Any], base: Mapping[str, Any], restart_like: str) -> tuple[tuple[str, Any], ...]:
    """What sets a branch apart from the shared parameters: `axes_of`, without what equals the shared parameter. A sweep and a
    comparison then meet in the cache under one name."""
    return tuple((name, value) for name, value in axes_of(kind, point, base, restart_like) if point[name] != base[name])
