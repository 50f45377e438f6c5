"""What a schedule of the learning rate is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from rco.core.plugins import Plugin, Registry


class Schedule(Plugin, ABC):
    """The learning rate over the epochs, as a factor of its peak. Warm-up is not its business: it comes on top."""

    @abstractmethod
    def factor(self, progress: float, *, epochs: int, warmup: float) -> float:
        """The factor at one moment.

        Args:
            progress: epochs since the beginning, a part of one included.
            epochs: length of the training.
            warmup: epochs of warm-up.
        """

    def decays(self, epochs: int) -> tuple[int, ...]:
        """The epochs after which the rate drops at once, in a training of `epochs` epochs (strictly increasing).

        A drop "after epoch e" means that epoch e is the last one trained with the higher rate.

        Raises:
            InputError: parameters that do not fit a training of this length.
        """
        return ()


SCHEDULES: Registry[Schedule] = Registry(
    "schedule",
    Schedule,  # type: ignore[type-abstract]
    package="rco.training.schedules",
    helpers=("base",),
    group="rco.schedules",
)
