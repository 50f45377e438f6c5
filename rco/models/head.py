"""A network's head: what is made anew for other classes, and trains at the full rate where the body trains at a part of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rco.core.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def head_paths(network: nn.Module, num_classes: int = 0) -> tuple[str, ...]:
    """The paths of the modules that turn features into logits, in the network's order.

    They are the classifiers that the network names itself (`get_classifier`, as timm's do), else its last linear layer, or
    where there is none its last convolution; and the module named `embedding` that feeds it, if it is one linear layer with
    or without norms.

    Args:
        num_classes: of the logits; 0: not known.

    Raises:
        InputError: there is no such layer, or it has another number of outputs.
    """
    from rco.models.embeddings import EMBEDDING

    named = dict(network.named_modules())
    found = _declared(network, named) or _last(named)
    outputs = {_outputs(named[path]) for path in found}
    if not found or (num_classes and outputs != {num_classes}):
        has = f"its last layer, {found[-1] or 'itself'}, has {max(outputs)} outputs" if found else "it has no linear layer"
        wanted = f" for {num_classes} classes" if num_classes else ""
        raise InputError(
            "head", type(network).__name__, f"is not found{wanted}: {has}", "Let the network end in a linear layer, its logits"
        )
    size = getattr(named[found[0]], "in_features", 0)
    feeding = [path for path, module in named.items() if path.rpartition(".")[2] == EMBEDDING and _yields(module, size)]
    return (*feeding[-1:], *found)


def in_head(name: str, paths: tuple[str, ...]) -> bool:
    """Whether the tensor `name` of a state dict lies in one of these modules."""
    return any(name.startswith(f"{path}.") if path else True for path in paths)


def _declared(network: nn.Module, named: dict[str, nn.Module]) -> list[str]:
    declare = getattr(network, "get_classifier", None)
    if not callable(declare):
        return []
    declared = declare()
    modules = declared if isinstance(declared, (tuple, list)) else [declared]
    return [path for path, module in named.items() if any(module is each for each in modules) and _outputs(module)]


def _last(named: dict[str, nn.Module]) -> list[str]:
    from torch import nn

    for kind in (nn.Linear, nn.Conv2d):
        if paths := [path for path, module in named.items() if isinstance(module, kind)]:
            return paths[-1:]
    return []


def _yields(module: nn.Module, size: int) -> bool:
    """Whether a module is one linear layer with so many outputs, maybe with layers without weights of that kind around it."""
    from torch import nn

    layers = [each for each in module.modules() if isinstance(each, (nn.Linear, nn.Conv2d))]
    return len(layers) == 1 and isinstance(layers[0], nn.Linear) and layers[0].out_features == size


def _outputs(module: nn.Module) -> int:
    return int(getattr(module, "out_features", 0) or getattr(module, "out_channels", 0))
