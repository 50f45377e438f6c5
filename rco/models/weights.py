"""Weights as state dicts: of a module, from a file of anyone's training, into a module.

A file is data, wherever it is from: no pickle is ever run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rco.core.errors import InputError
from rco.models.checkpoints import find_weights, read_content, read_plainly

if TYPE_CHECKING:
    from torch import Tensor, nn


def state_digest(model: nn.Module) -> str:
    """Hex sha256 of the names, types, shapes and values in a module's state dict; the file it came from does not matter."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def require_fit(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Refuse a state dict that belongs to another module.

    Args:
        source: the file of the state dict, for the message.

    Raises:
        InputError: names or shapes differ; the message gives the first three.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    shapes = [
        f"{name}: {tuple(state[name].shape)} for {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    for problem, names in (("lacks", missing), ("has unknown", extra), ("has other shapes:", shapes)):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise InputError(
                "weights", str(source), f"{problem} {shown}", "They belong to another model, class count or image size"
            )


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Copy a state dict into a module, strictly.

    Raises:
        InputError: as `require_fit`.
    """
    require_fit(model, state, source)
    model.load_state_dict(dict(state))


def read_state(path: Path) -> dict[str, Any]:
    """Read a state dict from a safetensors file or a torch file, where no network says which names it should have.

    The one mapping of names to tensors is taken, or where there are several the raw one of the wrappers' usual names; a prefix
    of trainers before all names comes off. See `rco.models.checkpoints.find_weights` for a network that is known.

    Raises:
        InputError: the file is missing or damaged, or holds no or several state dicts.
    """
    return read_plainly(read_content(path), path)


def load_checkpoint(model: nn.Module, path: Path, *, choice: str = "") -> tuple[str, ...]:
    """Copy the weights of anyone's checkpoint into a module; they may be in other types, and without counters of batch norms.

    Args:
        choice: as for `rco.models.checkpoints.find_weights`.

    Returns:
        What to tell the user, a sentence each.

    Raises:
        InputError: as `read_content` and `find_weights`.
    """
    return load_content(model, read_content(path), path, choice=choice)


def load_content(model: nn.Module, content: Any, source: object, *, choice: str = "") -> tuple[str, ...]:
    """As `load_checkpoint`, of what `rco.models.checkpoints.read_content` yields.

    Args:
        source: the file, for messages.
    """
    expected = model.state_dict()
    found = find_weights(content, [expected], source, choice=choice)
    load_weights(model, {**expected, **found.state}, source)
    return found.notes
