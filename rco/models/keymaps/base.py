"""What the families' maps share: rules for names, and the last part of a name."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

_VALUE = r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"


@dataclass(frozen=True)
class KeyMap:
    """A network's weights in the names of other code.

    Attributes:
        family: the network, for messages.
        names: their name of each of our names.
        differs_from, differs_until: the sizes of images, in pixels, at which that code computes something else with the same
            weights; both are included, and 0 for `differs_until` means no end.
        difference: what that is.
    """

    family: str
    names: dict[str, str]
    differs_from: int = 0
    differs_until: int = 0
    difference: str = field(default="")

    def differs_at(self, image_size: int) -> bool:
        """Whether that code computes something else with images of this size."""
        return bool(self.difference) and self.differs_from <= image_size <= (self.differs_until or image_size)


def by_rules(names: Collection[str], rules: Sequence[tuple[str, str]]) -> dict[str, str] | None:
    """Their name of each of `names`.

    Args:
        rules: a pattern of our modules and the template of theirs; the last part of a name, such as weight, stays.

    Returns:
        None: some name fits no rule, so the network is another.
    """
    found: dict[str, str] = {}
    for name in names:
        for pattern, template in rules:
            if match := re.fullmatch(pattern + _VALUE, name):
                found[name] = f"{match.expand(template)}.{match[match.lastindex or 0]}"
                break
        else:
            return None
    return found
