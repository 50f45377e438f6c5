"""Every setting of a run: frozen dataclasses that are valid from the moment they exist, and one flat view of them all.

The flat view (`PARAMETERS`, `RunConfig.from_flat`, `RunConfig.to_flat`) is what people meet: command-line flags, recipe
files, the form in the Kubeflow UI, MLflow parameters. The groups are what code meets. A task is given the group it uses and
nothing else, so that changing one setting invalidates the caches of the tasks that depend on it and of no others.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from rco.core.errors import InputError, choice

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("multistep", "cosine", "constant")
AUGMENTATIONS = ("none", "shift", "crop", "crop-flip", "resized-crop-flip")
STRATEGIES = ("equal-interval", "lr-decay", "greedy", "explicit")
FEATURES = ("embedding", "hint")  # objectives that need more of an anchor than its logits
OBJECTIVES = ("route", "embedding", "hint", "dkd", "dist", "standardised")
STEMS = ("auto", "imagenet", "small")
PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
TAU_SQUARED = "tau^2"


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _positive(name: str, value: float, remedy: str = "Give a number above 0") -> None:
    if not (is_number(value) and value > 0):
        raise InputError(name, value, "must be a finite number above 0", remedy)


def _at_least(name: str, value: float, least: float) -> None:
    if not (is_number(value) and value >= least):
        raise InputError(name, value, f"must be a finite number, {least:g} or more", f"Give {least:g} or more")


def _fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(name, value, "must lie strictly between 0 and 1", "Give a fraction such as 0.2")


_HOTTEST = 10**6  # tau; its square is a float's still
LARGEST_IMAGE = 4096  # pixels, of the side to which images are brought


def has_credentials(address: str) -> bool:
    """Whether an address holds more than the name of a host or bucket: it would be written into logs, files and MLflow.

    A password may hold a slash. Then what stands before it has a colon, which no bucket's name has; a key may hold an @.
    """
    scheme, separator, rest = address.partition("://")
    if scheme == "s3":
        return any(mark in rest.partition("/")[0] for mark in "@:")
    return bool(separator) and "@" in rest and scheme != "file"


def _no_credentials(name: str, address: str) -> None:
    if has_credentials(address):
        scheme = address.partition("://")[0]
        raise InputError(
            name, f"{scheme}://...", "holds credentials", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data set, and how it is split. The validation part comes out of the training part; the test part stays whole."""

    dataset: str = _setting(
        "digits",
        "digits | mnist | fashionmnist | cifar10 | cifar100 | svhn | an image folder, a tar, or an s3:// address of one",
    )
    data_root: str = _setting(".rco/data", "directory that holds (or receives) torchvision data sets")
    download: bool = _setting(False, "let torchvision download the data set into data_root if it is missing")
    image_size: int = _setting(
        0, "resize images to this many pixels square (0: keep their size, which then must be one for all)"
    )
    val_fraction: float = _setting(0.2, "part of the training images held out for validation (stratified)")
    test_fraction: float = _setting(0.2, "part held out for the test if the source has no test split of its own")
    probe_size: int = _setting(
        256, "validation images on which hardness is measured (stratified; fewer if validation is smaller)"
    )
    data_seed: int = _setting(0, "seed of the splits")
    open_classes: tuple[str, ...] = _setting(
        (), "classes (names, or numbers from 0) that nothing is trained on: evaluate verifies and identifies them by embeddings"
    )

    def __post_init__(self) -> None:
        if not self.dataset.strip():
            raise InputError("dataset", self.dataset, "is empty", "Name a data set, a folder or an s3:// address")
        _no_credentials("dataset", self.dataset)
        _at_least("image_size", self.image_size, 0)
        if self.image_size > LARGEST_IMAGE:
            raise InputError(
                "image_size", self.image_size, f"is more than {LARGEST_IMAGE}", "Images are made square, of this side"
            )
        _fraction("val_fraction", self.val_fraction)
        _fraction("test_fraction", self.test_fraction)
        _at_least("probe_size", self.probe_size, 1)
        _at_least("data_seed", self.data_seed, 0)
        if len(set(self.open_classes)) < len(self.open_classes):
            raise InputError("open_classes", self.open_classes, "names a class twice", "Name each once")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network by name. Class count, channels and image size come from the data."""

    model: str = _setting("digits-cnn-s", "a model of this project, any torchvision classifier, or package.module:factory")
    stem: str = _setting("auto", "first layers of torchvision models: imagenet | small (images up to 64 pixels) | auto")
    embedding_dim: int = _setting(
        0, "size of an embedding layer before the classifier (0: none); teacher and student alike for objective = embedding"
    )

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise InputError("model", self.model, "is empty", "Name a model")
        choice("stem", self.stem, STEMS)
        _at_least("embedding_dim", self.embedding_dim, 0)
        if self.embedding_dim == 1:
            raise InputError("embedding_dim", 1, "leaves no angle between two embeddings", "Give 2 or more, or 0 for none")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of the optimiser: a teacher's whole training, or the length that all stages of a student share."""

    epochs: int = _setting(40, "passes over the training images")
    batch_size: int = _setting(64, "images per step")
    optimizer: str = _setting("sgd", "sgd (with momentum) | adamw")
    lr: float = _setting(0.05, "peak learning rate")
    momentum: float = _setting(0.9, "SGD momentum (Nesterov when above 0)")
    weight_decay: float = _setting(5e-4, "weight decay")
    schedule: str = _setting("multistep", "learning rate over the epochs: multistep | cosine | constant")
    milestones: tuple[float, ...] = _setting(
        (0.5, 0.75), "multistep: when to decay, in epochs (1 or more) or as fractions of the training (below 1)"
    )
    gamma: float = _setting(0.1, "multistep: factor of each decay")
    warmup_epochs: float = _setting(0.0, "epochs of linear warm-up")
    augment: str = _setting("none", "none | shift (1 pixel) | crop (pad 4) | crop-flip | resized-crop-flip")
    seed: int = _setting(0, "seed of initial weights, order of the images and augmentation")

    def __post_init__(self) -> None:
        _at_least("epochs", self.epochs, 1)
        _at_least("batch_size", self.batch_size, 1)
        choice("optimizer", self.optimizer, OPTIMIZERS)
        choice("schedule", self.schedule, SCHEDULES)
        choice("augment", self.augment, AUGMENTATIONS)
        _positive("lr", self.lr)
        if not 0 <= self.momentum < 1:
            raise InputError("momentum", self.momentum, "must be at least 0 and below 1", "Give a number such as 0.9")
        _at_least("weight_decay", self.weight_decay, 0)
        _fraction("gamma", self.gamma)
        _at_least("seed", self.seed, 0)
        if not 0 <= self.warmup_epochs < self.epochs:
            raise InputError(
                "warmup_epochs",
                self.warmup_epochs,
                f"must be at least 0 and below the {self.epochs} epochs",
                "Shorten the warm-up",
            )
        if self.schedule == "multistep":
            self.decay_epochs(self.epochs)

    def decay_epochs(self, epochs: int) -> tuple[int, ...]:
        """The epochs after which the learning rate drops, in a training of `epochs` epochs (strictly increasing).

        A drop "after epoch e" means that epoch e is the last one trained with the higher rate. Empty unless multistep.

        Raises:
            InputError: milestones that mix units, are out of order, or fall outside the training.
        """
        if self.schedule != "multistep":
            return ()
        given = self.milestones
        remedy = "Give increasing epochs such as 20,30 or increasing fractions such as 0.5,0.75, or schedule = constant"
        if not given:
            raise InputError("milestones", given, "is empty, but the schedule is multistep", remedy)
        if any(not math.isfinite(m) or m <= 0 for m in given):
            raise InputError("milestones", given, "must be above 0", remedy)
        if len({m < 1 for m in given}) > 1:
            raise InputError("milestones", given, "mixes fractions and epochs", remedy)
        if given[0] >= 1 and any(m != int(m) for m in given):
            raise InputError("milestones", given, "has epochs that are not whole", remedy)
        decays = tuple(max(1, round(m * epochs)) if m < 1 else int(m) for m in given)
        if list(decays) != sorted(set(decays)) or decays[-1] >= epochs:
            if given[0] < 1 and list(given) == sorted(set(given)):
                # Fractions of a very short training can fall together: keep those that still mean something.
                return tuple(sorted({d for d in decays if d < epochs}))
            raise InputError("milestones", given, f"must increase and lie below the {epochs} epochs", remedy)
        return decays


