"""Which names a file's weights have: ours, or the literature's."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from rco.models.keymaps import densenet, mobilenetv2, resnet, torchvision_resnet, vgg, wide_resnet
from rco.models.keymaps.base import KeyMap

# Each has `key_map`.
_FAMILIES = (resnet, wide_resnet, vgg, mobilenetv2, torchvision_resnet, densenet)
# RepDistiller saves a network; mdistiller, what distils it, which has the network as `student`.
_PREFIXES = ("", "student.")


def key_maps(ours: Collection[str]) -> list[KeyMap]:
    """The maps of the families that a network with these names may be of."""
    return [found for family in _FAMILIES if (found := family.key_map(ours))]


def choose(ours: Collection[str], given: Collection[str]) -> KeyMap | None:
    """The map that brings a file's names closest to a network's.

    Args:
        ours: the network's names.
        given: the file's.

    Returns:
        None: they are not closer in other code's names than in ours.
    """
    known = set(given)
    best, most = None, len(known.intersection(ours))
    for found in key_maps(ours):
        for prefix in _PREFIXES:
            candidate = replace(found, names={name: prefix + theirs for name, theirs in found.names.items()})
            if (common := len(known.intersection(candidate.names.values()))) > most:
                best, most = candidate, common
    return best
