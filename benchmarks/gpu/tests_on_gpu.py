"""What has never run on a GPU: data, augmentation, precisions, resume, kept logits, evaluation, every objective and network.

Each check is a function of the device: it raises AssertionError if something is wrong, and returns what it has seen. They need
no pytest; `tests/release/test_gpu_benchmark.py` runs them on a CPU, and on a GPU where there is one.
"""

from __future__ import annotations

import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine
from torch import Tensor, nn

from benchmarks.gpu.common import TESTS, Part, calibrated, digits, reason, said, synthetic
from benchmarks.gpu.graphs import CompiledTrainer, GraphedTrainer
from benchmarks.gpu.steps import compiler
from rco.core.errors import DivergenceError
from rco.data.augmentation import AUGMENTATIONS
from rco.data.config import DataConfig
from rco.data.dataset import Dataset, Split
from rco.data.prepare import prepare
from rco.data.sources.kinds import source_digest
from rco.evaluation.classification import evaluate
from rco.evaluation.cost import count_macs, latency
from rco.models.build import build_network, network_names
from rco.models.config import ModelConfig
from rco.models.predict import predict
from rco.models.route import Route
from rco.models.spec import NetworkSpec, load_network, save_network
from rco.objectives.base import OBJECTIVES
from rco.objectives.config import ObjectiveConfig
from rco.objectives.stage import StageLoss, labels_only
from rco.strategies.base import STRATEGIES
from rco.strategies.config import AnchorConfig
from rco.training.anchor import LiveAnchor, StoredLogits
from rco.training.config import ComputeConfig, TrainConfig
from rco.training.device import autocast, hardware, prepare_process, resolve
from rco.training.distillation import ProbeTargets, distill_route, probe_logits, train_stage
from rco.training.loop import Trainer, fit
from rco.training.resume_points import ResumePoints
from rco.training.teacher import train_teacher

CHECKS: list[Callable[[Part], str]] = []
_TRAIN = TrainConfig.of(epochs=2, batch_size=128, lr=0.05, augment="shift", schedule="constant")


def check(function: Callable[[Part], str]) -> Callable[[Part], str]:
    """List a check."""
    CHECKS.append(function)
    return function


def settings(part: Part, precision: str = "fp32") -> ComputeConfig:
    return ComputeConfig(device=part.device, precision=precision, threads=torch.get_num_threads(), workers=0)


def small(data: Dataset, name: str = "digits-cnn-s", seed: int = 0, embedding_dim: int = 0) -> nn.Module:
    return NetworkSpec.of(ModelConfig(model=name, embedding_dim=embedding_dim), data.manifest).build(seed)


def largest(a: Any, b: Any) -> float:
    """The largest difference, relative to the largest number of `a`, that one at least 1."""
    a, b = (np.asarray(x.detach().float().cpu() if isinstance(x, Tensor) else x, np.float64) for x in (a, b))
    return float(np.abs(a - b).max() / max(1.0, np.abs(a).max()))


def differ(a: nn.Module, b: nn.Module) -> float:
    """The largest difference between the weights of two networks, as `largest`."""
    theirs = b.state_dict()
    return max(largest(tensor, theirs[name]) for name, tensor in a.state_dict().items())


# --- data -------------------------------------------------------------------------------------------------------------------


@check
def auto_means_this_device(part: Part) -> str:
    compute = resolve(ComputeConfig())
    if part.on_gpu:
        assert (compute.device, compute.precision) == ("cuda", "bf16"), compute
    prepare_process(settings(part))
    return f"{compute.device}, {compute.precision}, {hardware(settings(part))}"


@check
def batches_are_those_of_the_cpu(part: Part) -> str:
    worst = 0.0
    colour = synthetic(part.scratch / "few", 96, 20, 20)
    for data in (digits(part), colour):
        for kind in AUGMENTATIONS:
            for view in (None, 1):
                worst = max(worst, _batches_differ(data.split("val"), part.device, kind, view))
    assert worst < 1e-4, worst
    return f"5 augmentations, fresh and by view: at most {worst:.1e} apart"


