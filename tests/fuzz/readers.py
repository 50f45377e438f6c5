"""Every reader of files that others wrote, each with valid seeds and ways to damage them."""

from __future__ import annotations

import argparse
import bz2
import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import lzma
import os
import pickle
import shutil
import struct
import tarfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import yaml
from hypothesis import strategies as st
from PIL import Image

from rco.config.parameters import RunConfig
from rco.core.documents import read_json
from rco.core.errors import InputError
from rco.core.files import sha256_of
from rco.core.settings import from_dict, jsonable
from rco.core.storage import retries, s3, transfer
from rco.core.storage.addresses import bucket_and_key, is_remote, local_path
from rco.core.storage.contents import exists
from rco.core.storage.local import list_files
from rco.core.storage.transfer import fetch
from rco.core.tensors import load_arrays, load_metadata, save_arrays
from rco.data.config import DataConfig
from rco.data.dataset import Dataset, Manifest
from rco.data.decoding import Decoding
from rco.data.images import FileImages, header
from rco.data.sources.class_order import ordered_classes
from rco.data.sources.kinds import check_source, open_source, source_digest
from rco.data.sources.published import PUBLISHED, Published
from rco.models.route import Anchor, Checkpoint, Route
from rco.models.spec import NetworkSpec, load_network, save_network
from rco.tracking.record import Record
from tests.fuzz.harness import Reader
from tests.fuzz.mutations import changed, damaged, json_texts
from tests.hostile import hostile_pickle

SPEC = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=3, image_size=8)
warnings.simplefilter("ignore")


def warm_up() -> None:
    """Import and run once what readers import when they are first used: it must not count as theirs."""
    import torch
    import torchvision  # noqa: F401

    from pipelines.cluster import deployment  # noqa: F401
    from rco.tracking import outbox  # noqa: F401

    with TemporaryDirectory() as folder:
        torch.save(SPEC.build(0).state_dict(), Path(folder) / "a.pt")
        _read_state(Path(folder) / "a.pt")
        _read_store(([], False), Path(folder))
        with contextlib.suppress(InputError):
            _file("b.pt", _read_state)(hostile_pickle(Path(folder) / "owned"), Path(folder))
    torch.zeros(2, device="meta")


def _file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """A reader of one file."""

    def act(content: bytes, folder: Path) -> object:
        path = folder / name
        path.write_bytes(content)
        return read(path)

    return act


# --- safetensors ---


@st.composite
def _safetensors(draw: st.DrawFn, whole: bytes) -> bytes:
    size = int.from_bytes(whole[:8], "little")
    head, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    match draw(st.sampled_from(["bytes", "head", "head", "described", "described", "length", "text"])):
        case "bytes":
            return draw(damaged(whole))
        case "described":
            about = json.loads(head["__metadata__"]["rco"])
            head["__metadata__"]["rco"] = draw(json_texts(about)).decode("utf-8", "surrogateescape")
        case "head":
            head = draw(changed(head))
        case "length":
            length = draw(st.sampled_from([0, 1, size - 1, size + 1, size + 8, 2**24, 2**27, 2**32, 2**63, 2**64 - 1]))
            return length.to_bytes(8, "little") + whole[8:]
        case "text":
            raw = draw(json_texts(head))
            return len(raw).to_bytes(8, "little") + raw + body
    raw = json.dumps(head).encode("utf-8", "surrogateescape")
    return len(raw).to_bytes(8, "little") + raw + draw(st.sampled_from([body, body[:-1], body + b"\0", b""]))


def _network_files(seeds: Path) -> st.SearchStrategy[bytes]:
    save_network(seeds / "a.safetensors", SPEC.build(0), SPEC, epoch=3)
    large = replace(SPEC, model="resnet8", image_size=128, in_channels=3)
    save_network(seeds / "b.safetensors", large.build(0), large)
    return st.one_of(_safetensors((seeds / "a.safetensors").read_bytes()), _safetensors((seeds / "b.safetensors").read_bytes()))


def _array_files(seeds: Path) -> st.SearchStrategy[bytes]:
    kinds = {str(np.dtype(kind)): np.ones((2, 3), kind) for kind in ("f4", "f2", "f8", "i8", "u1", "?")}
    save_arrays(seeds / "a.safetensors", {**kinds, "empty": np.ones((0, 4), "f4"), "one": np.array(1.0)}, {"k": [1]})
    return _safetensors((seeds / "a.safetensors").read_bytes())


# --- torch files ---

_PICKLES = [
    b"\x80\x02N.",
    b"\x80\x02}q\0.",
    b"\x80\x02cos\nsystem\nX\x04\0\0\0trueq\0\x85q\1Rq\2.",
    b"\x80\x02cbuiltins\neval\nX\x03\0\0\x001+1\x85R.",
    b"\x80\x02c__builtin__\nbytearray\n\x8a\x08\0\0\0\0\0\0\0\x40\x85R.",
    b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\0\0\0\0\x02\x85R.",
    b"\x80\x02ctorch\nTensor\n\x8a\x06\0\0\0\0\0\x10\x85R.",
    b"\x80\x02crco_fuzz_canary\nfactory\n)R.",
    b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\0)tR.",
    b"\x80\x02" + b"(" * 5000 + b".",
    b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".",
    b"\x80\x02(" + b"N" * 2000 + b"lq\0" + b"ccollections\nOrderedDict\nh\0\x85R0" * 2000 + b".",
    b"\x80\x02}X\1\0\0\0a" + b"2\x86" * 60 + b"X\1\0\0\0bs.",
    b"\x80\x02}N" + b"2\x86" * 60 + b"K\1s.",
    b"\x80\x02]q\0" + b"h\0a" * 2000 + b".",
    b"\x80\x02}q\0" + b"X\1\0\0\0ah\0s" * 50 + b".",
    b"\x80\x02\x8b\xff\xff\xff\x7f.",
    b"\x80\x02X\xff\xff\xff\x7f.",
]
#: Opcodes, whole objects of a checkpoint among them, that are strung together at random.
_OPCODES = [
    *(
        b"(",
        b"t",
        b"l",
        b"d",
        b"]",
        b"}",
        b")",
        b"\x8f",
        b"\x90",
        b"\x91",
        b"N",
        b"\x88",
        b"0",
        b"1",
        b"2",
        b"a",
        b"e",
        b"s",
        b"u",
    ),
    *(
        b"q\0",
        b"q\1",
        b"h\0",
        b"h\1",
        b"\x94",
        b"R",
        b"b",
        b"o",
        b"\x81",
        b"\x92",
        b"\x93",
        b"Q",
        b"Px\n",
        b"\x85",
        b"\x86",
        b"\x87",
    ),
    *(
        b"K\0",
        b"K\4",
        b"J\xff\xff\xff\xff",
        b"\x8a\x08\0\0\0\0\0\0\0\x40",
        b"X\1\0\0\x000",
        b"U\1\xff",
        b"C\1a",
        b"X\7\0\0\0storage",
    ),
    *(
        b"ctorch\nFloatStorage\n",
        b"ctorch\nByteStorage\n",
        b"ctorch.storage\nUntypedStorage\n",
        b"ctorch\nfloat32\n",
        b"ctorch\nSize\n",
    ),
    *(b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch._utils\n_rebuild_parameter\n"),
    *(b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ccollections\nOrderedDict\n", b"ccollections\nCounter\n", b"cos\nsystem\n"),
    *(
        b"X\5\0\0\0model",
        b"X\x09\0\0\0model_ema",
        b"X\x0e\0\0\0net.1.weight_x",
        b"ios\nsystem\n",
        b"crco_fuzz_canary\nfactory\n",
    ),
    b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQ",
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQK\0K\4\x85K\1\x85\x89Nt",
]


def _programs() -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(_OPCODES), max_size=40).map(lambda codes: b"\x80\x02" + b"".join(codes) + b".")


def _packed(records: dict[str, bytes], compression: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


@st.composite
def _torch_zip(draw: st.DrawFn, whole: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        records = {member.filename: archive.read(member) for member in archive.infolist()}
    name = draw(st.sampled_from(sorted(records)))
    other = st.sampled_from([b"", b"little", b"big", b"\0" * 100, b"\0" * 2**24, *_PICKLES])
    records[name] = draw(st.one_of(damaged(records[name]), damaged(records[name], 1), other))
    if draw(st.booleans()):
        pickled = next(n for n in sorted(records) if n.endswith("data.pkl"))
        records[pickled] = draw(st.one_of(st.sampled_from(_PICKLES), damaged(records[pickled]), _programs()))
    return _packed(records, draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])))


