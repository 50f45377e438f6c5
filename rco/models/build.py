"""Networks by name: build one, or check that it can be trained.

A name is one of:

- ours: `network_names()` lists them; any `wrn-DEPTH-WIDTH` and `mobilenetv2-tT-wW` works;
- `torchvision/NAME`: a torchvision classifier with random weights (just NAME where it is not also one of ours);
- `timm/NAME`: a network of timm, where that is installed;
- `package.module:factory`: the user's code, imported because its user named it;
- a name of another package's, which it has declared as an entry point of the group `rco.models` (`families.packages`).

Every network maps images (B, in_channels, image_size, image_size) to logits (B, num_classes). The CIFAR networks are those of
RepDistiller (Tian et al., ICLR 2020) and mdistiller (Zhao et al., CVPR 2022), so that published figures compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rco.core.errors import InputError, choice
from rco.models.config import STEMS
from rco.models.embeddings import embedding_path
from rco.models.families import digits, factories, mobilenetv2, packages, resnet, timm, torchvision, vgg, wide_resnet
from rco.models.families.layers import Dimensions, NetworkMaker, first_line
from rco.models.taps import observe

# Each has NAMES, the members to list, and `find_maker`, which may know more.
_FAMILIES = (digits, resnet, vgg, wide_resnet, mobilenetv2)


def build_network(
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
            can take the images is for `check_network` to say.
    """
    dimensions = Dimensions(in_channels, num_classes, image_size, embedding_dim)
    make = _find_maker(name, dimensions, stem, "model")
    if seed is None:
        return make(dimensions).float().train()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which also seeds the accelerators, whose state is not forked here.
        torch.default_generator.manual_seed(seed)
        return make(dimensions).float().train()


def check_network(
    name: str,
    *,
    in_channels: int,
    num_classes: int,
    image_size: int,
    stem: str = "auto",
    embedding_dim: int = 0,
    parameter: str = "model",
) -> None:
    """Raise unless `build_network` would yield a network that can be trained on such images.

    Two images are pushed through in training mode: through a network without numbers (torch's meta device, where size costs
    next to nothing), or through a real one if that is cheap, or if it is not of our code or torchvision's.

    Args:
        parameter: the name under which the user knows the model; its stem is then `stem` or `<parameter>_stem`.
        name, in_channels, num_classes, image_size, stem, embedding_dim: as for `build_network`.

    Raises:
        InputError: what `build_network` raises; a network that fails on the images, or whose output is not (2, num_classes), or
            whose embedding is not (2, embedding_dim) if one is asked for; a network of ours or torchvision's that shrinks the
            images to one pixel before its last wide convolution.
    """
    dimensions = Dimensions(in_channels, num_classes, image_size, embedding_dim)
    make = _find_maker(name, dimensions, stem, parameter)
    foreign = packages.is_foreign(name)
    device = _trial_device(name, image_size, parameter)
    starved: list[str] = []
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network = _make_on(device, make, dimensions, name).float().train()
            if not foreign:
                _note_starved(network, starved)
            images = torch.zeros(2, in_channels, image_size, image_size, device=device)
            logits, embedding = observe(network, images, embedding_path(network) if embedding_dim else "")
    except InputError as error:
        if error.parameter == "tap":  # the embedding, which the user has not named
            error = InputError("model", name, f"has an embedding, {error.value}, that {error.problem}", error.remedy)
        if error.parameter != "model":
            raise error from None
        raise InputError(parameter, name, error.problem, error.remedy) from None
    except Exception as error:
        problem = f"does not work with {dimensions} images ({first_line(error)})"
        remedy = "Mend the model, or its factory" if foreign else "Use larger images (image_size) or another model"
        raise InputError(parameter, name, problem, remedy) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, num_classes):
        actual = (
            f"a tensor of shape {tuple(logits.shape)}"
            if isinstance(logits, Tensor)
            else f"an object of type {type(logits).__name__}"
        )
        raise InputError(parameter, name, f"yields {actual} for 2 images", f"It must yield logits of shape (2, {num_classes})")
    if embedding_dim and (not isinstance(embedding, Tensor) or embedding.shape != (2, embedding_dim)):
        actual = f"yields {tuple(embedding.shape)}" if isinstance(embedding, Tensor) else "yields no tensor"
        raise InputError(
            parameter, name, f"has a submodule `embedding` that {actual} for 2 images", f"It must yield (2, {embedding_dim})"
        )
    if starved:
        raise InputError(
            parameter,
            name,
            f"shrinks {dimensions} images to a single pixel before {starved[0]}, whose kernel then sees padding but for its "
            "centre",
            "Use larger images (image_size), a model that shrinks them less, or for a torchvision model another stem",
        )


