"""What speaks against a teacher from elsewhere: it answers as if classes were numbered otherwise, or no better than chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rco.data.sources.class_order import natural_key

_GAIN = 0.25  # of accuracy that another numbering of the classes must bring, to be spoken of
_SHOWN = 3


def doubts(logits: NDArray[np.float32], labels: NDArray[np.int64], class_names: Sequence[str]) -> list[str]:
    """What to warn of, in words; nothing, for a teacher that goes with the data.

    Args:
        logits: (N, K), of a converged teacher.
        labels: (N,).
        class_names: of the K classes, by label.
    """
    from scipy.optimize import linear_sum_assignment

    classes = len(class_names)
    predicted = logits.argmax(axis=1)
    accuracy = float((predicted == labels).mean())
    counts = np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)
    # The numbering under which most answers are right: class `meant[k]` is what the teacher calls k.
    truth, called = linear_sum_assignment(counts, maximize=True)
    best = float(counts[truth, called].sum() / len(labels))
    meant = np.empty(classes, np.int64)
    meant[called] = truth
    # With few images a class, some numbering always fits by chance.
    if best - accuracy >= _GAIN and len(labels) >= 4 * classes and best >= 0.5:
        return [_of_order(accuracy, best, meant, counts, class_names)]
    most = float(np.bincount(labels, minlength=classes).max() / len(labels))
    error = np.sqrt(most * (1 - most) / len(labels))
    if accuracy <= most + 2 * error:
        return [
            f"the teacher is right on {100 * accuracy:.1f} % of the validation images, no better than chance "
            f"({100 * most:.1f} %): were its images normalised as here (teacher_image_mean, teacher_image_std), of this "
            "size and fit (teacher_image_size, image_fit), and its classes numbered as here (class_order)?"
        ]
    return []


def _of_order(
    accuracy: float, best: float, meant: NDArray[np.int64], counts: NDArray[np.int64], class_names: Sequence[str]
) -> str:
    names = list(class_names)
    words = f"the teacher is right on {100 * accuracy:.1f} % of the validation images, and would be on {100 * best:.1f} %"
    for order, listed in (("natural", sorted(names, key=natural_key)), ("sorted", sorted(names))):
        theirs = np.array([names.index(name) for name in listed])
        if listed != names and counts[theirs, np.arange(len(names))].sum() >= 0.95 * counts[meant, np.arange(len(names))].sum():
            return f"{words} if classes were numbered in {order} order: set class_order = {order}"
    moved = [k for k in range(len(names)) if meant[k] != k]
    shown = ", ".join(f"its {k} is {names[meant[k]]!r}, here {int(meant[k])}" for k in moved[:_SHOWN])
    return (
        f"{words} if classes were numbered as in its training ({shown}{', ...' if len(moved) > _SHOWN else ''}): give their "
        "names in that order, class_order = NAME,NAME,... or a file of them"
    )
