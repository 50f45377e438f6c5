"""torchvision's classifiers with random weights, if need be with a stem for small images."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

from torch import nn

from rco.core.errors import InputError
from rco.models.families.layers import Dimensions, NetworkMaker, conv, head

# Families whose stem can be made small, by the beginning of their names, and the pooling that goes.
_SMALL_STEMS: dict[str, str | None] = {
    "resnet": "maxpool",
    "resnext": "maxpool",
    "wide_resnet": "maxpool",
    "densenet": "features.pool0",
    "mobilenet_": None,
    "efficientnet_": None,
    "regnet_": None,
}


def list_names() -> list[str]:
    """The names of all classifiers of torchvision."""
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def _torchvision(name: str, small_stem: str | None, dimensions: Dimensions) -> nn.Module:
    """A torchvision classifier; `small_stem` is its family in `_SMALL_STEMS` if the stem is to be small."""
    from torchvision import models

    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options["image_size"] = dimensions.image_size
    elif name.startswith("maxvit_"):
        options["input_size"] = (dimensions.image_size, dimensions.image_size)
    elif name in ("googlenet", "inception_v3"):
        # With auxiliary classifiers they would yield a tuple.
        options = {"aux_logits": False, "init_weights": True}
    network: nn.Module = models.get_model(name, weights=None, num_classes=dimensions.num_classes, **options)
    path, first = next((path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d))
    bias = first.bias is not None
    if small_stem is not None:
        network.set_submodule(path, _redrawn(conv(dimensions.in_channels, first.out_channels, bias=bias)))
        if pool := _SMALL_STEMS[small_stem]:
            network.set_submodule(pool, nn.Identity())
    elif dimensions.in_channels != first.in_channels:
        kernel, stride, padding = first.kernel_size, first.stride, first.padding
        stem = nn.Conv2d(dimensions.in_channels, first.out_channels, kernel, stride, padding, bias=bias)  # type: ignore[arg-type]
        network.set_submodule(path, _redrawn(stem))
    if dimensions.embedding_dim:
        linear = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.Linear)]
        if not linear or linear[-1][1].out_features != dimensions.num_classes:
            raise InputError("model", name, "does not end in a linear layer, so it can have no embedding", "Use another model")
        path, last = linear[-1]
        network.set_submodule(path, nn.Sequential(OrderedDict(head(last.in_features, dimensions))))
    return network


def _redrawn(layer: nn.Conv2d) -> nn.Conv2d:
    # Without a bias it feeds a norm: then torchvision mostly draws it like this. Otherwise torch's default will do.
    if layer.bias is None:
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def find_maker(name: str, dimensions: Dimensions, stem: str, stem_parameter: str) -> NetworkMaker:
    """What makes the classifier `name`, one of `list_names()`.

    Raises:
        InputError: a small stem for a family whose stem cannot be made small; it names `stem_parameter`.
    """
    family = next((prefix for prefix in _SMALL_STEMS if name.startswith(prefix)), None)
    if stem == "small" and family is None:
        raise InputError(
            stem_parameter,
            stem,
            f"is not known for torchvision's {name}",
            f"Use imagenet with larger images, or a model of: {', '.join(p.rstrip('_') for p in _SMALL_STEMS)}",
        )
    small = stem == "small" or (stem == "auto" and dimensions.image_size <= 64)
    return partial(_torchvision, name, family if small else None)
