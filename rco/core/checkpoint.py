"""Files that can be trusted: written atomically, checked by sha256, read without pickle.

Weights are safetensors with one JSON document in the header; everything else is JSON.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.core.settings import from_dict, jsonable

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")

_METADATA = "rco"  # one header key: the order of several is not defined, and would change the file's hash
_HEADER_BYTES = 16 * 2**20  # room for a hundred thousand tensors


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, flush to disk, then rename to `path`: readers see the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def settle(temporary: Path, path: Path) -> None:
    """Flush a file that `mkstemp` made to the disk, and give it its name."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock other users out of shared artifacts
    os.replace(temporary, path)


def write_json(path: Path, document: Any) -> None:
    """Write `document` (dataclasses and tuples welcome) as indented JSON. NaN and infinity are refused: they are not JSON."""
    text = json.dumps(jsonable(document), indent=1, allow_nan=False) + "\n"
    atomically(path, lambda temporary: temporary.write_text(text))


def read_json(path: Path, *, surrogates: bool = False) -> Any:
    """Read a JSON file.

    Args:
        surrogates: whether strings may hold halves of characters, as names of files that are not UTF-8 do.

    Raises:
        InputError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("file", str(path), "does not exist", "Check the path; was the step that writes it run?") from None
    except OSError as error:
        raise InputError("file", str(path), f"cannot be read ({error.strerror})", "Check path and permissions") from None
    except UnicodeDecodeError as error:
        raise InputError("file", str(path), f"is not valid JSON ({error})", "Make it again") from None
    return parse_json(text, path, surrogates=surrogates)


def parse_json(text: str, source: object, *, surrogates: bool = False) -> Any:
    """A JSON document, as strict as the standard: no NaN, no name twice in an object.

    Args:
        source: for messages.
        surrogates: as in `read_json`.

    Raises:
        InputError: it is none.
    """
    try:
        document = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_named_once)
        if not surrogates and "\\ud" in text.lower():
            json.dumps(document, ensure_ascii=False).encode()
    except RecursionError:
        raise InputError("file", str(source), "is nested too deeply", "Make it again") from None
    except ValueError as error:  # no JSON, a number of thousands of digits, half a character
        raise InputError("file", str(source), f"is not valid JSON ({error})", "Make it again") from None
    return document


def read_as(cls: type[T], path: Path, remedy: str, *, partial: bool = False, surrogates: bool = False) -> T:
    """A dataclass from the JSON file that it was written to.

    Args:
        remedy: what to do if it is not one, for messages.
        partial: whether values without a field are passed over.
        surrogates: as in `read_json`.

    Raises:
        InputError: it is none; the message names the file, and the value in it.
    """
    document = read_json(path, surrogates=surrogates)
    try:
        return from_dict(cls, document, partial=partial)
    except InputError as error:
        raise InputError("file", str(path), f"cannot be used: {error.parameter} {error.problem}", remedy) from None


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        _no_number(digits)
    return number


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("an object has two values of the same name")
    return document


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
    header = {_METADATA: json.dumps(jsonable(metadata or {}), sort_keys=True, allow_nan=False)}
    atomically(path, lambda temporary: save_file(contiguous, temporary, header))
    return sha256(path)


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
    return sha256(path)


def write_state(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None, *, sort_keys: bool = False
) -> None:
    """As `save_state`, but straight to `path`, for who sees to it that nobody reads half a file; metadata keep their order."""
    from safetensors.torch import save_file

    # clone: safetensors refuses tensors that share memory (tied weights), and they load back all the same.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    save_file(plain, path, {_METADATA: json.dumps(jsonable(metadata or {}), sort_keys=sort_keys, allow_nan=False)})


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


def require_fit(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Refuse a state dict that is not of this module.

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


def load_weights(model: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
    """Copy a state dict into a module, strictly.

    Raises:
        InputError: as `require_fit`.
    """
    require_fit(model, state, source)
    model.load_state_dict(dict(state))
