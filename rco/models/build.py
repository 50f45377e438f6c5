"""Networks by name: CIFAR networks of the distillation literature, small ones for 8x8 digits, torchvision, and the user's own.

A name is one of:

- ours: `available()` lists them; any `wrn-DEPTH-WIDTH` and `mobilenetv2-tT-wW` works;
- `torchvision/NAME`: a torchvision classifier with random weights (just NAME where it is not also one of ours);
- `package.module:factory`: the user's code, imported because its user named it.

Every network maps images (B, in_channels, image_size, image_size) to logits (B, num_classes). The CIFAR networks are those of
RepDistiller (Tian et al., ICLR 2020) and mdistiller (Zhao et al., CVPR 2022), so that published figures compare.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from rco.core.errors import InputError, choice
from rco.models.config import STEMS
from rco.models.embeddings import EMBEDDING, embedding_path
from rco.models.taps import observe


@dataclass(frozen=True)
class _Shape:
    """What the data dictates."""

    in_channels: int
    num_classes: int
    image_size: int
    embedding_dim: int = 0

    def __post_init__(self) -> None:
        for name, least in (("in_channels", 1), ("num_classes", 2), ("image_size", 1)):
            if getattr(self, name) < least:
                raise InputError(name, getattr(self, name), f"is less than {least}", f"Use a data set with {least} or more")

    def __str__(self) -> str:
        return f"{self.in_channels}x{self.image_size}x{self.image_size}"


_DEEPEST, _WIDEST = 2_000, 100  # far beyond what anybody trains: a name from a file must not fill the memory

_Maker = Callable[[_Shape], nn.Module]


def build(
    name: str,
    *,
    in_channels: int,
    num_classes: int,
    image_size: int,
    stem: str = "auto",
    embedding_dim: int = 0,
    seed: int | None = None,
) -> nn.Module:
    """The network `name` with random weights, in float32 and training mode, on the CPU.

    Args:
        name: see the module's docstring.
        in_channels: channels of the images.
        num_classes: number of logits.
        image_size: height and width of the images, in pixels.
        stem: first layers of torchvision models: `imagenet` as torchvision has them; `small` for small images: the first
            convolution 3x3 with stride 1, no pooling after it; `auto`: small for images of up to 64 pixels where we know
            how, else imagenet. Other models have one stem only and ignore it.
        embedding_dim: 0: the network as it is published. Else its last linear layer gives way to a submodule named
            `embedding`, which yields (B, embedding_dim), and a classifier on that; see `rco.models.embeddings`. A user's
            factory is passed the number, if it is not 0, and has to name such a submodule itself.
        seed: makes the weights a function of the other arguments and the seed; torch's global generator is then left as it was.

    Raises:
        InputError: an unknown name, a factory that cannot be used, or a stem that the model cannot have. Whether the network
            can take the images is for `check` to say.
    """
    shape = _Shape(in_channels, num_classes, image_size, embedding_dim)
    make = _maker(name, shape, stem, "model")
    if seed is None:
        return make(shape).float().train()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which also seeds the accelerators, whose state is not forked here.
        torch.default_generator.manual_seed(seed)
        return make(shape).float().train()


def check(
    name: str,
    *,
    in_channels: int,
    num_classes: int,
    image_size: int,
    stem: str = "auto",
    embedding_dim: int = 0,
    parameter: str = "model",
) -> None:
    """Raise unless `build` would yield a network that can be trained on such images.

    Two images are pushed through in training mode: through a network without numbers (torch's meta device, where size costs
    next to nothing), or through a real one if that is cheap, or if it is the user's.

    Args:
        parameter: the name under which the user knows the model; its stem is then `stem` or `<parameter>_stem`.
        name, in_channels, num_classes, image_size, stem, embedding_dim: as for `build`.

    Raises:
        InputError: what `build` raises; a network that fails on the images, or whose output is not (2, num_classes), or whose
            embedding is not (2, embedding_dim) if one is asked for; a network of ours or torchvision's that shrinks the
            images to one pixel before its last wide convolution.
    """
    shape = _Shape(in_channels, num_classes, image_size, embedding_dim)
    make = _maker(name, shape, stem, parameter)
    users = ":" in name
    device = _device_of_trial(name, image_size, parameter)
    starved: list[str] = []
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network = _made_on(device, make, shape).float().train()
            if not users:
                _note_starved(network, starved)
            images = torch.zeros(2, in_channels, image_size, image_size, device=device)
            logits, embedding = observe(network, images, embedding_path(network) if embedding_dim else "")
    except InputError as error:
        if error.parameter == "tap":  # of the embedding: the user named none
            error = InputError("model", name, f"has an embedding, {error.value}, that {error.problem}", error.remedy)
        if error.parameter != "model":
            raise error from None
        raise InputError(parameter, name, error.problem, error.remedy) from None
    except Exception as error:
        problem = f"does not work with {shape} images ({_first_line(error)})"
        remedy = "Mend the model, or its factory" if users else "Use larger images (image_size) or another model"
        raise InputError(parameter, name, problem, remedy) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        got = (
            f"a tensor of shape {tuple(logits.shape)}"
            if isinstance(logits, Tensor)
            else f"an object of type {type(logits).__name__}"
        )
        raise InputError(parameter, name, f"yields {got} for 2 images", f"It must yield logits of shape (2, {num_classes})")
    if embedding_dim and (not isinstance(embedding, Tensor) or embedding.shape != (2, embedding_dim)):
        got = f"yields {tuple(embedding.shape)}" if isinstance(embedding, Tensor) else "yields no tensor"
        raise InputError(
            parameter, name, f"has a submodule `embedding` that {got} for 2 images", f"It must yield (2, {embedding_dim})"
        )
    if starved:
        raise InputError(
            parameter,
            name,
            f"shrinks {shape} images to a single pixel before {starved[0]}, whose kernel then sees padding but for its centre",
            "Use larger images (image_size), a model that shrinks them less, or for a torchvision model another stem",
        )


def blank(
    name: str, *, in_channels: int, num_classes: int, image_size: int, stem: str = "auto", embedding_dim: int = 0
) -> nn.Module:
    """The network `name` for looking at: its modules, and by a forward pass its shapes.

    It lies on torch's meta device, without numbers, unless it is cheap or the user's own.

    Raises:
        InputError: as `build`.
    """
    shape = _Shape(in_channels, num_classes, image_size, embedding_dim)
    with torch.random.fork_rng(devices=[]):
        return _made_on(_device_of_trial(name, image_size, "model"), _maker(name, shape, stem, "model"), shape).float()


def available() -> tuple[str, ...]:
    """The names of our own networks, sorted. Of the two families with free numbers, the usual members."""
    return tuple(sorted((*_NETWORKS, "wrn-16-1", "wrn-16-2", "wrn-28-10", "wrn-40-1", "wrn-40-2", "mobilenetv2-t6-w0.5")))


def parameter_count(module: nn.Module) -> int:
    """How many numbers the parameters of `module` hold; buffers do not count, shared parameters count once."""
    return sum(p.numel() for p in module.parameters())


# --- from a name to a network ---


def _maker(name: str, shape: _Shape, stem: str, parameter: str) -> _Maker:
    stem_parameter = "stem" if parameter == "model" else f"{parameter}_stem"
    choice(stem_parameter, stem, STEMS)
    if ":" in name:
        return _users(name, parameter)
    if make := _ours(name, parameter):
        return make
    bare = name.removeprefix("torchvision/")
    known = _torchvision_names()
    if bare not in known:
        candidates = [f"torchvision/{n}" for n in known] if bare != name else [*available(), *known]
        near = get_close_matches(name.lower(), candidates, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        ours = ", ".join(available())
        raise InputError(
            parameter, name, "is not known", f"{hint}Name a torchvision classifier, package.module:factory, or one of: {ours}"
        )
    family = next((prefix for prefix in _SMALL_STEMS if bare.startswith(prefix)), None)
    if stem == "small" and family is None:
        raise InputError(
            stem_parameter,
            stem,
            f"is not known for torchvision's {bare}",
            f"Use imagenet with larger images, or a model of: {', '.join(p.rstrip('_') for p in _SMALL_STEMS)}",
        )
    small = stem == "small" or (stem == "auto" and shape.image_size <= 64)
    return partial(_torchvision, bare, family if small else None)


def _ours(name: str, parameter: str) -> _Maker | None:
    if name in _NETWORKS:
        return _NETWORKS[name]
    if match := re.fullmatch(r"wrn-(\d+)-(\d+)", name):
        depth, width = _number(match[1]), _number(match[2])
        if max(depth, width) > _DEEPEST:
            raise InputError(parameter, name, "is too large to be built", f"Depth and width are {_DEEPEST} at most")
        if depth < 10 or (depth - 4) % 6 or width < 1:
            blocks = max(1, round((depth - 4) / 6))
            raise InputError(
                parameter,
                name,
                "is no wide ResNet: depths are 6n + 4 with n of 1 or more, widths 1 or more",
                f"Did you mean 'wrn-{6 * blocks + 4}-{max(1, width)}'?",
            )
        return partial(_wide_resnet, depth, width)
    if match := re.fullmatch(r"mobilenetv2-t(\d+)-w(\d+(?:\.\d+)?)", name):
        expansion, multiplier = _number(match[1]), float(match[2])
        if max(expansion, multiplier) > _WIDEST:
            raise InputError(parameter, name, "is too large to be built", f"T and W are {_WIDEST} at most")
        if expansion < 1 or int(16 * multiplier) < 1:
            raise InputError(
                parameter,
                name,
                "leaves layers without channels",
                "Give T of 1 or more and W of 0.0625 or more, as in mobilenetv2-t6-w0.5",
            )
        return partial(_mobilenetv2, expansion, multiplier)
    return None


def _number(digits: str) -> int:
    """What these digits say; of many digits, only that it is large."""
    return int(digits[:9])


# --- ours ---


class _Residual(nn.Module):
    """after(branch(x) + shortcut(x))."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.after = nn.Identity() if after is None else after

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(self.branch(x) + self.shortcut(x))
        return y


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


