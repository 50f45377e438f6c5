"""Engine, teacher, stages: what training must keep true, with each known mistake of others."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rco.core.documents import read_json, write_json
from rco.core.errors import InputError
from rco.core.tensors import save_model
from rco.data.config import DataConfig, InputConfig
from rco.data.dataset import Dataset
from rco.data.prepare import prepare
from rco.data.sources.kinds import source_digest
from rco.models.predict import accuracy, predict
from rco.models.route import Route
from rco.models.spec import NetworkSpec, load_network
from rco.objectives.config import ObjectiveConfig
from rco.objectives.stage import labels_only
from rco.strategies.base import STRATEGIES
from rco.strategies.config import AnchorConfig
from rco.training.anchor import LiveAnchor
from rco.training.config import TrainConfig
from rco.training.device import require_device, resolve
from rco.training.distillation import ProbeTargets, distill_route, train_stage
from rco.training.lean import freeze
from rco.training.loop import DivergenceError, fit
from rco.training.route import adopt_route, import_route
from rco.training.teacher import train_teacher
from tests.conftest import CPU
from tests.losses import route_loss

TEACHER = NetworkSpec(model="digits-cnn-s", stem="auto", in_channels=1, num_classes=10, image_size=8)
STUDENT = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=10, image_size=8)
TRAIN = TrainConfig.of(epochs=4, lr=0.05, milestones=(2, 3), batch_size=128)
STAGE_TRAIN = TrainConfig(epochs=4, lr=0.05, batch_size=128)


@pytest.fixture(scope="module")
def route(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Route:
    folder = tmp_path_factory.mktemp("route")
    assert len(list(train_teacher(data, TEACHER, TRAIN, CPU, checkpoint_every=1, folder=folder))) == 4
    return Route.open(folder)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def run_stage(student: nn.Module, anchor: nn.Module, data: Dataset, **more: Any) -> list[dict[str, Any]]:
    logits = np.zeros((64, 10), dtype=np.float32)
    options = {"stage": 1, "epochs": 2, "first_epoch": 1, **more}
    return list(
        train_stage(student, anchor, data, ObjectiveConfig(), STAGE_TRAIN, CPU, ProbeTargets(logits, logits), **options)
    )


class TestRoute:
    def test_keeps_what_was_trained(self, route: Route, data: Dataset) -> None:
        assert route.epochs == (1, 2, 3, 4)
        assert route.decay_epochs == (2, 3)
        route.verify()
        labels, logits = route.probe()
        assert logits.shape == (4, 64, 10)
        for i, point in enumerate(route.checkpoints):
            model = load_network(route.folder / point.file, expected_sha256=point.sha256)
            answers, truth = predict(model, data.split("val"))
            assert accuracy(answers, truth) == point.val_accuracy
            probed, probe_labels = predict(model, data.probe())
            np.testing.assert_array_equal(probe_labels, labels)
            np.testing.assert_allclose(probed, logits[i], atol=1e-4)

    def test_checkpoint_before_a_decay_was_trained_with_the_higher_rate(self, route: Route) -> None:
        assert [c.lr for c in route.checkpoints] == pytest.approx([0.05, 0.05, 0.005, 0.0005])

    def test_index_has_no_weights(self, route: Route, tmp_path: Path) -> None:
        route.write_index(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "probe.safetensors"]
        assert Route.open(tmp_path).epochs == route.epochs

    @pytest.mark.parametrize("harm", ["flip", "remove"])
    def test_damage_and_loss_are_named(self, route: Route, tmp_path: Path, harm: str) -> None:
        import shutil

        shutil.copytree(route.folder, tmp_path / "r")
        victim = tmp_path / "r" / route.checkpoints[1].file
        if harm == "flip":
            content = bytearray(victim.read_bytes())
            content[-5] ^= 4
            victim.write_bytes(content)
        else:
            victim.unlink()
        with pytest.raises(InputError, match=rf"{victim.name}.*(damaged|missing)"):
            Route.open(tmp_path / "r").verify()

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda m: m["checkpoints"].reverse(), "do not increase"),
            (lambda m: m.update(format=99), "format 99"),
            (lambda m: m.pop("probe_sha256"), "not a route's manifest"),
            (lambda m: m.update(checkpoints=[]), "no checkpoints"),
            (lambda m: m["checkpoints"][0].update(file="../../etc/passwd"), "plain file name"),
            (lambda m: m["checkpoints"][0].update(surprise=1), "not a field"),
            (lambda m: m.update(network=[1]), "not a route's manifest"),
        ],
    )
    def test_manifests_that_lie_are_refused(self, route: Route, tmp_path: Path, change: Any, words: str) -> None:
        manifest = read_json(route.folder / "manifest.json")
        change(manifest)
        write_json(tmp_path / "manifest.json", manifest)
        with pytest.raises(InputError, match=words):
            Route.open(tmp_path)

    def test_import_of_foreign_checkpoints(self, route: Route, data: Dataset, tmp_path: Path) -> None:
        torch.save(load_network(route.folder / route.checkpoints[0].file).state_dict(), tmp_path / "a.pt")
        files = [(10, tmp_path / "a.pt"), (20, route.folder / route.checkpoints[3].file)]
        made = import_route(files, data, TEACHER, CPU, tmp_path / "made", decay_epochs=(10,))
        made.verify()
        assert made.epochs == (10, 20)
        assert [c.val_accuracy for c in made.checkpoints] == [route.checkpoints[i].val_accuracy for i in (0, 3)]
        _, logits = made.probe()
        np.testing.assert_allclose(logits, route.probe()[1][[0, 3]], atol=1e-4)
        with pytest.raises(InputError, match=r"\[20, 10\]: must increase"):
            import_route(files[::-1], data, TEACHER, CPU, tmp_path / "other")
        with pytest.raises(InputError, match="belong to another model"):
            import_route(files[:1], data, STUDENT, CPU, tmp_path / "third")

    def test_a_failed_import_leaves_nothing(
        self, route: Route, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files = [(c.epoch, route.folder / c.file) for c in route.checkpoints]
        torch.save({"w": torch.zeros(1)}, tmp_path / "other.pt")
        before = sorted(tmp_path.rglob("*"))
        for output in (tmp_path / "new", tmp_path / "some" / "where" / "new"):
            with pytest.raises(InputError, match="belong to another model"):
                import_route([*files, (9, tmp_path / "other.pt")], data, TEACHER, CPU, output)
            assert sorted(tmp_path.rglob("*")) == before

        def fail(*_: object, **__: object) -> None:
            assert len(list(tmp_path.rglob("*.safetensors"))) == len(files)  # all weights are written
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr("rco.training.route.answers", fail)
            with pytest.raises(KeyboardInterrupt):
                import_route(files, data, TEACHER, CPU, tmp_path / "new")
        assert sorted(tmp_path.rglob("*")) == before
        (tmp_path / "empty").mkdir()
        for output in (tmp_path / "empty", tmp_path / "some" / "where" / "new"):
            made = import_route(files, data, TEACHER, CPU, output)
            made.verify()
            assert made.folder == output
            assert output.stat().st_mode & 0o777 == 0o755
            assert not [path for path in output.parent.iterdir() if path.name.startswith(".")]
        full = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match="is not empty"):
            import_route(files[:1], data, TEACHER, CPU, output)
        with pytest.raises(InputError, match="is a file"):
            import_route(files[:1], data, TEACHER, CPU, tmp_path / "other.pt")
        assert sorted(tmp_path.rglob("*")) == full

    def test_epochs_from_0_are_counted_from_1(self, route: Route, data: Dataset, tmp_path: Path) -> None:
        files = [(epoch, route.folder / route.checkpoints[0].file) for epoch in (0, 4, 9)]
        made = import_route(files, data, TEACHER, CPU, tmp_path / "made", decay_epochs=(4,))
        assert made.epochs == (1, 5, 10)
        assert made.decay_epochs == (5,)
        with pytest.raises(InputError, match="must increase, from 0 or more"):
            import_route([(-1, files[0][1])], data, TEACHER, CPU, tmp_path / "other")

    def test_what_was_done_to_foreign_names_is_said_once(
        self, route: Route, data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        for k in range(3):
            state = load_network(route.folder / route.checkpoints[k].file).state_dict()
            content = {"model": {f"module.{name}": tensor for name, tensor in state.items()}, "model_ema": state}
            torch.save(content, tmp_path / f"{k}.pt")
        files = [(k + 1, tmp_path / f"{k}.pt") for k in range(3)]
        made = import_route(files, data, TEACHER, CPU, tmp_path / "made")
        assert [c.val_accuracy for c in made.checkpoints] == [c.val_accuracy for c in route.checkpoints[:3]]
        assert caplog.messages == [
            "0.pt and 2 more: the raw weights (model) are taken; there are averaged ones, too (model_ema)",
            "0.pt and 2 more: 'module.' before every name was taken off",
        ]
        caplog.clear()
        import_route(files[:1], data, TEACHER, CPU, tmp_path / "averaged", choice="model_ema")
        assert caplog.messages == ["0.pt: the weights are averaged ones (model_ema)"]

    def test_adopted_route_is_measured_again_only_on_other_data(self, route: Route, data: Dataset, tmp_path: Path) -> None:
        copy = adopt_route(route, data, TEACHER, CPU, tmp_path / "copy")
        assert copy.checkpoints == route.checkpoints
        assert copy.probe_sha256 == route.probe_sha256
        with pytest.raises(InputError, match="is a route of"):
            adopt_route(route, data, STUDENT, CPU, tmp_path / "wrong")

    def test_a_route_adopted_on_other_data_shows_no_curve_of_the_old(self, route: Route, tmp_path: Path) -> None:
        config = DataConfig(data_seed=1, probe_size=32)
        prepare(config, tmp_path / "data", source_digest(config))
        other = Dataset.open(tmp_path / "data")
        adopted = adopt_route(route, other, TEACHER, CPU, tmp_path / "adopted")
        assert route.history
        assert not adopted.history
        assert adopted.data_digest == other.manifest.digest
        assert adopted.probe()[1].shape == (4, 32, 10)
        assert [c.sha256 for c in adopted.checkpoints] == [c.sha256 for c in route.checkpoints]
        assert [c.val_accuracy for c in adopted.checkpoints] != [c.val_accuracy for c in route.checkpoints]

    def test_a_teacher_is_fed_as_it_was_trained(
        self, route: Route, data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logging.getLogger("rco"), "propagate", True)
        caplog.set_level(logging.INFO, "rco")
        fed = (data.manifest.mean, data.manifest.std)
        assert (route.mean, route.std) == fed
        adopt_route(route, data, TEACHER, CPU, tmp_path / "alike")
        assert "is fed" not in caplog.text
        config = DataConfig(image_mean=("0.5",), image_std=("0.25",), probe_size=32)
        prepare(config, tmp_path / "data", source_digest(config))
        other = Dataset.open(tmp_path / "data")
        adopted = adopt_route(route, other, TEACHER, CPU, tmp_path / "adopted")
        (mean,), (std,) = fed
        words = f"mean {mean:.4g} and deviation {std:.4g} (the student: mean 0.5 and deviation 0.25)"
        assert f"the route's teacher is fed as it was trained: {words}" in caplog.text
        assert (adopted.mean, adopted.std) == fed
        before, after = (made.checkpoints[-1].val_accuracy for made in (route, adopted))
        assert after == pytest.approx(before, abs=1e-6), "of the same images it says the same"
        asked = InputConfig(image_mean=(str(mean),), image_std=("0.25",))
        with pytest.raises(InputError, match=r"teacher_image_std = \['0.25'\]: is not what the route's teacher was"):
            adopt_route(route, other, TEACHER, CPU, tmp_path / "refused", asked=asked)

    def test_a_route_of_before_the_normalisation_was_written(self, route: Route, data: Dataset, tmp_path: Path) -> None:
        shutil.copytree(route.folder, tmp_path / "old")
        manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
        assert (manifest.pop("mean"), manifest.pop("std")) == (list(route.mean), list(route.std))
        (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
        old = Route.open(tmp_path / "old")
        assert (old.mean, old.std) == ((), ())
        assert adopt_route(old, data, TEACHER, CPU, tmp_path / "copy").checkpoints == route.checkpoints
        (tmp_path / "old" / "manifest.json").write_text(json.dumps({**manifest, "mean": [0.5, 0.5, 0.5], "std": [0.2]}))
        with pytest.raises(InputError, match="not of 1 channels"):
            Route.open(tmp_path / "old")


class TestStage:
    def test_anchor_is_the_same_to_the_last_bit_after_a_stage(self, route: Route, data: Dataset, tmp_path: Path) -> None:
        """Left in training mode, an anchor's BatchNorm statistics drift; left unfrozen, it learns."""
        anchor = load_network(route.folder / route.checkpoints[-1].file).train().requires_grad_(True)
        assert any(isinstance(m, nn.BatchNorm2d) for m in anchor.modules()), "the test needs statistics that could drift"
        before = save_model(tmp_path / "before.safetensors", anchor)
        student = STUDENT.build(0)
        initial = state(student)
        run_stage(student, anchor, data)
        assert save_model(tmp_path / "after.safetensors", anchor) == before
        assert all(p.grad is None and not p.requires_grad for p in anchor.parameters())
        assert not anchor.training
        assert not same(initial, state(student)), "the student did learn"

    def test_optimiser_and_schedule_restart_at_every_stage(self, route: Route, data: Dataset) -> None:
        config = AnchorConfig.of(strategy="equal-interval", n_anchors=2)
        rows = list(
            distill_route(STUDENT.build(0), route, data, anchors=config, train=TrainConfig(epochs=8, lr=0.1), compute=CPU)
        )
        assert [row["lr"] for row in rows] == pytest.approx([0.1, 0.1, 0.01, 0.001] * 2)
        assert [row["epoch"] for row in rows] == list(range(1, 9))
        assert [row["stage"] for row in rows] == [1] * 4 + [2] * 4

    def test_momentum_does_not_leak_into_the_next_stage(self, route: Route, data: Dataset) -> None:
        anchor = load_network(route.folder / route.checkpoints[0].file)
        student = STUDENT.build(0)
        run_stage(student, anchor, data)
        twin = STUDENT.build(0)
        twin.load_state_dict(student.state_dict())
        run_stage(student, anchor, data, stage=2, first_epoch=3)
        run_stage(twin, anchor, data, stage=2, first_epoch=3)
        assert same(state(student), state(twin)), "a stage depends on weights alone"

    def test_each_stage_starts_where_the_last_one_ended(self, route: Route, data: Dataset) -> None:
        walked = STUDENT.build(0)
        rows = list(
            distill_route(
                walked,
                route,
                data,
                anchors=AnchorConfig.of(strategy="explicit", anchor_epochs=(1, 4)),
                train=TrainConfig(epochs=4, batch_size=128),
                compute=CPU,
            )
        )
        by_hand = STUDENT.build(0)
        for stage, point in ((1, route.checkpoints[0]), (2, route.checkpoints[3])):
            options = {"stage": stage, "epochs": 2, "first_epoch": 2 * stage - 1}
            logits = np.zeros((64, 10), dtype=np.float32)
            list(
                train_stage(
                    by_hand,
                    load_network(route.folder / point.file),
                    data,
                    ObjectiveConfig(),
                    TrainConfig(epochs=4, batch_size=128),
                    CPU,
                    ProbeTargets(logits, logits),
                    **options,
                )
            )
        assert same(state(walked), state(by_hand))
        assert [row["anchor_epoch"] for row in rows] == [1, 1, 4, 4]

    @pytest.mark.parametrize("strategy", [name for name in STRATEGIES.names if name != "explicit"])
    def test_every_strategy_meets_the_converged_teacher_and_never_runs_off_the_route(
        self, route: Route, data: Dataset, strategy: str
    ) -> None:
        config = AnchorConfig.of(strategy=strategy, **({"members": 2} if strategy == "checkpoint-ensemble" else {}))
        train = TrainConfig(epochs=13, batch_size=512)  # more epochs than checkpoints
        rows = list(distill_route(STUDENT.build(0), route, data, anchors=config, train=train, compute=CPU))
        assert not config.strategy.ends_at_teacher or rows[-1]["anchor_epoch"] == 4
        assert len(rows) == 13

    def test_a_route_cannot_name_code_to_run(self, route: Route, data: Dataset) -> None:
        forged = replace(route, network=replace(route.network, model="canary_of_routes:factory"))
        with pytest.raises(InputError, match=r"teacher = 'canary_of_routes:factory': is code that .*Name it as teacher="):
            next(iter(distill_route(STUDENT.build(0), forged, data, compute=CPU)))
        with pytest.raises(InputError, match=r"canary_of_routes cannot be imported"):
            next(iter(distill_route(STUDENT.build(0), forged, data, teacher=forged.network, compute=CPU)))

    def test_stage_learns_from_its_anchor_not_from_the_last_one(self, route: Route, data: Dataset) -> None:
        early, late = (load_network(route.folder / route.checkpoints[i].file) for i in (0, 3))
        a, b = STUDENT.build(0), STUDENT.build(0)
        run_stage(a, early, data)
        run_stage(b, late, data)
        assert not same(state(a), state(b))

    def test_test_part_is_not_opened(self, digits: Path, route: Route, tmp_path: Path) -> None:
        """Choosing a student on the test part is the mistake; not having it at hand is the cure."""
        import shutil

        shutil.copytree(digits, tmp_path / "data")
        (tmp_path / "data" / "test.safetensors").unlink()
        without = Dataset.open(tmp_path / "data")
        list(train_teacher(without, TEACHER, TrainConfig(epochs=1), CPU, checkpoint_every=1, folder=tmp_path / "route"))
        student = STUDENT.build(0)
        rows = list(
            distill_route(
                student,
                Route.open(tmp_path / "route"),
                without,
                anchors=AnchorConfig.of(n_anchors=1),
                train=TrainConfig(epochs=1),
                compute=CPU,
            )
        )
        assert len(rows) == 1

    def test_last_epoch_is_handed_on_not_the_best(self, route: Route, data: Dataset) -> None:
        student = STUDENT.build(0)
        anchor = load_network(route.folder / route.checkpoints[-1].file)
        logits = np.zeros((64, 10), dtype=np.float32)
        stage = train_stage(
            student,
            anchor,
            data,
            ObjectiveConfig(),
            STAGE_TRAIN,
            CPU,
            ProbeTargets(logits, logits),
            stage=1,
            epochs=3,
            first_epoch=1,
        )
        seen = [state(student) for _ in stage]
        assert same(seen[-1], state(student))
        assert not same(seen[0], seen[1])


