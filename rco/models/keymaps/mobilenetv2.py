"""MobileNetV2 for small images: conv1.0, blocks.0.0.conv.0, conv2.0, classifier.0."""

from __future__ import annotations

from collections.abc import Collection

from rco.models.keymaps.base import KeyMap, by_rules

# Ours has units of convolution, batch norm and ReLU; theirs has them in one row.
_LAYERS = ((r"0\.0", 0), (r"0\.1", 1), (r"1\.0", 3), (r"1\.1", 4), ("2", 6), ("3", 7))
_RULES = (
    (r"stem\.([01])", r"conv1.\1"),
    *(
        (rf"stage{stage}\.(\d+)\.(?:branch\.)?{ours}", rf"blocks.{stage - 1}.\1.conv.{theirs}")
        for stage in range(1, 8)
        for ours, theirs in _LAYERS
    ),
    (r"features\.([01])", r"conv2.\1"),
    ("classifier", "classifier.0"),
)


def key_map(names: Collection[str]) -> KeyMap | None:
    """The map of a network with these names; None: it is not of this family."""
    theirs = by_rules(names, _RULES)
    # Beyond 32 pixels that code, with its pool of 2x2, does not run: who has such weights has mended the pool.
    return KeyMap("MobileNetV2", theirs) if theirs else None
