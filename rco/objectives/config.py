"""The settings of what a stage minimises."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, cast

from rco.core.errors import InputError, UnusedError
from rco.core.plugins import Settings, plugin_setting
from rco.core.settings import at_least, positive, setting
from rco.objectives.base import OBJECTIVES, Objective

TAU_SQUARED = "tau^2"
_LARGEST_TAU = 10**6  # its square is still a float


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Settings):
    """The loss of a stage: w * H(y, P_s), and the terms of an objective with its own parameters.

    With `objective = route`, the default, it is H(y, P_s) + lambda * KL(P_t^tau || P_s^tau) (Jin et al. 2019). Whatever the
    objective, hardness and congruence are the KL of the logits at tau.
    """

    objective: Objective = plugin_setting(OBJECTIVES, "route", "what a stage minimises")
    label_weight: float = setting(1.0, "weight of the labels' cross-entropy")
    tau: float = setting(4.0, "relaxation temperature of the softmax in the mimic term, hardness and congruence")
    lam: str = setting(
        TAU_SQUARED, "weight lambda of the mimic term: a number, or tau^2 (Hinton's factor; our default; not for embedding)"
    )
    views: int = setting(
        0,
        "show each image in so many augmented views, and compute the anchor's logits of each once (0: fresh views for ever); "
        "for objectives that need logits alone",
    )

    def __post_init__(self) -> None:
        at_least("label_weight", self.label_weight, 0)
        positive("tau", self.tau, "Temperatures are above 0; the literature uses 1 to 20")
        if self.tau > _LARGEST_TAU:
            raise InputError("tau", self.tau, f"is more than {_LARGEST_TAU:,}", "The literature uses 1 to 20")
        remedy = f"Give a number, 0 or more, or {TAU_SQUARED!r}"
        try:
            weight = self.lambda_
        except ValueError:
            raise InputError("lam", self.lam, "is not a number", remedy) from None
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError("lam", self.lam, "lambda must be a finite number, 0 or more", remedy)
        at_least("views", self.views, 0)
        if self.views and self.objective.needs_features:
            raise InputError(
                "views",
                self.views,
                f"keeps logits, but objective = {self.objective.plugin_name} needs features",
                "Use 0, or another objective",
            )
        if not self.needs_anchor:
            self._refuse_unread()
        self.objective.check(self)
        if self.label_weight == 0 and not self.needs_anchor:
            raise InputError(
                "label_weight", self.label_weight, "leaves nothing to learn from, as lam is 0 too", "Set one of them above 0"
            )

    def _refuse_unread(self) -> None:
        """Raise UnusedError for what concerns an anchor, where none is asked; a default may be there unasked."""
        named = {f.name: (getattr(self.objective, f.name), f.default) for f in fields(cast("Any", self.objective))}
        for name, (value, default) in ({"views": (self.views, 0)} | named).items():
            if value != default:
                raise UnusedError(
                    name, value, f"means nothing with lam = {self.lam}: no anchor is asked", "Leave it out, or set lam above 0"
                )

    def require_logits_alone(self, anchors: int) -> None:
        """Refuse several anchors for one stage if more of them is compared than the logits, of which alone there is a mean.

        Raises:
            InputError: the objective needs features.
        """
        if anchors > 1 and self.needs_anchor and self.objective.needs_features:
            raise InputError(
                "objective",
                self.objective.plugin_name,
                f"compares features, but the stage has the mean of {anchors} anchors as its teacher, which has logits alone",
                "Use an objective that compares logits, such as route, or a strategy with one anchor a stage",
            )

    @property
    def lambda_(self) -> float:
        """The weight of the mimic term as a number."""
        squared = self.lam.replace("**", "^").replace(" ", "") == TAU_SQUARED
        return self.tau**2 if squared else float(self.lam)

    @property
    def needs_anchor(self) -> bool:
        """Whether anything is mimicked: with lambda = 0 only the labels supervise (and an objective's own features)."""
        return self.objective.needs_anchor(self)
