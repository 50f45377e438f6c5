"""Files of torch.save, old and new: the same bits as torch reads, nothing but tensors, nothing larger than the file."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from rco.core.pickles import Inert
from rco.core.torch_files import StoredTensor, TorchFileError, read_torch_file
from tests.hostile import Touch, hostile_pickle, with_record

FORMATS = pytest.mark.parametrize("new", [True, False], ids=["archive", "old"])
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8]
DTYPES += [torch.uint8, torch.bool, torch.complex64, torch.complex128]
NEWEST = [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16]


class Config:
    """A class of the user's own."""

    def __init__(self) -> None:
        self.lr = 0.1


def saved(content: Any, path: Path, new: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=new)
    return path


def bits(tensor: Tensor) -> bytes:
    plain = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
    return plain.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def require_same(read: StoredTensor, expected: Tensor) -> None:
    tensor = read.load()
    assert (tensor.dtype, tensor.shape, tensor.stride()) == (expected.dtype, expected.shape, expected.stride())
    assert read.shape == tuple(expected.shape)
    assert bits(tensor) == bits(expected)


@st.composite
def states(draw: st.DrawFn) -> dict[str, Tensor]:
    """State dicts whose tensors are pieces of a few storages: sliced, transposed, stepped, expanded, shared, empty."""
    storages = []
    for k in range(draw(st.integers(1, 3))):
        dtype = draw(st.sampled_from([*DTYPES, *NEWEST]))
        values = torch.randint(-100, 100, (draw(st.integers(0, 30)),), generator=torch.Generator().manual_seed(k))
        storages.append(values.to(dtype))
    state = {}
    for k in range(draw(st.integers(1, 6))):
        tensor = draw(st.sampled_from(storages))
        tensor = tensor[draw(st.integers(0, len(tensor))) :]
        match draw(st.sampled_from(["whole", "step", "square", "turned", "scalar", "expanded"])):
            case "step":
                tensor = tensor[:: draw(st.integers(1, 4))]
            case "square" | "turned" as kind if len(tensor) >= 4:
                tensor = tensor[: len(tensor) // 2 * 2].view(2, -1)
                tensor = tensor.t() if kind == "turned" else tensor
            case "scalar" if len(tensor):
                tensor = tensor[0]
            case "expanded" if len(tensor):
                tensor = tensor[:1].expand(5)
        state[f"layer{k}.weight"] = tensor
    return state


@given(states(), st.booleans())
def test_what_torch_reads_is_read_to_the_same_bits(tmp_path_factory: pytest.TempPathFactory, state: Any, new: bool) -> None:
    if not new:  # torch writes the newest types into old files, but does not read them
        state = {name: tensor for name, tensor in state.items() if tensor.dtype not in NEWEST}
    path = saved(state, tmp_path_factory.getbasetemp() / "same.pt", new)
    expected = torch.load(path, weights_only=True)
    read = read_torch_file(path)
    assert list(read) == list(expected)
    for name, tensor in expected.items():
        require_same(read[name], tensor)
    loaded = {name: tensor.load() for name, tensor in read.items()}
    for one in expected:
        for other in expected:
            shared = [s[one].untyped_storage().data_ptr() == s[other].untyped_storage().data_ptr() for s in (loaded, expected)]
            assert shared[0] == shared[1] or not expected[one].untyped_storage().nbytes()


@FORMATS
def test_what_lies_beside_the_weights_is_not_needed(tmp_path: Path, new: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float64(0.05)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1, 2])
    assert isinstance(scheduler.state_dict()["milestones"], collections.Counter)
    content = {
        **{"epoch": 7, "best": np.float32(0.5), "rng": torch.get_rng_state(), "numpy": np.random.default_rng(0).random(4)},
        **{
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "config": Config(),
            "device": torch.device("cpu"),
        },
        **{"args": argparse.Namespace(lr=0.1, out=Path("x")), "model": model.state_dict(), "size": torch.Size([2])},
    }
    read = read_torch_file(saved(content, tmp_path / "a.pt", new))
    assert (read["epoch"], read["size"]) == (7, (2,))
    for name in ("args", "config", "best", "device"):
        assert isinstance(read[name], Inert), name
    for name, tensor in model.state_dict().items():
        require_same(read["model"][name], tensor)
    require_same(read["rng"], content["rng"])  # type: ignore[arg-type]


