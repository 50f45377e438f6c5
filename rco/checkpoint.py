"""Files that can be trusted: written atomically, checked by sha256, read without pickle.

Weights are safetensors with one JSON document in the header; everything else is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rco.config import jsonable
from rco.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

_METADATA = "rco"  # one header key: the order of several is not defined, and would change the file's hash


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, flush to disk, then rename to `path`: readers see the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock other users out of shared artifacts
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, document: Any) -> None:
    """Write `document` (dataclasses and tuples welcome) as indented JSON. NaN and infinity are refused: they are not JSON."""
    text = json.dumps(jsonable(document), indent=1, allow_nan=False) + "\n"
    atomically(path, lambda temporary: temporary.write_text(text))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError("file", str(path), "does not exist", "Check the path; was the step that writes it run?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError("file", str(path), f"is not valid JSON ({error})", "Make it again") from None


def sha256(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, expected: str) -> None:
    """Raise InputError unless the file exists and has this sha256."""
    if not path.is_file():
        raise InputError("file", str(path), "is missing", "Copy the folder again, whole")
    if (actual := sha256(path)) != expected:
        raise InputError(
            "file", str(path), f"is damaged: its sha256 is {actual[:12]}..., recorded was {expected[:12]}...", "Copy it again"
        )


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any] | None = None) -> str:
    """Write NumPy arrays; returns the file's sha256. Same content, same hash."""
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {_METADATA: json.dumps(jsonable(metadata or {}), sort_keys=True)}
    atomically(path, lambda temporary: save_file(contiguous, temporary, header))
    return sha256(path)


def load_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read NumPy arrays and metadata.

    Raises:
        InputError: the file is missing or is not a safetensors file.
    """
    from safetensors import safe_open

    return _read(path, lambda: safe_open(path, framework="numpy"))


def save_model(path: Path, model: nn.Module, metadata: Mapping[str, Any] | None = None) -> str:
    """Write a module's state dict (on CPU, contiguous); returns the file's sha256. Same weights, same hash."""
    return save_state(path, model.state_dict(), metadata)


def save_state(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> str:
    """As `save_model`, of a state dict."""
    atomically(path, lambda temporary: write_state(temporary, state, metadata, sort_keys=True))
    return sha256(path)


def write_state(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None, *, sort_keys: bool = False
) -> None:
    """As `save_state`, but straight to `path`, for who sees to it that nobody reads half a file; metadata keep their order."""
    from safetensors.torch import save_file

    # clone: safetensors refuses tensors that share memory (tied weights), and they load back all the same.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(plain, path, {_METADATA: json.dumps(jsonable(metadata or {}), sort_keys=sort_keys)})


def state_digest(model: nn.Module) -> str:
    """Hex sha256 of a module's weights, whichever file they lie in."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def load_state(path: Path, expected_sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state dict and its metadata, after checking the hash if one is given.

    Raises:
        InputError: missing, damaged, or not a safetensors file.
    """
    from safetensors import safe_open

    if expected_sha256 is not None:
        verify(path, expected_sha256)
    return _read(path, lambda: safe_open(path, framework="pt"))


def load_metadata(path: Path) -> dict[str, Any]:
    """The JSON document in a safetensors file's header; its tensors are not read.

    Raises:
        InputError: the file is missing or is not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            document: dict[str, Any] = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            return document
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise InputError("file", str(path), f"is not a readable safetensors file ({error})", "Copy it again") from None


def _read(path: Path, open_: Callable[[], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import SafetensorError

    if not path.is_file():
        raise InputError("file", str(path), "is missing", "Check the path; was the step that writes it run?")
    try:
        with open_() as file:
            metadata = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise InputError("file", str(path), f"is not a readable safetensors file ({error})", "Copy it again") from None


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Copy a state dict into a module, strictly.

    Raises:
        InputError: names or shapes do not fit, in one screen.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state]
    extra = [name for name in state if name not in own]
    shapes = [
        f"{name}: {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    for problem, names in (("lacks", missing), ("has unknown", extra), ("has other shapes:", shapes)):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise InputError(
                "weights", str(source), f"{problem} {shown}", "They belong to another model, class count or image size"
            )
    model.load_state_dict(dict(state))