def _batches_differ(split: Split, device: str, kind: str, view: int | None) -> float:
    told = {"seed": 3, "epoch": 2, "augment": kind, "view": view}
    on_cpu, moved = (list(split.indexed_batches(40, device=where, **told)) for where in ("cpu", device))  # type: ignore[arg-type]
    worst = 0.0
    for (x, y, rows), (x_there, y_there, rows_there) in zip(on_cpu, moved, strict=True):
        assert x_there.device.type == y_there.device.type == device
        assert torch.equal(y, y_there.cpu())
        assert np.array_equal(rows, rows_there)
        worst = max(worst, float((x - x_there.cpu()).abs().max()))
    return worst


@check
def files_are_decoded_for_it(part: Part) -> str:
    from PIL import Image

    rng, folder = np.random.default_rng(0), part.scratch / "files"
    for i in range(60):
        place = folder / "images" / f"class{i % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(place / f"{i}.png")
    config = DataConfig(dataset=str(folder / "images"), in_memory_gib=0)
    prepare(config, folder / "prepared", source_digest(config))
    data = Dataset.open(folder / "prepared")
    assert data.manifest.storage == "files"
    worst = _batches_differ(data.split("train"), part.device, "crop-flip", None)
    assert worst < 1e-4, worst
    return f"by worker processes, at most {worst:.1e} apart"


@check
def no_step_waits_for_the_device(part: Part) -> str:
    """Epochs of 10 and of 40 steps wait equally often: what waits is the epoch, not the step."""
    if not part.on_gpu:
        return "a CPU is never waited for: nothing is seen"
    seen = {}
    for steps in (10, 40):
        data = synthetic(part.scratch / f"steps{steps}", steps * 16, 20, 20)
        for kept in (False, True):
            teacher, student = small(data, "resnet8", 0), small(data, "resnet8", 1)
            compute, loss = settings(part, "bf16"), StageLoss(ObjectiveConfig())
            config = TrainConfig.of(epochs=9, batch_size=16, augment="crop-flip", schedule="constant")
            split = data.split("train")
            anchor: Any = LiveAnchor(teacher, data.manifest.image_shape, part.device)
            if kept:
                anchor = StoredLogits(anchor=teacher, train=split, augment="crop-flip", views=1, compute=compute, batch_size=16)
            rows = fit(student, split, loss, config, compute, epochs=9, anchor=anchor)
            next(rows)
            with _waits() as noted:
                next(rows)
            seen[kept, steps] = noted
    for kept in (False, True):
        few, many = seen[kept, 10], seen[kept, 40]
        assert len(few) == len(many), f"{len(few)} waits in 10 steps, {len(many)} in 40: {sorted(set(many))}"
    return f"{len(seen[False, 40])} waits an epoch, {len(seen[True, 40])} with kept logits, whatever the number of steps"


@contextmanager
def _waits() -> Iterator[list[str]]:
    """Note where the program waits for the device."""
    noted: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield noted
        finally:
            torch.cuda.set_sync_debug_mode("default")
            noted += [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)]


# --- training ---------------------------------------------------------------------------------------------------------------


@check
def fp32_trains_as_on_the_cpu(part: Part) -> str:
    data = digits(part)
    losses = [
        [row["loss"] for row in fit(small(data), data.split("train"), labels_only(), _TRAIN, compute, epochs=2)]
        for compute in (settings(part), replace(settings(part), device="cpu"))
    ]
    apart = largest(losses[1], losses[0])
    assert apart < 0.05, losses
    return f"loss of two epochs {apart:.1e} apart"


@check
def bf16_trains_as_fp32(part: Part) -> str:
    data, losses = digits(part), {}
    split = data.split("train")
    name = "digits-cnn-s" if part.smoke else "digits-cnn-l"  # most CPUs emulate bf16
    for precision in ("fp32", "bf16"):
        teacher, student = small(data, name, 1), small(data)
        compute, seen = settings(part, precision), set[torch.dtype]()
        student.register_forward_hook(lambda m, i, o, seen=seen: seen.add(o.dtype))
        anchor = LiveAnchor(teacher, data.manifest.image_shape, part.device)
        loss = StageLoss(ObjectiveConfig())
        rows = list(fit(student, split, loss, _TRAIN, compute, epochs=2, anchor=anchor))
        assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}, seen
        assert all(p.dtype is torch.float32 and p.isfinite().all() for p in student.parameters())
        losses[precision] = [row["loss"] for row in rows]
    apart = largest(losses["fp32"], losses["bf16"])
    assert apart < 0.1, losses
    return f"loss of two epochs {apart:.1e} apart; weights stay float32"


