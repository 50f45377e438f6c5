"""What happens to a training image before a network sees it, as settings. `rco.data.augment` and `rco.data.policies` do it."""

from __future__ import annotations

from dataclasses import dataclass

from rco.core.errors import InputError, UnusedError, choice
from rco.core.settings import at_least

AUGMENTATIONS = ("none", "shift", "crop", "crop-flip", "resized-crop-flip")
POLICIES = ("none", "randaugment", "trivialaugment")
_OPS, _MAGNITUDE = 2, 9  # as torchvision and the paper's ImageNet
_STRENGTHS = 31  # of RandAugment, from 0


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """In this order: the crop, the policy, erasing, mixing.

    Args:
        augment: one of `AUGMENTATIONS`.
        auto_augment: one of `POLICIES`.
        randaugment_ops, randaugment_magnitude: of randaugment: operations one after the other, and their strength, 0 to 30.
        erasing: probability that a rectangle of an image is replaced by the mean colour.
        mixup, cutmix: alpha of the Beta distribution of an image's share in the mixed one; 0: not so. Where both are above 0,
            each image is mixed in the one way or the other, half of them each.
    """

    augment: str = "none"
    auto_augment: str = "none"
    randaugment_ops: int = _OPS
    randaugment_magnitude: int = _MAGNITUDE
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        choice("augment", self.augment, AUGMENTATIONS)
        choice("auto_augment", self.auto_augment, POLICIES)
        at_least("randaugment_ops", self.randaugment_ops, 1)
        if not 0 <= self.randaugment_magnitude < _STRENGTHS:
            raise InputError(
                "randaugment_magnitude", self.randaugment_magnitude, f"is not 0 to {_STRENGTHS - 1}", "9 and 15 are usual"
            )
        for name, value, default in (
            ("randaugment_ops", self.randaugment_ops, _OPS),
            ("randaugment_magnitude", self.randaugment_magnitude, _MAGNITUDE),
        ):
            if self.auto_augment != "randaugment" and value != default:
                raise UnusedError(
                    name,
                    value,
                    f"means nothing with auto_augment = {self.auto_augment}",
                    "Leave it out, or set auto_augment = randaugment",
                )
        if not 0 <= self.erasing <= 1:
            raise InputError("erasing", self.erasing, "is not a probability", "Give 0 to 1, such as 0.25")
        at_least("mixup", self.mixup, 0)
        at_least("cutmix", self.cutmix, 0)

    @property
    def mixes(self) -> bool:
        """Whether every image is mixed with another one."""
        return bool(self.mixup or self.cutmix)

    @property
    def crops_alone(self) -> bool:
        """Whether nothing happens but `augment`."""
        return self == Augmentation(augment=self.augment)

    def require_channels(self, channels: int) -> None:
        """Refuse a policy for images that are neither grey nor RGB, of which torchvision's operations know nothing.

        Raises:
            InputError: they are of other channels.
        """
        if self.auto_augment != "none" and channels not in (1, 3):
            raise InputError(
                "auto_augment", self.auto_augment, f"knows grey and RGB images, and these have {channels} channels", "Use none"
            )


def as_augmentation(augment: str | Augmentation) -> Augmentation:
    """An augmentation, or the one of this name that crops alone.

    Raises:
        InputError: an unknown name.
    """
    return augment if isinstance(augment, Augmentation) else Augmentation(augment=augment)
