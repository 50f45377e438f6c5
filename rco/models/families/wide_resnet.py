"""Wide ResNets: `wrn-DEPTH-WIDTH`."""

from __future__ import annotations

import re
from functools import partial

from torch import nn

from rco.core.errors import InputError
from rco.models.families.layers import (
    Dimensions,
    NetworkMaker,
    Residual,
    classifier,
    conv,
    conv_unit,
    parse_number,
    three_stages,
)


def _preactivation_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    activate = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
    convolve = nn.Sequential(conv_unit(inputs, outputs, stride=stride), conv(outputs, outputs))
    if inputs == outputs:
        return Residual(nn.Sequential(activate, convolve))
    return nn.Sequential(activate, Residual(convolve, conv(inputs, outputs, 1, stride)))


def _wide_resnet(depth: int, width: int, dimensions: Dimensions) -> nn.Module:
    """Wide ResNet (Zagoruyko and Komodakis 2016), without dropout."""
    widths = (16, 16 * width, 32 * width, 64 * width)
    body: dict[str, nn.Module] = {"stem": conv(dimensions.in_channels, widths[0])}
    body |= three_stages(_preactivation_block, widths, (depth - 4) // 6)
    body["activate"] = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True))
    return classifier(body, widths[-1], dimensions)


NAMES = ("wrn-16-1", "wrn-16-2", "wrn-28-10", "wrn-40-1", "wrn-40-2")
_MOST = 2_000  # far beyond what anybody trains: a name from a file must not fill the memory


def find_maker(name: str, parameter: str) -> NetworkMaker | None:
    """What makes `wrn-DEPTH-WIDTH`; None: `name` is not of this family.

    Raises:
        InputError: a depth or width that no wide ResNet has; it names `parameter`.
    """
    match = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if not match:
        return None
    depth, width = parse_number(match[1]), parse_number(match[2])
    if max(depth, width) > _MOST:
        raise InputError(parameter, name, "is too large to be built", f"Depth and width are {_MOST} at most")
    if depth < 10 or (depth - 4) % 6 or width < 1:
        blocks = max(1, round((depth - 4) / 6))
        raise InputError(
            parameter,
            name,
            "is not a wide ResNet: depths are 6n + 4 with n of 1 or more, widths 1 or more",
            f"Did you mean 'wrn-{6 * blocks + 4}-{max(1, width)}'?",
        )
    return partial(_wide_resnet, depth, width)
