"""A module of the caller's as a network: every network of its spec is a copy of it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rco.core.errors import InputError
from rco.models.families.layers import first_line
from rco.models.spec import NetworkSpec

if TYPE_CHECKING:
    from rco.data.dataset import Manifest


@dataclass(frozen=True, kw_only=True)
class ModuleSpec(NetworkSpec):
    """What a module is. In files it goes by its class, which is never run because a file names it."""

    module: nn.Module = field(compare=False, repr=False)

    @property
    def written(self) -> dict[str, Any]:
        """As of a network that is named; the module is not written."""
        return {name: getattr(self, name) for name in ("model", "stem", "in_channels", "num_classes", "image_size")}

    def build(self, seed: int | None = None) -> nn.Module:
        """A copy of the module, with its weights, in float32 and training mode, on the CPU; a seed changes nothing."""
        return copy.deepcopy(self.module).cpu().float().train()


def spec_of(module: nn.Module, data: Manifest, parameter: str) -> ModuleSpec:
    """The spec of a module of the caller's.

    Args:
        parameter: the name under which the caller knows it.

    Raises:
        InputError: for two images of the data it does not yield logits (2, num_classes).
    """
    kind = type(module)
    name = f"{kind.__module__}:{kind.__qualname__}"
    spec = ModuleSpec(
        model=name,
        stem="auto",
        in_channels=data.image_shape[0],
        num_classes=data.num_classes,
        image_size=data.image_shape[1],
        module=module,
    )
    try:
        with torch.no_grad():
            logits = spec.build().eval()(torch.zeros(2, *data.image_shape))
    except Exception as error:  # whatever the caller's code raises
        shape = "x".join(map(str, data.image_shape))
        problem = f"does not work with {shape} images ({first_line(error)})"
        raise InputError(parameter, name, problem, "Mend the module, or prepare other images") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, data.num_classes):
        actual = (
            f"a tensor of shape {tuple(logits.shape)}"
            if isinstance(logits, Tensor)
            else f"an object of type {type(logits).__name__}"
        )
        remedy = f"It must yield logits of shape (2, {data.num_classes})"
        raise InputError(parameter, name, f"yields {actual} for 2 images", remedy)
    return spec
