"""The settings of what a stage minimises."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from rco.core.errors import InputError, UnusedError, choice
from rco.core.settings import at_least, positive, setting

OBJECTIVES = ("route", "embedding", "hint", "dkd", "dist", "standardised")
FEATURES = ("embedding", "hint")  # objectives that need more of an anchor than its logits
TAU_SQUARED = "tau^2"
_LARGEST_TAU = 10**6  # its square is still a float
#: Parameters of one objective alone, and the objective.
OWNERS = {
    "hint_weight": "hint",
    "student_tap": "hint",
    "teacher_tap": "hint",
    "dkd_alpha": "dkd",
    "dkd_beta": "dkd",
    "dist_beta": "dist",
    "dist_gamma": "dist",
}


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss of a stage: w * H(y, P_s) + lambda * a mimic term, and the own parameters of each objective.

    With `objective = route`, the default, it is H(y, P_s) + lambda * KL(P_t^tau || P_s^tau) (Jin et al. 2019). A parameter of
    another objective than the chosen one is refused, so that no setting is without effect. Whatever the objective, hardness and
    congruence are the KL of the logits at tau.
    """

    objective: str = setting(
        "route",
        "what a stage minimises: route (the paper's loss) | embedding (for open sets) | hint (FitNets) | dkd | dist | "
        "standardised (logits)",
    )
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
    hint_weight: float = setting(
        1.0, "hint: weight of half the mean squared difference of the features (RepDistiller and mdistiller: 200, for CIFAR)"
    )
    student_tap: str = setting("", "hint: module of the student that is guided, such as stage2 (input:NAME: what it is given)")
    teacher_tap: str = setting(
        "", "hint: module of the teacher that gives the hint, such as stage2 (input:NAME: what it is given)"
    )
    dkd_alpha: float = setting(1.0, "dkd: weight of the target class's part (1: as its authors)")
    dkd_beta: float = setting(8.0, "dkd: weight of the other classes' part (8: the default of its authors, who tune it)")
    dist_beta: float = setting(1.0, "dist: weight of the relations between classes (1: the default of its authors)")
    dist_gamma: float = setting(1.0, "dist: weight of the relations within a class (1: the default of its authors)")

    def __post_init__(self) -> None:
        choice("objective", self.objective, OBJECTIVES)
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
        if self.views and self.objective in FEATURES:
            raise InputError(
                "views",
                self.views,
                f"keeps logits, but objective = {self.objective} needs features",
                "Use 0, or another objective",
            )
        positive("hint_weight", self.hint_weight)
        for name in ("dkd_alpha", "dkd_beta", "dist_beta", "dist_gamma"):
            at_least(name, getattr(self, name), 0)
        self._check_use()

    def _check_use(self) -> None:
        for f in fields(self):
            owner = OWNERS.get(f.name, self.objective)
            if owner != self.objective and (value := getattr(self, f.name)) != f.default:
                raise UnusedError(
                    f.name,
                    value,
                    f"means nothing with objective = {self.objective}",
                    f"Leave it out, or set objective = {owner}",
                )
        if self.objective == "hint":
            for name in ("student_tap", "teacher_tap"):
                if not (value := getattr(self, name)).strip():
                    raise InputError(
                        name,
                        value,
                        "is empty, but the objective is hint",
                        "Name a module of the network, such as stage2 or layer2",
                    )
        elif self.objective == "embedding" and self._is_tau_squared:
            raise InputError(
                "lam",
                self.lam,
                "is the factor of a temperature, and objective = embedding has none",
                "Give a number such as 0.1",
            )
        elif self.label_weight == 0 and self.lambda_ == 0:
            raise InputError(
                "label_weight", self.label_weight, "leaves nothing to learn from, as lam is 0 too", "Set one of them above 0"
            )

    @property
    def _is_tau_squared(self) -> bool:
        return self.lam.replace("**", "^").replace(" ", "") == TAU_SQUARED

    @property
    def lambda_(self) -> float:
        """The weight of the mimic term as a number."""
        return self.tau**2 if self._is_tau_squared else float(self.lam)

    @property
    def needs_anchor(self) -> bool:
        """Whether anything is mimicked: with lambda = 0 only the labels supervise (and the hint, if that is the objective)."""
        return self.lambda_ > 0 or self.objective == "hint"
