"""A network for serving, which takes pixels as they are."""

from __future__ import annotations

from torch import Tensor, nn


class Normalized(nn.Module):
    """A network that takes pixels in 0..1 and normalises them itself.

    Args:
        network: takes normalised images.
        mean: (1, C, 1, 1), of the training images.
        std: (1, C, 1, 1).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, K) of pixels (B, C, H, W) in 0..1."""
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits
