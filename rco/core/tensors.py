"""Tensors and arrays in safetensors files, with one JSON document in the header. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rco.core.documents import parse_json
from rco.core.errors import InputError
from rco.core.files import atomically, sha256_of, verify
from rco.core.settings import jsonable

if TYPE_CHECKING:
    from torch import Tensor, nn

_METADATA = "rco"  # one header key: the order of several is not defined, and would change the file's hash
_HEADER_BYTES = 16 * 2**20  # room for a hundred thousand tensors


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any] | None = None) -> str:
    """Write NumPy arrays; returns the file's sha256. Same content, same hash."""
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {_METADATA: json.dumps(jsonable(metadata or {}), sort_keys=True, allow_nan=False)}
    atomically(path, lambda temporary: save_file(contiguous, temporary, header))
    return sha256_of(path)


def load_arrays(path: Path, *names: str) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read NumPy arrays and metadata.

    Raises:
        InputError: the file is missing or is not a safetensors file.
    """
    arrays, metadata = _read(path, "numpy")
    if missing := [name for name in names if name not in arrays]:
        raise InputError("file", str(path), f"has no {' and no '.join(missing)}", "Run the step that writes it again")
    return arrays, metadata


def save_model(path: Path, model: nn.Module, metadata: Mapping[str, Any] | None = None) -> str:
    """Write a module's state dict (on CPU, contiguous); returns the file's sha256. Same weights, same hash."""
    return save_state(path, model.state_dict(), metadata)


def save_state(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> str:
    """As `save_model`, of a state dict."""
    atomically(path, lambda temporary: write_state(temporary, state, metadata, sort_keys=True))
    return sha256_of(path)


def write_state(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None, *, sort_keys: bool = False
) -> None:
    """As `save_state`, but straight to `path`: the caller prevents that half a file is read. Metadata keep their order."""
    from safetensors.torch import save_file

    # clone: safetensors refuses tensors that share memory (tied weights), and they load back all the same.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(plain, path, {_METADATA: json.dumps(jsonable(metadata or {}), sort_keys=sort_keys, allow_nan=False)})


def load_state(path: Path, expected_sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a state dict and its metadata, after checking the hash if one is given.

    Raises:
        InputError: missing, damaged, or not a safetensors file.
    """
    if expected_sha256 is not None:
        verify(path, expected_sha256)
    return _read(path, "pt")


def read_tensors(path: Path, names: Sequence[str], framework: str = "pt") -> list[Any]:
    """Some of a file's tensors, without reading the others.

    Raises:
        InputError: missing, not a safetensors file, or without such a tensor.
    """
    with _opened(path, framework) as file:
        return [file.get_tensor(name) for name in names]


def _read(path: Path, framework: str) -> tuple[dict[str, Any], dict[str, Any]]:
    with _opened(path, framework) as file:
        metadata = _described(file, path)
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (not a dict)


def _described(file: Any, path: Path) -> dict[str, Any]:
    metadata = parse_json((file.metadata() or {}).get(_METADATA, "{}"), path)
    if not isinstance(metadata, dict):
        raise InputError("file", str(path), "describes itself with something else than an object", "Copy it again")
    return metadata


def load_metadata(path: Path) -> dict[str, Any]:
    """The JSON document in a safetensors file's header; its tensors are not read.

    Raises:
        InputError: the file is missing or is not a safetensors file.
    """
    with _opened(path, "numpy") as file:
        return _described(file, path)


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError("file", str(path), "is missing", "Check the path; was the step that writes it run?")
    try:
        with open(path, "rb") as file:
            header = int.from_bytes(file.read(8), "little")
        # Reading a header takes many times its size.
        if header > _HEADER_BYTES:
            raise ValueError(f"its header would have {header:,} bytes; {_HEADER_BYTES:,} are allowed")
        with safe_open(path, framework=framework) as opened:
            yield opened
    except InputError:
        raise
    # Beside its own error: what NumPy and torch make of shapes and types that they do not have.
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError("file", str(path), f"is not a readable safetensors file ({reason})", "Copy it again") from None
