"""Embeddings of images: getting them out of a network.

An embedding is what a network's submodule named `embedding` yields, (B, d). The networks' forward goes on to yield logits, so
they are saved, exported and measured like any other. `rco.objectives.embedding` mimics an anchor's.
"""

from __future__ import annotations

from torch import Tensor, nn

from rco.core.errors import InputError
from rco.models.taps import observe

EMBEDDING = "embedding"


def embedding_path(network: nn.Module) -> str:
    """The path of the submodule that yields a network's embedding: the one named `embedding`, of several the outermost.

    Raises:
        InputError: there is none, or there are several side by side.
    """
    paths = [path for path, _ in network.named_modules() if path.rpartition(".")[2] == EMBEDDING]
    least = min((path.count(".") for path in paths), default=0)
    outermost = [path for path in paths if path.count(".") == least]
    if len(outermost) != 1:
        has = (
            f"several submodules named `embedding` ({', '.join(outermost)})" if outermost else "no submodule named `embedding`"
        )
        raise InputError(
            "model", type(network).__name__, f"has {has}", "Set embedding_dim, or name the layer that yields (B, d) so"
        )
    path: str = outermost[0]
    return path


class Embedder(nn.Module):
    """A network that yields embeddings alone, for comparing images (`rco.models.predict.predict` takes it for a model).

    It shares the network's weights and modes, and leaves nothing behind on it.

    Raises:
        InputError: as `embedding_path`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.path = embedding_path(network)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (B, d) of normalised images (B, C, H, W).

        Raises:
            InputError: as `rco.models.taps.observe`.
        """
        embeddings = observe(self.network, x, self.path).features
        assert embeddings is not None
        return embeddings
