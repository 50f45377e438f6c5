"""What each task is given: the settings that it uses and no others, because they are its cache key.

Four entries are not the user's words: `source_digest`, `route_digest`, `code` and `plugins` say what the data, the route, the
models that are not ours and the plug-ins of other packages hold now, so that an edit is never hidden by a cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rco.config.branches import ComparisonFiling
from rco.data.config import DataConfig
from rco.models.config import ModelConfig
from rco.objectives.config import ObjectiveConfig
from rco.strategies.config import AnchorConfig
from rco.training.config import ComputeConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Of prepare_data."""

    data: DataConfig
    source_digest: str
    plugins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """Of train_teacher. With a route that exists, `train` and `checkpoint_every` are None: they cannot matter."""

    teacher: ModelConfig
    compute: ComputeConfig
    code: str = ""
    train: TrainConfig | None = None
    checkpoint_every: int | None = None
    plugins: dict[str, str] = field(default_factory=dict)
    route: str = ""
    route_digest: str = ""


@dataclass(frozen=True, kw_only=True)
class StudentSettings:
    """Of init_student."""

    student: ModelConfig
    seed: int
    compute: ComputeConfig
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class AnchorSettings:
    """Of select_anchor."""

    anchors: AnchorConfig
    tau: float
    student_epochs: int
    plugins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Of distill_stage."""

    teacher: ModelConfig
    student: ModelConfig
    train: TrainConfig
    objective: ObjectiveConfig
    anchors: AnchorConfig
    compute: ComputeConfig
    code: str = ""
    plugins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Of evaluate."""

    teacher: ModelConfig
    student: ModelConfig
    tau: float
    compute: ComputeConfig
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class FilingSettings:
    """Of register_student and report: where results are filed, and all parameters for the record."""

    experiment: str
    registered_model: str
    champion_margin: float
    student: ModelConfig
    parameters: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of every task."""

    data: DataSettings
    teacher: TeacherSettings
    student: StudentSettings
    anchors: AnchorSettings
    stage: StageSettings
    evaluate: EvaluateSettings
    filing: FilingSettings


@dataclass(frozen=True, kw_only=True)
class StudentsSettings:
    """Of init_students. `route_data` is the data digest of a route that exists: it must be that of the prepared data."""

    student: ModelConfig
    seeds: tuple[int, ...]
    compute: ComputeConfig
    code: str = ""
    route_data: str = ""


@dataclass(frozen=True, kw_only=True)
class ChoiceSettings:
    """Of select_anchors. `lengths` are those of the restarts of kd-restart; empty: as the strategy says."""

    anchors: AnchorSettings
    seeds: tuple[int, ...]
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BranchSettings:
    """Of distill_students. The seed in `stage` is replaced by each of `seeds`."""

    branch: str
    kind: str
    seeds: tuple[int, ...]
    stage: StageSettings


@dataclass(frozen=True, kw_only=True)
class MeasureSettings:
    """Of evaluate_students. One temperature for all branches: congruence at different ones could not be compared."""

    branch: str
    teacher: ModelConfig
    student: ModelConfig
    seeds: tuple[int, ...]
    tau: float
    compute: ComputeConfig
    code: str = ""


@dataclass(frozen=True, kw_only=True)
class BranchTasks:
    """The settings of one branch's tasks."""

    students: StudentsSettings
    choice: ChoiceSettings
    branch: BranchSettings
    measure: MeasureSettings


@dataclass(frozen=True, kw_only=True)
class ComparisonSettings:
    """The settings of every task; `branches` by key."""

    data: DataSettings
    teacher: TeacherSettings
    filing: ComparisonFiling
    branches: dict[str, BranchTasks]
