"""The weights in anyone's checkpoint: what a trainer wrote around them comes off, and what does not fit is refused in words."""

from __future__ import annotations

import argparse
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rco.core.errors import InputError
from rco.core.tensors import save_state
from rco.models.checkpoints import find_mappings, find_weights, read_content
from rco.models.importing import read_network
from rco.models.spec import NetworkSpec
from rco.models.weights import load_checkpoint, read_state

State = dict[str, Tensor]


def network(classes: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    body = OrderedDict(conv1=nn.Conv2d(1, 4, 3), bn1=nn.BatchNorm2d(4), pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    return nn.Sequential(OrderedDict(**body, fc=nn.Linear(4, classes)))


def prefixed(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def require_loaded(model: nn.Module, expected: State) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    "prefix",
    ["", "_orig_mod.", "module.", "model.", "module.student.", "_orig_mod.module.", "module._orig_mod.", "net.backbone."],
)
@pytest.mark.parametrize("wrapper", ["", "net", "model", "state_dict", "state_dict_ema", "model_ema", "model_state_dict"])
def test_prefixes_and_wrappers_come_off(tmp_path: Path, prefix: str, wrapper: str) -> None:
    state = network(seed=1).state_dict()
    content = prefixed(prefix, state)
    path = saved({wrapper: content, "epoch": 3} if wrapper else content, tmp_path / "a.pt")
    model = network(seed=2)
    notes = load_checkpoint(model, path)
    require_loaded(model, state)
    assert any(repr(prefix) in note for note in notes) == bool(prefix)
    assert any("averaged" in note for note in notes) == wrapper.endswith("ema")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_prefix_that_belongs_to_the_network_stays(tmp_path: Path, suffix: str) -> None:
    inner = network(seed=1)
    path = tmp_path / f"a{suffix}"
    whole = nn.ModuleDict({"model": inner})
    if suffix == ".pt":
        saved(whole.state_dict(), path)
    else:
        save_state(path, whole.state_dict())
    model = nn.ModuleDict({"model": network(seed=2)})
    assert load_checkpoint(model, path) == ()
    require_loaded(model, whole.state_dict())
    assert any("taken off" in note for note in load_checkpoint(network(), path))


def test_what_lies_beside_them_does_not_disturb(tmp_path: Path) -> None:
    trained = network(seed=1)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    trained(torch.ones(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    optimizer.param_groups[0]["lr"] = np.float64(0.1)
    content = {
        **{"epoch": 3, "model": trained.state_dict(), "optimizer": optimizer.state_dict(), "best": np.float64(0.5)},
        **{"optim_by_name": prefixed("", trained.state_dict()), "scheduler": {"milestones": Counter([30])}},
        **{"args": argparse.Namespace(lr=0.1), "mean": torch.zeros(3), "rng": torch.get_rng_state()},
    }
    model = network(seed=2)
    assert load_checkpoint(model, saved(content, tmp_path / "a.pt")) == ()
    require_loaded(model, trained.state_dict())
    assert set(read_state(tmp_path / "a.pt")) == set(trained.state_dict())


@pytest.mark.parametrize("names", [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema"), ("net", "swa")])
def test_of_raw_and_averaged_weights_the_raw_ones_are_taken(tmp_path: Path, names: tuple[str, str]) -> None:
    raw, averaged = network(seed=1).state_dict(), network(seed=2).state_dict()
    path = saved({names[1]: averaged, names[0]: raw}, tmp_path / "a.pt")
    model = network()
    (note,) = load_checkpoint(model, path)
    assert note == f"the raw weights ({names[0]}) are taken; there are averaged ones, too ({names[1]})"
    require_loaded(model, raw)
    (note,) = load_checkpoint(model, path, choice=names[1])
    assert note == f"the weights are averaged ones ({names[1]})"
    require_loaded(model, averaged)
    with pytest.raises(InputError, match=rf"weights = 'nothing': is not a place .* There is: '{names[1]}', '{names[0]}'"):
        load_checkpoint(model, path, choice="nothing")


def test_averaged_by_torch(tmp_path: Path) -> None:
    trained = network(seed=1)
    averaged = torch.optim.swa_utils.AveragedModel(trained)
    path = saved(averaged.state_dict(), tmp_path / "a.pt")
    assert "n_averaged" in averaged.state_dict()
    model = network(seed=2)
    load_checkpoint(model, path)
    require_loaded(model, trained.state_dict())


def test_two_networks_that_fit_are_not_guessed_between(tmp_path: Path) -> None:
    state = network(seed=1).state_dict()
    path = saved({"student": state, "teacher": network(seed=2).state_dict()}, tmp_path / "a.pt")
    model = network()
    with pytest.raises(InputError, match="holds several networks that fit: student, teacher"):
        load_checkpoint(model, path)
    load_checkpoint(model, path, choice="student")
    require_loaded(model, state)
    with pytest.raises(InputError, match="holds several state dicts: student, teacher"):
        read_state(path)


def test_of_a_student_and_a_larger_teacher_that_which_fits_is_taken(tmp_path: Path) -> None:
    state = network(seed=1).state_dict()
    path = saved({"teacher": network(5).state_dict(), "student": state}, tmp_path / "a.pt")
    model = network()
    load_checkpoint(model, path)
    require_loaded(model, state)


def test_the_same_weights_twice_are_no_question(tmp_path: Path) -> None:
    state = network(seed=1).state_dict()
    model = network()
    load_checkpoint(model, saved({"model": state, "net": state}, tmp_path / "a.pt"))
    require_loaded(model, state)


def test_batch_norms_without_counters_load_as_in_torch(tmp_path: Path) -> None:
    state = {n: t for n, t in network(seed=1).state_dict().items() if not n.endswith("num_batches_tracked")}
    model, reference = network(seed=2), network(seed=2)
    (note,) = load_checkpoint(model, saved(state, tmp_path / "a.pt"))
    assert note == "counters of batch norms that are not there stay as they are: bn1.num_batches_tracked"
    reference.load_state_dict(state)
    require_loaded(model, reference.state_dict())
    del state["bn1.running_mean"]
    with pytest.raises(InputError, match=r"lacks bn1\.running_mean\."):
        load_checkpoint(model, saved(state, tmp_path / "a.pt"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_cast_and_said(tmp_path: Path, dtype: torch.dtype) -> None:
    state = network(seed=1).to(dtype).state_dict()
    model = network(seed=2)
    (note,) = load_checkpoint(model, saved(state, tmp_path / "a.pt"))
    assert note == f"weights in {str(dtype)[6:]} become the network's type"
    assert model.fc.weight.dtype == torch.float32
    assert torch.equal(model.fc.weight, state["fc.weight"].float())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int8])
def test_numbers_of_another_kind_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {**network().state_dict(), "fc.weight": torch.ones(3, 4).to(dtype)}
    with pytest.raises(InputError, match=f"numbers of another kind: fc.weight is {str(dtype)[6:]}"):
        load_checkpoint(network(), saved(state, tmp_path / "a.pt"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])  # float32 has no 1e300
@pytest.mark.parametrize("name", ["fc.weight", "bn1.running_var"])
def test_weights_of_a_training_that_diverged_are_refused(tmp_path: Path, name: str, value: float) -> None:
    state = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in network().state_dict().items()}
    state[name].view(-1)[-1] = value
    with pytest.raises(InputError, match=rf"not finite numbers: {name} has NaN or infinity\. Use an earlier checkpoint"):
        load_checkpoint(network(), saved(state, tmp_path / "a.pt"))


@pytest.mark.parametrize("wrapper", ["", "model"])
def test_other_classes_are_refused_in_words(tmp_path: Path, wrapper: str) -> None:
    state = prefixed("module.", network(1000).state_dict())
    path = saved({wrapper: state} if wrapper else state, tmp_path / "a.pt")
    with pytest.raises(
        InputError, match=r"for 1,000 classes, and the network is for 3: fc has \(1000, 4\) in place of \(3, 4\)"
    ):
        load_checkpoint(network(), path)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"conv1.weight": torch.ones(4, 3, 3, 3)}, r"has other shapes: conv1\.weight: \(4, 3, 3, 3\) for \(4, 1, 3, 3\)"),
        ({"more.weight": torch.ones(1)}, r"has unknown more\.weight"),
        ({"fc.weight": torch.ones(3, 5)}, r"has other shapes: fc\.weight: \(3, 5\) for \(3, 4\)"),
    ],
)
def test_other_networks_are_refused_in_words(tmp_path: Path, changed: State, words: str) -> None:
    state = {**network().state_dict(), **changed}
    with pytest.raises(InputError, match=rf"{words} \(in model\)"):
        load_checkpoint(network(), saved({"model": state}, tmp_path / "a.pt"))


def test_a_prefix_that_some_names_share_is_said(tmp_path: Path) -> None:
    state = prefixed("module.student.", network().state_dict()) | prefixed("module.teacher.", network().state_dict())
    with pytest.raises(InputError, match=r"lacks conv1\.weight.*; names begin with module.student and module.teacher"):
        load_checkpoint(network(), saved(state, tmp_path / "a.pt"))


def test_what_holds_no_weights_is_described(tmp_path: Path) -> None:
    for content, words in (
        (network(), r"holds no state dict but an object of torch\.nn\.modules\.container\.Sequential"),
        ({"epoch": 3, "args": argparse.Namespace()}, r"2 entries, among them args \(an object of argparse\.Namespace\)"),
        ({"epoch": 3}, "1 entry: epoch"),
        ([torch.ones(2)], "a list"),
    ):
        with pytest.raises(InputError, match=words):
            load_checkpoint(network(), saved(content, tmp_path / "a.pt"))
        with pytest.raises(InputError, match="holds no state dict"):
            read_state(tmp_path / "a.pt")
    with pytest.raises(InputError, match="is missing"):
        load_checkpoint(network(), tmp_path / "nothing.pt")


def test_a_checkpoint_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": network(seed=1).state_dict()}
    content["again"] = content
    content["many"] = {f"x{k}": {"y": content["model"]} for k in range(50)}
    read = read_content(saved(content, tmp_path / "a.pt"))
    assert list(find_mappings(read)) == ["model"]


def test_one_of_several_sets_of_names_may_fit() -> None:
    ours = network(seed=1).state_dict()
    theirs = {name.replace("fc", "linear"): tensor for name, tensor in ours.items()}
    found = find_weights({"net": prefixed("module.", theirs)}, [ours, theirs], "a.pt")
    assert (found.place, found.prefix, set(found.state)) == ("net", "module.", set(theirs))


class TestStems:
    def spec(self, model: str, stem: str = "auto", size: int = 32) -> NetworkSpec:
        return NetworkSpec(model=model, stem=stem, in_channels=3, num_classes=3, image_size=size)

    @pytest.mark.parametrize("written", ["small", "imagenet"])
    @pytest.mark.parametrize("size", [32, 128])
    def test_shapes_tell_it(self, tmp_path: Path, written: str, size: int) -> None:
        state = self.spec("torchvision/resnet18", written, size).build(1).state_dict()
        path = saved(state, tmp_path / "a.pt")
        found = read_network(path, self.spec("torchvision/resnet18", size=size))
        usual = "small" if size == 32 else "imagenet"
        assert found.spec.stem == ("auto" if written == usual else written)
        said = (f"the weights have the stem {written}, which is taken: name it in runs, too",)
        assert found.notes == (() if written == usual else said)
        require_loaded(found.model, state)
        other = {"small": "imagenet", "imagenet": "small"}[written]
        with pytest.raises(InputError, match=f"stem = '{other}': is not the stem of the weights in .* Use {written}"):
            read_network(path, self.spec("torchvision/resnet18", other, size))

    def test_where_both_fit_it_is_said(self, tmp_path: Path) -> None:
        path = saved(self.spec("mobilenet_v3_small").build(1).state_dict(), tmp_path / "a.pt")
        found = read_network(path, self.spec("mobilenet_v3_small"))
        assert found.notes == ("these shapes fit both stems, small and imagenet; small is taken: name the stem if it was not",)

    @pytest.mark.parametrize("model", ["resnet8", "torchvision/squeezenet1_1"])
    def test_networks_of_one_stem_have_no_question(self, tmp_path: Path, model: str) -> None:
        path = saved(self.spec(model, size=64).build(1).state_dict(), tmp_path / "a.pt")
        found = read_network(path, self.spec(model, size=64))
        assert (found.notes, found.spec) == ((), self.spec(model, size=64))

    def test_published_weights_of_more_classes_are_refused_in_words(self, tmp_path: Path) -> None:
        spec = NetworkSpec(model="torchvision/resnet18", stem="imagenet", in_channels=3, num_classes=1000, image_size=32)
        path = saved(spec.build(1).state_dict(), tmp_path / "a.pt")
        with pytest.raises(InputError, match=r"for 1,000 classes, and the network is for 3"):
            read_network(path, self.spec("torchvision/resnet18"))