class _Cut(ResumePoints):
    """Resume points of a training that is stopped after so many steps."""

    steps = 0

    def due(self) -> bool:
        self.steps -= 1
        if self.steps == 0:
            import signal

            self.stopping = signal.SIGTERM
        return super().due()


class _WithDropout(nn.Sequential):
    """A network whose training draws random numbers on the device."""

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            super().__init__(
                nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(512, 10)
            )


@check
def resume_goes_on_where_it_was(part: Part) -> str:
    """A training that is stopped within an epoch and at the end of one ends as the one that was not."""
    data = digits(part)
    config, compute, split = replace(_TRAIN, epochs=4), settings(part), data.split("train")
    steps = split.num_batches(config.batch_size)

    def train(network: nn.Module, points: ResumePoints | None) -> None:
        for _ in fit(network, split, labels_only(), config, compute, epochs=4, checkpointer=points):
            pass

    with _deterministic():
        whole = _WithDropout()
        train(whole, None)
        ended: list[float] = []
        for cut in (steps + 3, 2 * steps):
            folder, identity = str(part.scratch / f"points{cut}"), {"training": cut}
            points = _Cut(folder, identity, every=10**6)
            points.steps = cut
            try:
                train(_WithDropout(), points)
                raise AssertionError("it was not stopped")
            except SystemExit:
                pass
            on = _WithDropout(seed=1)
            train(on, ResumePoints(folder, identity, every=10**6))
            ended.append(differ(whole, on))
            # What a GPU has saved, a CPU can read.
            trainer = Trainer(
                _WithDropout(seed=2),
                split,
                labels_only(),
                config,
                replace(compute, device="cpu"),
                epochs=4,
                first_epoch=1,
                anchor=None,
            )
            trainer.attach(ResumePoints(folder, identity, every=10**6))
            assert (trainer.progress.epoch - 1) * steps + trainer.progress.batches == cut
    assert max(ended) < 1e-3, ended
    return "bit for bit" if not any(ended) else f"weights at most {max(ended):.1e} apart"