def _torch_files(seeds: Path) -> st.SearchStrategy[bytes]:
    import torch

    state = SPEC.build(0).state_dict()
    averaged = {f"module.{name}": tensor.half() for name, tensor in state.items()}
    others = {"args": argparse.Namespace(lr=0.1), "best": np.float64(0.5), "scheduler": Counter([30]), "seen": torch.arange(4)}
    contents = ({"epoch": 3, "state_dict": state}, {**others, "model": state, "model_ema": averaged})
    files = []
    for content in contents:
        for new in (True, False):
            torch.save(content, seeds / "a.pt", _use_new_zipfile_serialization=new)
            files.append((seeds / "a.pt").read_bytes())
    head = b"".join(pickle.dumps(document, 2) for document in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    hostile = st.sampled_from([hostile_pickle(seeds.parent / "sentinels" / "owned"), *_PICKLES])
    behind_head = st.one_of(hostile, _programs()).map(lambda program: head + program + b"\x80\x02]X\1\0\0\x000a." + bytes(40))
    return st.one_of(*map(_torch_zip, files[::2]), *map(damaged, files), hostile, behind_head)


def _read_state(path: Path) -> object:
    from rco.models.weights import load_checkpoint, read_state

    with contextlib.suppress(InputError):
        read_state(path)
    return load_checkpoint(SPEC.build(), path)


# --- documents ---


def _a_route(folder: Path) -> Route:
    digests = [save_network(folder / f"epoch-{e:04d}.safetensors", SPEC.build(e), SPEC, epoch=e) for e in (2, 4)]
    points = [
        Checkpoint(epoch=e, lr=0.1, train_loss=1.0, val_accuracy=0.5, file=f"epoch-{e:04d}.safetensors", sha256=digest)
        for e, digest in zip((2, 4), digests, strict=True)
    ]
    return Route.write(
        folder,
        network=SPEC,
        data_digest="0" * 64,
        checkpoints=points,
        decay_epochs=[3],
        history=[{"epoch": e, "lr": 0.1, "loss": 1.0, "val_accuracy": 0.5} for e in range(1, 5)],
        probe_labels=np.arange(3),
        probe_logits=np.ones((2, 3, 3), np.float32),
        mean=[0.5] * SPEC.in_channels,
        std=[0.25] * SPEC.in_channels,
    )


def _route_cases(seeds: Path) -> st.SearchStrategy[tuple[Path, bytes, bytes]]:
    _a_route(seeds)
    manifest, probe = seeds / "manifest.json", (seeds / "probe.safetensors").read_bytes()
    damaged_probe = st.one_of(st.just(probe), st.just(probe), _safetensors(probe))
    return st.tuples(st.just(seeds), json_texts(json.loads(manifest.read_text())), damaged_probe)


def _read_route(case: tuple[Path, bytes, bytes], folder: Path) -> None:
    seeds, manifest, probe = case
    for path in seeds.glob("epoch-*"):
        os.link(path, folder / path.name)
    (folder / "probe.safetensors").write_bytes(probe)
    if probe != (seeds / "probe.safetensors").read_bytes():  # a forger writes the matching hash
        document = json.loads((seeds / "manifest.json").read_text())
        manifest = json.dumps({**document, "probe_sha256": sha256_of(folder / "probe.safetensors")}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    route = Route.open(folder)
    route.probe()
    route.verify()
    assert route.epochs[0] >= 1


_STAGE = {
    **{"stage": 1, "anchor_epoch": 2, "anchor_index": 0, "anchor_val_accuracy": 0.5, "anchor_sha256": "0" * 64, "reason": "x"},
    **{"first_epoch": 1, "last_epoch": 2, "hardness_before": [1.0, 2.0], "train_seconds": 1.5, "teacher_forward_passes": 10},
    **{"val_accuracy": 0.5, "kl_to_anchor": 0.1, "kl_to_teacher": 0.2},
    "anchors": [{"epoch": 2, "index": 0, "val_accuracy": 0.5, "sha256": "0" * 64}],
}
_RECORD = {
    **{"key": "student", "params": {"tau": 4.0}, "data": {"name": "digits", "source": "digits", "digest": "0" * 64}},
    "rows": [{"step": k, "time": 1_700_000_000_000 + k, "metrics": {"loss": 1.0 / k, "val_accuracy": 0.5}} for k in (1, 2)],
    **{"stages": [_STAGE], "tags": {"rco.seed": "0"}, "origin": {"tracking_uri": "x", "run_id": "y", "pipeline_run": "z"}},
}
_ANCHOR = {
    **{"epoch": 2, "lr": 0.1, "train_loss": None, "val_accuracy": 0.5, "file": "epoch-0002.safetensors", "sha256": "0" * 64},
    **{"model": "digits-mlp", "index": 0, "hardness": 0.5, "hardness_of_route": [0.5, 1.0], "relative_hardness": 1.0},
}


def _read_record(path: Path) -> None:
    record = Record.read(path.parent)
    for row in record.rows:
        assert row["step"] + row["time"] + sum(row["metrics"].values()) is not None
    for stage in record.stages:
        assert stage["last_epoch"] - stage["first_epoch"] + sum(stage["hardness_before"]) is not None
        assert stage["anchors"][-1]["epoch"] + stage["anchors"][-1]["index"] is not None


def _read_anchor(path: Path) -> None:
    about = Anchor.read(path.parent)
    about.write(path.parent)
    assert Anchor.read(path.parent) == about


# --- prepared data sets ---


def _dataset_cases(seeds: Path) -> st.SearchStrategy[tuple[Path, str, bytes]]:
    from rco.data.prepare import prepare

    _pictures(seeds / "pictures")
    config = DataConfig(dataset=str(seeds / "pictures"), probe_size=4)
    prepare(config, seeds / "data", "x")
    arrays = seeds / "data"
    manifest = json.loads((arrays / "manifest.json").read_text())
    files = {**manifest, "storage": "files", "root": "images", "decoding": dataclasses.asdict(Decoding(fit="pad"))}
    (seeds / "data" / "images").mkdir()
    for i in range(manifest["sizes"]["val"]):
        (seeds / "data" / "images" / f"{i}.png").write_bytes(_png(i))
    parts = {"paths": [f"{i}.png" for i in range(manifest["sizes"]["val"])], "labels": [0] * manifest["sizes"]["val"]}
    (seeds / "data" / "val.json").write_text(json.dumps(parts))
    validation = (arrays / "val.safetensors").read_bytes()
    return st.one_of(
        st.tuples(st.just(arrays), st.just("manifest.json"), json_texts(manifest)),
        st.tuples(st.just(arrays), st.just("manifest.json"), json_texts(files)),
        st.tuples(st.just(arrays), st.just("manifest.json"), json_texts({**files, "resize": True})),
        st.tuples(st.just(arrays), st.just("manifest.json"), _shaped(files)),
        st.tuples(st.just(arrays), st.just("val.safetensors"), _safetensors_plain(validation)),
        st.tuples(st.just(arrays), st.just("val.json"), json_texts(parts)),
    )


@st.composite
def _shaped(draw: st.DrawFn, files: dict[str, Any]) -> bytes:
    """A manifest of image files that agrees with itself in another shape."""
    channels = draw(st.sampled_from([3, 3, 1, 2, 4]))
    sides = [8, 8, 1, 7, 16, 1024, 2**14, 2**16]
    shape = [channels, draw(st.sampled_from(sides)), draw(st.sampled_from(sides))]
    if draw(st.booleans()):
        shape[2] = shape[1]
    agreed = {"image_shape": shape, "mean": [0.5] * channels, "std": [0.5] * channels, "resize": draw(st.booleans())}
    return json.dumps({**files, **agreed}).encode()


def _safetensors_plain(whole: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(_safetensors(whole), damaged(whole))


def _read_dataset(case: tuple[Path, str, bytes], folder: Path) -> None:
    seeds, name, content = case
    for path in seeds.iterdir():
        if path.is_file():
            os.link(path, folder / path.name)
    (folder / "images").mkdir()
    for path in (seeds / "images").iterdir():
        os.link(path, folder / "images" / path.name)
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content)
    if name == "val.json":
        manifest = json.loads((seeds / "manifest.json").read_text())
        (folder / "manifest.json").unlink()
        (folder / "manifest.json").write_text(json.dumps({**manifest, "storage": "files", "root": "images"}))
    data = Dataset.open(folder)
    assert isinstance(data.manifest, Manifest)
    for x, y in data.split("val").batches(4, workers=0):
        assert x.shape[1:] == data.manifest.image_shape
        assert int(y.max()) < data.manifest.num_classes


# --- what is kept for later ---


def _outbox_cases(seeds: Path) -> st.SearchStrategy[tuple[Path, bytes, bytes, bytes]]:
    index = {
        **{"pipeline_run": "p", "tracking_uri": "http://localhost", "headline": {"accuracy": 0.5}, "note": "n"},
        **{"parent": {"experiment": "rco", "name": "n", "params": {"tau": 4}}},
        "models": [{"metrics": {"a": 1.0}, "tags": {"b": "c"}, "anchors": [2]}],
    }
    digest = save_network(seeds / "weights", SPEC.build(0), SPEC)
    documents = (index, _RECORD, {**_ANCHOR, "sha256": digest})
    kinds = [st.just(json.dumps(document).encode()) for document in documents]
    changed_one = [
        st.tuples(st.just(seeds), *(json_texts(documents[i]) if i == k else kinds[i] for i in range(3))) for k in range(3)
    ]
    return st.one_of(*changed_one)


def _read_outbox(case: tuple[Path, bytes, bytes, bytes], folder: Path) -> None:
    from rco.tracking import outbox

    seeds, index, record, anchor = case
    box = folder / "outbox"
    (box / "models" / "0" / "epoch-0002").mkdir(parents=True)
    (box / "weights").mkdir()
    os.link(seeds / "weights", box / "weights" / sha256_of(seeds / "weights"))
    (box / "outbox.json").write_bytes(index)
    (box / "models" / "0" / "record.json").write_bytes(record)
    (box / "models" / "0" / "epoch-0002" / "anchor.json").write_bytes(anchor)
    letter, _, _ = outbox.take(folder)
    for delivery in letter.deliveries:
        for make in delivery.anchors.values():
            with make() as made:
                Anchor.read(made)


_IDENTITY = {"settings": {"epochs": 3}, "data": "0" * 64}


def _point_cases(seeds: Path) -> st.SearchStrategy[bytes]:
    import torch

    from rco.training.resume_points import ResumePoints

    points = ResumePoints(str(seeds), _IDENTITY)
    state = {"progress": {"epoch": 1, "batches": 2}, "model": {"w": torch.ones(2, 3)}, "rng": torch.zeros(8, dtype=torch.uint8)}
    points.add("training", lambda: state)
    points.add("record", lambda: _RECORD)
    points.keep()
    (file,) = seeds.glob("point-*.safetensors")
    return _safetensors(file.read_bytes())


def _read_point(content: bytes, folder: Path) -> None:
    """A point whose name says the sha256 of what somebody has put into it."""
    from rco.training.resume_points import ResumePoints

    name = f"point-00001-000002-{hashlib.sha256(content).hexdigest()}.safetensors"
    (folder / name).write_bytes(content)
    points = ResumePoints(str(folder), _IDENTITY)
    if (training := points.take("training")) is None:  # it was set aside with a warning, as a damaged point is
        raise InputError("resume point", name, "is damaged", "Start anew")
    assert training is not None


def _kept_cases(seeds: Path) -> st.SearchStrategy[tuple[Path, bytes, bytes]]:
    """A result's manifest, and how its training went; where that is another, its sha256 is right."""
    from rco.tracking.record import Row
    from rco.training.results import MANIFEST, TRAINING, Training

    (seeds / "a.safetensors").write_bytes(b"weights")
    rows = tuple(Row(step=i, time=i, metrics={"loss": 0.5}) for i in (1, 2))
    kept = _kept(seeds)
    kept.store(seeds, Training(pipeline_run="r", mlflow_run="m", rows=rows))
    manifest = read_json(seeds / MANIFEST)
    training = (seeds / f"{manifest['files'][TRAINING]}-{TRAINING}").read_bytes()

    def named(content: bytes) -> tuple[Path, bytes, bytes]:
        files = {**manifest["files"], TRAINING: hashlib.sha256(content).hexdigest()}
        return seeds, json.dumps({**manifest, "files": files}).encode(), content

    return st.one_of(
        json_texts(manifest).map(lambda content: (seeds, content, training)), json_texts(json.loads(training)).map(named)
    )


def _kept(folder: Path) -> Any:
    from rco.training.results import Result

    kept = Result("stage", _IDENTITY, ("a.safetensors",), label="it")  # nothing in the environment names a place
    kept.identity, kept.folder = {"format": 1, **_IDENTITY}, str(folder)
    return kept


def _read_kept(case: tuple[Path, bytes, bytes], folder: Path) -> None:
    from rco.training.results import MANIFEST, TRAINING

    seeds, manifest, training = case
    (folder / "kept").mkdir()
    (folder / "kept" / MANIFEST).write_bytes(manifest)
    (folder / "kept" / f"{hashlib.sha256(training).hexdigest()}-{TRAINING}").write_bytes(training)
    (whole,) = seeds.glob("*-a.safetensors")
    shutil.copyfile(whole, folder / "kept" / whole.name)
    found = _kept(folder / "kept").find(folder / "out", lambda files, training: None)
    if found is None:  # with a warning
        raise InputError("result", str(folder), "is damaged", "It is computed anew")
    assert (folder / "out" / "a.safetensors").read_bytes() == b"weights"
    assert [path.name for path in (folder / "out").iterdir()] == ["a.safetensors"]
    Record(key="it", params={}, data={}, rows=list(jsonable(found.rows))).write(folder)


_TENSORS: dict[str, Callable[[Any], Any]] = {
    "nan": lambda t: t.float() * float("nan"),
    "large": lambda t: t.float() + 1e38,
    "whole": lambda t: t.long(),
    "bytes": lambda t: t.bool(),
    "half": lambda t: t.half(),
    "double": lambda t: t.double(),
    "longer": lambda t: t.flatten().repeat(2),
    "shorter": lambda t: t.flatten()[:1],
    "deeper": lambda t: t[None],
    "empty": lambda t: t.flatten()[:0],
    "scalar": lambda t: t.flatten()[0] if t.numel() else t,
    "ones": lambda t: t * 0 + 1,
}


@st.composite
def _states(draw: st.DrawFn, whole: bytes) -> bytes:
    """A resume point that is what its name says, with values in it that no training has left there."""
    from safetensors.torch import load, save

    size = int.from_bytes(whole[:8], "little")
    told = json.loads(json.loads(whole[8 : 8 + size])["__metadata__"]["rco"])
    tensors = load(whole)
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(sorted(tensors)))
        tensors[name] = _TENSORS[draw(st.sampled_from(sorted(_TENSORS)))](tensors[name])
    parts = told["parts"]
    for _ in range(draw(st.integers(0, 2))):  # one part each: the weights have many more places than the rest
        part = draw(st.sampled_from(["progress", "record", "training", *sorted(parts)]))
        if part == "progress":
            if isinstance(parts.get("training"), dict):
                parts["training"]["progress"] = draw(changed(parts["training"].get("progress", {}), 2))
        elif part in parts:
            parts[part] = draw(changed(parts[part], 2))
    if not draw(st.integers(0, 5)):
        told = draw(changed(told, 1))
    return save({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, {"rco": json.dumps(told)})


@functools.cache
def _training_settings() -> dict[str, Any]:
    from rco.config.branches import Comparison
    from rco.tasks.preflight import preflight

    flat = {"teacher": "digits-mlp", "student": "digits-mlp", "teacher_epochs": 3, "epochs": 3, "teacher_batch_size": 8}
    flat |= {"batch_size": 8, "strategy": "equal-interval", "n_anchors": 1, "device": "cpu", "precision": "fp32", "threads": 1}
    flat |= {"workers": 0, "probe_size": 4, "checkpoint_every": 1}
    return preflight(Comparison.of_run(RunConfig.from_flat(flat))).outputs()


@functools.cache
def _trained(world: Path) -> Path:
    """A run of the pipeline, in little: what its tasks leave to each other, for all readers that need it."""
    from rco.data.prepare import prepare
    from rco.tasks.distill import distill_students
    from rco.tasks.init import init_students
    from rco.tasks.selection import select_anchors, write_anchors
    from rco.tasks.teacher import train_teacher

    os.environ.pop("RCO_RESUME", None)
    seeds = world / "trained"
    seeds.mkdir()
    settings, data = _training_settings(), seeds / "data"
    _pictures(seeds / "pictures", 14)
    prepare(DataConfig(dataset=str(seeds / "pictures"), probe_size=4), data, "x")
    train_teacher(settings["teacher"], dataset=data, route=seeds / "route", route_index=seeds / "index")
    init_students(settings["init_student"], dataset=data, students=seeds / "initial")
    chosen = select_anchors(settings["anchors_student"], **_selecting(seeds, seeds / "initial", seeds))
    (seeds / "selection.json").write_text(json.dumps(chosen))
    given = {"selection": chosen, "dataset": data, "anchors": seeds / "anchors", "students": seeds / "initial"}
    distill_students(settings["distill_student"], **given, distilled=seeds / "students")
    route = Route.open(seeds / "route")
    write_anchors(seeds / "anchor", route, [len(route.epochs) - 1], route.probe()[1], np.ones(len(route.epochs)), (), 4.0)
    return seeds


def _selecting(seeds: Path, students: Path, out: Path) -> dict[str, Any]:
    folders = {"route": seeds / "route", "route_index": seeds / "index", "students": students}
    return {"previous": {}, "last_step": True, **folders, "anchors": out / "anchors"}


class _CutShortError(Exception):
    pass


def _points_of(work: Path, train: Callable[[], object], kept: int) -> dict[str, bytes]:
    """The resume points of a training that is cut short as it writes its `kept`-th: all files, by path below `work`."""
    from rco.training.resume_points import ResumePoints

    keep, count = ResumePoints.keep, 0

    def dying(self: ResumePoints) -> None:
        nonlocal count
        keep(self)
        count += 1
        if count == kept:
            raise _CutShortError

    os.environ |= {"RCO_RESUME": str(work / "resume"), "RCO_RESUME_EVERY": "0"}  # from now on
    with mock.patch.object(ResumePoints, "keep", dying), contextlib.suppress(_CutShortError):
        train()
    os.environ["RCO_RESUME_EVERY"] = "999"
    found = {path.relative_to(work).as_posix(): path.read_bytes() for path in work.rglob("resume/**/*") if path.is_file()}
    shutil.rmtree(work / "resume")
    return found


def _training_cases(seeds: Path) -> st.SearchStrategy[tuple[Path, str, str, dict[str, bytes], bytes]]:
    """Points of trainings that were cut short, each in the midst of an epoch and after its last step."""
    made = _trained(seeds.parent.parent)
    cases = []
    for what, train in _TRAININGS.items():
        for kept in (4, 1000):
            files = _points_of(seeds.parent / "work", functools.partial(train, made, seeds / f"{what}-{kept}"), kept)
            point = max(name for name in files if "/point-" in name)
            others = {name: content for name, content in files.items() if "/point-" not in name}
            cases.append(st.tuples(st.just(made), st.just(what), st.just(point), st.just(others), _states(files[point])))
    return st.one_of(*cases)


def _read_training(case: tuple[Path, str, str, dict[str, bytes], bytes], folder: Path) -> None:
    """Go on from a point: to the end, or with a word of what is wrong."""
    from rco.core.errors import DivergenceError

    made, what, point, others, content = case
    for name, whole in others.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(whole)
    told, _, _ = point.rpartition("-")
    (folder / point).parent.mkdir(parents=True, exist_ok=True)
    (folder / f"{told}-{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)
    try:
        _TRAININGS[what](made, folder / "out")
    except DivergenceError as error:  # weights that are no numbers do end a training so
        raise InputError("resume point", point, str(error), "Start anew") from None
    Record.read(folder / "out")


def _train_teacher(seeds: Path, out: Path) -> None:
    from rco.tasks.teacher import train_teacher

    settings = _training_settings()["teacher"]
    train_teacher(settings, dataset=seeds / "data", route=out / "route", route_index=out)
    route = Route.open(out / "route")
    route.verify()
    route.probe()


def _train_student(seeds: Path, out: Path, anchor: Path | None = None) -> None:
    from rco.tasks.selection import Stage
    from rco.tasks.settings import DistillSettings
    from rco.tasks.stage import distill_stage
    from rco.tasks.students import STUDENT

    (stage,) = json.loads((seeds / "selection.json").read_text())["0"]["stages"]
    distill_stage(
        from_dict(DistillSettings, _training_settings()["distill_student"]).stage,
        Stage.of(stage),
        dataset=seeds / "data",
        anchor=anchor or seeds / "anchor",
        student=seeds / "initial" / "seed-0",
        distilled=out,
    )
    load_network(out / STUDENT)


def _walk(seeds: Path, out: Path) -> None:
    """The walk along a whole route in one process, as notebooks have it."""
    from rco.strategies.config import AnchorConfig
    from rco.training.config import ComputeConfig, TrainConfig
    from rco.training.distillation import distill_route
    from rco.training.resume_points import ResumePoints

    compute = ComputeConfig(device="cpu", precision="fp32", threads=1, workers=0)
    data = Dataset.open(seeds / "data")
    student = load_network(seeds / "initial" / "seed-0" / "student.safetensors")
    every = 60 * float(os.environ["RCO_RESUME_EVERY"])
    points = ResumePoints(str(Path(os.environ["RCO_RESUME"]) / "walk"), {"settings": {}}, every=every)
    anchors, train = AnchorConfig.of(strategy="equal-interval", n_anchors=2), TrainConfig(epochs=4, batch_size=8, lr=0.01)
    rows = distill_route(
        student, Route.open(seeds / "route"), data, anchors=anchors, train=train, compute=compute, checkpointer=points
    )
    record = Record(key="walk", params={}, data={})
    for row in rows:
        record.add(row["epoch"], {"loss": float(row["loss"])})
    record.write(out)


_TRAININGS = {"teacher": _train_teacher, "student": _train_student, "walk": _walk}


# --- results ---


def _results_cases(seeds: Path) -> st.SearchStrategy[tuple[Path, str, bytes]]:
    from safetensors.torch import load_file

    from rco.evaluation import openset
    from rco.evaluation.measured import FILE
    from rco.tasks.evaluate import evaluate_students
    from rco.tasks.students import PROBE, TARGETS

    seeds = _trained(seeds.parent.parent)
    os.environ.pop("RCO_RESUME", None)
    folders = {name: seeds / name for name in ("students", "anchors", "evaluation")}
    evaluate_students(_training_settings()["evaluate_student"], dataset=seeds / "data", **folders)
    vectors, labels = np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) % 3
    told = read_json(seeds / "evaluation" / "seed-0" / FILE)
    unseen = {name: openset.measure(vectors, labels, trials=2) for name in ("student", "teacher")}
    with_open = jsonable({**told, "open_set": {"classes": ["x", "y", "z"], **unseen}})
    files = [f"anchor/{TARGETS}", f"students/seed-0/{PROBE}", "evaluation/seed-0/example.safetensors"]
    about = {name: load_metadata(seeds / name) for name in files}
    first = (f"evaluation/seed-0/{FILE}", (seeds / "evaluation" / "seed-0" / FILE).read_bytes())
    with TemporaryDirectory() as folder:
        _read_results((seeds, *first), Path(folder))  # it loads what it needs
    return st.one_of(
        *(st.tuples(st.just(seeds), st.just(first[0]), json_texts(document)) for document in (told, with_open, with_open)),
        *(st.tuples(st.just(seeds), st.just(name), _arrays(load_file(seeds / name), about[name])) for name in files),
        *(st.tuples(st.just(seeds), st.just(name), _safetensors((seeds / name).read_bytes())) for name in files),
    )


@st.composite
def _arrays(draw: st.DrawFn, arrays: dict[str, Any], about: dict[str, Any]) -> bytes:
    """A whole file of arrays that are not what they were."""
    from safetensors.torch import save

    found = dict(arrays)
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(sorted(found)))
        found[name] = _TENSORS[draw(st.sampled_from(sorted(_TENSORS)))](found[name])
    return save({name: tensor.contiguous().clone() for name, tensor in found.items()}, {"rco": json.dumps(about)})


def _read_results(case: tuple[Path, str, bytes], folder: Path) -> None:
    """What tasks make of it, up to the pictures' pixels and the doors of the registry."""
    from rco.reporting.figures import style
    from rco.tasks import register as registering
    from rco.tasks.report import report
    from rco.tasks.selection import select_anchors
    from rco.tracking.context import Context
    from rco.tracking.registry import Promotion

    seeds, name, content = case
    settings = _training_settings()
    for part in ("anchor", "students", "evaluation"):
        shutil.copytree(seeds / part, folder / part, copy_function=os.link)
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    if name.startswith("anchor"):
        _train_student(seeds, folder / "out", folder / "anchor")
        return
    students, evaluation = folder / "students", folder / "evaluation"
    if name.startswith("students"):
        select_anchors(settings["anchors_student"], **_selecting(seeds, students, folder / "out"))
    context = Context(tracking_uri="http://localhost", pipeline_run="p")
    told = Promotion(champion=True, reason="it is the first")

    def register(*args: Any, example: Any, expected: Any, **more: Any) -> str:
        import torch

        assert args[2](torch.from_numpy(example)).shape == expected.shape
        return "1"

    with (
        mock.patch.multiple(registering, registered_version=mock.Mock(return_value=None), register=register),
        mock.patch.object(registering, "promote", mock.Mock(return_value=told)),
        mock.patch.object(Context, "from_environment", mock.Mock(return_value=context)),
    ):
        registered = registering.register_student(settings["filing"], students=students, evaluation=evaluation)
    with mock.patch.multiple(style, save=mock.Mock(), data_uri=mock.Mock(return_value="")):
        folders = {"route": seeds / "route", "route_index": seeds / "index", "folder": folder / "report"}
        report(settings["filing"], registered=registered, students=students, evaluations=[evaluation], **folders)


# --- settings ---


def _deployment_cases(seeds: Path) -> st.SearchStrategy[bytes]:
    text = (Path(__file__).resolve().parents[2] / "docs" / "kubernetes" / "deployment.yaml").read_text()
    pieces = st.sampled_from([*(t.encode("utf-8", "surrogatepass") for t in _YAML), text.encode()])
    values = changed(yaml.safe_load(text)).map(lambda d: json.dumps(d).encode())
    return st.one_of(
        values, values, damaged(text.encode()), pieces.flatmap(damaged), st.lists(pieces, max_size=3).map(b"".join)
    )


def _read_deployment(path: Path) -> None:
    from pipelines.cluster.deployment import read_deployment

    read_deployment(path)


_YAML = [
    *("a: &a [x]\nb: [*a, *a]\n", "!!python/object/apply:os.system ['true']\n", "x: !!python/name:os.system\n", "<<: {a: 1}\n"),
    *(
        "&a : *a\n",
        "tau: &x 1\nlr: *x\n",
        "- 1\n- 2\n",
        "? [1, 2]\n: 3\n",
        "{" * 3000,
        "[" * 3000,
        "a: " * 300,
        "tau: 0x" + "f" * 9000,
    ),
    *(
        "tau: 1" + "0" * 6000,
        "tau: 2026-99-99\n",
        "tau: 1:60:99\n",
        "tau: .inf\n",
        "tau: .nan\n",
        "epochs: 1e999\n",
        "tau: 1\ntau: 2\n",
    ),
    *(
        "--- 1\n--- 2\n",
        "%YAML 9.9\n---\n",
        "\0",
        "\ud800",
        "tau: !!binary '####'\n",
        "tau: !!float x\n",
        "tau: !!int ''\n",
        "tau: !!set {a}\n",
    ),
    *(
        "strategy: !!timestamp 2001-01-01\n",
        "? &a {}\n: 1\n",
        "a" * 5000 + ": 1\n",
        "\x1b[2J: 1\n",
        'dataset: "\\ud800"\n',
        "1: 2\n",
    ),
]


def _recipe_cases(seeds: Path) -> st.SearchStrategy[bytes]:
    from pipelines.cli.recipes import RECIPES

    texts = [path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))]
    pieces = st.sampled_from([*(t.encode("utf-8", "surrogatepass") for t in _YAML), *texts])
    flat = changed(RunConfig().to_flat()).map(lambda d: json.dumps(d).encode())  # JSON is YAML
    return st.one_of(flat, flat, pieces.flatmap(damaged), st.lists(pieces, max_size=3).map(b"".join))


