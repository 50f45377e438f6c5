"""Small networks of our own, for the 8x8 digits that ship with scikit-learn."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn

from rco.models.families.layers import Dimensions, NetworkMaker, head, plain_network


def _mlp(hidden: int, dimensions: Dimensions) -> nn.Module:
    body = nn.Sequential(
        nn.Flatten(), nn.Linear(dimensions.in_channels * dimensions.image_size**2, hidden), nn.ReLU(inplace=True)
    )
    if not dimensions.embedding_dim:
        return body.append(nn.Linear(hidden, dimensions.num_classes))
    return nn.Sequential(OrderedDict({"body": body, **head(hidden, dimensions)}))


# A teacher, and students that it clearly outdoes.
_NETWORKS: dict[str, NetworkMaker] = {
    "digits-cnn-l": partial(plain_network, [(32, 32), (64,), (128,)]),
    "digits-cnn-s": partial(plain_network, [(8,), (16,)]),
    "digits-mlp": partial(_mlp, 16),
}
NAMES = tuple(_NETWORKS)


def find_maker(name: str, parameter: str) -> NetworkMaker | None:
    """What makes the network `name`; None: it is not of this family."""
    return _NETWORKS.get(name)