@dataclass(frozen=True, kw_only=True)
class RouteConfig:
    """Where the teacher's route comes from: a training that keeps checkpoints, or a route that exists."""

    route: str = _setting("", "address of an existing route (folder or s3://): no teacher is trained")
    checkpoint_every: int = _setting(
        4, "keep a checkpoint of the teacher every so many epochs (and before each decay, and the last)"
    )

    def __post_init__(self) -> None:
        _no_credentials("route", self.route)
        _at_least("checkpoint_every", self.checkpoint_every, 1)


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """Which checkpoints of the route become anchors. See docs of `rco.strategies.anchors` for the definitions."""

    strategy: str = _setting("greedy", "equal-interval | lr-decay | greedy | explicit")
    n_anchors: int = _setting(4, "equal-interval: how many anchors; greedy: the most that may be used")
    delta: float = _setting(1.5, "greedy: largest relative hardness that a next anchor may have")
    first_epoch: int = _setting(0, "greedy: epoch of the first anchor (0: the first checkpoint on the route)")
    anchor_epochs: tuple[int, ...] = _setting((), "explicit: the epochs of the anchors, in order")

    def __post_init__(self) -> None:
        choice("strategy", self.strategy, STRATEGIES)
        _at_least("n_anchors", self.n_anchors, 1)
        _positive("delta", self.delta, "Give a ratio such as 1.5; 1 means no harder than the anchor just learnt")
        _at_least("first_epoch", self.first_epoch, 0)
        if self.strategy == "explicit":
            epochs = self.anchor_epochs
            if not epochs:
                raise InputError(
                    "anchor_epochs", epochs, "is empty, but the strategy is explicit", "List epochs, such as 10,20,40"
                )
            if list(epochs) != sorted(set(epochs)):
                raise InputError("anchor_epochs", epochs, "is not in increasing order", f"Give {sorted(set(epochs))}")
            if epochs[0] < 1:
                raise InputError("anchor_epochs", epochs, "has an epoch below 1", "Epochs count from 1")


