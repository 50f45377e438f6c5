"""Weights as state dicts: of a module, from a file of anyone's training, into a module.

A file is data, wherever it is from: no pickle is ever run.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from rco.core.errors import InputError
from rco.core.tensors import load_state
from rco.models.keymaps.choose import choose

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
    """Read a state dict from a safetensors file or a torch file; no objects are unpickled.

    What trainers put around it is removed: the keys "state_dict", "model" and "model_state_dict", and a "module." prefix.

    Raises:
        InputError: the file is missing, is not a state dict, or would need unpickling.
    """
    if path.suffix == ".safetensors":
        state: Any = load_state(path)[0]
    else:
        state = _read_plain(path)
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and hasattr(v, "shape") for k, v in state.items())
    ):
        raise InputError("checkpoint", str(path), "holds no state dict", "Save model.state_dict(), best as safetensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def read_epoch(path: Path) -> int | None:
    """The epoch that is written in a checkpoint beside its weights, under the name "epoch"; None: there is none.

    Raises:
        InputError: the file cannot be read as `read_state` reads it.
    """
    if path.suffix == ".safetensors":
        content: Any = load_state(path)[1]
    else:
        content = _read_plain(path)
    epoch = content.get("epoch") if isinstance(content, dict) else None
    return epoch if type(epoch) is int and epoch >= 0 else None


def _read_plain(path: Path) -> Any:
    if not path.is_file():
        raise InputError("checkpoint", str(path), "is missing", "Check the path")
    try:
        return _read_torch_file(path)
    except Exception as error:  # a broken file can raise almost anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            "checkpoint",
            str(path),
            f"cannot be read as plain weights ({reason})",
            "Save model.state_dict(), best as safetensors",
        ) from None


def _read_torch_file(path: Path) -> Any:
    """Read a torch file without unpickling objects.

    Raises:
        ValueError: the file is an archive that is larger unpacked than packed, or needs more than a state dict does.
        Exception: torch cannot read it.
    """
    import warnings
    import zipfile

    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch stores the members of its archives uncompressed.
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is an archive that grows when it is read")
            programs = [io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith(".pkl")]
        for program in programs:
            _require_plain(program)
    else:  # torch's format until 2020: a number, a version, a description, the state dict, its storages
        content = io.BytesIO(path.read_bytes())  # a length in the file cannot make this read past its end
        for _ in range(4):
            _require_plain(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old protocols
        return torch.load(path, map_location="cpu", weights_only=True)


_PLAIN = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|torch\.storage \w+Storage"
    r"|torch (Size|device|b?float\d+|double|half|float|u?int\d+|long|int|short|bool|complex\d+)"
)


def _require_plain(program: IO[bytes]) -> None:
    """Read one pickle without running it, and refuse what a state dict does not need.

    torch's own check is not enough: it lets a pickle of two dozen bytes make a tensor or an array of any length, and so ask for
    all memory.

    Raises:
        ValueError: `program` is not a pickle, or names something that a state dict does not need.
    """
    import pickletools

    for code, argument, _ in pickletools.genops(program):
        if code.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"it is not a state dict ({code.name})")
        if code.name == "GLOBAL" and not _PLAIN.fullmatch(str(argument)):
            raise ValueError(f"it holds {str(argument).replace(' ', '.')}, which a state dict does not need")
