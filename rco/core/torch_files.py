"""Files of `torch.save`, old and new, as plain data with tensors in it. No object is made, and no code of torch reads the file.

New files are archives: a pickle that names storages, and a record for each storage. Old ones (until 2020, and with
`_use_new_zipfile_serialization=False`) are pickles one after the other, then the storages. Only the tensors that are asked for
(`StoredTensor.load`) take memory beside the file's own bytes.
"""

from __future__ import annotations

import io
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rco.core.pickles import MOST_STEPS, Global, Inert, PickleError, read_pickle

if TYPE_CHECKING:
    from torch import Tensor

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MOST_DIMENSIONS = 64
_HEAD_STEPS = 1000
_MOST_DIRECTORY = 2**24  # bytes of an archive's directory: of some two hundred thousand storages

_STORAGES = {
    **{"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"},
    **{"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Untyped": "uint8"},
    **{"ComplexFloat": "complex64", "ComplexDouble": "complex128"},
}
_STORAGE_NAMES = {
    f"{module}.{prefix}Storage": dtype
    for prefix, dtype in _STORAGES.items()
    for module in ("torch", "torch.cuda", "torch.storage")
}
_BYTES = {
    **{"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "bool": 1, "complex64": 8, "complex128": 16},
    **{"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8},
    **{"float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1},
}


# What zipfile makes of archives that are damaged, encrypted or cut off, and of names and numbers that are none.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    ValueError,
    RuntimeError,
    OSError,
    EOFError,
    OverflowError,
    LookupError,
)


class TorchFileError(ValueError):
    """A file that is not one of `torch.save`, or is damaged, or asks for more than it holds."""


@dataclass(eq=False)
class _Bytes:
    """The bytes of one storage, read once, so that tensors which share a storage still do."""

    read: Callable[[], bytearray]
    size: int
    content: Tensor | None = field(default=None, repr=False)

    def tensor(self) -> Tensor:
        import torch

        if self.content is None:
            content = self.read() if self.size else bytearray()
            if len(content) != self.size:
                raise TorchFileError("the file has changed while it was read")
            self.content = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        return self.content


@dataclass(frozen=True, eq=False)
class _Storage:
    """A storage as a pickle names it. `start` and `count` are in elements."""

    dtype: str
    key: str
    start: int
    count: int

    @property
    def bytes(self) -> int:
        return self.count * _BYTES[self.dtype]


@dataclass(eq=False)
class StoredTensor:
    """A tensor that is still in its file.

    Attributes:
        dtype: its name in torch, `float32`.
        shape, strides, offset: as of a tensor; they lie inside the storage.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: _Storage = field(repr=False)
    content: _Bytes | None = field(default=None, repr=False)

    def load(self) -> Tensor:
        """The tensor, on the CPU; it shares memory with others of its storage.

        Raises:
            TorchFileError: the file is damaged, or has changed since.
        """
        import torch

        assert self.content is not None
        try:
            flat = self.content.tensor()
        except TorchFileError:
            raise
        except _BROKEN as error:
            raise TorchFileError(f"it is a damaged archive: {str(error)[:100]}") from None
        start = self.storage.start * _BYTES[self.storage.dtype]
        flat = flat[start : start + self.storage.bytes // _BYTES[self.dtype] * _BYTES[self.dtype]]
        flat = flat.view(getattr(torch, self.dtype))
        # as_strided counts from the beginning of the storage, not of the view.
        return torch.as_strided(flat, self.shape, self.strides, int(flat.storage_offset()) + self.offset)


def read_torch_file(path: Path) -> Any:
    """What is in a file of `torch.save`: see `rco.core.pickles.read_pickle`, with `StoredTensor` for tensors and parameters.

    A tensor on an accelerator is one on the CPU. Sparse and quantized tensors, and all other objects, are `Inert`.

    Raises:
        TorchFileError: as its docstring says.
        OSError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            archive = file.read(4) == b"PK\3\4"
        return _read_archive(path) if archive else _read_old(path)
    except (TorchFileError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except PickleError as error:
        raise TorchFileError(str(error)) from None
    except _BROKEN as error:
        raise TorchFileError(f"it is a damaged archive: {str(error)[:100]}") from None


class _Tensors:
    """Makes the tensors of one pickle, and remembers them until their bytes are known."""

    def __init__(self, file_bytes: int) -> None:
        self.most = file_bytes
        self.made: list[StoredTensor] = []
        self.known: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": _as_dict,
            "collections.Counter": _as_dict,
            "collections.defaultdict": lambda *_: {},
            "torch.Size": lambda sizes=(): sizes,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_of_type,
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
            "torch.nn.parameter.Parameter": lambda *given: given[0] if given else Inert("torch.nn.parameter.Parameter"),
            "torch._tensor._rebuild_from_type_v2": self._of_subclass,
        }

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any = False, _hooks: Any = None, metadata: Any = None
    ) -> Any:
        dtype = storage.dtype if isinstance(storage, _Storage) else ""
        return self._make(storage, dtype, offset, shape, strides, metadata)

    def _tensor_of_type(
        self, storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, metadata: Any = None
    ) -> Any:
        name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
        return self._make(storage, name, offset, shape, strides, metadata)

    def _of_subclass(self, function: Any, _type: Any, arguments: Any, *_: Any) -> Any:
        name = function.name if isinstance(function, Global) else ""
        if not name.startswith("torch._utils._rebuild_") or name not in self.known or not isinstance(arguments, tuple):
            return Inert("torch.Tensor")
        return self.known[name](*arguments)

    def _make(self, storage: Any, dtype: str, offset: Any, shape: Any, strides: Any, metadata: Any) -> Any:
        if not isinstance(storage, _Storage) or dtype not in _BYTES or metadata:  # quantized, of a later torch, conjugated
            return Inert("torch.Tensor")
        if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides):
            raise TorchFileError("a tensor's shape is not one")
        if len(shape) > _MOST_DIMENSIONS or not all(_is_size(number) for number in (offset, *shape, *strides)):
            raise TorchFileError("a tensor's shape is not one")
        held = storage.bytes // _BYTES[dtype]
        elements = math.prod(shape)
        if math.prod(max(size, 1) for size in shape) >= 2**63:
            raise TorchFileError("a tensor's shape is not one")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if (last >= held if elements else offset > held) or elements > self.most:
            raise TorchFileError(f"a tensor of shape {shape[:8]} is larger than its storage")
        tensor = StoredTensor(dtype, shape, strides, offset, storage)
        self.made.append(tensor)
        return tensor

    def persistent(self, saved: Any) -> Any:
        """The storage that a persistent id names: ("storage", type, key, device, elements, and in old files a view)."""
        if isinstance(saved, tuple) and len(saved) > 1 and saved[0] == "module":
            return saved[1]
        if not isinstance(saved, tuple) or len(saved) not in (5, 6) or saved[0] != "storage":
            raise TorchFileError("a storage is described in a way that torch does not have")
        _, kind, key, _device, count, *view = saved
        if not isinstance(kind, Global) or not isinstance(key, str) or not _is_size(count):
            raise TorchFileError("a storage is described in a way that torch does not have")
        if kind.name not in _STORAGE_NAMES:
            return Inert(kind.name)
        if not view or view[0] is None:
            return _Storage(_STORAGE_NAMES[kind.name], key, 0, count)
        if not isinstance(view[0], tuple) or len(view[0]) != 3 or not all(_is_size(number) for number in view[0][1:]):
            raise TorchFileError("a storage is described in a way that torch does not have")
        _, start, length = view[0]
        if start + length > count:
            raise TorchFileError("a view is larger than its storage")
        return _Storage(_STORAGE_NAMES[kind.name], key, start, length)

    def attach(self, contents: Mapping[str, _Bytes]) -> None:
        """Give each tensor its bytes.

        Raises:
            TorchFileError: they are not in the file, or too few.
        """
        for tensor in self.made:
            storage = tensor.storage
            tensor.content = contents.get(storage.key)
            needed = (storage.start + storage.count) * _BYTES[storage.dtype]
            if tensor.content is None or tensor.content.size < needed:
                raise TorchFileError(f"storage {storage.key[:40]} is larger than what the file has of it: was it cut off?")


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**63


