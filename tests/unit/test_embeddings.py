"""Networks that yield embeddings, the mimic loss on them, and stages that use it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rco.core.errors import InputError
from rco.core.tensors import load_state, save_model
from rco.data.dataset import Dataset
from rco.models.build import build_network, check_network, parameter_count
from rco.models.embeddings import Embedder, embedding_path
from rco.models.predict import predict
from rco.models.spec import NetworkSpec, load_network, save_network
from rco.models.taps import Output, observe
from rco.objectives.config import ObjectiveConfig
from rco.objectives.embedding import mimic_embedding
from rco.objectives.stage import labels_only
from rco.tasks.settings import Settings
from rco.training.anchor import LiveAnchor
from rco.training.config import TrainConfig
from rco.training.distillation import ProbeTargets, train_stage
from rco.training.loop import fit
from tests.conftest import CPU
from tests.in_process import changed, settings_of
from tests.losses import loss_of, route_loss

PLAIN = {"in_channels": 3, "num_classes": 5, "image_size": 32}


class Tiny(nn.Module):
    """A user's network: the embedding is named, and logits come of it."""

    def __init__(self, num_classes: int = 5, embedding_dim: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Linear(3 * 32 * 32, embedding_dim)
        self.out = nn.Linear(embedding_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.embedding(x.flatten(1)))
        return logits


class TestNetworks:
    @pytest.mark.parametrize(
        "name",
        [
            *("resnet8", "wrn-16-1", "vgg8", "mobilenetv2-t6-w0.5", "digits-cnn-s", "digits-mlp"),
            *("torchvision/resnet18", "torchvision/mobilenet_v3_small", "torchvision/densenet121"),
        ],
    )
    def test_the_embedding_goes_before_the_classifier(self, name: str) -> None:
        with_, without = build_network(name, **PLAIN, embedding_dim=6, seed=0), build_network(name, **PLAIN, seed=0)
        x = torch.randn(2, 3, 32, 32)
        logits, embeddings = observe(with_, x, embedding_path(with_))
        assert embeddings is not None
        assert (logits.shape, embeddings.shape) == ((2, 5), (2, 6))
        with pytest.raises(InputError, match="no submodule named `embedding`"):
            embedding_path(without)
        # K features less for each class, an embedding more: the count says that nothing else has changed.
        features = [m for m in without.modules() if isinstance(m, nn.Linear)][-1].in_features
        difference = (features * 6 + 6 * 5) - features * 5
        assert parameter_count(with_) - parameter_count(without) == difference
        check_network(name, **PLAIN, embedding_dim=6)

    def test_logits_are_those_of_the_embedding(self) -> None:
        network = build_network("resnet8", **PLAIN, embedding_dim=6, seed=0).eval()
        logits, embeddings = observe(network, torch.randn(4, 3, 32, 32), embedding_path(network))
        assert embeddings is not None
        torch.testing.assert_close(network.get_submodule("classifier")(embeddings), logits)

    def test_components_have_unit_variance_in_training(self) -> None:
        network = build_network("digits-cnn-s", in_channels=1, num_classes=5, image_size=8, embedding_dim=6, seed=0)
        embeddings = Embedder(network)(torch.randn(512, 1, 8, 8))
        torch.testing.assert_close(embeddings.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
        torch.testing.assert_close(embeddings.std(0), torch.ones(6), atol=2e-2, rtol=0)

    def test_a_torchvision_model_without_a_linear_end_is_refused(self) -> None:
        with pytest.raises(InputError, match="student = 'torchvision/squeezenet1_0': does not end in a linear layer"):
            check_network("torchvision/squeezenet1_0", **PLAIN, embedding_dim=6, parameter="student")

    def test_users_factories(self, monkeypatch: pytest.MonkeyPatch) -> None:
        module = ModuleType("mynets")
        asked: list[dict[str, Any]] = []

        def bare(**options: Any) -> nn.Module:
            asked.append(options)
            return nn.Sequential(nn.Flatten(), nn.Linear(3072, options["num_classes"]))

        module.Tiny, module.bare = Tiny, bare  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "mynets", module)
        check_network("mynets:Tiny", **PLAIN, embedding_dim=7)
        check_network("mynets:bare", **PLAIN)
        assert "embedding_dim" not in asked[-1], "who asks for no embedding is called as before"
        with pytest.raises(InputError, match="teacher = 'mynets:bare': has no submodule named `embedding`"):
            check_network("mynets:bare", **PLAIN, embedding_dim=7, parameter="teacher")
        module.fixed = lambda num_classes: Tiny(num_classes, 4)  # type: ignore[attr-defined]
        with pytest.raises(InputError, match=r"yields \(2, 4\) for 2 images. It must yield \(2, 7\)"):
            check_network("mynets:fixed", **PLAIN, embedding_dim=7)

    def test_the_outermost_name_counts_and_two_are_too_many(self) -> None:
        inner = nn.ModuleDict({"embedding": nn.Linear(1, 1)})
        assert embedding_path(nn.ModuleDict({"a": inner})) == "a.embedding"
        assert embedding_path(nn.ModuleDict({"a": inner, "embedding": nn.Linear(1, 1)})) == "embedding"
        with pytest.raises(InputError, match=r"several .*\(a.embedding, b.embedding\)"):
            embedding_path(nn.ModuleDict({"a": inner, "b": nn.ModuleDict({"embedding": nn.Linear(1, 1)})}))

    def test_files_say_it_only_where_there_is_one(self, tmp_path: Path) -> None:
        shape = {"stem": "auto", "in_channels": 1, "num_classes": 3, "image_size": 8}
        for size in (0, 6):
            spec = NetworkSpec(model="digits-mlp", embedding_dim=size, **shape)  # type: ignore[arg-type]
            network = spec.build(0)
            save_network(tmp_path / "x.safetensors", network, spec)
            _, metadata = load_state(tmp_path / "x.safetensors")
            assert ("embedding_dim" in metadata["network"]) == (size > 0)
            again = load_network(tmp_path / "x.safetensors")
            assert again.state_dict().keys() == network.state_dict().keys()

    def test_nothing_is_left_on_the_network(self) -> None:
        network = Tiny()
        keys = list(network.state_dict())
        embedded = Embedder(network)
        embedded(torch.zeros(1, 3, 32, 32))
        assert not network.embedding._forward_hooks
        with pytest.raises(RuntimeError):
            embedded(torch.zeros(1, 1))
        assert not network.embedding._forward_hooks, "nor after a failure"
        assert list(network.state_dict()) == keys
        assert {id(p) for p in embedded.parameters()} == {id(p) for p in network.parameters()}

    def test_an_embedding_that_forward_does_not_use_is_refused(self) -> None:
        network = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))
        network.get_submodule("1").register_module("embedding", nn.Linear(1, 1))
        with pytest.raises(InputError, match=r"tap = '1\.embedding': names a module that ran 0 times"):
            Embedder(network)(torch.zeros(1, 3, 32, 32))