def blank_network(
    name: str, *, in_channels: int, num_classes: int, image_size: int, stem: str = "auto", embedding_dim: int = 0
) -> nn.Module:
    """The network `name`, for its modules and the shapes of a forward pass; its weights mean nothing.

    It lies on torch's meta device, without numbers, unless it is cheap, or neither ours nor torchvision's.

    Raises:
        InputError: as `build_network`.
    """
    dimensions = Dimensions(in_channels, num_classes, image_size, embedding_dim)
    make = _find_maker(name, dimensions, stem, "model")
    with torch.random.fork_rng(devices=[]):
        return _make_on(_trial_device(name, image_size, "model"), make, dimensions, name).float()


def network_names() -> tuple[str, ...]:
    """The names of our own networks, sorted. Of the two families with free numbers, the usual members."""
    return tuple(sorted(name for family in _FAMILIES for name in family.NAMES))


def parameter_count(module: nn.Module) -> int:
    """How many numbers the parameters of `module` hold; buffers do not count, shared parameters count once."""
    return sum(p.numel() for p in module.parameters())


def _find_maker(name: str, dimensions: Dimensions, stem: str, parameter: str) -> NetworkMaker:
    stem_parameter = "stem" if parameter == "model" else f"{parameter}_stem"
    choice(stem_parameter, stem, STEMS)
    if ":" in name:
        return factories.find_maker(name, parameter)
    if name.startswith(timm.PREFIX):
        return timm.find_maker(name, parameter)
    if make := _find_ours(name, parameter) or packages.find_maker(name, parameter):
        return make
    bare = name.removeprefix("torchvision/")
    known = torchvision.list_names()
    if bare not in known:
        if problem := packages.failures().get(name):
            raise packages.unusable(parameter, name, problem)
        ours = [*network_names(), *packages.names()]
        candidates = [f"torchvision/{n}" for n in known] if bare != name else [*ours, *known]
        near = get_close_matches(name.lower(), candidates, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise InputError(
            parameter,
            name,
            "is not known",
            f"{hint}Name a torchvision classifier, timm/NAME, package.module:factory, or one of: {', '.join(ours)}",
        )
    return torchvision.find_maker(bare, dimensions, stem, stem_parameter)


def _find_ours(name: str, parameter: str) -> NetworkMaker | None:
    return next((make for family in _FAMILIES if (make := family.find_maker(name, parameter))), None)


def _trial_device(name: str, image_size: int, parameter: str) -> str:
    # The first use of the meta device takes 2 seconds for imports; torchvision's import has spent them already.
    foreign = packages.is_foreign(name)
    cheap = image_size <= 64 and not foreign and _find_ours(name, parameter) is not None
    return "cpu" if foreign or cheap else "meta"


class _WithoutDraws(TorchFunctionMode):
    """Weights that would be drawn are 0: half of the time that a constructor takes goes into numbers that no trial looks at."""

    draws = frozenset({Tensor.uniform_, Tensor.normal_, nn.init.kaiming_uniform_, nn.init.kaiming_normal_})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func in self.draws:
            with torch.no_grad():
                return (args[0] if args else (kwargs or {})["tensor"]).zero_()
        return func(*args, **(kwargs or {}))


def _make_on(device: str, make: NetworkMaker, dimensions: Dimensions, name: str) -> nn.Module:
    """A network to try, not to train. Another's constructor may look at its weights: that one draws them."""
    try:
        with torch.device(device), nullcontext() if packages.is_foreign(name) else _WithoutDraws():
            return make(dimensions)
    except (NotImplementedError, RuntimeError):
        # Some constructors (regnet's, many of timm's) compute with tensors, which the meta device cannot.
        return make(dimensions).to(device)


def _note_starved(network: nn.Module, starved: list[str]) -> None:
    """From now on, note in `starved` the wider convolutions that meet a single pixel, in the order of the forward pass."""

    def note(path: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape[-2:] == (1, 1):
            starved.append(path)

    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
            module.register_forward_pre_hook(partial(note, path))
