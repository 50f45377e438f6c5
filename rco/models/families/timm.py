"""timm's networks with random weights: timm/NAME, or timm/NAME.TAG, where the tag says which published weights are meant.

timm is an extra (`rco[timm]`); it is imported when a network of it is asked for.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from difflib import get_close_matches
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rco.core.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from rco.models.families.layers import Dimensions, NetworkMaker

PREFIX = "timm/"
# Other names mean files and repositories to timm.
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)?")


def version() -> str:
    """Of timm, as a part of keys: another one may build other networks. Empty: it is not installed."""
    try:
        return f"timm {metadata.version('timm')}"
    except metadata.PackageNotFoundError:
        return ""


def find_maker(name: str, parameter: str) -> NetworkMaker:
    """What makes the network `name`, which begins with `timm/`.

    Raises:
        InputError: timm is not installed, or has no such network; it names `parameter`.
    """
    timm, bare = library(parameter, name), name.removeprefix(PREFIX)
    if not _NAME.fullmatch(bare) or not timm.is_model(bare):
        near = get_close_matches(bare.lower(), timm.list_models(), n=1, cutoff=0.5)
        hint = f"Did you mean {PREFIX + near[0]!r}? " if near else ""
        raise InputError(parameter, name, "is not a network of timm", f"{hint}timm.list_models() lists them")
    config_of(name, parameter)
    return partial(_timm, bare)


def config_of(name: str, parameter: str) -> Any:
    """What timm knows of the published weights of a network; None: it knows of none.

    Raises:
        InputError: timm is not installed, or has no weights of that tag.
    """
    timm, bare = library(parameter, name), name.removeprefix(PREFIX)
    try:
        return timm.get_pretrained_cfg(bare, allow_unregistered=True)
    except RuntimeError:
        tags = timm.list_pretrained(f"{bare.partition('.')[0]}.*")
        shown = ", ".join(PREFIX + tag for tag in tags[:5])
        raise InputError(parameter, name, "has no such tag", f"Name one of: {shown}, or the network alone") from None


def library(parameter: str, value: str) -> Any:
    """The module `timm`.

    Raises:
        InputError: it is not installed, or cannot be imported.
    """
    try:
        import timm
    except ImportError as error:
        problem = "needs timm, which is not installed" if error.name == "timm" else f"needs timm, which fails ({error})"
        raise InputError(parameter, value, problem, "Install it: pip install 'rco[timm]'") from None
    return timm


def _timm(name: str, dimensions: Dimensions) -> nn.Module:
    import timm

    options: dict[str, Any] = {"num_classes": dimensions.num_classes, "in_chans": dimensions.in_channels}
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, img_size=dimensions.image_size, **options)
    except TypeError as error:  # it takes images of any size, and no word about them
        if "img_size" not in str(error):
            raise
        network = timm.create_model(name, pretrained=False, **options)
    if dimensions.embedding_dim:
        _embed(network, name, dimensions)
    return network


def _embed(network: nn.Module, name: str, dimensions: Dimensions) -> None:
    from torch import nn

    from rco.models.families.layers import head

    last = network.get_classifier()  # type: ignore[operator]
    path = next((path for path, module in network.named_modules() if module is last), "")
    if not path or not isinstance(last, nn.Linear):
        raise InputError("model", PREFIX + name, "does not end in one linear layer, so it can have no embedding", "Use another")
    network.set_submodule(path, nn.Sequential(OrderedDict(head(last.in_features, dimensions))))
