"""The order in which an epoch shows the training images, where it is not simply a permutation."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def balanced_order(labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """An epoch of as many images as there are, in which every class is as frequent, or one image more, and in a class every
    image as frequent, or shown once more: (N,) rows.

    Args:
        labels: (N,).
    """
    classes = rng.permutation(np.unique(labels))
    each, more = divmod(len(labels), len(classes))
    chosen = []
    for k, label in enumerate(classes):
        images, count = np.flatnonzero(labels == label), each + (k < more)
        rounds = -(-count // len(images))
        chosen.append(np.concatenate([rng.permutation(images) for _ in range(rounds)] or [images])[:count])
    return rng.permutation(np.concatenate(chosen))
