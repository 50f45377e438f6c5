"""torchvision's ResNets with a stem for small images, as CIFAR code names them: layer1.0.shortcut.0, linear."""

from __future__ import annotations

from collections.abc import Collection

from rco.models.keymaps.base import KeyMap, by_rules

_RULES = (
    (r"(conv1|bn1)", r"\1"),
    (r"(layer[1-4]\.\d+\.(?:conv|bn)[1-3])", r"\1"),
    (r"(layer[1-4]\.\d+)\.downsample\.([01])", r"\1.shortcut.\2"),
    ("fc", "linear"),
)


def key_map(names: Collection[str]) -> KeyMap | None:
    """The map of a network with these names; None: it is not of this family."""
    theirs = by_rules(names, _RULES)
    return KeyMap("ResNet", theirs) if theirs else None