@FORMATS
def test_parameters_and_subclasses_are_tensors(tmp_path: Path, new: bool) -> None:
    parameter = nn.Parameter(torch.arange(6.0).view(2, 3))
    named = nn.Parameter(torch.ones(2))
    named.note = "kept by torch"  # type: ignore[attr-defined]
    read = read_torch_file(saved({"a": parameter, "b": named, "c": nn.Buffer(torch.ones(3))}, tmp_path / "a.pt", new))
    require_same(read["a"], parameter.detach())
    require_same(read["b"], named.detach())
    require_same(read["c"], torch.ones(3))


@FORMATS
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_other_protocols(tmp_path: Path, new: bool, protocol: int) -> None:
    torch.save({"a": torch.arange(3)}, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    require_same(read_torch_file(tmp_path / "a.pt")["a"], torch.arange(3))


@FORMATS
def test_of_an_accelerator(tmp_path: Path, new: bool) -> None:
    path = saved({"a": torch.arange(3.0)}, tmp_path / "a.pt", new)
    content = path.read_bytes()
    device = b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0"
    if new:
        with zipfile.ZipFile(path) as archive:
            program = archive.read("a/data.pkl")
        assert device[0] in program
        path.write_bytes(with_record(content, "data.pkl", program.replace(*device)))
    else:
        assert device[0] in content
        path.write_bytes(content.replace(*device))
    require_same(read_torch_file(path)["a"], torch.arange(3.0))


def test_a_view_of_an_old_storage(tmp_path: Path) -> None:
    """Before 0.4, a storage could be a view of another."""

    class Old(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return thing[1] if isinstance(thing, tuple) and thing[:1] == ("id",) else None

    class Rebuild:
        def __reduce__(self) -> Any:
            view = ("storage", torch.FloatStorage, "11", "cpu", 6, ("12", 2, 3))
            return torch._utils._rebuild_tensor, (("id", view), 1, (2,), (1,))

    file = io.BytesIO()
    for document in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
        pickle.dump(document, file, 2)
    Old(file, 2).dump({"a": Rebuild()})
    pickle.dump(["11"], file, 2)
    file.write(struct.pack("<q6f", 6, *range(6)))
    (tmp_path / "a.pt").write_bytes(file.getvalue())
    assert torch.load(tmp_path / "a.pt", weights_only=True)["a"].tolist() == [3, 4]
    require_same(read_torch_file(tmp_path / "a.pt")["a"], torch.tensor([3.0, 4.0]))


@FORMATS
def test_a_whole_network_and_other_tensors_are_inert(tmp_path: Path, new: bool) -> None:
    module = read_torch_file(saved(nn.Linear(2, 2), tmp_path / "a.pt", new))
    assert (type(module), module.name) == (Inert, "torch.nn.modules.linear.Linear")
    sparse = read_torch_file(saved({"a": torch.eye(2).to_sparse()}, tmp_path / "b.pt", new))
    assert isinstance(sparse["a"], Inert)


@FORMATS
def test_nothing_runs(tmp_path: Path, new: bool) -> None:
    canary = tmp_path / "owned"
    read = read_torch_file(saved({"a": Touch(canary), "b": torch.ones(2)}, tmp_path / "a.pt", new))
    assert isinstance(read["a"], Inert)
    require_same(read["b"], torch.ones(2))
    assert not canary.exists()


def rebuilt(offset: Any, shape: Any, strides: Any, count: int = 4) -> bytes:
    """A pickle of one tensor in the storage "0"."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if thing == "the storage" else None

    class Rebuild:
        def __reduce__(self) -> Any:
            hooks: Any = collections.OrderedDict()
            return torch._utils._rebuild_tensor_v2, ("the storage", offset, shape, strides, False, hooks)

    file = io.BytesIO()
    Pickler(file, 2).dump({"a": Rebuild()})
    return file.getvalue()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (rebuilt(0, (5,), (1,)), "larger than its storage"),
        (rebuilt(2, (3,), (1,)), "larger than its storage"),
        (rebuilt(0, (2, 2), (3, 1)), "larger than its storage"),
        (rebuilt(5, (0,), (1,)), "larger than its storage"),
        (rebuilt(0, (10**9,), (0,)), "larger than its storage"),
        (rebuilt(0, (2**62, 2**62), (0, 0)), "shape is not one"),
        (rebuilt(0, (0, 2**62, 2**62), (0, 0, 0)), "shape is not one"),
        (rebuilt(-1, (2,), (1,)), "shape is not one"),
        (rebuilt(0, (-2,), (1,)), "shape is not one"),
        (rebuilt(0, (2,), (-1,)), "shape is not one"),
        (rebuilt(0, (True,), (1,)), "shape is not one"),
        (rebuilt(0, [2], (1,)), "shape is not one"),
        (rebuilt(0, (2,), (1, 1)), "shape is not one"),
        (rebuilt(0, (1,) * 65, (1,) * 65), "shape is not one"),
        (rebuilt(0, (2,), (1,), count=2**40), "larger than what the file has of it"),
        (rebuilt(0, (2,), (1,), count=-1), "described in a way"),
        (b"\x80\x02" + b"(" * 5000 + b".", "its pickle is damaged"),
    ],
)
def test_a_tensor_lies_inside_what_the_file_holds(tmp_path: Path, program: bytes, words: str) -> None:
    path = saved({"a": torch.ones(4)}, tmp_path / "a.pt")
    whole = path.read_bytes()
    path.write_bytes(with_record(whole, "data.pkl", rebuilt(0, (2, 2), (2, 1))))
    require_same(read_torch_file(path)["a"], torch.ones(2, 2))
    path.write_bytes(with_record(whole, "data.pkl", program))
    with pytest.raises(TorchFileError, match=words):
        read_torch_file(path)


@FORMATS
def test_no_file_is_read_that_was_cut_off(tmp_path: Path, new: bool) -> None:
    path = saved({"a": torch.ones(100)}, tmp_path / "a.pt", new)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(TorchFileError):
            read_torch_file(path)


def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path: Path) -> None:
    path = saved({"a": torch.ones(100)}, tmp_path / "a.pt")
    content = bytearray(path.read_bytes())
    content[content.index(struct.pack("<4f", 1, 1, 1, 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(TorchFileError, match="damaged"):
        read_torch_file(path)["a"].load()


def test_an_archive_whose_names_are_no_text_is_refused(tmp_path: Path) -> None:
    path = saved({"a": torch.ones(2)}, tmp_path / "a.pt")
    content = bytearray(path.read_bytes())
    content[7] |= 8  # the flag that says that the name is UTF-8, in the first record's own header
    content[content.index(b"data.pkl")] = 0x80
    path.write_bytes(content)
    with pytest.raises(TorchFileError, match="damaged archive"):
        read_torch_file(path)


def test_other_files_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.jit.script(nn.Linear(2, 2)).save(str(path))
    with pytest.raises(TorchFileError, match="TorchScript"):
        read_torch_file(path)
    for content in (b"", b"text", hostile_pickle(tmp_path / "owned"), pickle.dumps({"a": 1}), pickle.dumps(list(range(5000)))):
        path.write_bytes(content)
        with pytest.raises(TorchFileError, match="not a file of torch"):
            read_torch_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/b", "c")
    with pytest.raises(TorchFileError, match="not one of torch"):
        read_torch_file(path)
    saved({"a": torch.ones(2)}, path)
    path.write_bytes(with_record(path.read_bytes(), "byteorder", b"big"))
    with pytest.raises(TorchFileError, match="order of bytes"):
        read_torch_file(path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_choose_no_memory(tmp_path: Path, compression: int) -> None:
    path = saved({"a": torch.rand(4000)}, tmp_path / "a.pt")
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
        archive.writestr("padding", bytes(2**14), zipfile.ZIP_STORED)
        archive.comment = bytes(2**14)  # it must not look as if it grew
    with pytest.raises(TorchFileError, match="compressed in a way"):
        read_torch_file(path)


def test_the_directory_of_an_archive_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(300):  # of 60,000 characters each, so the directory alone has 18 MB
            archive.writestr(f"{k:060000}", b"")
    with pytest.raises(TorchFileError, match=r"an archive whose directory has 18,\d{3},\d{3} bytes; 16,777,216 are read"):
        read_torch_file(path)
    saved({"a": torch.ones(2**22 + 1)}, path)  # 16 MB and a little: a member may be as long as the file
    assert bool(read_torch_file(path)["a"].load().eq(1).all())
