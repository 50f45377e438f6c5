"""How a network takes the images of a data set: size, part, mean and deviation. Teacher and student may differ.

Images are kept, and augmented, at one size. What a network takes is made of the augmented image: the part around its centre,
resized (bilinear with antialiasing, as Pillow shrinks images), and normalised by the network's own mean and deviation. So two
networks see the same view of an image: crop, mirror, policy, erased rectangle, partner and share are those of the one image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rco.core.errors import InputError
from rco.data.config import InputConfig
from rco.data.manifest import Manifest
from rco.data.normalisation import normalisation

if TYPE_CHECKING:
    import torch
    from torch import Tensor


_LARGEST = 2**16  # pixels


@dataclass(frozen=True, kw_only=True)
class NetworkInput:
    """What a network takes.

    Attributes:
        size: height and width, in pixels.
        mean, std: of each channel of pixels in 0..1.
        crop: the part of each side, around the centre of the image, that it sees; 1: all of it.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.size <= _LARGEST:
            raise InputError("size", self.size, f"is not 1 to {_LARGEST} pixels", "Give the side of the network's images")
        if not 0.1 <= self.crop <= 1:
            raise InputError("crop", self.crop, "is not a part from 0.1 to 1", "Give 1 for all of the image")

    @classmethod
    def of(cls, manifest: Manifest) -> NetworkInput:
        """What the student takes of a prepared data set."""
        return cls(size=manifest.image_shape[1], mean=manifest.mean, std=manifest.std)

    @classmethod
    def asked(cls, config: InputConfig, manifest: Manifest) -> NetworkInput:
        """What the settings of the teacher's input say; where they are silent, it is as the student's.

        Raises:
            InputError: a mean and a deviation of another number of channels.
        """
        student = cls.of(manifest)
        numbers = normalisation(config.image_mean, config.image_std, manifest.image_shape[0], "teacher_")
        mean, std = numbers or (student.mean, student.std)
        return cls(size=config.image_size or student.size, mean=mean, std=std, crop=config.image_crop or 1.0)


def kept_for(size: int, crop: float) -> int:
    """The size at which an image must be kept for a network that takes `size` pixels of the part `crop` of each side."""
    return round(size / crop)


class Seen:
    """From images as they are kept, normalised as for the student, to what a network takes.

    Args:
        kept: the data set as it was prepared.
        own: what the network takes.
    """

    def __init__(self, kept: Manifest, own: NetworkInput) -> None:
        self.kept, self.own = kept, own
        _, height, width = kept.kept_shape
        if own.crop == 1:
            self._part = height, width
        elif height == width == kept_for(own.size, own.crop):
            self._part = own.size, own.size  # kept for this network: nothing is rounded twice
        else:
            self._part = max(round(height * own.crop), 1), max(round(width * own.crop), 1)
        self._top, self._left = (height - self._part[0]) // 2, (width - self._part[1]) // 2
        self._cuts, self._resizes = self._part != (height, width), self._part != (own.size, own.size)
        if own.size == kept.image_shape[1] and own.crop == 1 and not kept.kept_size:
            self._resizes = False  # images that are not square stay so
        if self._resizes and height != width:
            raise InputError("image_size", 0, f"images are {height}x{width}", "Set image_size to make them square")
        self._renormalises = (own.mean, own.std) != (kept.mean, kept.std)
        self._factors: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, kept: Manifest, own: NetworkInput) -> Seen | None:
        """None: the network takes the images as they are kept."""
        seen = cls(kept, own)
        return seen if seen._cuts or seen._resizes or seen._renormalises else None

    def __call__(self, images: Tensor) -> Tensor:
        """What the network takes.

        Args:
            images: (B, C, H, W) float32, as they are kept.

        Returns:
            (B, C, size, size) float32.
        """
        import torch.nn.functional as F

        if self._cuts:
            (height, width), top, left = self._part, self._top, self._left
            images = images[..., top : top + height, left : left + width]
        if self._resizes:
            size = (self.own.size, self.own.size)
            # One memory format: another kernel may give other last digits.
            images = F.interpolate(images.contiguous(), size, mode="bilinear", align_corners=False, antialias=True)
        if self._renormalises:
            scale, offset = self._factors_on(images.device)
            images = images * scale + offset
        return images

    def _factors_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        import torch

        if device not in self._factors:
            mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (self.kept.mean, self.kept.std))
            own_mean, own_std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (self.own.mean, self.own.std))
            factors = (std / own_std, (mean - own_mean) / own_std)
            scale, offset = (factor.to(torch.float32).to(device) for factor in factors)
            self._factors[device] = scale, offset
        return self._factors[device]
