"""Anchors at work: frozen, folded, and what they say unchanged."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rco.models.build import build_network
from rco.training.lean import folded, freeze, lean

SHAPE = (3, 32, 32)


def norms(network: nn.Module) -> int:
    """BatchNorms that a forward pass runs."""
    ran: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, *_: ran.append(m)) for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        network(torch.zeros(1, *SHAPE))
    for hook in hooks:
        hook.remove()
    return len(ran)


def trained(name: str) -> nn.Module:
    """With BatchNorm statistics, gains and biases that are not those of a new network."""
    network = build_network(name, in_channels=3, num_classes=5, image_size=32, seed=0)
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return freeze(network)


@pytest.mark.parametrize(
    "name", ["resnet8", "resnet20", "wrn-16-1", "vgg8", "mobilenetv2-t6-w0.5", "digits-cnn-l", "torchvision/resnet18"]
)
def test_a_folded_network_answers_as_before_with_fewer_norms(name: str) -> None:
    network = trained(name)
    x = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    lighter = folded(network, x)
    assert norms(lighter) < norms(network)
    with torch.no_grad():
        torch.testing.assert_close(lighter(x), network(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "left"), [("resnet32", 0), ("vgg8", 0), ("mobilenetv2-t6-w0.5", 0)])
def test_every_norm_behind_a_convolution_goes(name: str, left: int) -> None:
    assert norms(folded(trained(name), torch.randn(2, *SHAPE))) == left


def test_the_network_itself_is_left_alone() -> None:
    network = trained("resnet8")
    before = copy.deepcopy(network.state_dict())
    lighter = folded(network, torch.randn(2, *SHAPE))
    assert lighter is not network
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not {id(p) for p in lighter.parameters()} & {id(p) for p in network.parameters()}


class Twice(nn.Module):
    """One convolution, two norms: neither may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (self.a(y) + self.b(y)).mean((2, 3))


class Reused(Twice):
    """One convolution and one norm that both run twice."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(self.conv(x)) + self.a(self.conv(2 * x))).mean((2, 3))


class Branching(Twice):
    """A forward that looks at the data cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(self.conv(x))
        return y.mean((2, 3)) if x.mean() > 0 else -y.mean((2, 3))


class Guessing(Twice):
    """A forward that traces wrongly: what it decides on is fixed when it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(self.conv(x)).mean((2, 3))
        return y if torch.is_inference_mode_enabled() else y + 100.0


@pytest.mark.parametrize("kind", [Twice, Reused, Branching, Guessing])
def test_what_cannot_be_folded_stays_as_it_is(kind: type[nn.Module]) -> None:
    network = freeze(kind())
    assert folded(network, torch.rand(2, *SHAPE)) is network


def test_lean_folds_unless_a_module_is_tapped() -> None:
    network = trained("resnet8")
    assert lean(network, SHAPE, "cpu") is not network
    assert lean(network, SHAPE, "cpu", fold=False) is network
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.training
