"""The settings of a network."""

from __future__ import annotations

from dataclasses import dataclass

from rco.core.errors import InputError, choice
from rco.core.settings import at_least, no_credentials, setting
from rco.models.families import packages

STEMS = ("auto", "imagenet", "small")
HEADS = ("keep", "new")
PRETRAINED = "pretrained"
_OTHERS = f" or of another package ({', '.join(packages.names())})" if packages.names() else ""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network by name. Class count, channels and image size come from the data."""

    model: str = setting(
        "digits-cnn-s", f"a model of this project{_OTHERS}, any torchvision classifier, timm/NAME, or package.module:factory"
    )
    stem: str = setting("auto", "first layers of torchvision models: imagenet | small (images up to 64 pixels) | auto")
    embedding_dim: int = setting(
        0, "size of an embedding layer before the classifier (0: none); teacher and student alike for objective = embedding"
    )

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise InputError("model", self.model, "is empty", "Name a model")
        choice("stem", self.stem, STEMS)
        at_least("embedding_dim", self.embedding_dim, 0)
        if self.embedding_dim == 1:
            raise InputError("embedding_dim", 1, "leaves no angle between two embeddings", "Give 2 or more, or 0 for none")


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """The weights that a network begins with."""

    weights: str = setting(
        "",
        "weights to begin with: a file | an s3:// address | models:/NAME/VERSION | a checkpoint of a route | pretrained "
        "(as torchvision or timm publishes them; empty: random)",
    )
    head: str = setting("keep", "last layer of these weights: keep | new (random, for other classes)")

    def __post_init__(self) -> None:
        choice("head", self.head, HEADS)
        no_credentials("weights", self.weights)
        if self.head == "new" and not self.weights:
            raise InputError("head", "new", "means nothing without weights: random ones have a new head", "Name weights, too")
