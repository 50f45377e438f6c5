"""The literature's networks for CIFAR, written for tests: the architectures as their code has them, under its names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 11


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, **more)


class BasicBlock(nn.Module):
    """conv1, bn1, conv2, bn2, and where the shape changes a projection, under the name that its code gives it."""

    def __init__(self, inputs: int, outputs: int, stride: int, projection: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.projection = projection
        if stride != 1 or inputs != outputs:
            setattr(self, projection, nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + (getattr(self, self.projection)(x) if hasattr(self, self.projection) else x))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != 4 * width:
            self.shortcut = nn.Sequential(conv(inputs, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(functional.relu(self.bn2(self.conv2(y)))))
        return functional.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    def __init__(self, depth: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, widths[0]), nn.BatchNorm2d(widths[0])
        for i in (1, 2, 3):
            first = BasicBlock(widths[i - 1], widths[i], 1 if i == 1 else 2, "downsample")
            rest = [BasicBlock(widths[i], widths[i], 1, "downsample") for _ in range((depth - 2) // 6 - 1)]
            setattr(self, f"layer{i}", nn.Sequential(first, *rest))
        self.fc = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.avg_pool2d(self.layer3(self.layer2(self.layer1(x))), 8)
        return self.fc(x.flatten(1))


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs)
        self.convShortcut = None if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = functional.relu(self.bn1(x))
        y = self.conv2(functional.relu(self.bn2(self.conv1(activated))))
        return y + (x if self.convShortcut is None else self.convShortcut(activated))


class WideStage(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.layer = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = conv(3, 16)
        for i in (1, 2, 3):
            first = WideBlock(widths[i - 1], widths[i], 1 if i == 1 else 2)
            rest = [WideBlock(widths[i], widths[i], 1) for _ in range((depth - 4) // 6 - 1)]
            setattr(self, f"block{i}", WideStage([first, *rest]))
        self.bn1, self.fc = nn.BatchNorm2d(widths[-1]), nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(functional.avg_pool2d(x, 8).flatten(1))


class CifarVGG(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        inputs = 3
        for i, width in enumerate((64, 128, 256, 512, 512)):
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            setattr(self, f"block{i}", nn.Sequential(*layers[:-1]))
        self.classifier = nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        pools = (True, True, True, x.shape[2] == 64, False)
        for i, pool in enumerate(pools):
            x = functional.relu(getattr(self, f"block{i}")(x))
            x = functional.max_pool2d(x, 2) if pool else x
        return self.classifier(x.mean((2, 3)))


def unit(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [conv(inputs, outputs, kernel, stride, groups=groups), nn.BatchNorm2d(outputs), nn.ReLU()]


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = expansion * inputs
        layers = [*unit(inputs, hidden, 1), *unit(hidden, hidden, 3, stride, hidden), *unit(hidden, outputs, 1)[:-1]]
        self.conv, self.same = nn.Sequential(*layers), stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + (x if self.same else 0)


class CifarMobileNetV2(nn.Module):
    def __init__(self, expansion: int, width: float) -> None:
        super().__init__()
        inputs = int(32 * width)
        self.conv1 = nn.Sequential(*unit(3, inputs, 3, 2))
        self.blocks = nn.ModuleList()
        table = ((1, 16, 1, 1), (0, 24, 2, 1), (0, 32, 3, 2), (0, 64, 4, 2), (0, 96, 3, 1), (0, 160, 3, 2), (0, 320, 1, 1))
        for t, channels, count, stride in table:
            stage = []
            for i in range(count):
                stage.append(InvertedResidual(inputs, int(channels * width), 1 if i else stride, t or expansion))
                inputs = int(channels * width)
            self.blocks.append(nn.Sequential(*stage))
        last = max(1280, int(1280 * width))
        self.conv2 = nn.Sequential(*unit(inputs, last, 1))
        self.classifier = nn.Sequential(nn.Linear(last, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for stage in self.blocks:
            x = stage(x)
        x = functional.avg_pool2d(self.conv2(x), 2, ceil_mode=True)
        return self.classifier(x.flatten(1))


class WholeResNet(nn.Module):
    """Four stages, with a stem for small images."""

    def __init__(self, bottleneck: bool, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64), nn.BatchNorm2d(64)
        inputs = 64
        for i, count in enumerate(blocks):
            width, stage = 64 * 2**i, []
            for j in range(count):
                stride = 2 if i and not j else 1
                block = Bottleneck(inputs, width, stride) if bottleneck else BasicBlock(inputs, width, stride, "shortcut")
                stage.append(block)
                inputs = width * (4 if bottleneck else 1)
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.linear = nn.Linear(inputs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.linear(x.mean((2, 3)))


NARROW, BROAD = (16, 16, 32, 64), (32, 64, 128, 256)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet8": lambda: CifarResNet(8, NARROW),
    "resnet20": lambda: CifarResNet(20, NARROW),
    "resnet8x4": lambda: CifarResNet(8, BROAD),
    "resnet32x4": lambda: CifarResNet(32, BROAD),
    "wrn-16-1": lambda: WideResNet(16, 1),
    "wrn-16-2": lambda: WideResNet(16, 2),
    "wrn-22-2": lambda: WideResNet(22, 2),
    "wrn-40-2": lambda: WideResNet(40, 2),
    "vgg8": lambda: CifarVGG(1),
    "vgg13": lambda: CifarVGG(2),
    "mobilenetv2-t6-w0.5": lambda: CifarMobileNetV2(6, 0.5),
    "mobilenetv2-t6-w1": lambda: CifarMobileNetV2(6, 1.0),
    "mobilenetv2-t1-w0.0625": lambda: CifarMobileNetV2(1, 0.0625),  # so narrow that first blocks have shortcuts
    "torchvision/resnet18": lambda: WholeResNet(False, (2, 2, 2, 2)),
    "torchvision/resnet50": lambda: WholeResNet(True, (3, 4, 6, 3)),
}


def shaken(module: nn.Module) -> nn.Module:
    """With batch norms that have learnt something, so that no layer can stand for another, and that have seen images."""
    generator = torch.Generator().manual_seed(7)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data = 1 + 0.2 * torch.rand(layer.weight.shape, generator=generator)
            layer.bias.data = 0.2 * torch.rand(layer.bias.shape, generator=generator)
            layer.momentum = 1.0
    with torch.no_grad():
        module.train()(torch.randn(8, 3, 32, 32, generator=generator))
    return module.eval()
