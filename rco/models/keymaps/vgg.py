"""VGG with batch norm for small images: block0.0, block0.1, ..., block4.0, classifier."""

from __future__ import annotations

import re
from collections.abc import Collection

from rco.models.keymaps.base import KeyMap, by_rules

_UNIT = r"stage(\d)\.(\d+)\.[01]\.weight"


def key_map(names: Collection[str]) -> KeyMap | None:
    """The map of a network with these names; None: it is not of this family."""
    units = sorted({(int(match[1]), int(match[2])) for name in names if (match := re.fullmatch(_UNIT, name))})
    if len(units) not in (5, 10):
        return None
    # Our stages are cut where an image shrinks, which depends on its size; their five blocks have equally many convolutions.
    depth = len(units) // 5
    rules = [("classifier", "classifier")]
    for number, (stage, index) in enumerate(units):
        block, place = divmod(number, depth)
        for ours, theirs in ((0, 3 * place), (1, 3 * place + 1)):  # convolution, batch norm, and a ReLU without weights
            rules.append((rf"stage{stage}\.{index}\.{ours}", f"block{block}.{theirs}"))
    theirs_by_ours = by_rules(names, rules)
    return KeyMap("VGG", theirs_by_ours, 65, 0, "its fourth max-pool is there at 64 pixels only") if theirs_by_ours else None