def _unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, kernel, stride, groups, bias), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _head(features: int, shape: _Shape) -> dict[str, nn.Module]:
    """One linear layer from features to logits; or, with an embedding, one to that and another from it.

    The embedding is normalised by BatchNorm without gain and bias: every component has about unit variance, in any network and
    at any point of its training, so that a squared distance of two, and a weight on it, mean the same for every anchor.
    """
    size = shape.embedding_dim
    if not size:
        return {"classifier": nn.Linear(features, shape.num_classes)}
    embedding = {"linear": nn.Linear(features, size, bias=False), "norm": nn.BatchNorm1d(size, affine=False)}
    return {EMBEDDING: nn.Sequential(OrderedDict(embedding)), "classifier": nn.Linear(size, shape.num_classes)}


def _classifier(body: dict[str, nn.Module], features: int, shape: _Shape) -> nn.Module:
    """`body`, global average pooling, `_head`. Convolutions start as in He et al. (2015, fan-out)."""
    pooled = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    network = nn.Sequential(OrderedDict(body | pooled | _head(features, shape)))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


def _plain(stages: list[tuple[int, ...]], shape: _Shape, bias: bool = False) -> nn.Module:
    """Stages of 3x3 convolutions of the given widths, a 2x2 max-pool between one and the next."""
    body: dict[str, nn.Module] = {}
    inputs = shape.in_channels
    for i, widths in enumerate(stages, 1):
        units = [_unit(a, b, bias=bias) for a, b in zip((inputs, *widths), widths, strict=False)]
        body[f"stage{i}"] = nn.Sequential(*([nn.MaxPool2d(2)] if i > 1 else []), *units)
        inputs = widths[-1]
    return _classifier(body, inputs, shape)


