"""The learning rate as a pure function of the step, and the epochs of a teacher's checkpoints."""

from __future__ import annotations

from rco.training.config import TrainConfig


def learning_rate(config: TrainConfig, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """The learning rate of step `step` (counted from 0) in a training of `epochs` epochs.

    Linear warm-up from near 0 to `config.lr` over `config.warmup_epochs`, times the factor of the schedule.

    A stage of distillation is a training of its own: it starts at step 0 again.
    """
    progress = step / steps_per_epoch  # in epochs
    # The first step of a warm-up already moves: (step + 1) / steps, not step / steps.
    warmup_steps = config.warmup_epochs * steps_per_epoch
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps >= 1 else 1.0
    factor = config.schedule.factor(progress, epochs=epochs, warmup=config.warmup_epochs)
    return config.lr * warmup * factor


def checkpoint_epochs(config: TrainConfig, every: int) -> tuple[int, ...]:
    """The epochs after which a teacher's weights are saved: every `every`-th, the last before each decay, the last of all."""
    regular = range(every, config.epochs + 1, every)
    return tuple(sorted({*regular, *config.decay_epochs(config.epochs), config.epochs}))