class TestEngine:
    def test_same_seed_same_weights_bit_for_bit(self, data: Dataset) -> None:
        def trained(seed: int) -> dict[str, Tensor]:
            model = TEACHER.build(seed)
            config = TrainConfig(epochs=2, seed=seed, augment="shift")
            list(fit(model, data.split("train"), labels_only(), config, CPU, epochs=2))
            return state(model)

        first = trained(3)
        torch.rand(7)  # the caller's random numbers are no part of it
        assert same(first, trained(3))
        assert not same(first, trained(4))

    def test_lambda_zero_is_training_on_labels(self, data: Dataset, route: Route) -> None:
        anchor = load_network(route.folder / route.checkpoints[-1].file)
        a, b = STUDENT.build(0), STUDENT.build(0)
        live = LiveAnchor(anchor, data.manifest.image_shape, CPU.device)
        list(fit(a, data.split("train"), route_loss(4.0, 0.0), STAGE_TRAIN, CPU, epochs=1, anchor=live))
        list(fit(b, data.split("train"), labels_only(), STAGE_TRAIN, CPU, epochs=1))
        for name, tensor in a.state_dict().items():
            torch.testing.assert_close(tensor, b.state_dict()[name])

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_matches_a_loop_written_out(self, data: Dataset, optimizer: str) -> None:
        """The loop of any textbook, on the same batches, gives the same weights."""
        config = TrainConfig.of(epochs=2, lr=0.01, batch_size=256, optimizer=optimizer, schedule="constant")
        ours, theirs = STUDENT.build(0), STUDENT.build(0)
        list(fit(ours, data.split("train"), labels_only(), config, CPU, epochs=2))
        made = (
            torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
            if optimizer == "sgd"
            else torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=5e-4)
        )
        for epoch in (1, 2):
            for x, y in data.split("train").batches(256, seed=0, epoch=epoch):
                made.zero_grad()
                torch.nn.functional.cross_entropy(theirs(x), y).backward()
                made.step()
        for name, tensor in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-4, atol=1e-6)

    def test_divergence_says_where(self, data: Dataset) -> None:
        config = TrainConfig.of(epochs=1, lr=1e12, schedule="constant")
        with pytest.raises(DivergenceError, match=r"label_loss is .* in epoch 1 .*Lower lr"):
            list(fit(STUDENT.build(0), data.split("train"), labels_only(), config, CPU, epochs=1))

    def test_bf16_trains_and_keeps_float32_weights(self, data: Dataset) -> None:
        import dataclasses

        model = TEACHER.build(0)
        rows = list(
            fit(model, data.split("train"), labels_only(), STAGE_TRAIN, dataclasses.replace(CPU, precision="bf16"), epochs=2)
        )
        assert rows[1]["loss"] < rows[0]["loss"]
        assert all(p.dtype is torch.float32 for p in model.parameters())

    def test_freeze_stops_gradients_and_statistics(self) -> None:
        model = freeze(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))
        before = state(model)
        model(torch.randn(4, 1, 8, 8))
        assert same(before, state(model))

    def test_auto_is_resolved(self) -> None:
        from rco.training.config import ComputeConfig

        resolved = resolve(ComputeConfig())
        assert resolved.device in ("cpu", "cuda")
        assert resolved.precision == ("bf16" if resolved.device == "cuda" else "fp32")
        assert resolved.threads >= 1
        if not torch.cuda.is_available():
            with pytest.raises(InputError, match="device = 'cuda'"):
                require_device(ComputeConfig(device="cuda"))
        assert resolve(ComputeConfig(device="cuda")).precision == "bf16", "whoever resolves need not have the GPU"


def test_memory_is_filled_outside_steps_alone(data: Dataset) -> None:
    """A network that is made of memory nobody wrote has NaN in it; a step does not pay for that."""
    fills: list[bool] = []

    class Looking(nn.Flatten):
        def forward(self, x: Tensor) -> Tensor:
            fills.append(torch.utils.deterministic.fill_uninitialized_memory)  # type: ignore[attr-defined]
            return super().forward(x)

    model = nn.Sequential(Looking(), nn.Linear(64, 10))
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for _ in fit(model, data.split("train"), labels_only(), TrainConfig(epochs=1), CPU, epochs=1):
            pass
        assert torch.empty(8).isnan().all()
    finally:
        torch.use_deterministic_algorithms(before)
    assert fills
    assert not any(fills)
