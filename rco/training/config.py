"""The settings of a training, of the teacher's route, and of how numbers are computed."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from rco.core.errors import InputError, UnusedError, choice
from rco.core.plugins import Settings, plugin_setting
from rco.core.settings import at_least, below_one, no_credentials, positive, setting
from rco.data.augmentation import Augmentation
from rco.objectives.config import ObjectiveConfig
from rco.training.optimizers.base import OPTIMIZERS, Optimizer
from rco.training.schedules.base import SCHEDULES, Schedule

PRECISIONS = ("auto", "fp32", "bf16")
BALANCES = ("none", "weights", "sampling")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """One run of the optimiser: a teacher's whole training, or the length that all stages of a student share."""

    epochs: int = setting(40, "passes over the training images")
    batch_size: int = setting(64, "images per step")
    optimizer: Optimizer = plugin_setting(OPTIMIZERS, "sgd", "how the weights are stepped")
    lr: float = setting(0.05, "peak learning rate")
    weight_decay: float = setting(5e-4, "weight decay")
    schedule: Schedule = plugin_setting(SCHEDULES, "multistep", "learning rate over the epochs")
    warmup_epochs: float = setting(0.0, "epochs of linear warm-up")
    body_lr_factor: float = setting(
        1.0, "learning rate of all but the last layer, as a part of lr: fine-tuning takes 0.1 or so"
    )
    augment: str = setting("none", "none | shift (1 pixel) | crop (pad 4) | crop-flip | resized-crop-flip")
    auto_augment: str = setting("none", "operations on each image after augment: none | randaugment | trivialaugment")
    randaugment_ops: int = setting(2, "operations one after the other (randaugment)")
    randaugment_magnitude: int = setting(9, "strength of the operations, 0 to 30 (randaugment)")
    erasing: float = setting(0.0, "probability that a rectangle of an image is erased")
    mixup: float = setting(
        0.0, "mix every image and its label with another one's; alpha of the shares' Beta distribution, such as 0.2 (0: do not)"
    )
    cutmix: float = setting(
        0.0,
        "paste a rectangle of another image into every one; alpha as of mixup, such as 1 (0: do not; beside mixup: half each)",
    )
    label_smoothing: float = setting(0.0, "part of each label that is spread evenly over all classes")
    class_balance: str = setting(
        "none", "none | weights (in the labels' term rare classes count for more) | sampling (every class is shown as often)"
    )
    clip_norm: float = setting(0.0, "longest gradient; longer ones are scaled down to it (0: as they are)")
    seed: int = setting(0, "seed of initial weights, order of the images and augmentation")

    def __post_init__(self) -> None:
        at_least("epochs", self.epochs, 1)
        at_least("batch_size", self.batch_size, 1)
        _ = self.augmentation
        positive("lr", self.lr)
        positive("body_lr_factor", self.body_lr_factor)
        at_least("weight_decay", self.weight_decay, 0)
        at_least("seed", self.seed, 0)
        below_one("label_smoothing", self.label_smoothing, "Give 0.1, for example, or 0 for none")
        choice("class_balance", self.class_balance, BALANCES)
        at_least("clip_norm", self.clip_norm, 0)
        if not 0 <= self.warmup_epochs < self.epochs:
            raise InputError(
                "warmup_epochs",
                self.warmup_epochs,
                f"must be at least 0 and below the {self.epochs} epochs",
                "Shorten the warm-up",
            )
        self.decay_epochs(self.epochs)

    @property
    def augmentation(self) -> Augmentation:
        """What happens to the training images.

        Raises:
            InputError: it cannot work.
        """
        return Augmentation(**{f.name: getattr(self, f.name) for f in fields(Augmentation)})

    def decay_epochs(self, epochs: int) -> tuple[int, ...]:
        """The epochs after which the learning rate drops, in a training of `epochs` epochs: `Schedule.decays`.

        Raises:
            InputError: milestones that do not fit a training of this length.
        """
        return self.schedule.decays(epochs)

    def require_fit(self, objective: ObjectiveConfig) -> None:
        """Refuse what does not go with the loss of a stage.

        Raises:
            UnusedError: a setting of the labels' term, where this has no weight.
            InputError: mixed images where answers about single ones are stored, or where each must be of one class.
        """
        self._require_label_term(objective.label_weight)
        for name in ("mixup", "cutmix"):
            if not (value := getattr(self, name)):
                continue
            if objective.views:
                raise InputError(
                    name,
                    value,
                    f"gives an image another partner in every epoch, but views = {objective.views} keeps the anchor's logits",
                    "Use views = 0, or no mixup and cutmix",
                )
            if objective.needs_anchor and objective.objective.needs_classes:
                raise InputError(
                    name,
                    value,
                    f"mixes two classes, but objective = {objective.objective.plugin_name} needs the one class of an image",
                    "Use another objective, or no mixup and cutmix",
                )

    def _require_label_term(self, label_weight: float) -> None:
        for name, value, off in (
            ("label_smoothing", self.label_smoothing, 0.0),
            ("class_balance", self.class_balance, "none"),
        ):
            if label_weight == 0 and value != off:
                raise UnusedError(
                    name,
                    value,
                    "means nothing with label_weight = 0: there is no labels' term",
                    "Leave it out, or set label_weight",
                )


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The moving average of a student's weights, which is measured beside the last ones."""

    ema_decay: float = setting(
        0.0, "keep a moving average of the student's weights too, with this decay a step, such as 0.999 (0: none)"
    )

    def __post_init__(self) -> None:
        below_one("ema_decay", self.ema_decay, "Give 0.999, for example, or 0 for none")


