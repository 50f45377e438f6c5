from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rco.core.errors import InputError
from rco.models.build import build_network, check_network, network_names, parameter_count

CIFAR100: dict[str, Any] = {"in_channels": 3, "num_classes": 100, "image_size": 32}
CIFAR10: dict[str, Any] = CIFAR100 | {"num_classes": 10}
DIGITS: dict[str, Any] = {"in_channels": 1, "num_classes": 10, "image_size": 8}


def count(name: str, **shape: Any) -> int:
    with torch.device("meta"):
        return parameter_count(build_network(name, **shape))


def equal(a: nn.Module, b: nn.Module) -> bool:
    """Whether two modules hold the same numbers under the same names."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


# --- the networks are those of the literature ---


# Millions of parameters for CIFAR-100 as the distillation literature quotes them. Architectures: models/*.py
# of HobbitLong/RepDistiller (mdistiller has the same); arithmetic on those listings gives our counts to the last digit.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet8", "0.08"),
        ("resnet20", "0.28"),
        ("resnet32", "0.47"),
        ("resnet56", "0.86"),
        ("resnet110", "1.74"),
        ("resnet8x4", "1.23"),
        ("resnet32x4", "7.43"),
        ("wrn-16-2", "0.70"),
        ("wrn-40-1", "0.57"),
        ("wrn-40-2", "2.26"),
        ("vgg8", "3.97"),
        ("vgg13", "9.46"),
        ("mobilenetv2-t6-w0.5", "0.81"),
    ],
)
def test_sizes_of_the_distillation_literature(name: str, millions: str) -> None:
    assert f"{count(name, **CIFAR100) / 1e6:.2f}" == millions


# He et al. 2016 (arXiv 1512.03385), table 6. Their shortcuts have no parameters; those of the distillation literature are two
# 1x1 projections with batch norm.
@pytest.mark.parametrize(("depth", "millions"), [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")])
def test_sizes_of_he_et_al(depth: int, millions: str) -> None:
    projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
    digits = len(millions) - 2
    assert f"{(count(f'resnet{depth}', **CIFAR10) - projections) / 1e6:.{digits}f}" == millions


# Zagoruyko and Komodakis 2016 (arXiv 1605.07146), table 4.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("wrn-40-1", "0.6"), ("wrn-40-4", "8.9"), ("wrn-16-8", "11.0"), ("wrn-22-8", "17.2"), ("wrn-28-10", "36.5")],
)
def test_sizes_of_wide_resnets(name: str, millions: str) -> None:
    assert f"{count(name, **CIFAR10) / 1e6:.1f}" == millions


def test_torchvision_resnet50_with_a_small_stem_is_the_cifar_resnet50() -> None:
    # 23,705,252 is what published CIFAR-100 ResNet-50s with a 3x3 stem have (23.71M in weiaicunzai/pytorch-cifar100).
    assert count("torchvision/resnet50", **CIFAR100, stem="small") == 23_705_252
    assert count("torchvision/resnet50", **CIFAR100, stem="imagenet") == 23_705_252 + (49 - 9) * 3 * 64


def test_mobilenetv2_never_narrows_its_last_layer() -> None:
    # Sandler et al. 2018, section 6.1: for multipliers below 1 all layers shrink but the last convolution.
    def classifier(width: str) -> int:
        with torch.device("meta"):
            network = build_network(f"mobilenetv2-t6-w{width}", **CIFAR100)
        return network.get_submodule("classifier").get_parameter("weight").shape[1]

    assert classifier("0.5") == classifier("1") == 1280
    assert classifier("1.5") == 1920


def test_parameter_count_leaves_buffers_out_and_counts_shared_weights_once() -> None:
    layer = nn.Linear(3, 3, bias=False)
    assert parameter_count(nn.Sequential(layer, layer, nn.BatchNorm1d(3))) == 9 + 6


def test_digits_networks_leave_a_capacity_gap() -> None:
    teacher, student = count("digits-cnn-l", **DIGITS), count("digits-cnn-s", **DIGITS)
    assert 100_000 <= teacher <= 250_000
    assert 1_000 <= student <= 3_000
    assert count("digits-mlp", **DIGITS) < 3_000


def test_digits_teacher_learns_and_outdoes_its_student() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target)

    def accuracy(name: str) -> float:
        network = build_network(name, **DIGITS, seed=0).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
        order = torch.Generator().manual_seed(0)
        for epoch in range(4):
            optimizer.param_groups[0]["lr"] = 0.05 if epoch < 3 else 0.005
            for batch in torch.randperm(1400, generator=order).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images[batch]), labels[batch]).backward()
                optimizer.step()
        network.eval()
        return float((network(images[1400:]).argmax(1) == labels[1400:]).float().mean())

    teacher, student = accuracy("digits-cnn-l"), accuracy("digits-cnn-s")
    assert teacher > 0.95
    assert 0.5 < student < teacher - 0.03


# --- every network of ours trains ---


def natural_shape(name: str) -> dict[str, Any]:
    return DIGITS if name.startswith("digits") else CIFAR100


@pytest.mark.parametrize("name", [n for n in network_names() if n != "wrn-28-10"])
def test_forward_and_backward(name: str) -> None:
    shape = natural_shape(name)
    network = build_network(name, **shape, seed=0)
    assert network.training
    size = shape["image_size"]
    images = torch.randn(4, shape["in_channels"], size, size, generator=torch.Generator().manual_seed(0))
    logits = network(images)
    assert logits.shape == (4, shape["num_classes"])
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    for path, p in network.named_parameters():
        assert p.dtype == torch.float32
        assert p.grad is not None, path
        assert torch.isfinite(p.grad).all(), path
        if p.ndim == 4:
            assert p.grad.abs().sum() > 0, path


@pytest.mark.parametrize("name", network_names())
def test_check_accepts_our_networks_at_their_sizes(name: str) -> None:
    check_network(name, **natural_shape(name))


@pytest.mark.parametrize(
    ("name", "channels", "size"),
    [
        ("digits-cnn-l", 1, 28),
        ("digits-cnn-s", 3, 32),
        ("digits-mlp", 1, 28),
        ("resnet8", 1, 8),
        ("wrn-16-1", 1, 28),
        ("vgg8", 1, 28),
        ("vgg8", 3, 64),
        ("resnet8", 3, 96),
    ],
)
def test_other_image_sizes(name: str, channels: int, size: int) -> None:
    check_network(name, in_channels=channels, num_classes=7, image_size=size)
    logits = build_network(name, in_channels=channels, num_classes=7, image_size=size)(torch.zeros(2, channels, size, size))
    assert logits.shape == (2, 7)


def feature_sizes(network: nn.Module, size: int, channels: int = 3) -> dict[str, int]:
    """Height of what each layer yields, by its path."""
    seen: dict[str, int] = {}

    def note(path: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            if isinstance(output, Tensor) and output.ndim == 4:
                seen[path] = output.shape[-1]

        return hook

    for path, module in network.named_modules():
        module.register_forward_hook(note(path))
    with torch.no_grad():
        network(torch.zeros(2, channels, size, size))
    return seen


def test_where_images_shrink() -> None:
    def stages(name: str, size: int) -> list[int]:
        shape = CIFAR100 | {"image_size": size}
        sizes = feature_sizes(build_network(name, **shape), size)
        return [n for path, n in sizes.items() if path.startswith("stage") and "." not in path]

    assert stages("resnet8", 32) == [32, 16, 8]
    assert stages("wrn-16-1", 32) == [32, 16, 8]
    assert stages("mobilenetv2-t6-w0.5", 32) == [16, 16, 8, 4, 4, 2, 2]
    assert stages("vgg8", 32) == [32, 16, 8, 4]
    assert stages("vgg8", 64) == [64, 32, 16, 8, 4]
    assert count("vgg8", **CIFAR100) == count("vgg8", **CIFAR100 | {"image_size": 64})


# --- seeds ---


@pytest.mark.parametrize("name", ["digits-cnn-s", "torchvision/mobilenet_v3_small"])
def test_a_seed_fixes_the_weights_and_spares_the_global_generator(name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_network(name, **CIFAR10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert equal(first, build_network(name, **CIFAR10, seed=3))
    assert not equal(first, build_network(name, **CIFAR10, seed=4))


def test_without_a_seed_weights_come_from_the_global_generator() -> None:
    torch.manual_seed(1)
    first = build_network("digits-cnn-s", **DIGITS)
    second = build_network("digits-cnn-s", **DIGITS)
    torch.manual_seed(1)
    assert equal(first, build_network("digits-cnn-s", **DIGITS))
    assert not equal(first, second)


@pytest.mark.parametrize("name", ["digits-cnn-s", "regnet_y_400mf"])
def test_check_spares_the_global_generator(name: str) -> None:
    before = torch.get_rng_state()
    check_network(name, **CIFAR10)
    assert torch.equal(torch.get_rng_state(), before)


# --- torchvision ---


def test_our_networks_need_no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)  # importing it now fails
    check_network("vgg13", **CIFAR100)
    build_network("vgg13", **CIFAR100)
    with pytest.raises(ImportError):
        build_network("resnet18", **CIFAR100)


def test_a_prefix_picks_torchvision_where_both_have_the_name() -> None:
    shape = {"in_channels": 3, "num_classes": 1000, "image_size": 224}
    assert count("torchvision/vgg13", **shape) == 133_047_848  # torchvision's documentation of vgg13
    assert count("vgg13", **shape) < 10_000_000
    assert count("efficientnet_b0", **shape) == count("torchvision/efficientnet_b0", **shape) == 5_288_548


@pytest.mark.parametrize(
    ("name", "after_stem"),
    [
        ("resnet18", "layer1"),
        ("densenet121", "features.denseblock1.denselayer1.conv1"),
        ("mobilenet_v2", "features.0"),
        ("mobilenet_v3_small", "features.0"),
        ("efficientnet_b0", "features.0"),
        ("regnet_y_400mf", "stem"),
    ],
)
def test_stems(name: str, after_stem: str) -> None:
    def size(stem: str) -> int:
        network = build_network(name, **CIFAR10, stem=stem)
        return feature_sizes(network, 32)[after_stem]

    has_pool = name in ("resnet18", "densenet121")
    assert size("imagenet") == (8 if has_pool else 16)
    assert size("small") == size("auto") == 32


def first_conv(network: nn.Module) -> nn.Conv2d:
    return next(m for m in network.modules() if isinstance(m, nn.Conv2d))


def test_auto_stem_is_small_up_to_64_pixels_where_the_family_is_known() -> None:
    def kernel(name: str, size: int) -> tuple[int, ...]:
        with torch.device("meta"):
            return first_conv(build_network(name, in_channels=3, num_classes=10, image_size=size)).kernel_size

    assert kernel("wide_resnet50_2", 64) == kernel("resnext50_32x4d", 64) == (3, 3)
    assert kernel("wide_resnet50_2", 65) == kernel("resnext50_32x4d", 65) == (7, 7)
    assert kernel("alexnet", 64) == (11, 11)


def test_an_unknown_small_stem_is_refused_under_the_users_name_for_it() -> None:
    with pytest.raises(InputError, match="alexnet") as caught:
        build_network("alexnet", in_channels=3, num_classes=10, image_size=224, stem="small")
    assert caught.value.parameter == "stem"
    with pytest.raises(InputError) as caught:
        check_network("alexnet", in_channels=3, num_classes=10, image_size=224, stem="small", parameter="teacher")
    assert caught.value.parameter == "teacher_stem"


def test_our_networks_ignore_the_stem_but_not_a_misspelt_one() -> None:
    stems = [build_network("resnet8", **CIFAR10, stem=stem, seed=0) for stem in ("small", "imagenet", "auto")]
    assert equal(stems[0], stems[1])
    assert equal(stems[0], stems[2])
    with pytest.raises(InputError, match="small"):
        build_network("resnet8", **CIFAR10, stem="smal")


@pytest.mark.parametrize(
    ("name", "size"),
    [("resnet18", 32), ("resnet18", 96), ("squeezenet1_1", 64), ("vit_b_32", 32), ("googlenet", 64)],
)
def test_images_of_other_than_three_channels(name: str, size: int) -> None:
    check_network(name, in_channels=1, num_classes=10, image_size=size)
    network = build_network(name, in_channels=1, num_classes=10, image_size=size, seed=0)
    weight = first_conv(network).weight
    assert weight.shape[1] == 1
    assert weight.std() > 0
    with torch.no_grad():
        logits = network.eval()(torch.zeros(2, 1, size, size))
    assert logits.shape == (2, 10)
    assert torch.isfinite(logits).all()


# --- what check refuses ---


@pytest.mark.parametrize(
    ("name", "size", "stem", "problem"),
    [
        ("torchvision/vgg13", 8, "auto", "too small"),
        ("alexnet", 32, "auto", "too small"),
        ("inception_v3", 64, "auto", "Kernel size|too small"),
        ("vit_b_16", 30, "auto", "indivisible"),
        ("digits-cnn-s", 1, "auto", "too small"),
        ("vgg13", 8, "auto", "single pixel before stage4"),
        ("mobilenetv2-t6-w0.5", 8, "auto", "single pixel before stage4"),
        ("resnet18", 8, "auto", "single pixel before layer4"),
        ("resnet18", 32, "imagenet", "single pixel before layer4"),
    ],
)
def test_images_that_are_too_small(name: str, size: int, stem: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        check_network(name, in_channels=3, num_classes=10, image_size=size, stem=stem, parameter="student")
    assert (caught.value.parameter, caught.value.value) == ("student", name)
    assert f"3x{size}x{size}" in str(caught.value)
    assert "image_size" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnet-32", "resnet32"),
        ("ResNet32x4", "resnet32x4"),
        ("wrn_40_2", "wrn-40-2"),
        ("wrn-17-2", "wrn-16-2"),
        ("wrn-4-2", "wrn-10-2"),
        ("wrn-16-0", "wrn-16-1"),
        ("digits-cnn", "digits-cnn-"),
        ("efficientnet-b0", "efficientnet_b0"),
        ("torchvision/resnet51", "torchvision/resnet50"),
        ("torchvision/vgg8", "torchvision/vgg1"),
        ("mobilenetv2-t6-w0.05", "mobilenetv2-t6-w0.5"),
        ("mobilenetv2-t0-w1", "mobilenetv2-t6-w0.5"),
    ],
)
def test_unknown_names_get_the_nearest_known_one(name: str, suggestion: str) -> None:
    with pytest.raises(InputError) as caught:
        check_network(name, **CIFAR10, parameter="teacher")
    assert caught.value.parameter == "teacher"
    assert suggestion in caught.value.remedy
    with pytest.raises(InputError):
        build_network(name, **CIFAR10)


@pytest.mark.parametrize("name", ["", "torchvision/", "no such model at all", "fasterrcnn_resnet50_fpn", "quantized_resnet18"])
def test_what_is_no_classifier_of_anyones(name: str) -> None:
    with pytest.raises(InputError, match="is not known"):
        check_network(name, **CIFAR10)


@pytest.mark.parametrize(
    ("parameter", "value"), [("num_classes", 1), ("in_channels", 0), ("image_size", 0), ("image_size", -8)]
)
def test_shapes_that_no_network_fits(parameter: str, value: int) -> None:
    shape = DIGITS | {parameter: value}
    for refuse in (check_network, build_network):
        with pytest.raises(InputError) as caught:
            refuse("digits-mlp", **shape)
        assert (caught.value.parameter, caught.value.value) == (parameter, value)


def test_available_names_are_sorted_and_ours() -> None:
    names = network_names()
    assert list(names) == sorted(set(names))
    assert {"digits-cnn-l", "digits-cnn-s", "digits-mlp", "resnet8x4", "wrn-40-2", "mobilenetv2-t6-w0.5", "vgg13"} <= set(names)


# --- the user's own ---

USERS = """
import torch
from torch import nn

