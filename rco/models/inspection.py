"""What a checkpoint holds, and which of our networks its weights fit: names and shapes alone are looked at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rco.core.errors import InputError
from rco.models.checkpoints import find_mappings, find_weights, read_content
from rco.models.spec import NetworkSpec
from rco.models.weights import namings_of, read_epoch

#: Sizes of images at which networks are tried: those of the digits, of CIFAR, of Tiny ImageNet, and of photographs.
_SIZES = (8, 32, 64, 224)
_MOST_CLASSES, _MOST_PLACES = 10**6, 4


@dataclass(frozen=True)
class Place:
    """A mapping of names to tensors in a checkpoint.

    Attributes:
        name: where it is; empty: at the top.
        tensors, numbers: how many.
        first: of its names, the first few.
        fits: "MODEL (small stem)" of ours and of torchvision's networks.
        problem: where it fits none, how it differs from the nearest that was tried.
    """

    name: str
    tensors: int
    numbers: int
    first: tuple[str, ...]
    fits: tuple[str, ...]
    problem: str = ""


@dataclass(frozen=True)
class Inspection:
    """A checkpoint. `epoch` is None where it does not say one; `places` is empty where it holds no tensors."""

    path: str
    epoch: int | None
    places: tuple[Place, ...]


def inspect_checkpoint(path: Path) -> Inspection:
    """Look into a checkpoint of anyone's training; nothing in it is run.

    Raises:
        InputError: as `read_content`.
    """
    content = read_content(path)
    places = find_mappings(content)
    looked_at = [_looked_at(content, name, tensors, path) for name, tensors in list(places.items())[:_MOST_PLACES]]
    return Inspection(str(path), read_epoch(path), tuple(looked_at))


def _looked_at(content: Any, name: str, tensors: Mapping[str, Any], path: Path) -> Place:
    fits, problem = list[str](), ""
    for spec in _candidates(tensors):
        try:
            network = spec.blank()
        except InputError:
            continue
        try:
            find_weights(content, namings_of(network), path, choice=name)
        except InputError as error:
            problem = problem or f"{spec.model}: {error.problem}"
            continue
        shown = spec.model if spec.stem == "auto" else f"{spec.model} ({spec.stem} stem)"
        if shown not in fits:
            fits.append(shown)
    return Place(
        name=name,
        tensors=len(tensors),
        numbers=sum(math.prod(tensor.shape) for tensor in tensors.values()),
        first=tuple(list(tensors)[:3]),
        fits=tuple(fits),
        problem="" if fits else problem,
    )


def _candidates(tensors: Mapping[str, Any]) -> Iterator[NetworkSpec]:
    """The networks to try, with the classes and channels that the shapes tell."""
    from rco.models.build import network_names
    from rco.models.families import torchvision

    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    channels = next((shape[1] for shape in shapes if len(shape) == 4), 1)
    classes = next((shape[0] for shape in reversed(shapes) if len(shape) == 2), 0)
    if not 2 <= classes <= _MOST_CLASSES or channels not in (1, 2, 3, 4):
        return
    for model in network_names():
        for size in _SIZES[:1] if model.startswith("digits") else _SIZES[1:3]:
            yield NetworkSpec(model=model, stem="auto", in_channels=channels, num_classes=classes, image_size=size)
    parts = {part for name in tensors for part in name.split(".")}
    if parts & {"conv1", "features", "layer1", "encoder", "stem", "trunk_output"}:
        for name in torchvision.list_names():
            if name.startswith(("resnet", "vgg", "mobilenet", "efficientnet_b0", "densenet121", "vit_b_16", "convnext_tiny")):
                for stem, size in (("small", 32), ("imagenet", 224)):
                    model = f"torchvision/{name}"
                    yield NetworkSpec(model=model, stem=stem, in_channels=channels, num_classes=classes, image_size=size)
