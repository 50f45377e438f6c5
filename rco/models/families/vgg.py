"""VGG for small images."""

from __future__ import annotations

from functools import partial

from torch import nn

from rco.models.families.layers import Dimensions, NetworkMaker, plain_network


def _vgg(convolutions: int, dimensions: Dimensions) -> nn.Module:
    """VGG (Simonyan and Zisserman 2015) with batch norm and a single linear layer, as in RepDistiller."""
    stages = [(width,) * convolutions for width in (64, 128, 256, 512, 512)]
    if dimensions.image_size < 64:
        stages[3:] = [stages[3] + stages[4]]  # RepDistiller leaves out the fourth max-pool for 32x32 images
    # The biases do nothing under batch norm, but the published networks have them.
    return plain_network(stages, dimensions, bias=True)


_NETWORKS: dict[str, NetworkMaker] = {"vgg8": partial(_vgg, 1), "vgg13": partial(_vgg, 2)}
NAMES = tuple(_NETWORKS)


def find_maker(name: str, parameter: str) -> NetworkMaker | None:
    """What makes the network `name`; None: it is not of this family."""
    return _NETWORKS.get(name)
