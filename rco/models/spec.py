"""A network described in words, and the network back: what is written beside every set of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rco.core.errors import InputError
from rco.core.settings import from_dict
from rco.core.tensors import load_state, save_model
from rco.models.config import ModelConfig
from rco.models.families import packages
from rco.models.weights import load_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rco.data.dataset import Manifest

_MOST_CHANNELS, _LARGEST_IMAGE = 64, 2**14
_SPARE = 2**24  # parameters


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """All that `rco.models.build.build_network` needs: the user's choice of a model and what the data dictates."""

    model: str
    stem: str
    in_channels: int
    num_classes: int
    image_size: int
    embedding_dim: int = 0

    @classmethod
    def of(cls, config: ModelConfig, data: Manifest) -> NetworkSpec:
        """The network that `config` means on this data set."""
        channels, height, _ = data.image_shape
        return cls(
            model=config.model,
            stem=config.stem,
            in_channels=channels,
            num_classes=data.num_classes,
            image_size=height,
            embedding_dim=config.embedding_dim,
        )

    @property
    def written(self) -> dict[str, Any]:
        """As it is written into files. Without an embedding nothing is said of one: such files are older than the setting."""
        words = asdict(self)
        return words if self.embedding_dim else {name: word for name, word in words.items() if name != "embedding_dim"}

    @property
    def is_foreign(self) -> bool:
        """Whether building it runs the user's own code (`package.module:factory`), or another package's."""
        return packages.is_foreign(self.model)

    def blank(self) -> nn.Module:
        """The module for its own modules and the shapes of a forward pass: see `rco.models.build.blank_network`."""
        from rco.models.build import blank_network

        return blank_network(
            self.model,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
            stem=self.stem,
            embedding_dim=self.embedding_dim,
        )

    def build(self, seed: int | None = None) -> nn.Module:
        """The module, in float32 and training mode; with a seed its weights are a function of the spec and the seed."""
        from rco.models.build import build_network

        return build_network(
            self.model,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
            stem=self.stem,
            embedding_dim=self.embedding_dim,
            seed=seed,
        )


def save_network(path: Path, model: nn.Module, spec: NetworkSpec, **metadata: Any) -> str:
    """Write weights with their description; returns the file's sha256."""
    return save_model(path, model, {"network": spec.written, **metadata})


def load_network(path: Path, *, expected_sha256: str | None = None, spec: NetworkSpec | None = None) -> nn.Module:
    """The module of a file that `save_network` wrote, in evaluation mode.

    Args:
        path: a safetensors file.
        expected_sha256: refuse the file unless it has this hash.
        spec: what the caller says the network is. Needed for user factories and networks of other packages: code is run because
            the user names it, never because a file does.

    Raises:
        InputError: damaged file, code that is not ours without `spec`, or weights that do not fit.
    """
    state, metadata = load_state(path, expected_sha256)
    if spec is None:
        spec = described(metadata, path)
        if spec.is_foreign:
            whose = "a factory of the user's code" if ":" in spec.model else "a network of another package"
            raise InputError(
                "model",
                spec.model,
                f"is {whose}, named by {path.name}",
                "Pass it as model= to say that it may run",
            )
        _require_likeness(spec, state, path)
        with _no_larger_than(state, path):
            model = spec.build()
    else:
        model = spec.build()
    load_weights(model, state, path)
    return model.eval()


def _require_likeness(spec: NetworkSpec, state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a description that its weights cannot be of."""
    sizes = {size for tensor in state.values() for size in tensor.shape}
    for name in ("num_classes", "embedding_dim"):
        if (value := getattr(spec, name)) and value not in sizes:
            raise InputError(name, value, f"is not a size of the weights in {path.name}", "Copy the file again")
    for name, most in (("in_channels", _MOST_CHANNELS), ("image_size", _LARGEST_IMAGE)):
        if (value := getattr(spec, name)) > most:
            raise InputError(name, value, f"is more than {most}", "Pass the network as model=")


@contextmanager
def _no_larger_than(state: Mapping[str, Tensor], path: Path) -> Iterator[None]:
    """Stop the building of a network that has many more parameters than there are weights, before they fill the memory."""
    from torch import nn
    from torch.utils import deterministic

    # Some networks are built with layers that give way to others.
    left = 2 * sum(tensor.numel() for tensor in state.values()) + _SPARE

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        left -= parameter.numel() if parameter is not None else 0
        if left < 0:  # what was allocated last has not been written to
            raise InputError("weights", str(path), "are fewer than the described network has", "Copy the file again")

    hook = nn.modules.module.register_module_parameter_registration_hook(count)
    # Where algorithms must be deterministic, PyTorch writes to all that it allocates.
    fills = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    except (RuntimeError, MemoryError):  # one layer alone may be too large to be allocated
        raise InputError(
            "weights", str(path), "are described as a network that cannot be built", "Copy the file again"
        ) from None
    finally:
        hook.remove()
        deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def described(metadata: Mapping[str, Any], path: Path) -> NetworkSpec:
    """The description in a file's metadata.

    Raises:
        InputError: there is none, or it is not one.
    """
    network = metadata.get("network")
    if not isinstance(network, dict) or {*network, "embedding_dim"} != set(NetworkSpec.__dataclass_fields__):
        raise InputError(
            "file", str(path), "does not say which network it holds", "Import it with `rco import-route`, naming its model"
        )
    return from_dict(NetworkSpec, network)
