"""Random augmentation of whole batches on the device they lie on, from random numbers that are drawn on the CPU.

Every image takes the same number of draws, one image after the other. So what happens to the images of an epoch depends neither
on the batch size nor on the device.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_SHIFT, _CROP = 1, 4  # pixels of padding
_SCALE, _RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the resized crop (torchvision's RandomResizedCrop)
_TRIES = 10
_VIEWS = 0x76696577  # apart from the streams of (seed, epoch)
_DRAWS = {"none": 0, "shift": 2, "crop": 2, "crop-flip": 3, "resized-crop-flip": 2 * _TRIES + 3}


def augmented(images: Tensor, kind: str, rng: np.random.Generator) -> Tensor:
    """Augment a batch.

    Args:
        images: (B, C, H, W) uint8.
        kind: none | shift (crop with 1 black pixel around) | crop (4 black pixels around, as is the custom for CIFAR) |
            crop-flip (crop, then a mirror image of every other one) | resized-crop-flip (8 % to 100 % of the area, as is the
            custom for ImageNet). Black is black before normalisation, as with torchvision's transforms on images.
        rng: `kind` decides how many numbers are drawn from it for each image.

    Returns:
        (B, C, H, W) uint8; float32 in 0..255 from resized-crop-flip.
    """
    return transformed(images, kind, draws_of(kind, len(images), rng))


def draws_of(kind: str, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The numbers (count, D) that `augmented` draws for `count` images."""
    return rng.random((count, _DRAWS[kind]))


def view_draws(kind: str, count: int, view: int) -> NDArray[np.float64]:
    """The numbers (count, D) that make a view of `count` images: row i is a function of (kind, view, i) alone."""
    return np.random.default_rng((_VIEWS, view)).random((count, _DRAWS[kind]))


def transformed(images: Tensor, kind: str, draws: NDArray[np.float64]) -> Tensor:
    """As `augmented`, from numbers (B, D) in [0, 1) that are drawn already."""
    if kind == "none":
        return images
    height, width = images.shape[2:]
    if kind == "resized-crop-flip":
        return resized_crop(images, _on(images, crop_boxes(draws[:, 1:], height, width)), _on(images, draws[:, 0] < 0.5))
    padding = _SHIFT if kind == "shift" else _CROP
    cut = crop(images, padding, _on(images, (draws[:, -2:] * (2 * padding + 1)).astype(np.int64)))
    return flip(cut, _on(images, draws[:, 0] < 0.5)) if kind == "crop-flip" else cut


def crop(images: Tensor, padding: int, offsets: Tensor) -> Tensor:
    """Cut (B, C, H, W) images anew out of themselves with `padding` zeros around.

    Args:
        offsets: (B, 2) int64, top and left in 0..2 * padding; `padding` is where the image was.
    """
    height, width = images.shape[2:]
    # (B, C, 2 padding + 1, 2 padding + 1, H, W): every possible crop as a view, of which one each is copied.
    crops = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(len(images), device=images.device), :, offsets[:, 0], offsets[:, 1]]


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Mirror those of the (B, C, H, W) images left to right for which `which` (B,) is true."""
    return torch.where(which[:, None, None, None], images.flip(3), images)


def crop_boxes(draws: NDArray[np.float64], height: int, width: int) -> NDArray[np.int64]:
    """The boxes of torchvision's RandomResizedCrop: area uniform in 8..100 %, log aspect ratio uniform in 3:4..4:3.

    Args:
        draws: (B, 22) uniform in [0, 1): ten tries of an area, ten of a ratio, and the place.

    Returns:
        (B, 4): top, left, height, width. If all tries of an image fail, the largest allowed box in the centre.
    """
    area = height * width * (_SCALE[0] + (_SCALE[1] - _SCALE[0]) * draws[:, :_TRIES])
    low, high = map(math.log, _RATIO)
    ratio = np.exp(low + (high - low) * draws[:, _TRIES : 2 * _TRIES])
    widths, heights = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = np.arange(len(draws)), fits.argmax(1)
    w, h = widths[first], heights[first]
    top, left = np.floor(draws[:, -2] * (height - h + 1)), np.floor(draws[:, -1] * (width - w + 1))
    w_central, h_central = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    central = (height - h_central) // 2, (width - w_central) // 2, h_central, w_central
    boxes = np.where(fits.any(axis=1, keepdims=True), np.stack([top, left, h, w], 1), central)
    return boxes.astype(np.int64)


def resized_crop(images: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """Cut boxes out of (B, C, H, W) images and bring them back to (H, W), bilinear; mirror those with `flips` (B,).

    The same as cropping and then resizing: nothing outside a box shines in at its border.

    Args:
        boxes: (B, 4) int64: top, left, height, width.

    Returns:
        (B, C, H, W) float32.
    """
    top, left, height, width = boxes.to(torch.float32).unbind(1)
    y = _positions(top, height, images.shape[2])
    x = _positions(left, width, images.shape[3])
    x = torch.where(flips[:, None], x.flip(1), x)
    grid = torch.stack((x[:, None, :].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])), dim=3)
    return F.grid_sample(images.to(torch.float32), grid, mode="bilinear", align_corners=False)


def _positions(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where `size` output pixels lie along one side of the boxes (B,), in grid_sample's units: (B, size) in -1..1."""
    steps = (torch.arange(size, device=start.device) + 0.5) / size
    pixels = (start[:, None] + length[:, None] * steps - 0.5).clamp(start[:, None], (start + length - 1)[:, None])
    return (2 * pixels + 1) / size - 1


def moved(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """A small array on the device. The program does not wait for a GPU: it would if the array's memory could be paged out."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _on(images: Tensor, array: NDArray[np.generic]) -> Tensor:
    return moved(array, images.device)
