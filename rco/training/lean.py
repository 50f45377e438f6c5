"""A frozen network at its cheapest: its BatchNorms become part of the convolutions before them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

log = logging.getLogger("rco")

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CLOSE = 1e-3  # relative to the largest logit; folding changes the last digits only


def folded(network: nn.Module, images: Tensor) -> nn.Module:
    """A network that computes what `network` computes in evaluation mode, with BatchNorms folded into convolutions.

    A BatchNorm is folded if nothing else uses the output of its convolution, and both run once. A network is returned as it is
    if it cannot be traced (its forward depends on the data), has nothing to fold, or gives other outputs when folded.

    Args:
        network: frozen, in evaluation mode; it is not changed, and shares no weights with a folded copy.
        images: (B, C, H, W), a few of them, to check the copy's outputs on.
    """
    try:
        traced = fx.symbolic_trace(copy.deepcopy(network))
        if not _fold(traced):
            return network
        with torch.inference_mode():
            expected, outputs = network(images).float(), traced(images).float()
    except Exception as error:  # a user's forward may fail under tracing in any way
        log.debug("BatchNorm is not folded: %s", error)
        return network
    same = (outputs - expected).abs().max() <= _CLOSE * expected.abs().max().clamp_min(1.0)
    return traced if bool(same) else network


def freeze(module: nn.Module) -> nn.Module:
    """Make a module a constant: no gradients, and evaluation mode so that BatchNorm statistics stay what they are."""
    return module.requires_grad_(False).eval()


def lean(anchor: nn.Module, image_shape: Sequence[int], device: torch.device | str, *, fold: bool = True) -> nn.Module:
    """An anchor's network at its cheapest: on the device, frozen, in channels_last, with BatchNorms folded.

    Args:
        anchor: frozen and moved in place; a folded network is a copy.
        image_shape: (C, H, W).
        fold: must be false if modules of the anchor are tapped: folding may change what they yield.
    """
    anchor = freeze(anchor).to(device)
    if fold:
        images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0)).to(device)
        anchor = folded(anchor, images)
    anchor.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return anchor


def _fold(traced: fx.GraphModule) -> int:
    """Fold what can be folded, in place; returns how many."""
    modules = dict(traced.named_modules())
    nodes = list(traced.graph.nodes)
    runs: dict[str, int] = {}
    for node in nodes:
        if node.op == "call_module":
            runs[node.target] = runs.get(node.target, 0) + 1
    count = 0
    for node in nodes:
        if not _runs_once(node, modules, runs, _NORMS):
            continue
        source, norm = node.args[0], modules[node.target]
        if not _runs_once(source, modules, runs, _CONVOLUTIONS) or len(source.users) > 1 or norm.running_mean is None:
            continue
        parent, _, name = source.target.rpartition(".")
        convolution = modules[source.target]
        if isinstance(convolution, nn.modules.conv._ConvTransposeNd) or convolution.training or norm.training:
            continue
        setattr(traced.get_submodule(parent), name, fuse_conv_bn_eval(convolution, norm))
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
        count += 1
    traced.graph.lint()
    traced.recompile()
    return count


def _runs_once(node: object, modules: dict[str, nn.Module], runs: dict[str, int], kinds: tuple[type, ...]) -> bool:
    """Whether a node runs a module of exactly these kinds, which runs nowhere else."""
    return (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and type(modules[str(node.target)]) in kinds
        and runs[str(node.target)] == 1
    )