#: Parameters that one objective alone has.
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
    """The loss of a stage: w * H(y, P_s) + lambda * a mimic term, and what each of `rco.objectives` has beside.

    With `objective = route`, the default, it is H(y, P_s) + lambda * KL(P_t^tau || P_s^tau) (Jin et al. 2019). A parameter of
    another objective than the one chosen is refused, so that no setting is without effect. Whatever the objective, hardness and
    congruence are the KL of the logits at tau.
    """

    objective: str = _setting(
        "route",
        "what a stage minimises: route (the paper's loss) | embedding (for open sets) | hint (FitNets) | dkd | dist | "
        "standardised (logits)",
    )
    label_weight: float = _setting(1.0, "weight of the labels' cross-entropy")
    tau: float = _setting(4.0, "relaxation temperature of the softmax in the mimic term, hardness and congruence")
    lam: str = _setting(
        TAU_SQUARED, "weight lambda of the mimic term: a number, or tau^2 (Hinton's factor; our default; not for embedding)"
    )
    views: int = _setting(
        0,
        "show each image in so many augmented views, and compute the anchor's logits of each once (0: fresh views for ever); "
        "for objectives that need logits alone",
    )
    hint_weight: float = _setting(
        1.0, "hint: weight of half the mean squared difference of the features (RepDistiller and mdistiller: 200, for CIFAR)"
    )
    student_tap: str = _setting("", "hint: module of the student that is guided, such as stage2 (input:NAME: what it is given)")
    teacher_tap: str = _setting(
        "", "hint: module of the teacher that gives the hint, such as stage2 (input:NAME: what it is given)"
    )
    dkd_alpha: float = _setting(1.0, "dkd: weight of the target class's part (1: as its authors)")
    dkd_beta: float = _setting(8.0, "dkd: weight of the other classes' part (8: the default of its authors, who tune it)")
    dist_beta: float = _setting(1.0, "dist: weight of the relations between classes (1: the default of its authors)")
    dist_gamma: float = _setting(1.0, "dist: weight of the relations within a class (1: the default of its authors)")

    def __post_init__(self) -> None:
        choice("objective", self.objective, OBJECTIVES)
        _at_least("label_weight", self.label_weight, 0)
        _positive("tau", self.tau, "Temperatures are above 0; the literature uses 1 to 20")
        if self.tau > _HOTTEST:
            raise InputError("tau", self.tau, f"is more than {_HOTTEST:,}", "The literature uses 1 to 20")
        remedy = f"Give a number, 0 or more, or {TAU_SQUARED!r}"
        try:
            weight = self.lambda_
        except ValueError:
            raise InputError("lam", self.lam, "is not a number", remedy) from None
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError("lam", self.lam, "lambda must be a finite number, 0 or more", remedy)
        _at_least("views", self.views, 0)
        if self.views and self.objective in FEATURES:
            raise InputError(
                "views",
                self.views,
                f"keeps logits, but objective = {self.objective} needs features",
                "Use 0, or another objective",
            )
        _positive("hint_weight", self.hint_weight)
        for name in ("dkd_alpha", "dkd_beta", "dist_beta", "dist_gamma"):
            _at_least(name, getattr(self, name), 0)
        self._check_use()

    def _check_use(self) -> None:
        for f in fields(self):
            owner = OWNERS.get(f.name, self.objective)
            if owner != self.objective and (value := getattr(self, f.name)) != f.default:
                raise InputError(
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
        """Whether anything is mimicked: with lambda = 0 the labels alone teach (and the hint, if that is the objective)."""
        return self.lambda_ > 0 or self.objective == "hint"


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How numbers are computed. `auto` is resolved by `rco.training.engine.resolve` before any task's cache key is made."""

    device: str = _setting("auto", "auto | cpu | cuda")
    precision: str = _setting("auto", "auto (fp32 on CPU, bf16 on GPU) | fp32 | bf16 (autocast)")
    threads: int = _setting(0, "CPU threads of the maths (0: as many as there are cores, at most 8)")
    workers: int = _setting(2, "processes that decode images, for data sets that do not fit in memory")

    def __post_init__(self) -> None:
        choice("device", self.device, DEVICES)
        choice("precision", self.precision, PRECISIONS)
        _at_least("threads", self.threads, 0)
        _at_least("workers", self.workers, 0)


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where results are filed in MLflow."""

    experiment: str = _setting("rco", "MLflow experiment")
    registered_model: str = _setting("rco-student", "name of the student in the MLflow model registry (empty: do not register)")
    champion_margin: float = _setting(
        0.0, "test accuracy (0 to 1) by which a student must beat the registry's champion to take that alias over"
    )

    def __post_init__(self) -> None:
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

    check_services: bool = _setting(
        False, "begin with writing and reading a run and an object in the MLflow and S3 that the environment names"
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything one run of the pipeline is told."""

    data: DataConfig = field(default_factory=DataConfig)
    teacher: ModelConfig = field(default_factory=lambda: ModelConfig(model="digits-cnn-l"))
    teacher_train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=40, lr=0.05, augment="shift"))
    route: RouteConfig = field(default_factory=RouteConfig)
    student: ModelConfig = field(default_factory=lambda: ModelConfig(model="digits-cnn-s"))
    student_train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=80, lr=0.05, augment="shift"))
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    services: ServicesConfig = field(default_factory=ServicesConfig)

    def __post_init__(self) -> None:
        if self.anchors.strategy == "lr-decay" and not self.route.route and self.teacher_train.schedule != "multistep":
            raise InputError(
                "strategy",
                "lr-decay",
                f"needs a teacher whose learning rate is decayed, but teacher_schedule = {self.teacher_train.schedule!r}",
                "Use teacher_schedule = multistep, or another strategy",
            )
        mimicked, compared = self.objective.objective == "embedding", bool(self.data.open_classes)
        for role, model in (("teacher", self.teacher), ("student", self.student)):
            if (mimicked or compared) and not model.embedding_dim:
                reason = "objective = embedding" if mimicked else "open_classes"
                raise InputError(
                    f"{role}_embedding_dim", 0, f"is no size, but {reason} needs embeddings", "Give a size such as 32"
                )
        if mimicked and self.teacher.embedding_dim != self.student.embedding_dim:
            raise InputError(
                "student_embedding_dim",
                self.student.embedding_dim,
                f"differs from teacher_embedding_dim = {self.teacher.embedding_dim}, so embeddings cannot be compared",
                "Make them equal: the student's embedding layer maps its features to the teacher's size",
            )

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> RunConfig:
        """Build from flat parameters; what is left out keeps its default.

        Values may be strings (command line, YAML): they are read as the type of the parameter.

        Raises:
            InputError: an unknown name, a value of the wrong type, or a value that cannot work.
        """
        unknown = [name for name in flat if name not in PARAMETERS]
        if unknown:
            choice("parameter", unknown[0], tuple(PARAMETERS))
        defaults = cls()
        groups: dict[str, Any] = {}
        for group, prefix in _GROUPS.items():
            values = {p.field: _coerce(p, flat[p.name]) for p in PARAMETERS.values() if p.group == group and p.name in flat}
            try:
                groups[group] = dataclasses.replace(getattr(defaults, group), **values)
            except InputError as error:
                raise error.renamed(_flat_name(prefix, error.parameter)) from None
        return cls(**groups)

    def to_flat(self) -> dict[str, Any]:
        """All parameters by flat name, JSON-ready (tuples as lists)."""
        return {p.name: jsonable(getattr(getattr(self, p.group), p.field)) for p in PARAMETERS.values()}


