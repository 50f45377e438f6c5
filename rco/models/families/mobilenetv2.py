"""MobileNetV2 for small images: `mobilenetv2-tT-wW`, with expansion T and width multiplier W."""

from __future__ import annotations

import re
from functools import partial

from torch import nn

from rco.core.errors import InputError
from rco.models.families.layers import Dimensions, NetworkMaker, Residual, classifier, conv, conv_unit, parse_number


def _inverted_residual(inputs: int, outputs: int, stride: int, expansion: int) -> nn.Module:
    hidden = inputs * expansion
    branch = nn.Sequential(
        conv_unit(inputs, hidden, 1),
        conv_unit(hidden, hidden, 3, stride, groups=hidden),
        conv(hidden, outputs, 1),
        nn.BatchNorm2d(outputs),
    )
    return Residual(branch) if stride == 1 and inputs == outputs else branch


def _mobilenetv2(expansion: int, multiplier: float, dimensions: Dimensions) -> nn.Module:
    """The CIFAR MobileNetV2 (Sandler et al. 2018) that RepDistiller names as the one of the RCO paper: expansion T, width w.

    It differs from torchvision's in ReLU for ReLU6, widths that are not rounded to multiples of 8, an expansion layer in the
    first block too, no dropout, and stride 1 in the second stage.
    """
    inputs = int(32 * multiplier)
    body: dict[str, nn.Module] = {"stem": conv_unit(dimensions.in_channels, inputs, stride=2)}
    stages = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
    for i, (width, blocks, stride) in enumerate(stages, 1):
        outputs, t = int(width * multiplier), 1 if i == 1 else expansion
        first = _inverted_residual(inputs, outputs, stride, t)
        body[f"stage{i}"] = nn.Sequential(first, *(_inverted_residual(outputs, outputs, 1, t) for _ in range(blocks - 1)))
        inputs = outputs
    features = max(1280, int(1280 * multiplier))
    body["features"] = conv_unit(inputs, features, 1)
    return classifier(body, features, dimensions)


NAMES = ("mobilenetv2-t6-w0.5",)
_MOST = 100  # far beyond what anybody trains: a name from a file must not fill the memory


def find_maker(name: str, parameter: str) -> NetworkMaker | None:
    """What makes `mobilenetv2-tT-wW`; None: `name` is not of this family.

    Raises:
        InputError: a T or W that leaves no channels, or is too large; it names `parameter`.
    """
    match = re.fullmatch(r"mobilenetv2-t(\d+)-w(\d+(?:\.\d+)?)", name)
    if not match:
        return None
    expansion, multiplier = parse_number(match[1]), float(match[2])
    if max(expansion, multiplier) > _MOST:
        raise InputError(parameter, name, "is too large to be built", f"T and W are {_MOST} at most")
    if expansion < 1 or int(16 * multiplier) < 1:
        raise InputError(
            parameter,
            name,
            "leaves layers without channels",
            "Give T of 1 or more and W of 0.0625 or more, as in mobilenetv2-t6-w0.5",
        )
    return partial(_mobilenetv2, expansion, multiplier)
