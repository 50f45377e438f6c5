"""Weights under the literature's names give the literature's answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rco.core.errors import InputError
from rco.models.build import build_network, network_names
from rco.models.keymaps.choose import choose
from rco.models.weights import import_weights
from tests.literature import CLASSES, NETWORKS, shaken


def ours(name: str, image_size: int = 32) -> nn.Module:
    return build_network(name, in_channels=3, num_classes=CLASSES, image_size=image_size, stem="auto", seed=1).eval()


def images(size: int) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(3))


def same_answers(network: nn.Module, theirs: nn.Module, size: int) -> None:
    with torch.no_grad():
        expected, actual = theirs(images(size)), network(images(size))
    scale = expected.abs().max()
    assert scale > 0
    assert not torch.allclose(expected[0] / scale, expected[1] / scale, rtol=0, atol=1e-3)  # it looks at its images
    torch.testing.assert_close(actual / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["", "student."])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_answers(name: str, prefix: str) -> None:
    torch.manual_seed(5)
    theirs, network = shaken(NETWORKS[name]()), ours(name)
    state = {prefix + key: tensor for key, tensor in theirs.state_dict().items()}
    import_weights(network, state, "a.pth", image_size=32)
    same_answers(network, theirs, 32)


@pytest.mark.parametrize("name", [n for n in network_names() if not n.startswith("digits")])
def test_every_network_for_cifar_has_a_map_to_names_of_its_own(name: str) -> None:
    with torch.device("meta"):
        names = build_network(name, in_channels=3, num_classes=CLASSES, image_size=32).state_dict()
    found = [f for prefix in ("", "student.") if (f := choose(names, _theirs(names, prefix)))]
    assert len(found) == 2
    for key_map in found:
        assert len(set(key_map.names.values())) == len(names)


def _theirs(names: dict[str, Tensor], prefix: str) -> list[str]:
    from rco.models.keymaps import mobilenetv2, resnet, vgg, wide_resnet

    maps = [m for family in (resnet, wide_resnet, vgg, mobilenetv2) if (m := family.key_map(names))]
    assert len(maps) == 1
    return [prefix + theirs for theirs in maps[0].names.values()]


def test_our_own_names_are_taken_as_they_are() -> None:
    network, other = ours("resnet8"), build_network("resnet8", in_channels=3, num_classes=CLASSES, image_size=32, seed=2)
    state = other.state_dict()
    assert choose(network.state_dict(), state) is None
    import_weights(network, state, "a.pth", image_size=48)
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(("name", "size"), [("vgg8", 64), ("vgg13", 64), ("vgg8", 28), ("resnet8", 30), ("wrn-16-1", 29)])
def test_other_sizes_at_which_both_compute_the_same(name: str, size: int) -> None:
    theirs, network = shaken(NETWORKS[name]()), ours(name, size)
    import_weights(network, theirs.state_dict(), "a.pth", image_size=size)
    same_answers(network, theirs, size)


@pytest.mark.parametrize(("name", "size"), [("vgg8", 72), ("resnet8", 33), ("resnet8", 60), ("wrn-16-1", 48)])
def test_sizes_at_which_their_code_computes_something_else_are_refused(name: str, size: int) -> None:
    theirs, network = shaken(NETWORKS[name]()), ours(name, size)
    with pytest.raises(InputError, match=rf"a.pth.* not ours at {size} pixels"):
        import_weights(network, theirs.state_dict(), "a.pth", image_size=size)
    # It is no mistake to refuse them: with the names alone, the answers would differ.
    import_weights(network, theirs.state_dict(), "a.pth", image_size=32)
    with pytest.raises(AssertionError, match="not close"):
        same_answers(network, theirs, size)


@pytest.mark.parametrize("size", [61, 64, 96])
def test_a_resnet_of_61_pixels_and_more_can_only_be_of_code_with_a_mended_pool(size: int) -> None:
    theirs, network = shaken(NETWORKS["resnet8"]()), ours("resnet8", size)
    with pytest.raises(RuntimeError, match="shapes"):
        theirs(images(size))
    import_weights(network, theirs.state_dict(), "a.pth", image_size=size)


@pytest.mark.parametrize(
    ("ours_is", "theirs_is", "words"),
    [
        ("resnet20", "resnet8", r"lacks layer1.1.conv1.weight, layer1.1.bn1.weight, layer1.1.bn1.bias and 69 more"),
        ("resnet8", "resnet20", r"has unknown layer1.1.conv1.weight"),
        ("resnet8x4", "resnet8", r"lacks layer1.0.downsample.0.weight, .* and 3 more"),
        ("wrn-22-3", "wrn-22-2", r"has other shapes: block1.layer.0.conv1.weight: \(32, 16, 3, 3\) for \(48, 16, 3, 3\)"),
        ("wrn-16-1", "wrn-16-2", r"has unknown block1.layer.0.convShortcut.weight"),
        ("resnet8", "wrn-16-1", r"lacks"),
        ("vgg8", "vgg13", r"has unknown block0.3.weight"),
        ("mobilenetv2-t6-w1", "mobilenetv2-t6-w0.5", r"has other shapes: conv1.0.weight"),
    ],
)
def test_another_network_is_refused_in_the_words_of_the_file(ours_is: str, theirs_is: str, words: str) -> None:
    network = ours(ours_is)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(InputError, match=words) as raised:
        import_weights(network, NETWORKS[theirs_is]().state_dict(), Path("a.pth"), image_size=32)
    assert "belong to another model" in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_shortcuts_without_weights_are_refused() -> None:
    # He et al.'s first choice (A) pads with zeros; ours, as RepDistiller's and mdistiller's, projects.
    state = {name: tensor for name, tensor in NETWORKS["resnet20"]().state_dict().items() if "downsample" not in name}
    with pytest.raises(InputError, match=r"lacks layer2.0.downsample.0.weight"):
        import_weights(ours("resnet20"), state, "a.pth", image_size=32)


def test_vgg_without_batch_norm_is_refused() -> None:
    state = {name: tensor for name, tensor in NETWORKS["vgg8"]().state_dict().items() if ".1." not in name}
    with pytest.raises(InputError, match=r"lacks block0.1.weight"):
        import_weights(ours("vgg8"), state, "a.pth", image_size=32)


def test_a_student_beside_its_teacher_is_refused() -> None:
    state = {f"student.{name}": tensor for name, tensor in NETWORKS["resnet8"]().state_dict().items()}
    state |= {f"teacher.{name}": tensor for name, tensor in NETWORKS["wrn-16-1"]().state_dict().items()}
    with pytest.raises(InputError, match=r"has unknown teacher.conv1.weight"):
        import_weights(ours("resnet8"), state, "a.pth", image_size=32)


def test_a_network_with_an_embedding_takes_no_names_of_code_without_one() -> None:
    network = build_network("resnet8", in_channels=3, num_classes=CLASSES, image_size=32, embedding_dim=4)
    with pytest.raises(InputError, match="lacks"):
        import_weights(network, NETWORKS["resnet8"]().state_dict(), "a.pth", image_size=32)
