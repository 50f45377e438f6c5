"""ResNets for small images (He et al. 2016, section 4.2), in the widths of the distillation literature."""

from __future__ import annotations

from functools import partial

from torch import nn

from rco.models.families.layers import Dimensions, NetworkMaker, Residual, classifier, conv, conv_unit, three_stages


def _basic_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    branch = nn.Sequential(conv_unit(inputs, outputs, stride=stride), conv(outputs, outputs), nn.BatchNorm2d(outputs))
    same = stride == 1 and inputs == outputs
    shortcut = None if same else nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    return Residual(branch, shortcut, nn.ReLU(inplace=True))


def _resnet(depth: int, widths: tuple[int, int, int, int], dimensions: Dimensions) -> nn.Module:
    """CIFAR ResNet (He et al. 2016, section 4.2) with projection shortcuts, as in RepDistiller."""
    body = {"stem": conv_unit(dimensions.in_channels, widths[0])} | three_stages(_basic_block, widths, (depth - 2) // 6)
    return classifier(body, widths[-1], dimensions)


_NETWORKS: dict[str, NetworkMaker] = {
    **{f"resnet{depth}": partial(_resnet, depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(_resnet, depth, (32, 64, 128, 256)) for depth in (8, 32)},
}
NAMES = tuple(_NETWORKS)


def find_maker(name: str, parameter: str) -> NetworkMaker | None:
    """What makes the network `name`; None: it is not of this family."""
    return _NETWORKS.get(name)