def _vgg(convolutions: int, shape: _Shape) -> nn.Module:
    """VGG (Simonyan and Zisserman 2015) with batch norm and a single linear layer, as in RepDistiller."""
    stages = [(width,) * convolutions for width in (64, 128, 256, 512, 512)]
    if shape.image_size < 64:
        stages[3:] = [stages[3] + stages[4]]  # RepDistiller leaves out the fourth max-pool for 32x32 images
    # The biases do nothing under batch norm, but the published networks have them.
    return _plain(stages, shape, bias=True)


def _three_stages(block: Callable[[int, int, int], nn.Module], widths: tuple[int, ...], blocks: int) -> dict[str, nn.Module]:
    """Stages of `blocks` blocks from widths[0] to each of the three other widths; the second and third halve the image."""
    stages: dict[str, nn.Module] = {}
    for i, (inputs, outputs, stride) in enumerate(zip(widths, widths[1:], (1, 2, 2), strict=False), 1):
        first = block(inputs, outputs, stride)
        stages[f"stage{i}"] = nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(blocks - 1)))
    return stages


def _basic_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    branch = nn.Sequential(_unit(inputs, outputs, stride=stride), _conv(outputs, outputs), nn.BatchNorm2d(outputs))
    same = stride == 1 and inputs == outputs
    shortcut = None if same else nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    return _Residual(branch, shortcut, nn.ReLU(inplace=True))


