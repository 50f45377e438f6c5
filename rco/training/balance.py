"""Weights of classes that are not equally frequent."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def class_weights(labels: NDArray[np.int64], num_classes: int) -> NDArray[np.float32]:
    """N / (number of classes that have images * images of the class): scikit-learn's "balanced". (num_classes,).

    Every class then counts as much in a sum over the images, and the mean weight of the images is 1. A class without images
    has weight 1, which nothing meets.

    Args:
        labels: (N,), of the training images.
    """
    from sklearn.utils.class_weight import compute_class_weight

    present = np.unique(labels)
    weights = np.ones(num_classes, np.float32)
    weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    return weights
