"""DenseNets as torchvision's published files name them, from before its layers lay in modules: denselayer1.norm.1."""

from __future__ import annotations

from collections.abc import Collection

from rco.models.keymaps.base import KeyMap, by_rules

_RULES = (
    (r"(features\.denseblock\d+\.denselayer\d+\.(?:norm|conv))([12])", r"\1.\2"),
    (r"(features\.(?:conv0|norm0|norm5|transition\d+\.(?:norm|conv))|classifier(?:\.\w+)*)", r"\1"),
)


def key_map(names: Collection[str]) -> KeyMap | None:
    """The map of a network with these names; None: it is not of this family."""
    theirs = by_rules(names, _RULES)
    return KeyMap("DenseNet", theirs) if theirs and any(".norm.1." in name for name in theirs.values()) else None