def _read_recipe(path: Path) -> None:
    from pipelines.cli.recipes import read_recipe

    RunConfig.from_flat(read_recipe(str(path)))


def _setting_cases(seeds: Path) -> st.SearchStrategy[tuple[str, bytes]]:
    from rco.config.branches import Comparison
    from rco.tasks.preflight import preflight

    settings = preflight(Comparison.of_run(RunConfig())).outputs()
    named = {name.removesuffix("_student"): values for name, values in settings.items()}
    return st.one_of(*(st.tuples(st.just(name), json_texts(values)) for name, values in named.items()))


def _read_settings(case: tuple[str, bytes], folder: Path) -> None:
    import typing

    from rco.tasks.init import init_students
    from rco.tasks.process import arguments_of
    from rco.tasks.settings import BranchTasks, Settings

    name, content = case
    path = folder / "arguments.json"
    path.write_bytes(content)
    with_suppressed: list[InputError] = []
    try:
        arguments_of(init_students, path)
    except InputError as error:
        with_suppressed.append(error)
    cls = {**typing.get_type_hints(BranchTasks), **typing.get_type_hints(Settings)}[name]
    settings = from_dict(cls, read_json(path))
    assert from_dict(cls, jsonable(settings)) == settings


# --- images, and what holds them ---


