"""Embeddings of images: getting them out of a network, and mimicking an anchor's.

An embedding is what a network's submodule named `embedding` yields, (B, d). The networks' forward goes on to yield logits, so
they are saved, exported and measured like any other.

That the route applies to mimicking features, and to open-set face recognition by it, is the paper's (Jin et al. 2019). The form
of the mimic term below, its reduction and the layer that yields the embedding (`rco.models`) are ours. The greedy search's
hardness stays the KL of the logits: anchors are chosen in the same way whatever a stage mimics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from rco.errors import InputError

EMBEDDING = "embedding"


class Outputs(NamedTuple):
    """What a network makes of a batch."""

    logits: Tensor
    """(B, K)."""
    embeddings: Tensor
    """(B, d)."""


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


class Embedded(nn.Module):
    """A network that yields `Outputs`. It shares the network's weights and modes, and leaves nothing behind on it.

    Raises:
        InputError: as `embedding_path`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.path = embedding_path(network)

    def forward(self, x: Tensor) -> Outputs:
        """Logits (B, K) and embeddings (B, d) of normalised images (B, C, H, W)."""
        seen: list[Tensor] = []
        hook = self.network.get_submodule(self.path).register_forward_hook(lambda module, inputs, output: seen.append(output))
        try:
            logits = self.network(x)
        finally:
            hook.remove()
        if not seen:
            raise InputError("model", type(self.network).__name__, f"does not use its {self.path}", "Run it in forward")
        return Outputs(logits, seen[-1])


class Embedder(Embedded):
    """A network that yields embeddings alone, for whoever compares images (`rco.evaluate.predict` takes it for a model)."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """Embeddings (B, d) of normalised images (B, C, H, W)."""
        return super().forward(x).embeddings


def mimic_embedding(student: Tensor, anchor: Tensor) -> Tensor:
    """|e_s - e_t|^2: squared Euclidean distance, a sum over components, a mean over the batch (our form).

    The gradient flows into the student alone; the anchor is a constant target.

    Args:
        student: (B, d).
        anchor: (B, d).

    Raises:
        ValueError: shapes that differ.
    """
    if student.shape != anchor.shape:
        raise ValueError(f"embeddings of {tuple(student.shape)} and {tuple(anchor.shape)} cannot be compared")
    return (student.float() - anchor.detach().float()).square().sum(dim=1).mean()


@dataclass(frozen=True)
class EmbeddingLoss:
    """L = H(y, P_s) + lambda * |e_s - e_t|^2 (our form): an `rco.objectives.Objective` of outputs with embeddings.

    Args:
        lambda_: weight of the mimic term, used as it is. The distance grows with d: with embeddings as ours, of unit variance a
            component, unrelated ones are 2 d apart.
    """

    lambda_: float

    def __call__(self, student_out: Any, anchor_out: Any, labels: Tensor) -> dict[str, Tensor]:
        """The parts of the loss.

        Args:
            student_out: with `logits` (B, K) and `embeddings` (B, d).
            anchor_out: with `embeddings` (B, d).
            labels: (B,).
        """
        if anchor_out is None:
            raise ValueError("the embedding loss needs an anchor")
        return {
            "label_loss": F.cross_entropy(student_out.logits.float(), labels),
            "mimic_loss": self.lambda_ * mimic_embedding(student_out.embeddings, anchor_out.embeddings),
        }