class TestLoss:
    def test_is_the_formula_in_float64(self) -> None:
        rng = np.random.default_rng(0)
        student, anchor = rng.normal(size=(2, 5, 7)).astype(np.float32)
        by_hand = np.mean([sum((s - a) ** 2 for s, a in zip(*pair, strict=True)) for pair in zip(student, anchor, strict=True)])
        assert mimic_embedding(torch.tensor(student), torch.tensor(anchor)).item() == pytest.approx(by_hand, rel=1e-6)
        assert mimic_embedding(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2)).item() == 12.5

    def test_gradient_by_finite_differences(self) -> None:
        student, anchor = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(3, 4, dtype=torch.float64)
        mimic_embedding(student, anchor).backward()
        assert student.grad is not None
        for i, j in np.ndindex(3, 4):
            step = torch.zeros(3, 4, dtype=torch.float64)
            step[i, j] = 0.5
            # The loss is quadratic, so a central difference is exact; a large step keeps float32 rounding small.
            difference = mimic_embedding(student.detach() + step, anchor) - mimic_embedding(student.detach() - step, anchor)
            assert student.grad[i, j].item() == pytest.approx(difference.item(), abs=1e-5)

    def test_the_anchor_is_a_constant(self) -> None:
        student, anchor = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
        mimic_embedding(student, anchor).backward()
        assert anchor.grad is None
        assert student.grad is not None

    def test_bf16_is_compared_in_float32(self) -> None:
        assert mimic_embedding(torch.randn(3, 4).bfloat16(), torch.randn(3, 4).bfloat16()).dtype is torch.float32

    def test_sizes_must_agree(self) -> None:
        """Broadcasting (B, d) with (1, d) or (B, 1) would give a number that means nothing."""
        for shape in ((1, 4), (3, 1), (3, 5)):
            with pytest.raises(ValueError, match="cannot be compared"):
                mimic_embedding(torch.zeros(3, 4), torch.zeros(shape))

    def test_parts_add_up_to_the_loss(self) -> None:
        logits, labels = torch.randn(3, 5), torch.tensor([0, 4, 2])
        student, anchor = Output(logits, torch.randn(3, 4)), Output(torch.randn(3, 5), torch.randn(3, 4))
        parts = loss_of("embedding", lam="0.5")(student, anchor, labels)
        assert set(parts) == {"label_loss", "mimic_loss"}
        torch.testing.assert_close(parts["label_loss"], nn.functional.cross_entropy(logits, labels))
        torch.testing.assert_close(parts["mimic_loss"], 0.5 * (student.features - anchor.features).pow(2).sum() / 3)
        with pytest.raises(ValueError, match="anchor"):
            loss_of("embedding", lam="0.5")(student, None, labels)


def spec(model: str) -> NetworkSpec:
    return NetworkSpec(model=model, stem="auto", in_channels=1, num_classes=10, image_size=8, embedding_dim=6)


def trained_anchor(data: Dataset) -> nn.Module:
    """Until some epochs have passed, BatchNorm's running statistics are not those of the embeddings."""
    anchor = spec("digits-cnn-s").build(1)
    list(fit(anchor, data.split("train"), labels_only(), TrainConfig(epochs=4), CPU, epochs=4))
    return anchor


