"""A network with the weights of anyone's checkpoint; where the user left the stem open, with the stem of these weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rco.core.errors import InputError
from rco.models.checkpoints import find_weights, read_content
from rco.models.spec import NetworkSpec
from rco.models.weights import load_content, namings_of

if TYPE_CHECKING:
    from torch import nn

_STEMS = ("small", "imagenet")


@dataclass(frozen=True)
class ImportedNetwork:
    """A network as it was found in a checkpoint.

    Attributes:
        model: in training mode.
        spec: as it was asked for, but that an open stem may be settled.
        notes: what to tell the user, a sentence each.
    """

    model: nn.Module
    spec: NetworkSpec
    notes: tuple[str, ...]


def read_network(path: Path, spec: NetworkSpec, *, choice: str = "") -> ImportedNetwork:
    """Read a checkpoint into the network `spec`.

    Args:
        choice: as for `rco.models.checkpoints.find_weights`.

    Raises:
        InputError: as `read_content` and `find_weights`; or the weights have another stem than the one that was asked for.
    """
    content = read_content(path)
    settled, notes = settle_stem(content, spec, path, choice=choice)
    model = settled.build()
    found = load_content(model, content, path, image_size=settled.image_size, choice=choice)
    return ImportedNetwork(model, settled, (*found, *notes))


def settle_stem(content: Any, spec: NetworkSpec, source: object, *, choice: str = "") -> tuple[NetworkSpec, tuple[str, ...]]:
    """The spec with the stem of these weights, as far as their shapes tell it, and what to tell the user.

    The stem `auto` stays if its network fits.

    Raises:
        InputError: another stem than the user's fits, or none, as `find_weights`.
    """
    networks = _networks_by_stem(spec)
    if len(networks) < 2:
        return spec, ()
    fitting = [stem for stem, network in networks.items() if _fits(content, network, source, choice)]
    chosen = spec.stem if spec.stem != "auto" else next(s for s in networks if str(networks[s]) == str(spec.blank()))
    if not fitting:  # say how they differ from the nearest
        find_weights(content, [n for network in networks.values() for n in namings_of(network)], source, choice=choice)
    if fitting == [chosen]:
        return spec, ()
    if chosen in fitting:
        return spec, (f"these shapes fit both stems, {' and '.join(fitting)}; {chosen} is taken: name the stem if it was not",)
    if spec.stem == "auto":
        return replace(spec, stem=fitting[0]), (
            f"the weights have the stem {fitting[0]}, which is taken: name it in runs, too",
        )
    raise InputError("stem", spec.stem, f"is not the stem of the weights in {source}", f"Use {fitting[0]}, which fits them")


def _networks_by_stem(spec: NetworkSpec) -> dict[str, nn.Module]:
    """The network with each stem that it can have; empty: it has one only."""
    if spec.is_foreign:
        return {}
    networks = {}
    for stem in _STEMS:
        try:
            networks[stem] = replace(spec, stem=stem).blank()
        except InputError:  # no small stem is known for it
            return {}
    return networks if len({str(network) for network in networks.values()}) > 1 else {}


def _fits(content: Any, network: nn.Module, source: object, choice: str) -> bool:
    try:
        find_weights(content, namings_of(network), source, choice=choice)
    except InputError:
        return False
    return True