_TURNED = Image.Exif()
_TURNED[0x0112] = 6


def _image_seeds() -> list[tuple[str, bytes]]:
    rng = np.random.default_rng(0)
    whole = Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8))
    wanted = [
        *(("png", mode, {}) for mode in ("RGB", "L", "P", "RGBA", "LA", "1", "I;16")),
        *(("jpg", mode, {}) for mode in ("RGB", "L", "CMYK")),
        *(("gif", mode, {}) for mode in ("P", "L")),
        *(("tif", mode, {"compression": c}) for mode in ("RGB", "L", "CMYK", "I;16", "F") for c in (None, "tiff_lzw")),
        *(("bmp", mode, {}) for mode in ("RGB", "1", "P")),
        *(("webp", mode, {}) for mode in ("RGB", "RGBA")),
        *(("avif", mode, {}) for mode in ("RGB", "RGBA")),
        *((suffix, "RGB", {"exif": _TURNED}) for suffix in ("jpg", "png", "webp", "tif", "avif")),
        *(("ppm", mode, {}) for mode in ("RGB", "L")),
    ]
    names = {"jpg": "JPEG", "tif": "TIFF"}
    seeds = []
    for suffix, mode, options in wanted:
        file = io.BytesIO()
        image = whole.convert("L").convert("I").convert("I;16") if mode == "I;16" else whole.convert(mode)
        image.save(file, names.get(suffix, suffix.upper()), **{k: v for k, v in options.items() if v})
        seeds.append((suffix, file.getvalue()))
    frames = io.BytesIO()
    whole.save(frames, "GIF", save_all=True, append_images=[whole.rotate(90 * k) for k in range(1, 4)])
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    wide = b"P6 99999999 99999999 255\n" + b"\0" * 64
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    return [*seeds, ("gif", frames.getvalue()), ("png", bomb.getvalue()), ("ppm", wide), ("png", postscript)]