def staged(student: nn.Module, anchor: nn.Module, data: Dataset, **objective: Any) -> list[dict[str, Any]]:
    logits = np.zeros((64, 10), dtype=np.float32)
    chosen = ObjectiveConfig.of(**{"objective": "embedding", "lam": "1", **objective})
    train = TrainConfig(epochs=3, lr=0.02, batch_size=128)
    rows = train_stage(
        student, anchor, data, chosen, train, CPU, ProbeTargets(logits, logits), stage=1, epochs=3, first_epoch=1
    )
    return list(rows)


class TestStage:
    def test_the_student_comes_nearer_to_the_anchors_embeddings(self, data: Dataset) -> None:
        anchor, student = trained_anchor(data), spec("digits-mlp").build(0)
        ignorant = spec("digits-mlp").build(0)

        def distance(model: nn.Module) -> float:
            ours, theirs = (predict(Embedder(m), data.split("val"))[0] for m in (model, anchor))
            return float(((ours - theirs) ** 2).sum(axis=1).mean())

        rows = staged(student, anchor, data)
        assert rows[-1]["mimic_loss"] < rows[0]["mimic_loss"]
        staged(ignorant, anchor, data, lam="0")
        assert distance(student) < 0.5 * distance(ignorant), "labels alone do not do that"

    def test_the_anchor_stays_and_the_student_is_saved_as_itself(self, data: Dataset, tmp_path: Path) -> None:
        anchor, student = spec("digits-cnn-s").build(1).train(), spec("digits-mlp").build(0)
        before, keys = save_model(tmp_path / "a", anchor), list(student.state_dict())
        staged(student, anchor, data)
        assert save_model(tmp_path / "b", anchor) == before
        assert list(student.state_dict()) == keys

    def test_same_seed_same_weights_bit_for_bit(self, data: Dataset, tmp_path: Path) -> None:
        def digest(name: str) -> str:
            student = spec("digits-mlp").build(0)
            staged(student, spec("digits-cnn-s").build(1), data)
            return save_model(tmp_path / name, student)

        assert digest("a") == digest("b")

    def test_the_route_objective_takes_the_embedding_for_a_layer_like_any_other(self, data: Dataset, tmp_path: Path) -> None:
        ours, theirs, anchor = spec("digits-mlp").build(0), spec("digits-mlp").build(0), trained_anchor(data)
        staged(ours, anchor, data, objective="route", lam="tau^2")
        train = TrainConfig(epochs=3, lr=0.02, batch_size=128)
        live = LiveAnchor(anchor, data.manifest.image_shape, CPU.device)
        list(fit(theirs, data.split("train"), route_loss(4.0, 16.0), train, CPU, epochs=3, anchor=live))
        assert save_model(tmp_path / "a", ours) == save_model(tmp_path / "b", theirs)


def settings(**flat: Any) -> Settings:
    both = {"teacher_embedding_dim": 16, "student_embedding_dim": 16}
    return settings_of({**both, **flat})


class TestSettings:
    @pytest.mark.parametrize(
        ("flat", "words"),
        [
            ({"objective": "embeding"}, "Did you mean 'embedding'"),
            ({"objective": "embedding"}, "lam = 'tau^2': is the factor of a temperature"),
            ({"objective": "embedding", "lam": 1, "student_embedding_dim": 0}, "student_embedding_dim = 0: is not a size"),
            ({"objective": "embedding", "lam": 1, "teacher_embedding_dim": 0}, "teacher_embedding_dim = 0: is not a size"),
            ({"objective": "embedding", "lam": 1, "student_embedding_dim": 8}, "differs from teacher_embedding_dim = 16"),
            ({"student_embedding_dim": 1}, "student_embedding_dim = 1: leaves no angle"),
            ({"student_embedding_dim": -1}, "0 or more"),
            ({"open_classes": [7], "student_embedding_dim": 0}, "but open_classes needs embeddings"),
            ({"open_classes": [7, 7]}, "open_classes = ('7', '7'): names a class twice"),
            ({"open_classes": ["seven"]}, "open_classes = 'seven': is not a class of digits"),
            ({"open_classes": [10]}, "numbers from 0 to 9"),
            ({"open_classes": list(range(9))}, "leaves 1 of digits's classes"),
        ],
    )
    def test_refused_in_words(self, flat: dict[str, Any], words: str) -> None:
        with pytest.raises(InputError) as caught:
            settings(**flat)
        assert words in str(caught.value)

    def test_sizes_may_differ_where_nothing_compares_them(self) -> None:
        assert settings(open_classes=[7], student_embedding_dim=8).branches["student"].evaluate.student.embedding_dim == 8

    def test_each_setting_reaches_the_tasks_that_use_it(self) -> None:
        base = settings()

        def differ(**flat: Any) -> set[str]:
            return changed(settings(**flat), base) - {"filing"}

        assert differ(open_classes=[7, 8]) == {"data"}
        assert differ(objective="embedding", lam="1") == {"distill"}
        assert differ(teacher_embedding_dim=8) == {"teacher", "distill", "evaluate"}
        assert differ(student_embedding_dim=8) == {"init", "distill", "evaluate"}