@dataclass(frozen=True)
class Parameter:
    """One flat parameter. `kind` is str, int, float, bool or list; `item` the type of a list's items."""

    name: str
    kind: type
    item: type | None
    default: Any
    help: str
    group: str
    field: str


# Group -> prefix of its flat names.
_GROUPS = {
    "data": "",
    "teacher": "teacher_",
    "teacher_train": "teacher_",
    "route": "",
    "student": "student_",
    "student_train": "",
    "anchors": "",
    "objective": "",
    "compute": "",
    "tracking": "",
    "services": "",
}


def _flat_name(prefix: str, name: str) -> str:
    return prefix.removesuffix("_") if name == "model" else prefix + name


def _parameters() -> dict[str, Parameter]:
    defaults = RunConfig()
    result: dict[str, Parameter] = {}
    for group, prefix in _GROUPS.items():
        config = getattr(defaults, group)
        hints = typing.get_type_hints(type(config))
        for f in fields(config):
            hint, item = hints[f.name], None
            if typing.get_origin(hint) is tuple:
                hint, item = list, typing.get_args(hint)[0]
            name = _flat_name(prefix, f.name)
            result[name] = Parameter(name, hint, item, jsonable(getattr(config, f.name)), f.metadata["help"], group, f.name)
    return result


def read_value(name: str, value: Any) -> Any:
    """A value of the parameter `name`, JSON-ready, read as its type. Whether it can work is for the whole configuration to say.

    Raises:
        InputError: an unknown name, or a value of the wrong type.
    """
    choice("parameter", name, tuple(PARAMETERS))
    return jsonable(_coerce(PARAMETERS[name], value))


