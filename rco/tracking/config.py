"""The settings of tracking, and of what is asked of services beforehand."""

from __future__ import annotations

from dataclasses import dataclass

from rco.core.errors import InputError, choice
from rco.core.settings import setting


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where results are filed in MLflow."""

    experiment: str = setting("rco", "MLflow experiment")
    registered_model: str = setting("rco-student", "name of the student in the MLflow model registry (empty: do not register)")
    champion_margin: float = setting(
        0.0, "test accuracy (0 to 1) by which a student must beat the registry's champion to take that alias over"
    )

    registered_weights: str = setting(
        "last", "which weights of the student are registered: last | ema (their moving average, see ema_decay)"
    )

    def __post_init__(self) -> None:
        choice("registered_weights", self.registered_weights, ("last", "ema"))
        if not self.experiment.strip():
            raise InputError("experiment", self.experiment, "is empty", "Name an MLflow experiment")
        if any(c in self.registered_model for c in "/:"):
            raise InputError(
                "registered_model", self.registered_model, "holds '/' or ':'", "Use letters, digits, '-', '_' and '.'"
            )
        if not 0 <= self.champion_margin < 1:
            raise InputError(
                "champion_margin", self.champion_margin, "must be at least 0 and below 1", "0.002 means 0.2 points of accuracy"
            )


@dataclass(frozen=True, kw_only=True)
class ServicesConfig:
    """What is asked of the services before anything expensive. No task's settings: it decides nothing that is computed."""

    check_services: bool = setting(
        False, "begin with writing and reading a run and an object in the MLflow and S3 that the environment names"
    )