def three(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))

def classes_only(num_classes, *, width=4):
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, width), nn.Linear(width, num_classes))

def anything(**kwargs):
    assert sorted(kwargs) == ["image_size", "in_channels", "num_classes"]
    return three(**kwargs)

def passes_on(**kwargs):
    return Net(**kwargs)

def sets_some(**kwargs):
    return three(in_channels=1, image_size=8, **kwargs)

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(64, num_classes)
    def forward(self, x):
        assert x.shape[1:] == (1, 8, 8)
        return self.head(x.flatten(1))

class Zoo:
    net = Net

def reseeds(num_classes):
    torch.manual_seed(0)
    torch.rand(3)
    return Net(num_classes)

def double(num_classes):
    return Net(num_classes).double().eval()

def reads_its_weights(num_classes):
    net = Net(num_classes)
    net.scale = net.head.weight.std().item()
    return net

def shrinks(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(4, num_classes))

class Pair(Net):
    def forward(self, x):
        return super().forward(x), x

def more_classes(num_classes):
    return Net(num_classes + 1)

def wrong_size(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(63, num_classes))

def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))

def needs_more(num_classes, depth):
    return Net(num_classes)

def confused(**kwargs):
    return Net(kwargs["num_classes"], depth=3)

def fails():
    raise KeyError("no such width")

