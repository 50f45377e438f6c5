"""A network for serving, which takes pixels as they are."""

from __future__ import annotations

import io
import logging

import numpy as np
import torch
from numpy.typing import NDArray
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


def untraceable(model: nn.Module, example: NDArray[np.float32]) -> str:
    """Why torch.export cannot trace a network, as when its forward depends on what is in the images; empty: it can.

    Args:
        example: what it takes, of 2 images or more.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # of a failure the exporter logs pages
    try:
        shapes = ({0: torch.export.Dim.AUTO},)
        program = torch.export.export(model, (torch.from_numpy(example),), dynamic_shapes=shapes)
        torch.export.save(program, io.BytesIO())
    except Exception as error:  # the tracer meets the user's own code
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        logging.disable(disabled)
    return ""