def _coerce(p: Parameter, value: Any) -> Any:
    try:
        if p.kind is list:
            assert p.item is not None
            if isinstance(value, str):
                value = [part for part in value.replace("[", "").replace("]", "").split(",") if part.strip()]
            return tuple(_scalar(p.item, v) for v in value)
        return _scalar(p.kind, value)
    except (TypeError, ValueError, OverflowError):
        want = (
            f"a list of {p.item.__name__}"
            if p.item
            else {"str": "text", "bool": "true or false"}.get(p.kind.__name__, p.kind.__name__)
        )
        raise InputError(p.name, value, f"is not {want}", f"The default is {p.default!r}") from None


_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _scalar(type_: type, value: Any) -> Any:
    if type_ is bool:
        word = str(value).strip().lower()
        if word not in _BOOLEANS or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            raise TypeError
        return _BOOLEANS[word]
    if isinstance(value, bool):
        raise TypeError
    if type_ is int:
        number = float(value)
        if number != int(number):
            raise ValueError
        return int(number)
    if type_ is float:
        return float(value)
    return value if isinstance(value, str) else str(value)


def jsonable(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [jsonable(v) for v in value]
    return value


T = TypeVar("T")


def from_dict(cls: type[T], values: Any, *, partial: bool = False) -> T:
    """The reverse of `jsonable` for a dataclass: every value has the type of its field, nested dataclasses and tuples too.

    Args:
        partial: whether values without a field are passed over.

    Raises:
        InputError: no mapping, a field that `cls` does not have, one that is missing or of another type, or a value it refuses.
    """
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise InputError(cls.__name__, values, "is not a mapping", f"Give a value for each of: {', '.join(known)}")
    hints = typing.get_type_hints(cls)
    kwargs: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            if partial:
                continue
            raise InputError(str(name), value, f"is not a field of {cls.__name__}", f"Known: {', '.join(known)}")
        try:
            kwargs[name] = _typed(hints[name], value, partial)
        except InputError:
            raise
        except (TypeError, ValueError, OverflowError):
            wanted = str(known[name].type)
            raise InputError(name, value, f"is not of type {wanted}, as {cls.__name__} needs it", "Make it again") from None
    for name, f in known.items():
        if name not in kwargs and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise InputError(name, None, f"is missing, and {cls.__name__} needs it", "Make it again")
    return cls(**kwargs)


def is_number(value: Any) -> bool:
    """Whether a value of a JSON document is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


_LARGEST = 2**63


def _typed(hint: Any, value: Any, partial: bool) -> Any:
    """A value of a JSON document as the type that a field has.

    Raises:
        TypeError, ValueError, OverflowError: it is of another.
    """
    if isinstance(hint, types.UnionType):
        return None if value is None else _typed(next(a for a in typing.get_args(hint) if a is not type(None)), value, partial)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, partial=partial)  # type: ignore[arg-type]
    origin, items = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise TypeError
        return {_typed(items[0], k, partial): _typed(items[1], v, partial) for k, v in value.items()}
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise TypeError
        if origin is tuple and items[-1] is not ...:
            return tuple(_typed(item, v, partial) for item, v in zip(items, value, strict=True))
        return origin(_typed(items[0], v, partial) for v in value)
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError
        number = hint(value)  # KFP hands every JSON number over as a float
        if hint is int and (number != value or abs(number) >= _LARGEST):
            raise ValueError
        return number
    if hint in (str, bool) and not isinstance(value, hint):
        raise TypeError
    return value


PARAMETERS: dict[str, Parameter] = _parameters()