def _image_cases(seeds: Path) -> st.SearchStrategy[tuple[str, bytes, int]]:
    each = [st.tuples(st.just(suffix), damaged(content, 4), st.sampled_from([0, 8])) for suffix, content in _image_seeds()]
    return st.one_of(*each)


def _read_image(case: tuple[str, bytes, int], folder: Path) -> None:
    suffix, content, size = case
    path = folder / f"x.{suffix}"
    path.write_bytes(content)
    shape = header(path)
    images = FileImages.of(folder, [path.name], size)
    pixels = images.read(np.array([0]))
    assert pixels.shape == (1, shape[0], size or shape[1], size or shape[2])


_NAMES = [
    *("cat/{}.png", "dog/{}.png", "train/cat/{}.png", "train/dog/{}.png", "val/cat/{}.png", "test/dog/{}.png", "x/cat/{}.png"),
    *("../owned{}.png", "/abs/cat/{}.png", "cat/../../owned{}.png", "./cat/{}.png", "cat//{}.png", "cat/{}.txt", "{}.png"),
    *("\x1b[2Jcat/{}.png", "ca\nt/{}.png", "\udc80\udcff/{}.png", "é/{}.png", ".hidden/{}.png", "cat/" + "n" * 300 + "{}.png"),
    *("cat/" + "../" * k + "sentinels/owned{}.png" for k in range(1, 7)),
    *("cat/{}.png/inner.png", "c" * 90 + "/" + "d" * 120 + "/{}.png", "a/" * 60 + "{}.png", "cat\\dog/{}.png", "cat/\0{}.png"),
]
_KINDS = [tarfile.REGTYPE] * 8 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
_KINDS += [tarfile.DIRTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"Z"]