@contextmanager
def _deterministic() -> Iterator[None]:
    """Kernels that repeat bit for bit, where there are any. cuBLAS reads its variable when it starts: see `__main__`."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@check
def divergence_is_told(part: Part) -> str:
    data = digits(part)
    config = TrainConfig.of(epochs=2, batch_size=128, lr=1e9, schedule="constant")
    try:
        list(fit(small(data), data.split("train"), labels_only(), config, settings(part, "bf16"), epochs=2))
    except DivergenceError as error:
        return reason(error)[:80]
    raise AssertionError("a learning rate of 1e9 went unnoticed")


@check
def kept_logits_are_the_live_ones(part: Part) -> str:
    data = digits(part)
    split, teacher = data.split("train"), small(data, "digits-cnn-l", 1)
    teacher = calibrated(teacher, data.manifest.image_shape, part.device)
    told: dict[str, Any] = {"train": split, "augment": "shift", "views": 2, "batch_size": 100, "anchor_id": "0" * 64}
    compute = settings(part)
    stored = StoredLogits(anchor=teacher, compute=compute, folder=part.scratch / "logits", **told)
    live = LiveAnchor(teacher, data.manifest.image_shape, part.device)
    worst = 0.0
    for epoch in (1, 2):
        view = stored.prepare_epoch(epoch)
        batches = split.indexed_batches(64, device=part.device, seed=0, epoch=epoch, augment="shift", view=view)
        for x, _, rows in batches:
            kept = stored.output(x, rows, view).logits
            assert kept.device.type == part.device
            worst = max(worst, largest(live.output(x, rows, view).logits, kept))
    again = StoredLogits(anchor=teacher, compute=compute, folder=part.scratch / "logits", **told)
    assert again.prepare_epoch(1) == 0
    assert (stored.computed, again.computed) == (2, 0), "the file of logits was not found"
    assert again.logits(0, np.arange(3)).device.type == part.device
    assert worst < 1e-2, worst
    student = small(data)
    rows = list(fit(student, split, StageLoss(ObjectiveConfig(views=2)), _TRAIN, compute, epochs=2, anchor=again))
    assert rows[1]["loss"] < rows[0]["loss"], rows
    return f"at most {worst:.1e} apart (float16), found again by the next"


@check
def every_objective_steps(part: Part) -> str:
    data = digits(part)
    own: dict[str, dict[str, Any]] = {
        "hint": {"student_tap": "0", "teacher_tap": "0"},
        "at": {"student_tap": "0", "teacher_tap": "0"},
        "embedding": {"lam": "1"},
    }
    names = [cls.plugin_name for cls in OBJECTIVES]
    for name in names:
        size = 16 if name == "embedding" else 0
        teacher, student = small(data, "digits-cnn-l", 1, size), small(data, "digits-cnn-s", 0, size)
        if size:
            taps: dict[str, Any] = {}
        else:
            taps = {key: _first_convolution(n) for key, n in (("student_tap", student), ("teacher_tap", teacher))}
        told = own.get(name, {})
        config = ObjectiveConfig.of(objective=name, **told | {key: taps[key] for key in told if key in taps})
        before = {key: tensor.clone() for key, tensor in student.state_dict().items()}
        precision = "bf16" if part.on_gpu else "fp32"
        (row,) = _stage(student, teacher, data, config, settings(part, precision))
        assert np.isfinite(row["loss"]), row
        assert any(not torch.equal(before[key], tensor.cpu()) for key, tensor in student.state_dict().items())
    return ", ".join(names)


def _first_convolution(network: nn.Module) -> str:
    return next(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


def _stage(
    student: nn.Module, teacher: nn.Module, data: Dataset, config: ObjectiveConfig, compute: ComputeConfig
) -> list[dict[str, Any]]:
    logits = probe_logits(teacher.to(compute.device), data, compute)
    targets, train = ProbeTargets(logits, logits), replace(_TRAIN, epochs=1)
    return list(train_stage(student, teacher, data, config, train, compute, targets, stage=1, epochs=1, first_epoch=1))


@check
def routes_are_trained_and_walked(part: Part) -> str:
    data, folder = digits(part), part.scratch / "route"
    compute = settings(part, part.precision)
    spec = NetworkSpec.of(ModelConfig(model="digits-cnn-s" if part.smoke else "digits-cnn-l"), data.manifest)
    train = TrainConfig.of(epochs=4, batch_size=128, milestones=(2, 3))
    list(train_teacher(data, spec, train, compute, checkpoint_every=1, folder=folder))
    route = Route.open(folder)
    route.verify()
    point = route.checkpoints[-1]
    network = load_network(folder / point.file, expected_sha256=point.sha256, spec=spec)
    assert all(p.device.type == "cpu" for p in network.parameters()), "a checkpoint of a GPU asks for one"
    told: dict[str, dict[str, Any]] = {"explicit": {"anchor_epochs": (2, 4)}}
    names = ["greedy"] if part.smoke else [cls.plugin_name for cls in STRATEGIES]
    for name in names:
        anchors = AnchorConfig.of(strategy=name, **told.get(name, {}))
        rows = list(distill_route(small(data), route, data, anchors=anchors, train=_TRAIN, compute=compute))
        assert all(np.isfinite([row["loss"], row["kl_to_teacher"]]).all() for row in rows), rows
    return ", ".join(names)


@check
def graphs_train_as_the_loop(part: Part) -> str:
    return _trains_as_the_loop(part, GraphedTrainer, compiled=False, most=1e-2)


@check
def compiled_networks_train_as_the_loop(part: Part) -> str:
    return _trains_as_the_loop(part, CompiledTrainer, compiled=True, most=5e-2)


def _trains_as_the_loop(part: Part, kind: type[Trainer], *, compiled: bool, most: float) -> str:
    data = digits(part)
    epochs, losses, networks = 2, [], []
    for trial in (False, True):
        teacher, student = small(data, "digits-cnn-l", 1), small(data)
        anchor = LiveAnchor(teacher, data.manifest.image_shape, part.device)
        if trial and compiled:
            for network in (student, anchor.network):
                network.compile(**compiler(part))
        told = (student, data.split("train"), StageLoss(ObjectiveConfig()), _TRAIN, settings(part))
        trainer = (kind if trial else Trainer)(*told, epochs=epochs, first_epoch=1, anchor=anchor)
        losses.append([row["loss"] for row in trainer.epochs()])
        networks.append(student)
    apart = largest(losses[0], losses[1])
    assert apart < most, losses
    return f"loss of two epochs {apart:.1e} apart, weights {differ(*networks):.1e}"


# --- networks and evaluation ------------------------------------------------------------------------------------------------


@check
def evaluation_is_that_of_the_cpu(part: Part) -> str:
    data = digits(part)
    network = small(data)
    list(fit(network, data.split("train"), labels_only(), _TRAIN, settings(part), epochs=2))
    there = {p: predict(network, data.split("test"), device=part.device, precision=p) for p in ("fp32", "bf16")}
    figures = evaluate(network, data.split("test"), num_classes=10, device=part.device, precision="bf16")
    speed = latency(network, data.manifest.image_shape, device=part.device, seconds=0.2)
    macs = count_macs(network, data.manifest.image_shape)
    network.cpu()
    logits, labels = predict(network, data.split("test"))
    apart = {p: largest(logits, found) for p, (found, _) in there.items()}
    assert all(np.array_equal(labels, found) for _, found in there.values())
    assert apart["fp32"] < 1e-2, apart
    assert apart["bf16"] < 5e-2, apart
    assert macs == count_macs(network, data.manifest.image_shape)
    assert speed.median_ms > 0
    assert abs(figures["accuracy"] - evaluate(network, data.split("test"), num_classes=10)["accuracy"]) <= 0.01
    return f"logits {apart['fp32']:.1e} apart in fp32, {apart['bf16']:.1e} in bf16; {speed.median_ms:.2f} ms for one image"


@check
def networks_answer_as_on_the_cpu(part: Part) -> str:
    """Forward in fp32 beside the CPU; one step in bf16 and channels_last."""
    names = [n for n in network_names() if not n.startswith("digits")]
    worst, shape = 0.0, (3, 32, 32)
    x = torch.rand(16, *shape, generator=torch.Generator().manual_seed(0))
    done = 0
    with _without_tf32():
        for name in names[:1] if part.smoke else names:
            if part.left() < 15:
                break
            worst = max(worst, _answers(name, x, part))
            assert worst < 1e-2, f"{name}: {worst:.1e} apart"
            done += 1
    return f"{done} of {len(names)} networks; logits at most {worst:.1e} apart"


def _answers(name: str, x: Tensor, part: Part) -> float:
    """How far a network's logits are from those of the CPU; it makes a step, too."""
    network = build_network(name, in_channels=3, num_classes=10, image_size=32, seed=0)
    network = calibrated(network, tuple(x.shape[1:]), "cpu", batches=2)
    with torch.no_grad():
        expected = network(x)
        network = network.to(part.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found = network(x.to(part.device).contiguous(memory_format=torch.channels_last))
    network.train()
    with autocast(settings(part, part.precision)):
        loss = network(x.to(part.device)).float().logsumexp(1).mean()
    loss.backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters()), name
    return largest(expected, found)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Convolutions and products in full float32."""
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before[0]
        torch.set_float32_matmul_precision(before[1])


@check
def weights_written_there_are_read_anywhere(part: Part) -> str:
    data = digits(part)
    spec = NetworkSpec.of(ModelConfig(model="digits-cnn-s"), data.manifest)
    network = spec.build(0).to(part.device)
    path = part.scratch / "weights.safetensors"
    digest = save_network(path, network, spec)
    again = load_network(path, expected_sha256=digest, spec=spec)
    assert differ(network, again) == 0
    return "equal"


def run(part: Part) -> bool:
    """All checks, or as many as the time allows; whether none has failed."""
    results: list[dict[str, Any]] = []
    document = {"machine": machine(part.device), "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""), "checks": results}
    failed = 0
    for function in CHECKS:
        name, started = function.__name__, time.perf_counter()
        row: dict[str, Any] = {"check": name, "outcome": "passed"}
        if part.left() < 2:
            row = {"check": name, "outcome": "skipped", "seen": "the time was spent"}
        else:
            try:
                row["seen"] = function(part)
            except Exception as error:  # one check takes no other down
                row |= {"outcome": "failed", "seen": reason(error), "traceback": traceback.format_exc()[-3000:]}
                failed += 1
        row["seconds"] = round(time.perf_counter() - started, 2)
        results.append(row)
        part.save(TESTS, document)
        said(f"  {row['outcome']:7s} {row['seconds']:6.1f} s  {name}: {row['seen']}")
    return failed == 0
