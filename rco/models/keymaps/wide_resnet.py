"""Wide ResNets: conv1, block1.layer.0.bn1, block2.layer.0.convShortcut, bn1, fc."""

from __future__ import annotations

from collections.abc import Collection

from rco.models.keymaps.base import KeyMap, by_rules

_BLOCK = r"stage(\d)\.(\d+)\."
_RULES = (
    ("stem", "conv1"),
    # A block whose width stays, and one whose width changes: the latter's shortcut begins after its first activation.
    (_BLOCK + r"(?:branch\.)?0\.0", r"block\1.layer.\2.bn1"),
    (_BLOCK + r"(?:branch\.1|1\.branch)\.0\.0", r"block\1.layer.\2.conv1"),
    (_BLOCK + r"(?:branch\.1|1\.branch)\.0\.1", r"block\1.layer.\2.bn2"),
    (_BLOCK + r"(?:branch\.1|1\.branch)\.1", r"block\1.layer.\2.conv2"),
    (_BLOCK + r"1\.shortcut", r"block\1.layer.\2.convShortcut"),
    (r"activate\.0", "bn1"),
    ("classifier", "fc"),
)


def key_map(names: Collection[str]) -> KeyMap | None:
    """The map of a network with these names; None: it is not of this family."""
    theirs = by_rules(names, _RULES)
    # As of the ResNets: beyond 60 pixels that code does not run.
    return KeyMap("wide ResNet", theirs, 33, 60, "its 8x8 pool sees a part of the last features only") if theirs else None
