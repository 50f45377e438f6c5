"""Taps: what a module inside a network yields while the network runs, beside its logits.

A tap is a module's name as `named_modules()` has it ("stage2", "layer3.1"): its output is the feature. With "input:" before
the name it is the module's first input: "input:classifier" is the embedding that a linear classifier sees, whatever
pooling comes before. No tap is the empty string. Networks need not know of any of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rco.core.errors import InputError

INPUT = "input:"


class Output(NamedTuple):
    """What a network says about a batch: logits (B, K), and the tapped features (B, ...) if there is a tap."""

    logits: Tensor
    features: Tensor | None = None


class Taps(NamedTuple):
    """Where the student and the anchor are tapped; empty: nowhere."""

    student: str = ""
    anchor: str = ""


def observe(model: nn.Module, x: Tensor, tap: str = "") -> Output:
    """Run `model` on `x` (B, C, H, W), listening at `tap`. No hook outlives the call.

    Raises:
        InputError: the tapped module ran not once in this pass, or yields something else than a tensor.
    """
    if not tap:
        return Output(model(x))
    with _listening(model, tap) as heard:
        logits = model(x)
    if len(heard) != 1:
        raise InputError(
            "tap", tap, f"names a module that ran {len(heard)} times in one pass", "Name a module that runs once in each"
        )
    if not isinstance(heard[0], Tensor):
        raise InputError(
            "tap",
            tap,
            f"yields an object of type {type(heard[0]).__name__}, not a tensor",
            "Name a module that yields a tensor",
        )
    return Output(logits, heard[0])


@contextmanager
def _listening(model: nn.Module, tap: str) -> Iterator[list[Any]]:
    """While inside, collect what passes the tap."""
    heard: list[Any] = []

    def hear(value: Any) -> None:
        # A copy: the next module may be an activation that works in place.
        heard.append(value.clone() if isinstance(value, Tensor) else value)

    module = model.get_submodule(tap.removeprefix(INPUT))
    if tap.startswith(INPUT):
        handle = module.register_forward_pre_hook(lambda _, inputs: hear(inputs[0] if inputs else None))
    else:
        handle = module.register_forward_hook(lambda _, inputs, output: hear(output))
    try:
        yield heard
    finally:
        handle.remove()


def check(model: nn.Module, tap: str, parameter: str = "tap") -> None:
    """Raise unless `tap` names a module of `model`.

    Args:
        parameter: the name under which the user knows the tap.

    Raises:
        InputError: no such module; lists the nearest names and the outermost modules.
    """
    name = tap.removeprefix(INPUT)
    names = [path for path, _ in model.named_modules() if path]
    if name in names:
        return
    from difflib import get_close_matches

    near = get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    outermost = [path for path, _ in model.named_children()]
    shown = ", ".join(outermost[:20]) + (", ..." if len(outermost) > 20 else "")
    raise InputError(parameter, tap, "names no module of the network", f"{hint}Its outermost modules are: {shown}")


def feature_shape(model: nn.Module, tap: str, image_shape: tuple[int, ...], parameter: str = "tap") -> tuple[int, ...]:
    """The shape of one sample's features at `tap`, by one pass of blank images in evaluation mode; `model` is left as it was.

    Args:
        model: may lie on the meta device.
        image_shape: (C, H, W).
        parameter: the name under which the user knows the tap.

    Raises:
        InputError: what `check` and `observe` refuse.
    """
    check(model, tap, parameter)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in model.modules()]
    model.eval()  # BatchNorm statistics stay, and dropout draws no random numbers
    try:
        with torch.no_grad():
            features = observe(model, torch.zeros(2, *image_shape, device=device), tap).features
    except InputError as error:
        raise error.renamed(parameter) from None
    finally:
        for module, training in modes:
            module.training = training
    assert features is not None
    return tuple(features.shape[1:])