def no_module(num_classes):
    return lambda x: x

constant = 3
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_models.py").write_text(USERS)
    (tmp_path / "users_broken.py").write_text("raise RuntimeError('half of a\\nmodule')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("users_models", "users_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize(
    "factory",
    [
        "three",
        "classes_only",
        "anything",
        "passes_on",
        "sets_some",
        "Net",
        "Zoo.net",
        "reseeds",
        "double",
        "reads_its_weights",
        "shrinks",
    ],
)
def test_factories_that_work(factory: str) -> None:
    name = f"users_models:{factory}"
    before = torch.get_rng_state()
    check_network(name, **DIGITS)
    network = build_network(name, **DIGITS, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(network, build_network(name, **DIGITS, seed=0))
    assert network.training
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("users_missing:Net", "PYTHONPATH"),
        ("users_models.sub:Net", "cannot be imported"),
        ("users_broken:Net", r"RuntimeError: half of a\)"),
        (".users_models:Net", "cannot be imported"),
        ("users_models:net", "Did you mean 'Net'"),
        ("users_models:constant", "cannot be called"),
        ("users_models:", "package.module:factory"),
        (":Net", "package.module:factory"),
        ("users_models:confused", "unexpected keyword argument 'depth'"),
        ("users_models:fails", "KeyError: 'no such width'"),
        ("users_models:needs_more", "depth"),
        ("users_models:no_module", "torch.nn.Module"),
        ("users_models:lazy", "lazy"),
    ],
)
def test_factories_that_cannot_be_used(name: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        build_network(name, **DIGITS)
    assert caught.value.parameter == "model"
    with pytest.raises(InputError, match=problem) as caught:
        check_network(name, **DIGITS, parameter="teacher")
    assert (caught.value.parameter, caught.value.value) == ("teacher", name)


@pytest.mark.usefixtures("users")
@pytest.mark.parametrize(
    ("factory", "problem"),
    [
        ("Pair", "type tuple for 2 images"),
        ("more_classes", r"shape \(2, 11\)"),
        ("wrong_size", "does not work with 1x8x8 images"),
    ],
)
def test_factories_whose_networks_do_not_fit(factory: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        check_network(f"users_models:{factory}", **DIGITS)


@pytest.mark.usefixtures("users")
def test_users_code_is_imported_only_when_named() -> None:
    check_network("digits-mlp", **DIGITS)
    with pytest.raises(InputError):
        check_network("users_models", **DIGITS)
    assert "users_models" not in sys.modules
    check_network("users_models:Net", **DIGITS)
    assert "users_models" in sys.modules