def _packer(compression: str) -> Callable[[bytes], bytes]:
    return {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[compression]


@st.composite
def _tars(draw: st.DrawFn, outside: Path, pictures: list[bytes]) -> bytes:
    file = io.BytesIO()
    formats = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    with tarfile.open(fileobj=file, mode="w", format=draw(formats)) as tar:
        honest = draw(st.booleans())
        names = _NAMES[:2] if honest else [*_NAMES, f"{outside}/owned{{}}.png"]
        for i in range(draw(st.integers(6, 12) if honest else st.integers(0, 14))):
            member = tarfile.TarInfo((names[i % 2] if i < 8 else draw(st.sampled_from(names))).format(i))
            member.type = draw(st.sampled_from(_KINDS)) if i >= 8 and not honest else tarfile.REGTYPE
            links = ["cat/0.png", "/etc/passwd", "../../owned", str(outside / "untouched"), member.name, ".", "cat"]
            member.linkname = draw(st.sampled_from(links))
            content = (
                draw(st.sampled_from(pictures))
                if honest or i < 8
                else draw(st.sampled_from([*pictures, _png(4, 9), b"", b"x"]))
            )
            if not honest and draw(st.booleans()):
                member.pax_headers = {
                    draw(st.sampled_from(["size", "path", "GNU.sparse.major", "comment", "linkpath"])): "1" * 9
                }
            member.size = len(content)
            try:
                tar.addfile(member, io.BytesIO(content))
            except (ValueError, UnicodeError):
                continue  # a name that this format cannot write
    whole = bytearray(file.getvalue())
    if not honest and draw(st.booleans()):
        _lie(draw, whole)
    packed = _packer(draw(st.sampled_from(["", "", "gz", "xz", "bz2"])))(bytes(whole))
    return packed if draw(st.integers(0, 2)) else draw(damaged(packed, 3))


def _lie(draw: st.DrawFn, whole: bytearray) -> None:
    """Change a member's size or type in its header, with a checksum that fits."""
    block = 512 * draw(st.integers(0, max(0, len(whole) // 512 - 1)))
    sizes = [b"00000000000\0", b"77777777777\0", b"\x80" + b"\0" * 7 + b"\x7f\xff\xff\xff", b"00100000000\0", b"-0000000001\0"]
    whole[block + 124 : block + 136] = draw(st.sampled_from(sizes))
    whole[block + 156 : block + 157] = draw(st.sampled_from([b"0", b"S", b"x", b"g", b"L", b"K", b"5", b"1", b"2", b"D", b"V"]))
    whole[block + 148 : block + 156] = b" " * 8
    whole[block + 148 : block + 156] = f"{sum(whole[block : block + 512]):06o}\0 ".encode()


@functools.cache
def _png(seed: int, size: int = 8) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def _pictures(folder: Path, count: int = 5) -> None:
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            (folder / name / f"{i}.png").write_bytes(_png(i))


def _bombs() -> list[bytes]:
    """Small archives that are large inside: one file, one header, many files."""
    bombs = []
    for pack in (gzip.compress, lzma.compress):
        zeros = pack(bytes(2**24))  # both formats are read on where one part ends and another begins
        for kind, mib in ((tarfile.REGTYPE, 1200), (tarfile.GNUTYPE_LONGNAME, 1200), (tarfile.XHDTYPE, 1200)):
            member = tarfile.TarInfo("cat/0.png")
            member.type, member.size = kind, mib * 2**20
            bombs.append(pack(member.tobuf()) + zeros * (mib // 16))
    many = gzip.compress(tarfile.TarInfo("cat/0.png").tobuf() * 2**10)
    return [*bombs, many * 200]


def _chains() -> list[bytes]:
    """Headers that speak of the next one, which does the same."""
    chains = []
    for kinds in ("L", "K", "x", "g", "LK", "xL", "gx", "LKxg"):
        headers = []
        for kind in kinds:
            member = tarfile.TarInfo("cat/0.png")
            member.type = kind.encode()
            headers.append(member.tobuf())
        chains += [b"".join(headers) * (count // len(kinds)) + bytes(1024) for count in (100, 600, 2000)]
    return chains


def _tar_cases(seeds: Path) -> st.SearchStrategy[bytes]:
    made, bombs = _tars(seeds.parent / "sentinels", [_png(0), _png(1), _png(2), _png(3)]), _bombs()
    chains = _chains()
    # A bomb takes seconds: a few of them, among thousands.
    return st.integers(0, 400).flatmap(
        lambda n: st.sampled_from(bombs) if n == 400 else st.sampled_from(chains) if n > 380 else made
    )


@st.composite
def _zips(draw: st.DrawFn, outside: Path, pictures: list[bytes]) -> bytes:
    """Archives of the pictures, more or less honest in their names, kinds, flags and sizes; then some with bytes damaged."""
    file, honest = io.BytesIO(), draw(st.booleans())
    names = _NAMES[:2] if honest else [*_NAMES, f"{outside}/owned{{}}.png"]
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(draw(st.integers(6, 12) if honest else st.integers(0, 14))):
            name = (names[i % 2] if i < 8 else draw(st.sampled_from(names))).format(i)
            info = zipfile.ZipInfo(name.encode(errors="replace").decode()[:200])
            info.compress_type = draw(
                st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
            )
            info.create_system = draw(st.sampled_from([0, 3]))
            if i >= 8 and not honest:
                info.external_attr = draw(st.sampled_from([0o120777, 0o100644, 0o040755, 0o010644, 0o060644, 0])) << 16
            archive.writestr(info, draw(st.sampled_from(pictures if honest or i < 8 else [*pictures, b"", b"x", bytes(2**16)])))
    whole = bytearray(file.getvalue())
    if not honest and draw(st.booleans()):
        start = whole.find(b"PK\1\2")
        for _ in range(draw(st.integers(1, 3)) if start >= 0 else 0):  # of the first entry in the directory
            whole[start + draw(st.integers(4, 45))] = draw(st.integers(0, 255))
    return bytes(whole) if draw(st.integers(0, 2)) else draw(damaged(bytes(whole), 3))


def _zip_bombs() -> list[bytes]:
    """Small archives that are large inside: one file, and many entries that share one."""
    bombs = []
    for name, count in (("cat/0.png", 1), ("cat/{}.png", 3000)):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("cat/x.png", bytes(2**26))
            (info,) = archive.infolist()
            for i in range(count):
                twin = zipfile.ZipInfo(name.format(i))
                for field in ("compress_type", "CRC", "compress_size", "file_size", "header_offset"):
                    setattr(twin, field, getattr(info, field))
                archive.filelist.append(twin)
        bombs.append(file.getvalue())
    return bombs


def _zip_cases(seeds: Path) -> st.SearchStrategy[bytes]:
    made, bombs = _zips(seeds.parent / "sentinels", [_png(0), _png(1), _png(2), _png(3)]), _zip_bombs()
    return st.integers(0, 100).flatmap(lambda n: st.sampled_from(bombs) if n == 100 else made)


def _prepare(source: Path | str, folder: Path) -> None:
    config = DataConfig(dataset=str(source))
    check_source(config)
    source_digest(config)
    with open_source(config, folder) as source_:
        pixels = source_.images.read(np.arange(len(source_.layout.labels)))
        assert len(pixels) == len(source_.layout.labels)


def _read_tar(path: Path) -> None:
    _prepare(path, path.parent)


_ORDERS = [
    b"cat\ndog\n",
    b'["cat", "dog"]',
    b'{"cat": 0, "dog": 1}',
    b'{"0": "cat", "1": ["n1", "dog"]}',
    b'{"0": "dog", "1": "cat"}',
]


def _order_cases(seeds: Path) -> st.SearchStrategy[bytes]:
    documents = st.one_of(*(json_texts(json.loads(text)) for text in _ORDERS[1:]))
    return st.one_of(st.sampled_from(_ORDERS), documents, st.sampled_from(_ORDERS).flatmap(lambda text: damaged(text)))


def _read_order(path: Path) -> None:
    assert sorted(ordered_classes(("cat", "dog"), (str(path),), "x")) == ["cat", "dog"]


_CELLS = [
    *("cat/0.png", "dog/1.png", "./cat/2.png", "cat/../dog/3.png", "../owned.png", "/etc/passwd", "/etc/x.png", "cat", "", " "),
    *(
        "cat/9.png",
        "\0.png",
        "a/" * 300 + "x.png",
        "n" * 300 + ".png",
        "é.png",
        "\x1b[2J.png",
        "cat\\0.png",
        "~/x.png",
        "s3://b/x.png",
    ),
    *(
        "cat",
        "dog",
        "train",
        "VAL",
        "testing",
        "none",
        "path",
        "label",
        "split",
        "part",
        '"',
        '"a',
        "x" * 2**17,
        "1",
        ",",
        "\r",
        "\n",
    ),
]


@st.composite
def _csv_texts(draw: st.DrawFn) -> bytes:
    """Lists of the pictures, more or less: of cells, then of bytes."""
    mark = draw(st.sampled_from(",,,,;;\t\t|"))
    rows = [["path", "label"], *([f"{name}/{i}.png", name] for name in ("cat", "dog") for i in range(5))]
    if draw(st.booleans()):
        rows = [
            [*rows[0], "split"],
            *([*row, ("train", "Val", "test")[i % 3 if i % 5 else 0]] for i, row in enumerate(rows[1:])),
        ]
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(_CELLS))
    if draw(st.integers(0, 4)) == 0:
        draw(st.sampled_from(rows)).append(draw(st.sampled_from(_CELLS)))
    text = "\n".join(mark.join(row) for row in rows).encode(draw(st.sampled_from([*["utf-8"] * 6, "utf-8-sig", "utf-16"])))
    return draw(damaged(text)) if draw(st.integers(0, 3)) == 0 else text


def _read_csv(content: bytes, folder: Path) -> None:
    _pictures(folder / "pictures")
    (folder / "pictures" / "list.csv").write_bytes(content)
    (folder / "scratch").mkdir()
    _prepare(folder / "pictures" / "list.csv", folder / "scratch")


_STEPS = ["file", "file", "file", "link", "loop", "out", "fifo", "broken", "folder", "bad", "dotted", "twice", "socket"]


def _folder_cases(seeds: Path) -> st.SearchStrategy[tuple[Path, list[tuple[str, str]]]]:
    names = st.sampled_from([n for n in _NAMES if "\0" not in n and ".." not in n and not n.startswith("/")])
    step = st.tuples(st.sampled_from(_STEPS), names)
    return st.tuples(st.just(seeds.parent / "sentinels"), st.lists(step, max_size=12))


def _build(root: Path, steps: list[tuple[str, str]], outside: Path) -> None:
    _pictures(root)
    for i, (step, name) in enumerate(steps):
        path = root / name.format(100 + i)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            match step:
                case "file" | "dotted":
                    path.write_bytes(_png(i))
                case "bad":
                    path.write_bytes(b"no image")
                case "link":
                    path.symlink_to(root / "cat" / "0.png")
                case "loop":
                    path.symlink_to(path.parent)
                case "out":
                    path.symlink_to(outside)
                case "broken":
                    path.symlink_to(path)
                case "fifo":
                    os.mkfifo(path)
                case "folder":
                    path.mkdir()
                case "twice":
                    for k in range(2):
                        (path.parent / f"l{i}{k}").symlink_to(root / ("dog" if "cat" in name else "cat"))
        except OSError:
            continue  # this file system has no such name


_KEYS = [
    *("cat", "dog", "cat/0.png", "cat/0.png/x.png", "cat/{}.png", "new/{}.png", "train/cat/{}.png", "cat/", "", "/", "{}.png"),
    *("../owned{}.png", "cat/../owned{}.png", "/abs/{}.png", "cat//{}.png", "cat/./{}.png", ".", "..", "cat/..", "cat\\{}.png"),
    *(
        "..\\owned{}.png",
        "C:\\owned.png",
        "C:/{}.png",
        "cat/\0{}.png",
        "\0",
        "cat/" + "n" * 300 + ".png",
        "n" * 300 + "/{}.png",
    ),
    *(
        "cat/" + "é" * 128 + ".png",
        "a/" * 480 + "{}.png",
        "cat/\ud800{}.png",
        "\udcff/{}.png",
        "\udc2e\udc2e/{}.png",
        "\x1b[2Jcat/{}.png",
    ),
    *("cat/" + "../" * k + "sentinels/owned{}.png" for k in range(1, 7)),
    *(
        "ca\nt/{}.png",
        "é/{}.png",
        ".fetch-0/{}.png",
        "cat/.hidden/{}.png",
        " /{}.png",
        "cat/{}.png ",
        "CAT/{}.png",
        "con/{}.png",
    ),
]
_PREFIX = "data/"


@dataclass(frozen=True)
class _Object:
    """What a store says of an object."""

    key: str
    what: str = "picture"
    size: int = 1
    told: tuple[tuple[str, Any], ...] = ()  # in answer to HEAD

    @property
    def content(self) -> bytes:
        return {"picture": _png(0), "empty": b"", "text": b"no image"}[self.what]


class _Store:
    """A stand-in for boto3's client and its transfers: it serves what it is told to serve, whether that can be or not."""

    def __init__(self, objects: tuple[_Object, ...]) -> None:
        self.objects = objects
        self.meta = SimpleNamespace(endpoint_url="http://store.invalid")

    def list_objects_v2(self, *, Bucket: str, Prefix: str, MaxKeys: int = 1000) -> dict[str, Any]:  # noqa: N803 (boto3's)
        found = [o for o in self.objects if o.key.startswith(Prefix)][:MaxKeys]
        return {"Contents": [{"Key": o.key, "Size": o.size, "ETag": '"x"'} for o in found]}

    def get_paginator(self, name: str) -> Any:
        return SimpleNamespace(paginate=lambda **about: [getattr(self, name)(**about)])

    def head_object(self, *, Key: str, **about: Any) -> dict[str, Any]:  # noqa: N803
        (found, *_) = [o for o in self.objects if o.key == Key]
        return {"ContentLength": len(found.content), **dict(found.told)}

    def get_object(self, *, Bucket: str, Key: str, Range: str) -> dict[str, Any]:  # noqa: N803
        (found, *_) = [o for o in self.objects if o.key == Key]
        return {"Body": io.BytesIO(found.content)}

    def download(self, bucket: str, key: str, path: str, subscribers: Any) -> Any:
        (found, *_) = [o for o in self.objects if o.key == key]
        Path(path).write_bytes(found.content)
        return SimpleNamespace(result=lambda: None)


_GOOD = tuple(_Object(f"{_PREFIX}{name}/{i}.png") for name in ("cat", "dog") for i in range(5))
_TOLD: list[tuple[tuple[str, Any], ...]] = [
    *([()] * 20),
    *((("Metadata", {"sha256": value}),) for value in ("0" * 64, "x", "", "é" * 64)),
    *((("ChecksumSHA256", value),) for value in ("!", "AAAA", "A", "é", "AAAA-2", "=" * 44)),
    *((("ContentLength", value),) for value in (0, 2**62)),
]


def _store_cases(seeds: Path) -> st.SearchStrategy[tuple[list[_Object], bool]]:
    keys = st.tuples(st.sampled_from(_KEYS), st.integers(0, 2)).map(lambda k: _PREFIX + k[0].format(f"new{k[1]}"))
    what = st.sampled_from(["picture", "picture", "empty", "text"])
    new = st.builds(_Object, keys, what, st.sampled_from([1, 0, 2**62]), st.sampled_from(_TOLD))
    return st.tuples(st.lists(new, max_size=3), st.booleans())


def _read_store(case: tuple[list[_Object], bool], folder: Path) -> None:
    more, before = case
    store = _Store((*more, *_GOOD) if before else (*_GOOD, *more))
    with (
        mock.patch.object(s3, "make_client", return_value=store),
        mock.patch.object(transfer, "_transfers", return_value=contextlib.nullcontext(store)),
        mock.patch.object(retries, "_FIRST_WAIT", 0.0),
    ):
        fetched = fetch(f"s3://bucket/{_PREFIX}", folder / "fetched")
        assert list_files(fetched)
        _prepare(f"s3://bucket/{_PREFIX}", folder)


def _read_folder(case: tuple[Path, list[tuple[str, str]]], folder: Path) -> None:
    outside, steps = case
    _build(folder / "data", steps, outside)
    (folder / "scratch").mkdir()
    _prepare(folder / "data", folder / "scratch")


_URIS = [
    *(
        "file://",
        "file:///",
        "file://host/x",
        "file://[",
        "file:///%00",
        "file:///a%2f..%2f..%2fetc",
        "FILE:///x",
        "~",
        "~nobody-here/x",
    ),
    *(
        "s3://",
        "s3:///",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/key",
        "s3://u:p@bucket/x",
        "s3://b\0/x",
        "s3:///key",
        "S3://b/k",
    ),
    *(
        "http://x/y",
        "gs://b",
        "://",
        "a://",
        "",
        " ",
        ".",
        "/",
        "a" * 5000,
        "\0",
        "\ud800",
        "x.tar",
        "x" * 300 + ".tar.gz",
        "/dev/null",
    ),
    *("digits", "Digits", "cifar10", "/proc/self/mem", "/proc/self/fd/0", "file:/x", "file:///" + "../" * 50 + "etc/passwd"),
]


def _uri_cases(seeds: Path) -> st.SearchStrategy[str]:
    base = st.sampled_from(_URIS)
    edited = st.tuples(
        base, st.integers(0, 60), st.sampled_from(["", "/", ":", "%", "..", "\0", "?", "#", "@", "[", " ", "é", "\n"])
    )
    joined = st.tuples(base, base).map("".join)
    return st.one_of(base, joined, edited.map(lambda e: e[0][: e[1]] + e[2] + e[0][e[1] :]), st.text(max_size=40))


def _read_uri(uri: str, folder: Path) -> None:
    os.chdir(folder)
    if is_remote(uri):
        bucket_and_key(uri)
        return
    exists(uri)
    if uri.strip() and not uri.startswith("/proc"):
        config = DataConfig(dataset=uri)
        path = local_path(uri)
        if path.is_dir() and not path.is_relative_to(folder):
            return  # somebody's real folder, perhaps a large one
        check_source(config)
        source_digest(config)


# --- published data sets ---


def _published_cases(seeds: Path) -> st.SearchStrategy[tuple[str, str, bytes]]:
    rng = np.random.default_rng(0)
    labels = np.arange(20, dtype=np.uint8) % 10
    known = _small_published()
    whole: dict[str, dict[str, bytes]] = {"mnist": {}, "cifar10": {}}
    for part in (0, 2):
        pixels = rng.integers(0, 256, (20, 28, 28), np.uint8).tobytes()
        whole["mnist"][known["mnist"].files[part]] = struct.pack(">IIII", 2051, 20, 28, 28) + pixels
        whole["mnist"][known["mnist"].files[part + 1]] = struct.pack(">II", 2049, 20) + labels.tobytes()
    names, *batches = known["cifar10"].files
    whole["cifar10"][names] = b"".join(b"class %d\n" % i for i in range(10))
    for file in batches:
        whole["cifar10"][file] = np.hstack([labels[:, None], rng.integers(0, 256, (20, 3072), np.uint8)]).tobytes()
    for name, files in whole.items():
        for file, content in files.items():
            path = seeds / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return st.one_of(
        *(
            st.tuples(st.just(str(seeds / name)), st.just(file), damaged(content, 3))
            for name, files in whole.items()
            for file, content in files.items()
        )
    )


def _small_published() -> dict[str, Published]:
    return {
        "mnist": replace(PUBLISHED["mnist"], counts=(20, 20)),
        "cifar10": replace(PUBLISHED["cifar10"], counts=(100, 20)),
    }


def _read_published(case: tuple[str, str, bytes], folder: Path) -> None:
    seeds, victim, content = case
    name = Path(seeds).name
    for file in _small_published()[name].files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content if file == victim else (Path(seeds) / file).read_bytes())
    kept = dict(PUBLISHED)
    try:
        PUBLISHED.update(_small_published())
        with open_source(DataConfig.of(dataset=name, data_root=str(folder)), folder) as source:
            assert source.layout.labels.max() < 10
    finally:
        PUBLISHED.update(kept)


READERS = {
    "route": Reader(_route_cases, _read_route),
    "record": Reader(lambda _: json_texts(_RECORD), _file("record.json", _read_record)),
    "anchor": Reader(lambda _: json_texts(_ANCHOR), _file("anchor.json", _read_anchor)),
    "checkpoint": Reader(_network_files, _file("a.safetensors", load_network)),
    "arrays": Reader(_array_files, _file("a.safetensors", load_arrays)),
    "torch-file": Reader(_torch_files, _file("a.pt", _read_state)),
    "dataset": Reader(_dataset_cases, _read_dataset),
    "recipe": Reader(_recipe_cases, _file("mine.yaml", _read_recipe)),
    "settings": Reader(_setting_cases, _read_settings),
    "tar": Reader(_tar_cases, _file("data.tar", _read_tar), r"data\.tar|\.source-\w+(/extracted(/.+)?)?"),
    "zip": Reader(_zip_cases, _file("data.zip", _read_tar), r"data\.zip|\.source-\w+(/extracted(/.+)?)?"),
    "class-order": Reader(_order_cases, _file("order", _read_order)),
    "csv": Reader(lambda _: _csv_texts(), _read_csv, r"pictures(/.+)?|scratch(/.+)?"),
    "image": Reader(_image_cases, _read_image),
    "folder": Reader(_folder_cases, _read_folder),
    "store": Reader(_store_cases, _read_store, r"fetched(/.+)?|\.source-\w+(/fetched(/.+)?)?"),
    "uri": Reader(_uri_cases, _read_uri),
    "deployment": Reader(_deployment_cases, _file("site.yaml", _read_deployment)),
    "outbox": Reader(_outbox_cases, _read_outbox),
    "resume-point": Reader(_point_cases, _read_point),
    "result": Reader(_kept_cases, _read_kept),
    "training": Reader(_training_cases, _read_training),
    "results": Reader(_results_cases, _read_results),
    "published": Reader(_published_cases, _read_published),
}
