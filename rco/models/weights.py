"""Weights as state dicts: of a module, from a file of anyone's training, into a module.

A file is data, wherever it is from: no pickle is ever run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rco.core.errors import InputError
from rco.core.tensors import load_state
from rco.models.checkpoints import Weights, find_weights, read_content, read_plainly
from rco.models.head import in_head
from rco.models.keymaps.choose import choose, key_maps

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
    _require_same(model.state_dict(), state, source)


def _require_same(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], source: object) -> None:
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


def import_weights(model: nn.Module, state: Mapping[str, Tensor], source: object, *, image_size: int) -> None:
    """Copy a state dict into a module, strictly, in our names or in those of the literature's code (`rco.models.keymaps`).

    Args:
        source: the file of the state dict, for the message.
        image_size: of the images that the module is for, in pixels.

    Raises:
        InputError: as `require_fit`; or that code computes something else with images of this size.
    """
    ours = model.state_dict()
    key_map = choose(ours, state)
    if key_map:
        _require_same({theirs: ours[name] for name, theirs in key_map.names.items()}, state, source)
        if key_map.differs_at(image_size):
            raise InputError(
                "weights",
                str(source),
                f"are of a {key_map.family} that is not ours at {image_size} pixels: {key_map.difference}",
                "Name the code that they were trained with: package.module:factory",
            )
        state = {name: state[theirs] for name, theirs in key_map.names.items()}
    load_weights(model, state, source)


def read_state(path: Path) -> dict[str, Any]:
    """Read a state dict from a safetensors file or a torch file, where no network says which names it should have.

    The one mapping of names to tensors is taken, or where there are several the raw one of the wrappers' usual names; a prefix
    of trainers before all names comes off. See `rco.models.checkpoints.find_weights` for a network that is known.

    Raises:
        InputError: the file is missing or damaged, or holds no or several state dicts.
    """
    return read_plainly(read_content(path), path)


def read_epoch(path: Path) -> int | None:
    """The epoch that is written in a checkpoint beside its weights, under the name "epoch"; None: there is none.

    Raises:
        InputError: as `read_content`.
    """
    content = load_state(path)[1] if path.suffix == ".safetensors" else read_content(path)
    epoch = content.get("epoch") if isinstance(content, dict) else None
    return epoch if type(epoch) is int and epoch >= 0 else None


def load_checkpoint(model: nn.Module, path: Path, *, image_size: int = 0, choice: str = "") -> tuple[str, ...]:
    """Copy the weights of anyone's checkpoint into a module; they may be in other types, and without counters of batch norms.

    Args:
        image_size: as for `import_weights`; 0: not known.
        choice: as for `rco.models.checkpoints.find_weights`.

    Returns:
        What to tell the user, a sentence each.

    Raises:
        InputError: as `read_content`, `find_weights` and `import_weights`.
    """
    return load_content(model, read_content(path), path, image_size=image_size, choice=choice)


def load_content(
    model: nn.Module,
    content: Any,
    source: object,
    *,
    image_size: int = 0,
    choice: str = "",
    but: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """As `load_checkpoint`, of what `rco.models.checkpoints.read_content` yields.

    Args:
        source: the file, for messages.
        but: paths of modules that keep the weights that they have; the file may have others for them, or none.
        left_out: as for `find_weights`.
    """
    namings = namings_of(model)
    found = find_for(model, content=content, source=source, choice=choice, but=but, left_out=left_out)
    complete = next(naming for naming in namings if found.state.keys() <= naming.keys())
    import_weights(model, {**complete, **found.state}, source, image_size=image_size)
    return found.notes


def find_for(
    *models: nn.Module,
    content: Any,
    source: object,
    choice: str = "",
    but: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
) -> Weights:
    """The weights in a checkpoint that fit one of these modules.

    Args:
        content, source, choice, but, left_out: as for `load_content`; `but` is of each module.

    Raises:
        InputError: as `find_weights`.
    """
    expected, beginnings = [], set(left_out)
    for model in models:
        namings = namings_of(model)
        kept = {id(tensor) for name, tensor in namings[0].items() if but and in_head(name, but)}
        for naming in namings:
            beginnings |= {f"{name.rpartition('.')[0]}." for name, tensor in naming.items() if id(tensor) in kept}
            expected.append({name: tensor for name, tensor in naming.items() if id(tensor) not in kept})
    return find_weights(content, expected, source, choice=choice, left_out=tuple(sorted(beginnings)))


def namings_of(model: nn.Module) -> list[dict[str, Tensor]]:
    """The tensors of a module in our names, and in those of the literature's code if it knows such a network."""
    ours = model.state_dict()
    return [dict(ours), *({theirs: ours[name] for name, theirs in known.names.items()} for known in key_maps(ours))]
