"""Files are whole or absent, damage is noticed, and nothing is ever unpickled."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rco.core.documents import read_json, write_json
from rco.core.errors import InputError
from rco.core.files import atomically, sha256_of
from rco.core.tensors import load_arrays, load_state, save_arrays, save_model
from rco.models.spec import NetworkSpec, load_network, save_network
from rco.models.weights import load_weights, read_state

SPEC = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=3, image_size=8)


def test_same_weights_same_hash_and_back(tmp_path: Path) -> None:
    model = SPEC.build(seed=1)
    first = save_network(tmp_path / "a.safetensors", model, SPEC, epoch=3)
    assert save_network(tmp_path / "b.safetensors", model, SPEC, epoch=3) == first
    assert first == sha256_of(tmp_path / "a.safetensors")
    back = load_network(tmp_path / "a.safetensors", expected_sha256=first)
    assert not back.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)


def test_one_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    digest = save_network(path, SPEC.build(seed=1), SPEC)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged: its sha256"):
        load_network(path, expected_sha256=digest)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100, b"\x10\0\0\0\0\0\0\0not json at all!", pickle.dumps({"a": 1})])
def test_what_is_not_safetensors_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a readable safetensors"):
        load_network(path)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        atomically(path, fail)
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_json_refuses_what_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_json(tmp_path / "b.json")


def test_weights_of_another_model_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_network(path, SPEC.build(seed=1), SPEC)
    other = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=4, image_size=8)
    with pytest.raises(InputError, match="other shapes"):
        load_network(path, spec=other)


def test_a_file_cannot_name_code_to_run(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    spec = NetworkSpec(model="os:getcwd", stem="auto", in_channels=1, num_classes=3, image_size=8)
    save_model(path, nn.Linear(2, 2), {"network": spec})
    with pytest.raises(InputError, match="factory of the user's code"):
        load_network(path)


def test_tied_weights_can_be_saved(tmp_path: Path) -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, layer)
    save_model(tmp_path / "tied.safetensors", model)
    state, _ = load_state(tmp_path / "tied.safetensors")
    fresh = nn.Sequential(tied := nn.Linear(4, 4), tied)
    load_weights(fresh, state, "tied")
    assert torch.equal(fresh[1].weight, layer.weight)


def test_arrays_round_trip(tmp_path: Path) -> None:
    arrays = {"x": np.arange(12, dtype=np.float32).reshape(3, 4).T, "y": np.array([1, 2], dtype=np.int64)}
    save_arrays(tmp_path / "a.safetensors", arrays, {"k": [1]})
    back, metadata = load_arrays(tmp_path / "a.safetensors")
    assert metadata == {"k": [1]}
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)


class TestForeignStateDicts:
    def test_torch_files_and_usual_wrappers(self, tmp_path: Path) -> None:
        state = {f"module.{name}": tensor for name, tensor in SPEC.build(seed=2).state_dict().items()}
        torch.save({"epoch": 3, "state_dict": state}, tmp_path / "c.pt")
        assert set(read_state(tmp_path / "c.pt")) == set(SPEC.build().state_dict())

    def test_hostile_pickle_is_not_run(self, tmp_path: Path) -> None:
        flag = tmp_path / "owned"

        class Hostile:
            def __reduce__(self) -> tuple[object, ...]:
                return (Path.touch, (flag,))

        torch.save({"state_dict": Hostile()}, tmp_path / "c.pt")
        (tmp_path / "d.pt").write_bytes(pickle.dumps(Hostile()))
        for name in ("c.pt", "d.pt"):
            with pytest.raises(InputError, match=r"cannot be read as plain weights|holds no state dict"):
                read_state(tmp_path / name)
        assert not flag.exists()

    def test_whole_modules_and_empty_files_are_refused(self, tmp_path: Path) -> None:
        torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
        torch.save({"epoch": 3}, tmp_path / "none.pt")
        for name in ("module.pt", "none.pt"):
            with pytest.raises(InputError, match=r"plain weights|no state dict"):
                read_state(tmp_path / name)
