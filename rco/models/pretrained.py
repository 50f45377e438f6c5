"""Weights as torchvision and timm publish them: asked are address, hash and what belongs to them; nothing is loaded by them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from rco.core.errors import InputError
from rco.models.config import PRETRAINED

#: The variable by which the hub's own client finds a mirror, and the hub.
HUB, _HUB = "HF_ENDPOINT", "https://huggingface.co"
_HUB_FILE = "model.safetensors"  # timm's repositories have it, in timm's own names
_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # the convention of both: the sha256's beginning, before the file's ending
# Their published weights take images that are scaled once more in the network (transform_input); ours do not do that.
_TRANSFORMED = ("googlenet", "inception_v3")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


@dataclass(frozen=True, kw_only=True)
class Published:
    """The weights that are published for a network.

    Attributes:
        name: of these weights, for people.
        url: of the file.
        sha256: how the file's sha256 begins; empty: the hub says it (`x-linked-etag`).
        file: its name here.
        mean, std: of the images that they were trained with, of pixels in 0..1, by channel.
        num_classes: of the head.
        left_out: how names in the file begin that the network does without.
    """

    name: str
    file: str
    url: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_classes: int
    left_out: tuple[str, ...] = ()


def published(model: str, parameter: str) -> Published:
    """What is published for the network `model`.

    Raises:
        InputError: nothing is; it names `parameter`.
    """
    from rco.models.build import network_names
    from rco.models.families import timm, torchvision

    if model.startswith(timm.PREFIX):
        return _of_timm(model, parameter)
    bare = model.removeprefix("torchvision/")
    if bare in torchvision.list_names() and model not in network_names():
        return _of_torchvision(bare)
    raise InputError(
        parameter,
        PRETRAINED,
        f"says nothing for {model}: weights are published for torchvision's networks and timm's",
        "Name a file, or another network",
    )


def _of_torchvision(name: str) -> Published:
    from torchvision import models

    weights: Any = models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    file = weights.url.rsplit("/", 1)[-1]
    match = _HASH.search(file)
    half = (0.5,) * 3
    return Published(
        name=f"torchvision's {weights}",
        file=file,
        url=weights.url,
        sha256=match[1] if match else "",
        mean=half if name in _TRANSFORMED else tuple(transforms.mean),
        std=half if name in _TRANSFORMED else tuple(transforms.std),
        num_classes=len(weights.meta["categories"]),
        left_out=_AUXILIARY if name in _TRANSFORMED else (),
    )


def _of_timm(model: str, parameter: str) -> Published:
    from rco.models.families import timm as family

    known = family.config_of(model, parameter)
    url = str(getattr(known, "url", "") or "")
    match = _HASH.search(url)
    if known is None or not (known.hf_hub_id or match):
        raise InputError(parameter, PRETRAINED, f"says nothing for {model}: timm knows no weights of it", "Name a file")
    if known.hf_hub_id:
        repository, _, revision = str(known.hf_hub_id).partition("@")
        endpoint = (os.environ.get(HUB, "") or _HUB).rstrip("/")
        file, sha256 = f"{repository.replace('/', '--')}.safetensors", ""
        url = f"{endpoint}/{repository}/resolve/{revision or 'main'}/{_HUB_FILE}"
    else:
        file, sha256 = url.rsplit("/", 1)[-1], match[1] if match else ""
    return Published(
        name=f"timm's {known.architecture}.{known.tag}" if known.tag else f"timm's {known.architecture}",
        file=file,
        url=url,
        sha256=sha256,
        mean=tuple(known.mean),
        std=tuple(known.std),
        num_classes=int(known.num_classes),
    )