@dataclass(frozen=True, kw_only=True)
class RouteConfig:
    """Where the teacher's route comes from: a training that keeps checkpoints, or a route that exists."""

    route: str = setting("", "address of an existing route (folder or s3://): no teacher is trained")
    checkpoint_every: int = setting(
        4, "keep a checkpoint of the teacher every so many epochs (and before each decay, and the last)"
    )

    def __post_init__(self) -> None:
        no_credentials("route", self.route)
        at_least("checkpoint_every", self.checkpoint_every, 1)


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How numbers are computed. `auto` is resolved by `rco.training.device.resolve` before any task's cache key is made; in a
    pipeline `rco.tasks.precision` then decides between fp32 and bf16 on a CPU, where `resolve` means fp32."""

    device: str = setting("auto", "auto | cpu | cuda")
    precision: str = setting("auto", "auto (bf16 on a GPU; on a CPU where a trial finds it faster) | fp32 | bf16 (autocast)")
    threads: int = setting(0, "CPU threads of the maths, shared by the workers (0: as many as there are cores, at most 8)")
    workers: int = setting(2, "processes that decode images, for data sets that do not fit in memory")
    workers_per_task: int = setting(0, "processes that train one model together (0: one for each GPU of the task; on a CPU 1)")
    sync_batchnorm: bool = setting(False, "with several workers on GPUs: BatchNorm's statistics are those of the whole batch")

    def __post_init__(self) -> None:
        choice("device", self.device, DEVICES)
        choice("precision", self.precision, PRECISIONS)
        at_least("threads", self.threads, 0)
        at_least("workers", self.workers, 0)
        at_least("workers_per_task", self.workers_per_task, 0)
        if self.sync_batchnorm and self.device == "cpu":
            raise InputError(
                "sync_batchnorm",
                True,
                "needs GPUs: PyTorch's SyncBatchNorm refuses tensors on a CPU",
                "Leave it out: BatchNorm's statistics are then those of each worker's share of the batch",
            )

    @property
    def alone(self) -> ComputeConfig:
        """The same for a task that needs one worker."""
        return replace(self, workers_per_task=1, sync_batchnorm=False)
