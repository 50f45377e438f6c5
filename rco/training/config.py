"""The settings of a training, of the teacher's route, and of how numbers are computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rco.core.errors import InputError, choice
from rco.core.settings import at_least, fraction, no_credentials, positive, setting
from rco.data.config import AUGMENTATIONS

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("multistep", "cosine", "constant")
PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One run of the optimiser: a teacher's whole training, or the length that all stages of a student share."""

    epochs: int = setting(40, "passes over the training images")
    batch_size: int = setting(64, "images per step")
    optimizer: str = setting("sgd", "sgd (with momentum) | adamw")
    lr: float = setting(0.05, "peak learning rate")
    momentum: float = setting(0.9, "SGD momentum (Nesterov when above 0)")
    weight_decay: float = setting(5e-4, "weight decay")
    schedule: str = setting("multistep", "learning rate over the epochs: multistep | cosine | constant")
    milestones: tuple[float, ...] = setting(
        (0.5, 0.75), "multistep: when to decay, in epochs (1 or more) or as fractions of the training (below 1)"
    )
    gamma: float = setting(0.1, "multistep: factor of each decay")
    warmup_epochs: float = setting(0.0, "epochs of linear warm-up")
    augment: str = setting("none", "none | shift (1 pixel) | crop (pad 4) | crop-flip | resized-crop-flip")
    seed: int = setting(0, "seed of initial weights, order of the images and augmentation")

    def __post_init__(self) -> None:
        at_least("epochs", self.epochs, 1)
        at_least("batch_size", self.batch_size, 1)
        choice("optimizer", self.optimizer, OPTIMIZERS)
        choice("schedule", self.schedule, SCHEDULES)
        choice("augment", self.augment, AUGMENTATIONS)
        positive("lr", self.lr)
        if not 0 <= self.momentum < 1:
            raise InputError("momentum", self.momentum, "must be at least 0 and below 1", "Give a number such as 0.9")
        at_least("weight_decay", self.weight_decay, 0)
        fraction("gamma", self.gamma)
        at_least("seed", self.seed, 0)
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

    route: str = setting("", "address of an existing route (folder or s3://): no teacher is trained")
    checkpoint_every: int = setting(
        4, "keep a checkpoint of the teacher every so many epochs (and before each decay, and the last)"
    )

    def __post_init__(self) -> None:
        no_credentials("route", self.route)
        at_least("checkpoint_every", self.checkpoint_every, 1)


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How numbers are computed. `auto` is resolved by `rco.training.device.resolve` before any task's cache key is made."""

    device: str = setting("auto", "auto | cpu | cuda")
    precision: str = setting("auto", "auto (fp32 on CPU, bf16 on GPU) | fp32 | bf16 (autocast)")
    threads: int = setting(0, "CPU threads of the maths (0: as many as there are cores, at most 8)")
    workers: int = setting(2, "processes that decode images, for data sets that do not fit in memory")

    def __post_init__(self) -> None:
        choice("device", self.device, DEVICES)
        choice("precision", self.precision, PRECISIONS)
        at_least("threads", self.threads, 0)
        at_least("workers", self.workers, 0)