def _as_dict(items: Any = ()) -> dict[Any, Any]:
    """A dict of a dict, or of pairs; keys that are not text lose their meaning, as everywhere."""
    if isinstance(items, dict):
        return dict(items)
    if isinstance(items, (list, tuple)) and all(isinstance(i, (list, tuple)) and len(i) == 2 for i in items):
        return {(key if isinstance(key, str) else Inert("key")): value for key, value in items}
    return {}


class _Limited:
    """A file of which no read is longer than a limit, until that is lifted.

    `ZipFile` reads an archive's directory at once, and its entries take many times its size in memory.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.most = file, _MOST_DIRECTORY
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """As the file's own.

        Raises:
            TorchFileError: it is longer than the limit.
        """
        if size > self.most:
            raise TorchFileError(f"it is an archive whose directory has {size:,} bytes; {self.most:,} are read")
        return self.file.read(size)


def _archive(file: IO[bytes]) -> zipfile.ZipFile:
    limited = _Limited(file)
    archive = zipfile.ZipFile(cast("IO[bytes]", limited))
    limited.most = sys.maxsize  # members may be as long as the file
    return archive


def _read_archive(path: Path) -> Any:
    size = path.stat().st_size
    with path.open("rb") as file, _archive(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        if sum(record.file_size for record in archive.infolist()) > size:  # torch does not compress
            raise TorchFileError("it is an archive that grows when it is read")
        pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise TorchFileError("it is an archive, but not one of torch.save")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in records:
            raise TorchFileError("it is a TorchScript program")
        if f"{root}byteorder" in records and _record(archive, records[f"{root}byteorder"]) != sys.byteorder.encode():
            raise TorchFileError("it was written on a machine with another order of bytes")
        program = io.BytesIO(_record(archive, records[pickles[0]]))
    tensors = _Tensors(size)
    content = read_pickle(program, tensors.known, tensors.persistent)
    folder = f"{root}data/"
    contents = {
        name.removeprefix(folder): _Bytes(_record_reader(path, name), record.file_size)
        for name, record in records.items()
        if name.startswith(folder)
    }
    tensors.attach(contents)
    return content


def _record(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bytes:
    if record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others choose how much memory they take
        raise TorchFileError("it is an archive that is compressed in a way that torch does not have")
    return archive.read(record)


def _record_reader(path: Path, name: str) -> Callable[[], bytearray]:
    def read() -> bytearray:
        with path.open("rb") as file, _archive(file) as archive:
            if name not in archive.namelist():
                raise TorchFileError("the file has changed while it was read")
            return bytearray(_record(archive, archive.getinfo(name)))

    return read


def _read_old(path: Path) -> Any:
    whole = path.read_bytes()
    program = io.BytesIO(whole)  # not the file: a length in it cannot make this read past its end
    tensors = _Tensors(len(whole))

    def following(most_steps: int = MOST_STEPS) -> Any:
        return read_pickle(program, tensors.known, tensors.persistent, most_steps=most_steps)

    try:
        magic = following(_HEAD_STEPS)
    except PickleError:
        magic = None
    if type(magic) is not int or magic != _MAGIC:
        raise TorchFileError("it is not a file of torch.save")
    if following(_HEAD_STEPS) != _PROTOCOL:
        raise TorchFileError("it is of a version of torch.save that is not known")
    system = following(_HEAD_STEPS)
    if not isinstance(system, dict) or system.get("little_endian") is not (sys.byteorder == "little"):
        raise TorchFileError("it was written on a machine with another order of bytes")
    content, keys = following(), following()
    tensors.attach(_storages_after(program, whole, keys, tensors.made))
    return content


def _storages_after(program: io.BytesIO, whole: bytes, keys: Any, made: Sequence[StoredTensor]) -> dict[str, _Bytes]:
    """The storages that follow the pickles: of each, in the order of `keys`, the number of its elements and these."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise TorchFileError("its list of storages is not one")
    widths = {tensor.storage.key: _BYTES[tensor.storage.dtype] for tensor in made}
    contents: dict[str, _Bytes] = {}
    for key in keys:
        if key not in widths:
            raise TorchFileError("it has storages of objects that are not plain tensors")
        count = int.from_bytes(program.read(8), "little")
        start, size = program.tell(), count * widths[key]
        if start + size > len(whole):
            raise TorchFileError("a storage is larger than what the file has of it: was it cut off?")
        contents[key] = _Bytes(_slice_reader(whole, start, size), size)
        program.seek(start + size)
    return contents


def _slice_reader(whole: bytes, start: int, size: int) -> Callable[[], bytearray]:
    return lambda: bytearray(memoryview(whole)[start : start + size])
