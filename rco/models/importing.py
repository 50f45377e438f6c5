"""A network with the weights of anyone's checkpoint; where the user left the stem open, with the stem of these weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rco.core.errors import InputError
from rco.models.checkpoints import read_content
from rco.models.head import head_paths, in_head
from rco.models.spec import NetworkSpec
from rco.models.weights import find_for, load_content

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


def read_network(
    path: Path,
    spec: NetworkSpec,
    *,
    choice: str = "",
    new_head: bool = False,
    left_out: tuple[str, ...] = (),
    seed: int | None = None,
) -> ImportedNetwork:
    """Read a checkpoint into the network `spec`.

    Args:
        choice: as for `rco.models.checkpoints.find_weights`.
        new_head: keep the head as it is drawn (`rco.models.head`); the file may have one of other classes, or none.
        left_out: as for `rco.models.checkpoints.find_weights`.
        seed: as for `NetworkSpec.build`; it matters for a new head.

    Raises:
        InputError: as `read_content` and `find_weights`; the weights have another stem than the one that was asked for; or
            a head was asked for that is not found, or is the whole network.
    """
    content = read_content(path)
    but: tuple[str, ...] = ()
    if new_head:
        blank = spec.blank()
        but = head_paths(blank, spec.num_classes)
        if all(in_head(name, but) for name in blank.state_dict()):
            raise InputError("head", "new", "leaves nothing of the weights: the network is its head", "Keep the head")
    settled, notes = settle_stem(content, spec, path, choice=choice, but=but, left_out=left_out)
    model = settled.build(seed)
    found = load_content(model, content, path, image_size=settled.image_size, choice=choice, but=but, left_out=left_out)
    anew = (f"{' and '.join(but)} is new, for {spec.num_classes} classes",) if but else ()
    return ImportedNetwork(model, settled, (*found, *notes, *anew))


def settle_stem(
    content: Any,
    spec: NetworkSpec,
    source: object,
    *,
    choice: str = "",
    but: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
) -> tuple[NetworkSpec, tuple[str, ...]]:
    """The spec with the stem of these weights, as far as their shapes tell it, and what to tell the user.

    The stem `auto` stays if its network fits.

    Args:
        choice, but, left_out: as for `rco.models.weights.load_content`.

    Raises:
        InputError: another stem than the user's fits, or none, as `find_weights`.
    """
    search = {"content": content, "source": source, "choice": choice, "but": but, "left_out": left_out}
    networks = _networks_by_stem(spec)
    if len(networks) < 2:
        return spec, ()
    fitting = [stem for stem, network in networks.items() if _fits(network, search)]
    chosen = spec.stem if spec.stem != "auto" else next(s for s in networks if str(networks[s]) == str(spec.blank()))
    if not fitting:  # say how they differ from the nearest
        find_for(*networks.values(), **search)
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


def _fits(network: nn.Module, search: Mapping[str, Any]) -> bool:
    try:
        find_for(network, **search)
    except InputError:
        return False
    return True
