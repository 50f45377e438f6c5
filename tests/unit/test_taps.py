"""Taps hear what a module says, name what they cannot find, and leave no trace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rco.core.errors import InputError
from rco.models.build import blank_network
from rco.models.taps import check, feature_shape, observe


class Net(nn.Module):
    """Body with an activation that works in place, pooling, dropout, classifier; and traps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(4, 3)
        self.idle = nn.Linear(1, 1)
        self.shared = nn.Identity()
        self.pair = Pair()

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(self.body(x)))
        x, _ = self.pair(x)
        logits: Tensor = self.classifier(self.drop(x.mean((2, 3))))
        return logits


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_no_tap_is_the_bare_network(net: Net) -> None:
    out = observe(net, X)
    assert torch.equal(out.logits, net(X))
    assert out.features is None


def test_a_modules_output_as_it_was_when_it_came(net: Net) -> None:
    """The ReLU after the BatchNorm works in place: without a copy its output would be heard instead."""
    out = observe(net, X, "body.1")
    assert out.features is not None
    torch.testing.assert_close(out.features, net.body[1](net.body[0](X)))
    assert (out.features < 0).any()
    assert torch.equal(out.logits, net(X)), "listening changes nothing"


def test_a_modules_input_is_the_embedding_before_a_classifier(net: Net) -> None:
    embedding = observe(net, X, "input:classifier").features
    assert embedding is not None
    assert embedding.shape == (2, 4)
    torch.testing.assert_close(net.classifier(embedding), net(X))


def test_gradients_flow_from_features_into_the_network(net: Net) -> None:
    out = observe(net, X, "body")
    assert out.features is not None
    out.features.sum().backward()
    assert net.body[0].weight.grad is not None
    assert net.classifier.weight.grad is None


def test_no_hook_outlives_the_call_even_if_it_fails(net: Net) -> None:
    observe(net, X, "body")
    observe(net, X, "input:classifier")
    with pytest.raises(RuntimeError):
        observe(net, torch.randn(2, 7, 6, 6), "body")
    assert hooks(net) == 0


@pytest.mark.parametrize(
    ("tap", "words"),
    [
        ("idle", "tap = 'idle': names a module that ran 0 times"),
        ("shared", "tap = 'shared': names a module that ran 2 times"),
        ("pair", "tap = 'pair': yields an object of type tuple"),
    ],
)
def test_what_cannot_be_heard_is_refused(net: Net, tap: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        observe(net, X, tap)
    assert words in str(caught.value)
    with pytest.raises(InputError, match=f"teacher_tap = '{tap}'"):
        feature_shape(net, tap, (1, 6, 6), "teacher_tap")
    assert hooks(net) == 0


@pytest.mark.parametrize("prefix", ["", "input:"])
def test_a_name_of_no_module_lists_the_near_ones(net: Net, prefix: str) -> None:
    with pytest.raises(InputError) as caught:
        check(net, prefix + "clasifier", "student_tap")
    message = str(caught.value)
    assert message.startswith(f"student_tap = '{prefix}clasifier': names no module of the network. Did you mean 'classifier'")
    assert "outermost modules are: body, drop, classifier, idle, shared, pair" in message
    with pytest.raises(InputError, match=r"Its outermost modules are: body") as caught:
        check(net, "zzz")
    assert "Did you mean" not in str(caught.value)


def test_shape_by_one_pass_that_leaves_the_model_as_it_was(net: Net) -> None:
    net.train()
    net.body[1].eval()  # the owner keeps this one so
    net.body[1].running_mean.fill_(5.0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    assert feature_shape(net, "body", (1, 6, 6)) == (4, 6, 6)
    assert feature_shape(net, "input:classifier", (1, 6, 6)) == (4,)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training
    assert net.drop.training
    assert not net.body[1].training
    assert hooks(net) == 0


@pytest.mark.parametrize(
    ("name", "size", "tap", "shape", "device"),
    [
        ("resnet8", 32, "stage2", (32, 16, 16), "cpu"),
        ("torchvision/resnet18", 64, "layer3", (256, 16, 16), "meta"),
        ("torchvision/mobilenet_v2", 224, "input:classifier.1", (1280,), "meta"),
        ("torchvision/vit_b_32", 64, "encoder", (5, 768), "meta"),
    ],
)
def test_shapes_of_networks_without_numbers(name: str, size: int, tap: str, shape: tuple[int, ...], device: str) -> None:
    network = blank_network(name, in_channels=3, num_classes=10, image_size=size)
    assert next(network.parameters()).device.type == device
    assert feature_shape(network, tap, (3, size, size)) == shape
