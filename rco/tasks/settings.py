"""What each task is given: the settings that it uses and no others, because they are its cache key.

Some entries are not the user's words: `source_digest`, `route_digest`, `code`, `plugins` and a start's `sha256` say what the
data, the route, the models that are not ours, the plug-ins of other packages and the weights to begin with hold now, so that an
edit is never hidden by a cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rco.config.filing import Filing
from rco.config.shape import labels
from rco.core.settings import jsonable
from rco.data.config import DataConfig, InputConfig
from rco.models.config import ModelConfig
from rco.objectives.config import ObjectiveConfig
from rco.strategies.config import AnchorConfig
from rco.training.config import ComputeConfig, EmaConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Of prepare_data.

    Attributes:
        kept_size: of the images, where they are kept larger than the student takes them; None: as it does, and the task's key
            is as it was without.
    """

    data: DataConfig
    source_digest: str
    kept_size: int | None = None
    plugins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """The weights that a network begins with. `sha256` is that of the file that the check has read."""

    weights: str
    head: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class TeacherSettings:
    """Of train_teacher. With a route that exists, `train` and `checkpoint_every` are None: they cannot matter.
    `teacher_input` is None where the teacher takes its images as the student does, or as its route says.
    """

    teacher: ModelConfig
    compute: ComputeConfig
    code: str = ""
    start: StartSettings | None = None
    teacher_input: InputConfig | None = None
    train: TrainConfig | None = None
    checkpoint_every: int | None = None
    plugins: dict[str, str] = field(default_factory=dict)
    route: str = ""
    route_digest: str = ""


@dataclass(frozen=True, kw_only=True)
class InitSettings:
    """Of init_students. `route_data` is the data digest of a route that exists, if it must be that of the prepared data."""

    student: ModelConfig
    seeds: tuple[int, ...]
    compute: ComputeConfig
    code: str = ""
    start: StartSettings | None = None
    route_data: str = ""


@dataclass(frozen=True, kw_only=True)
class AnchorSettings:
    """Of select_anchors.

    Attributes:
        one_by_one: choose one stage's anchors at a time; else of every stage at once.
        lengths: of the stages into which the only one is cut, each with the same anchor; empty: as the strategy says.
    """

    anchors: AnchorConfig
    tau: float
    student_epochs: int
    seeds: tuple[int, ...]
    one_by_one: bool
    lengths: tuple[int, ...] = ()
    plugins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StageSettings:
    """Of one stage of one student."""

    teacher: ModelConfig
    student: ModelConfig
    train: TrainConfig
    objective: ObjectiveConfig
    anchors: AnchorConfig
    compute: ComputeConfig
    ema: EmaConfig = field(default_factory=EmaConfig)
    code: str = ""
    plugins: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """Of distill_students. The seed in `stage` is replaced by each of `seeds`.

    Attributes:
        branch, kind: empty: the student of a run.
    """

    branch: str
    kind: str
    seeds: tuple[int, ...]
    stage: StageSettings


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Of evaluate_students.

    Attributes:
        branch: empty: the student of a run.
        tau: one for all branches: congruence at different temperatures could not be compared.
        in_depth: measure latency, and keep the figures of every class, and what a registration needs.
        registered_weights: "last" or "ema": of which network that is.
        export: formats to write the student in; None: none, and the task's key is as it was without.
    """

    branch: str
    teacher: ModelConfig
    student: ModelConfig
    seeds: tuple[int, ...]
    tau: float
    compute: ComputeConfig
    code: str = ""
    in_depth: bool = False
    registered_weights: str = "last"
    export: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class BranchTasks:
    """The settings of one branch's tasks."""

    init: InitSettings
    anchors: AnchorSettings
    distill: DistillSettings
    evaluate: EvaluateSettings


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of every task; `branches` by key."""

    data: DataSettings
    teacher: TeacherSettings
    filing: Filing
    branches: dict[str, BranchTasks]

    def outputs(self) -> dict[str, dict[str, Any]]:
        """What the check hands on, JSON-ready: of each branch `init_kd`, `anchors_kd`, ..., so that the settings of one are no
        input of another's tasks. KFP passes no nulls: what is left out is None again when the settings are rebuilt."""
        named = labels(self.branches)
        tasks = {
            f"{task}_{named[key]}": getattr(branch, task)
            for key, branch in self.branches.items()
            for task in BranchTasks.__dataclass_fields__
        }
        made = {"data": self.data, "teacher": self.teacher, "filing": self.filing, **tasks}
        return {name: {k: v for k, v in jsonable(values).items() if v is not None} for name, values in made.items()}
