"""Augmentation that draws from a generator of each image: RandAugment, TrivialAugment, erasing, mixup and cutmix.

An image's generator is a function of (seed, epoch, place in the epoch's order), or of (view, image) where views are shown. So
what happens to it depends on no batch, no worker, no interruption and no sharding. The order is itself a function of (seed,
epoch); with it so are the partners: an image is mixed with the next one in the order of the whole epoch, the last with the
first (torchvision's MixUp and CutMix take the neighbour in the batch).

Cubuk et al., "RandAugment", 2020; Müller and Hutter, "TrivialAugment", 2021; Zhong et al., "Random Erasing", 2020; Zhang et
al., "mixup", 2018; Yun et al., "CutMix", 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rco.data.augment import moved
from rco.data.augmentation import Augmentation

_EPOCHS, _VIEWS = 0x65706F63, 0x76696577  # streams apart from each other, and from those of the order and the crops


@dataclass(frozen=True)
class ImageDraws:
    """What was drawn for some images.

    Attributes:
        policy, erasing: a seed for each image.
        cut: (B,), whether an image is mixed by cutting.
        share: (B,), its share before rectangles are cut off at the border; 0 to 1.
        centre: (B, 2), of its partner's rectangle, row and column, 0 to 1.
    """

    policy: Sequence[int]
    erasing: Sequence[int]
    cut: NDArray[np.bool_]
    share: NDArray[np.float64]
    centre: NDArray[np.float64]

    @classmethod
    def of(
        cls, augmentation: Augmentation, places: NDArray[np.int64], *, seed: int, epoch: int, view: int | None
    ) -> ImageDraws:
        """Draw for the images at these places of the epoch's order; of a view, for the images of these numbers."""
        origin = (_EPOCHS, seed, epoch) if view is None else (_VIEWS, view)
        rows = [_drawn(augmentation, np.random.default_rng((*origin, int(place)))) for place in places]
        policy, erasing, numbers = zip(*rows, strict=True)
        table = np.array(numbers)
        return cls(policy, erasing, table[:, 0] > 0, table[:, 1], table[:, 2:])

    def first(self, count: int) -> ImageDraws:
        """Those of the first images."""
        return ImageDraws(self.policy[:count], self.erasing[:count], self.cut[:count], self.share[:count], self.centre[:count])


def _drawn(augmentation: Augmentation, rng: np.random.Generator) -> tuple[int, int, tuple[float, float, float, float]]:
    policy, erasing = (int(number) for number in rng.integers(2**63, size=2))
    which, row, column = rng.random(3)
    cut = augmentation.cutmix > 0 and (augmentation.mixup == 0 or which < 0.5)
    alpha = augmentation.cutmix if cut else augmentation.mixup
    return policy, erasing, (float(cut), float(rng.beta(alpha, alpha)) if alpha else 1.0, float(row), float(column))


def with_policy(images: Tensor, augmentation: Augmentation, draws: ImageDraws) -> Tensor:
    """RandAugment or TrivialAugmentWide, as torchvision has them, for every image by itself.

    Args:
        images: (B, C, H, W), of 0..255, uint8 or float; C of 1 or 3.

    Returns:
        (B, C, H, W) uint8; without a policy the images as they are.
    """
    if augmentation.auto_augment == "none":
        return images
    from torchvision.transforms import v2

    policy = (
        v2.RandAugment(augmentation.randaugment_ops, augmentation.randaugment_magnitude)
        if augmentation.auto_augment == "randaugment"
        else v2.TrivialAugmentWide()
    )
    whole = images if images.dtype is torch.uint8 else images.round().clamp(0, 255).to(torch.uint8)
    return _each(policy, whole, draws.policy)


def erased(images: Tensor, augmentation: Augmentation, draws: ImageDraws) -> Tensor:
    """Normalised images (B, C, H, W) of which some have lost a rectangle to the mean colour, which is 0."""
    if not augmentation.erasing:
        return images
    from torchvision.transforms import v2

    return _each(v2.RandomErasing(augmentation.erasing), images, draws.erasing)


def _each(transform: Callable[[Tensor], Tensor], images: Tensor, seeds: Sequence[int]) -> Tensor:
    """A transform of torchvision's of every image, each from its own seed: they draw from the CPU's global generator."""
    before = torch.get_rng_state()
    try:
        made = []
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs, too
            made.append(transform(image))
        return torch.stack(made)
    finally:
        torch.set_rng_state(before)


def mixed(
    images: Tensor, labels: Tensor, partners: Tensor, partner_labels: Tensor, draws: ImageDraws, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Every image mixed with its partner: m * image + (1 - m) * partner, m its share, or 0 in a rectangle and 1 around it.

    Args:
        images, partners: (B, C, H, W) float32.
        labels, partner_labels: (B,) int64.

    Returns:
        images, and the share (B, num_classes) float32 that each class has in them.
    """
    masks = kept(draws, images.shape[2], images.shape[3])
    mask = moved(masks.astype(np.float32)[:, None], images.device)
    share = moved(masks.mean(axis=(1, 2)).astype(np.float32)[:, None], images.device)
    own, other = (F.one_hot(y, num_classes).to(torch.float32) for y in (labels, partner_labels))
    return mask * images + (1 - mask) * partners, share * own + (1 - share) * other


def kept(draws: ImageDraws, height: int, width: int) -> NDArray[np.float64]:
    """(B, height, width): what each image keeps of its pixels, 0 to 1."""
    half = 0.5 * np.sqrt(1 - draws.share)
    inside = []
    for size, centre in ((height, draws.centre[:, 0]), (width, draws.centre[:, 1])):
        middle, reach = np.floor(centre * size)[:, None], np.floor(half * size)[:, None]
        pixels = np.arange(size)[None]
        inside.append((pixels >= middle - reach) & (pixels < middle + reach))
    box = inside[0][:, :, None] & inside[1][:, None, :]
    even = np.broadcast_to(draws.share[:, None, None], box.shape)
    return np.where(draws.cut[:, None, None], ~box, even)
