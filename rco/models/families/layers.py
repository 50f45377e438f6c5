"""What the families share: the dimensions that the data dictates, blocks of layers, and the head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from rco.core.errors import InputError
from rco.models.embeddings import EMBEDDING


@dataclass(frozen=True)
class Dimensions:
    """What the data dictates of a network.

    Args:
        in_channels: channels of the images.
        num_classes: number of logits.
        image_size: height and width of the images, in pixels.
        embedding_dim: size of the embedding; 0: none.

    Raises:
        InputError: a number that is too small.
    """

    in_channels: int
    num_classes: int
    image_size: int
    embedding_dim: int = 0

    def __post_init__(self) -> None:
        for name, least in (("in_channels", 1), ("num_classes", 2), ("image_size", 1)):
            if getattr(self, name) < least:
                raise InputError(name, getattr(self, name), f"is less than {least}", f"Use a data set with {least} or more")

    def __str__(self) -> str:
        return f"{self.in_channels}x{self.image_size}x{self.image_size}"


#: What a name stands for: it makes the network with weights from torch's global generator.
NetworkMaker = Callable[[Dimensions], nn.Module]


class Residual(nn.Module):
    """after(branch(x) + shortcut(x))."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.after = nn.Identity() if after is None else after

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.branch(x) + self.shortcut(x))
        return y


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the image's size, divided by `stride`."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


def conv_unit(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
) -> nn.Sequential:
    """`conv`, BatchNorm and ReLU."""
    return nn.Sequential(conv(inputs, outputs, kernel, stride, groups, bias), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def head(features: int, dimensions: Dimensions) -> dict[str, nn.Module]:
    """A linear layer from features to logits; with an embedding, one linear layer to the embedding and one from it.

    The embedding is normalised by BatchNorm without gain and bias: every component has about unit variance, in any network and
    at any point of its training, so that a squared distance of two embeddings, and a weight on it, mean the same for every
    anchor.
    """
    size = dimensions.embedding_dim
    if not size:
        return {"classifier": nn.Linear(features, dimensions.num_classes)}
    embedding = {"linear": nn.Linear(features, size, bias=False), "norm": nn.BatchNorm1d(size, affine=False)}
    return {EMBEDDING: nn.Sequential(OrderedDict(embedding)), "classifier": nn.Linear(size, dimensions.num_classes)}


def classifier(body: dict[str, nn.Module], features: int, dimensions: Dimensions) -> nn.Module:
    """`body`, global average pooling, `head`. Convolutions are initialised as in He et al. (2015, fan-out)."""
    pooled = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    network = nn.Sequential(OrderedDict(body | pooled | head(features, dimensions)))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def plain_network(stages: list[tuple[int, ...]], dimensions: Dimensions, bias: bool = False) -> nn.Module:
    """Stages of 3x3 convolutions of the given widths, a 2x2 max-pool between one and the next."""
    body: dict[str, nn.Module] = {}
    inputs = dimensions.in_channels
    for i, widths in enumerate(stages, 1):
        units = [conv_unit(a, b, bias=bias) for a, b in zip((inputs, *widths), widths, strict=False)]
        body[f"stage{i}"] = nn.Sequential(*([nn.MaxPool2d(2)] if i > 1 else []), *units)
        inputs = widths[-1]
    return classifier(body, inputs, dimensions)


def three_stages(block: Callable[[int, int, int], nn.Module], widths: tuple[int, ...], blocks: int) -> dict[str, nn.Module]:
    """Stages of `blocks` blocks from widths[0] to each of the three other widths; the second and third halve the image."""
    stages: dict[str, nn.Module] = {}
    for i, (inputs, outputs, stride) in enumerate(zip(widths, widths[1:], (1, 2, 2), strict=False), 1):
        first = block(inputs, outputs, stride)
        stages[f"stage{i}"] = nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(blocks - 1)))
    return stages


def parse_number(digits: str) -> int:
    """The number that `digits` stand for; of more than nine digits the first nine, which are too large already."""
    return int(digits[:9])


def first_line(error: BaseException) -> str:
    """The first line of an error's text; its type's name if the text is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
