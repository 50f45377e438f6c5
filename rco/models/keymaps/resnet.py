"""ResNets for small images: conv1, bn1, layer1.0.conv1, layer2.0.downsample.0, fc."""

from __future__ import annotations

from collections.abc import Collection

from rco.models.keymaps.base import KeyMap, by_rules

_BLOCK = r"stage(\d)\.(\d+)\."
_RULES = (
    (r"stem\.0", "conv1"),
    (r"stem\.1", "bn1"),
    (_BLOCK + r"branch\.0\.0", r"layer\1.\2.conv1"),
    (_BLOCK + r"branch\.0\.1", r"layer\1.\2.bn1"),
    (_BLOCK + r"branch\.1", r"layer\1.\2.conv2"),
    (_BLOCK + r"branch\.2", r"layer\1.\2.bn2"),
    (_BLOCK + r"shortcut\.([01])", r"layer\1.\2.downsample.\3"),
    ("classifier", "fc"),
)


def key_map(names: Collection[str]) -> KeyMap | None:
    """The map of a network with these names; None: it is not of this family."""
    theirs = by_rules(names, _RULES)
    # Beyond 60 pixels that code, with its pool of 8x8, does not run: who has such weights has mended the pool.
    return KeyMap("ResNet", theirs, 33, 60, "its 8x8 pool sees a part of the last features only") if theirs else None