def _resnet(depth: int, widths: tuple[int, int, int, int], shape: _Shape) -> nn.Module:
    """CIFAR ResNet (He et al. 2016, section 4.2) with projection shortcuts, as in RepDistiller."""
    body = {"stem": _unit(shape.in_channels, widths[0])} | _three_stages(_basic_block, widths, (depth - 2) // 6)
    return _classifier(body, widths[-1], shape)


def _preactivation_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    activate = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
    convolve = nn.Sequential(_unit(inputs, outputs, stride=stride), _conv(outputs, outputs))
    if inputs == outputs:
        return _Residual(nn.Sequential(activate, convolve))
    return nn.Sequential(activate, _Residual(convolve, _conv(inputs, outputs, 1, stride)))


def _wide_resnet(depth: int, width: int, shape: _Shape) -> nn.Module:
    """Wide ResNet (Zagoruyko and Komodakis 2016), without dropout."""
    widths = (16, 16 * width, 32 * width, 64 * width)
    body: dict[str, nn.Module] = {"stem": _conv(shape.in_channels, widths[0])}
    body |= _three_stages(_preactivation_block, widths, (depth - 4) // 6)
    body["activate"] = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU(inplace=True))
    return _classifier(body, widths[-1], shape)


def _inverted_residual(inputs: int, outputs: int, stride: int, expansion: int) -> nn.Module:
    hidden = inputs * expansion
    branch = nn.Sequential(
        _unit(inputs, hidden, 1),
        _unit(hidden, hidden, 3, stride, groups=hidden),
        _conv(hidden, outputs, 1),
        nn.BatchNorm2d(outputs),
    )
    return _Residual(branch) if stride == 1 and inputs == outputs else branch


def _mobilenetv2(expansion: int, multiplier: float, shape: _Shape) -> nn.Module:
    """The CIFAR MobileNetV2 (Sandler et al. 2018) that RepDistiller names as the one of the RCO paper: expansion T, width w.

    It differs from torchvision's in ReLU for ReLU6, widths that are not rounded to multiples of 8, an expansion layer in the
    first block too, no dropout, and stride 1 in the second stage.
    """
    inputs = int(32 * multiplier)
    body: dict[str, nn.Module] = {"stem": _unit(shape.in_channels, inputs, stride=2)}
    stages = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
    for i, (width, blocks, stride) in enumerate(stages, 1):
        outputs, t = int(width * multiplier), 1 if i == 1 else expansion
        first = _inverted_residual(inputs, outputs, stride, t)
        body[f"stage{i}"] = nn.Sequential(first, *(_inverted_residual(outputs, outputs, 1, t) for _ in range(blocks - 1)))
        inputs = outputs
    features = max(1280, int(1280 * multiplier))
    body["features"] = _unit(inputs, features, 1)
    return _classifier(body, features, shape)


def _mlp(hidden: int, shape: _Shape) -> nn.Module:
    body = nn.Sequential(nn.Flatten(), nn.Linear(shape.in_channels * shape.image_size**2, hidden), nn.ReLU(inplace=True))
    if not shape.embedding_dim:
        return body.append(nn.Linear(hidden, shape.num_classes))
    return nn.Sequential(OrderedDict({"body": body, **_head(hidden, shape)}))


_NETWORKS: dict[str, _Maker] = {
    # Ours, for the 8x8 digits that ship with scikit-learn: a teacher, and students that it clearly outdoes.
    "digits-cnn-l": partial(_plain, [(32, 32), (64,), (128,)]),
    "digits-cnn-s": partial(_plain, [(8,), (16,)]),
    "digits-mlp": partial(_mlp, 16),
    **{f"resnet{depth}": partial(_resnet, depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(_resnet, depth, (32, 64, 128, 256)) for depth in (8, 32)},
    "vgg8": partial(_vgg, 1),
    "vgg13": partial(_vgg, 2),
}


# --- torchvision's ---

# Families whose stem can be made small, by the beginning of their names, and the pooling that goes.
_SMALL_STEMS: dict[str, str | None] = {
    "resnet": "maxpool",
    "resnext": "maxpool",
    "wide_resnet": "maxpool",
    "densenet": "features.pool0",
    "mobilenet_": None,
    "efficientnet_": None,
    "regnet_": None,
}


def _torchvision_names() -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


def _torchvision(name: str, small_stem: str | None, shape: _Shape) -> nn.Module:
    """A torchvision classifier; `small_stem` is its family in `_SMALL_STEMS` if the stem is to be small."""
    from torchvision import models

    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options["image_size"] = shape.image_size
    elif name.startswith("maxvit_"):
        options["input_size"] = (shape.image_size, shape.image_size)
    elif name in ("googlenet", "inception_v3"):
        # With auxiliary classifiers they would yield a tuple.
        options = {"aux_logits": False, "init_weights": True}
    network: nn.Module = models.get_model(name, weights=None, num_classes=shape.num_classes, **options)
    path, conv = next((path, m) for path, m in network.named_modules() if isinstance(m, nn.Conv2d))
    bias = conv.bias is not None
    if small_stem is not None:
        network.set_submodule(path, _redrawn(_conv(shape.in_channels, conv.out_channels, bias=bias)))
        if pool := _SMALL_STEMS[small_stem]:
            network.set_submodule(pool, nn.Identity())
    elif shape.in_channels != conv.in_channels:
        kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
        stem = nn.Conv2d(shape.in_channels, conv.out_channels, kernel, stride, padding, bias=bias)  # type: ignore[arg-type]
        network.set_submodule(path, _redrawn(stem))
    if shape.embedding_dim:
        linear = [(path, m) for path, m in network.named_modules() if isinstance(m, nn.Linear)]
        if not linear or linear[-1][1].out_features != shape.num_classes:
            raise InputError("model", name, "does not end in a linear layer, so it can have no embedding", "Use another model")
        path, last = linear[-1]
        network.set_submodule(path, nn.Sequential(OrderedDict(_head(last.in_features, shape))))
    return network


def _redrawn(conv: nn.Conv2d) -> nn.Conv2d:
    # Without a bias it feeds a norm: then torchvision mostly draws it like this. Otherwise torch's default will do.
    if conv.bias is None:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


# --- the user's ---


def _users(name: str, parameter: str) -> _Maker:
    """The factory that `package.module:factory` names. Imports the user's module."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise InputError(
            parameter, name, "is not of the form package.module:factory", "Name a module, a colon and a function in it"
        )
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            parameter,
            name,
            f"{module_name} cannot be imported ({type(error).__name__}: {_first_line(error)})",
            "Install the package, in the image too, or put its folder on PYTHONPATH",
        ) from error
    try:
        factory = attrgetter(attribute)(module)
    except AttributeError as error:
        near = get_close_matches(attribute, dir(module), n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise InputError(
            parameter, name, f"{module_name} has no {attribute!r}", f"{hint}Name a function or class of that module"
        ) from error
    if not callable(factory):
        raise InputError(
            parameter,
            name,
            f"{attribute} cannot be called (it is of type {type(factory).__name__})",
            "Name a function or class that yields a module",
        )
    return partial(_users_network, factory, name, parameter)


def _users_network(factory: Callable[..., Any], name: str, parameter: str, shape: _Shape) -> nn.Module:
    arguments = asdict(shape)
    if not shape.embedding_dim:
        del arguments["embedding_dim"]
    try:
        network = factory(**_accepted(factory, arguments))
    except Exception as error:
        raise InputError(
            parameter,
            name,
            f"raised {type(error).__name__}: {_first_line(error)}",
            "It is called with those of num_classes, in_channels, image_size and embedding_dim that it takes, by keyword",
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(
            parameter, name, f"yields an object of type {type(network).__name__}", "It must yield a torch.nn.Module"
        )
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in network.parameters()):
        raise InputError(
            parameter, name, "has lazy layers that are still without weights", "Run a batch through it in the factory"
        )
    return network


def _accepted(factory: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that `factory` takes by keyword."""
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # some builtins have no signature
        return arguments
    kinds = {p.kind for p in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return arguments
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: v for n, v in arguments.items() if n in parameters and parameters[n].kind in by_keyword}


# --- trying a network out ---


def _device_of_trial(name: str, image_size: int, parameter: str) -> str:
    # The first use of the meta device takes 2 seconds for imports; torchvision's import has spent them already.
    cheap = image_size <= 64 and ":" not in name and _ours(name, parameter) is not None
    return "cpu" if ":" in name or cheap else "meta"


def _made_on(device: str, make: _Maker, shape: _Shape) -> nn.Module:
    try:
        with torch.device(device):
            return make(shape)
    except NotImplementedError:
        # Some constructors (regnet's) compute with tensors, which the meta device cannot.
        return make(shape).to(device)


def _note_starved(network: nn.Module, starved: list[str]) -> None:
    """From now on, note in `starved` the wider convolutions that meet a single pixel, in the order of the forward pass."""

    def note(path: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape[-2:] == (1, 1):
            starved.append(path)

    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            module.register_forward_pre_hook(partial(note, path))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class Normalized(nn.Module):
    """A network that takes pixels in 0..1 and normalises them itself, for whoever serves it.

    Args:
        network: takes normalised images.
        mean: (1, C, 1, 1), of the training images.
        std: (1, C, 1, 1).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, K) of pixels (B, C, H, W) in 0..1."""
        logits: Tensor = self.network((pixels - self.mean) / self.std)
        return logits
