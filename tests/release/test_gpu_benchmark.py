"""`make gpu`: everything but the GPU. Its parts run here on a CPU, with nothing that its list of packages does not have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from packaging.requirements import Requirement
from PIL import Image

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import recipe, report, steps, students, tests_on_gpu
from benchmarks.gpu.common import REPORT, STEPS, STUDENTS, TESTS, Part, cifar, finished
from benchmarks.gpu.graphs import GraphedTrainer
from rco.core.errors import InputError
from rco.data.dataset import Dataset
from rco.evaluation.cost import count_macs
from rco.models.build import build_network
from rco.models.config import ModelConfig
from rco.models.spec import NetworkSpec
from rco.objectives.config import ObjectiveConfig
from rco.objectives.stage import StageLoss
from rco.training.anchor import LiveAnchor, StoredLogits
from rco.training.config import TrainConfig
from rco.training.loop import Trainer
from tests.conftest import CPU

ROOT = Path(__file__).parents[2]
LISTED = ("torch", "torchvision", "numpy", "scikit-learn", "scipy", "safetensors", "pillow", "matplotlib")
# A module that Python imports at its start, in every process of the benchmark.
BLOCKER = """
from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in BLOCKED else found(name, path, target)

PathFinder.find_spec = staticmethod(find_spec)
"""


@pytest.fixture(scope="module")
def listed_only(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which only the listed packages, and what these need, can be imported."""
    folder = tmp_path_factory.mktemp("blocker")
    needed, waiting = set[str](), list(LISTED)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in needed:
            continue
        needed.add(name)
        try:
            requirements = map(Requirement, metadata.requires(name) or [])
        except metadata.PackageNotFoundError:  # of another platform
            continue
        waiting += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    by_module = metadata.packages_distributions()
    blocked = {
        module for module, owners in by_module.items() if not {o.lower().replace("_", "-") for o in owners} & {*needed, "rco"}
    }
    (folder / "sitecustomize.py").write_text(f"BLOCKED = {sorted(blocked)}\n{BLOCKER}")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1"}


def test_the_blocker_blocks(listed_only: dict[str, str]) -> None:
    for module in ("mlflow", "kfp", "click", "rich", "yaml", "boto3", "hypothesis", "pytest"):
        done = subprocess.run([sys.executable, "-c", f"import {module}"], env=listed_only, capture_output=True, text=True)
        assert f"No module named '{module}'" in done.stderr


def test_everything_runs_with_the_listed_packages_alone(tmp_path: Path, listed_only: dict[str, str]) -> None:
    out = tmp_path / "out"
    told = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--smoke", "--out", str(out)]
    done = subprocess.run(told, cwd=ROOT, env=listed_only, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(list(out.iterdir())) <= 8
    checks = json.loads((out / TESTS).read_text())["checks"]
    assert [row["check"] for row in checks] == [check.__name__ for check in tests_on_gpu.CHECKS]
    assert {row["outcome"] for row in checks} == {"passed"}
    (pair,) = json.loads((out / STEPS).read_text())["pairs"]
    rows = {row["contender"]: row for row in pair["rows"]}
    assert {name for name, row in rows.items() if "skipped" in row} == set(steps.PEERS), rows
    assert "not installed" in rows["KD_Lib"]["skipped"]
    assert all(row["images_per_second"] > 0 for name, row in rows.items() if name not in steps.PEERS)
    assert len(finished(out / STUDENTS)) == 2
    text = (out / REPORT).read_text()
    assert "no result" in text
    assert "extrapolated" in text
    assert "from 3 measured epochs" in text


def test_the_target_is_this_command() -> None:
    told = ["make", "-n", "gpu", "PYTHON=some-python", "ARGS=--device cpu --smoke"]
    outside = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}  # make itself may run this
    done = subprocess.run(told, cwd=ROOT, env=outside, capture_output=True, text=True)
    assert done.stdout.strip() == "some-python -m benchmarks.gpu --device cpu --smoke"


# --- time -------------------------------------------------------------------------------------------------------------------


def test_what_there_is_no_time_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--minutes", "0.1", "--out", str(tmp_path)])
    assert command.main() == 0
    text = (tmp_path / REPORT).read_text()
    assert text.count("skipped: the time was spent") == len(command.SHARES)


def test_without_a_gpu_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path)])
    assert command.main() == 2
    assert "no GPU can be used" in capfd.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_part_that_does_not_end_is_ended_with_its_workers(tmp_path: Path) -> None:
    script = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, file=open(sys.argv[1], 'w'), flush=True); "
    script += "import time; time.sleep(600)"
    started, noted = time.monotonic(), tmp_path / "pid"
    words = command.watched([sys.executable, "-c", script, str(noted)], dict(os.environ), 2)
    assert "its share of the time was spent" in words
    assert time.monotonic() - started < 60
    worker, ends = Path(f"/proc/{noted.read_text().strip()}/stat"), time.monotonic() + 30
    while worker.exists() and worker.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < ends, "its worker lives"
        time.sleep(0.05)
    assert command.watched([sys.executable, "-c", "raise SystemExit(3)"], dict(os.environ), 60).startswith(
        "FAILED with status 3"
    )


def test_one_failing_check_takes_no_other_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(part: Part) -> str:
        raise AssertionError("it is wrong")

    def right(part: Part) -> str:
        return "it is right"

    part = part_of(tmp_path)
    monkeypatch.setattr(tests_on_gpu, "CHECKS", [wrong, right])
    assert not tests_on_gpu.run(part)
    rows = part.saved(TESTS)["checks"]
    assert [(row["check"], row["outcome"]) for row in rows] == [("wrong", "failed"), ("right", "passed")]
    assert "it is wrong" in report.write(part, {})
    assert tests_on_gpu.run(replace(part, ends=time.time()))
    assert {row["outcome"] for row in part.saved(TESTS)["checks"]} == {"skipped"}


# --- what is measured -------------------------------------------------------------------------------------------------------


def part_of(folder: Path, device: str = "cpu") -> Part:
    for name in ("out", "scratch"):
        (folder / name).mkdir()
    return Part(device, True, folder / "out", folder / "scratch", None, students.PLANS, time.time() + 600)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(tmp_path: Path) -> None:
    part = replace(part_of(tmp_path, "cuda"), smoke=False)
    assert tests_on_gpu.run(part), part.saved(TESTS)


@contextmanager
def no_gpu_but_its_calls(trainer: GraphedTrainer) -> Iterator[list[str]]:
    """What a capture calls, acted: it leaves weights and optimiser as they were, and a replay computes the step."""
    called: list[str] = []

    class Graph:
        def replay(self) -> None:
            called.append("replay")
            trainer._whole_step()

    @contextmanager
    def capture(graph: Graph, capture_error_mode: str) -> Iterator[None]:
        called.append("capture")
        weights, state = deepcopy(trainer.learner.state_dict()), deepcopy(trainer.optimizer.state_dict())
        yield
        trainer.learner.load_state_dict(weights)
        trainer.optimizer.load_state_dict(state)

    acted = {
        "CUDAGraph": Graph,
        "graph": capture,
        "Stream": mock.Mock(),
        "current_stream": mock.Mock(),
        "stream": lambda stream: called.append("apart") or nullcontext(),
        "synchronize": mock.Mock(),
    }
    trainer.device = mock.Mock(type="cuda")
    with mock.patch.multiple(torch.cuda, **acted):
        yield called


def test_a_graph_is_captured_once_and_replayed(digits: Path) -> None:
    data, config = Dataset.open(digits), TrainConfig.of(epochs=2, batch_size=100, lr=0.1, milestones=(1,), augment="shift")
    whole, rest = divmod(len(data.split("train")), 100)
    assert rest, "there has to be a last batch of another size"
    ended = []
    for kind in (Trainer, GraphedTrainer):
        teacher, student = (NetworkSpec.of(ModelConfig(model="digits-cnn-s"), data.manifest).build(s) for s in (0, 1))
        anchor = LiveAnchor(teacher, data.manifest.image_shape, "cpu")
        told = (student, data.split("train"), StageLoss(ObjectiveConfig()), config, CPU)
        trainer = kind(*told, epochs=2, first_epoch=1, anchor=anchor)
        if isinstance(trainer, GraphedTrainer):
            with no_gpu_but_its_calls(trainer) as called:
                list(trainer.epochs())
        else:
            list(trainer.epochs())
        ended.append(student.state_dict())
    assert called == ["apart"] * 3 + ["capture"] + ["replay"] * (2 * whole - 3)
    assert all(torch.equal(tensor, ended[1][name]) for name, tensor in ended[0].items())


@pytest.mark.parametrize("kept", [False, True])
def test_steps_of_a_graph_are_the_loops_to_the_last_bit(digits: Path, kept: bool) -> None:
    data, config = Dataset.open(digits), TrainConfig.of(epochs=3, batch_size=100, lr=0.1, milestones=(2,), augment="shift")
    split = data.split("train")
    assert len(split) % 100, "there has to be a last batch of another size"
    ended = []
    for kind in (Trainer, GraphedTrainer):
        teacher, student = (
            NetworkSpec.of(ModelConfig(model=name), data.manifest).build(seed)
            for seed, name in enumerate(("digits-cnn-s", "digits-cnn-s"))
        )
        anchor: Any = LiveAnchor(teacher, data.manifest.image_shape, "cpu")
        if kept:
            anchor = StoredLogits(anchor=teacher, train=split, augment="shift", views=2, compute=CPU, batch_size=100)
        loss = StageLoss(ObjectiveConfig(views=2 if kept else 0))
        trainer = kind(student, split, loss, config, CPU, epochs=3, first_epoch=1, anchor=anchor)
        rows = [{key: row[key] for key in ("lr", "loss", "label_loss", "mimic_loss")} for row in trainer.epochs()]
        ended.append((rows, student.state_dict()))
    assert ended[0][0] == ended[1][0]
    assert ended[0][0][0]["lr"] > ended[0][0][2]["lr"]
    assert all(torch.equal(tensor, ended[1][1][name]) for name, tensor in ended[0][1].items())


@pytest.mark.parametrize("name", ["resnet8x4", "mobilenetv2-t6-w0.5"])
def test_the_layers_arithmetic_is_the_counters(name: str) -> None:
    network = build_network(name, in_channels=3, num_classes=10, image_size=32, seed=0)
    found = steps.layers(network, (3, 32, 32))
    assert sum(flop for _, flop, _ in found) == 2 * count_macs(network, (3, 32, 32))
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    pixels = first.out_channels * (32 // first.stride[0]) ** 2
    assert found[0] == ("Conv2d", 2 * 27 * pixels, 3 * 32**2 + pixels)


def test_the_plain_loop_crops_and_flips() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8)
    padded, labels = F.pad(images, (4,) * 4), torch.arange(12)
    seen, mirrored = [], 0
    for x, y in steps.crops_and_flips(padded, labels, 5):
        assert x.shape == (5, 3, 8, 8)
        for image, label in zip(x, y.tolist(), strict=True):
            crops = [padded[label, :, i : i + 8, j : j + 8] for i in range(9) for j in range(9)]
            plain, flipped = (any(torch.equal(image, c) for c in kind) for kind in (crops, [c.flip(2) for c in crops]))
            assert plain or flipped
            mirrored += flipped and not plain
            seen.append(label)
    assert len(set(seen)) == 10, "two batches of different images"
    assert 0 < mirrored < 10


# --- recipe -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines" / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_recipes_are_read_as_yaml_reads_them(path: Path) -> None:
    assert recipe.read_recipe(path.read_text()) == yaml.safe_load(path.read_text())


def test_a_line_that_is_no_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="nested"):
        recipe.read_recipe("a: 1\n  nested: 2\n")


def test_a_tar_of_pictures_is_the_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(66):
        picture = tmp_path / "pictures" / ("test" if i % 11 == 0 else "train") / f"class{i % 3}" / f"{i}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(picture)
    with tarfile.open(tmp_path / "cifar.tar.xz", "w:xz") as tar:
        for name in ("train", "test"):
            tar.add(tmp_path / "pictures" / name, name)
    part = replace(part_of(tmp_path), smoke=False, data=tmp_path / "cifar.tar.xz")
    data, words = cifar(part)
    assert data.manifest.sizes == {"train": 54, "val": 6, "test": 6}
    assert words == "the image folder of cifar.tar.xz"
    assert cifar(part)[0].manifest == data.manifest


# --- students ---------------------------------------------------------------------------------------------------------------


def test_plans_are_settings_that_can_work() -> None:
    plans = students.read_plans(students.PLANS)
    assert {plan.data for plan in plans} == {"cifar10", "digits"}
    assert all(plan.branches and plan.seeds for plan in plans)


def test_a_plan_with_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plans.json").write_text('[{"name": "a", "data": "digits", "settings": {"taau": 4}, "branches": {"kd": {}}}]')
    with pytest.raises(InputError, match="taau"):
        students.read_plans(tmp_path / "plans.json")


@pytest.fixture
def part(tmp_path: Path) -> Part:
    return part_of(tmp_path)


def test_the_next_machine_goes_on(part: Part, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    students.run(part)
    first = (part.out / STUDENTS).read_text().splitlines()
    assert [(line["branch"], line["seed"]) for line in map(json.loads, first)] == [("kd", 0), ("rco", 0)]
    with (part.out / STUDENTS).open("a") as lines:
        lines.write('{"id": "half a li')
    (tmp_path / "next").mkdir()
    students.run(replace(part, scratch=tmp_path / "next"))
    lines = finished(part.out / STUDENTS)
    assert [line["branch"] for line in lines] == ["kd", "rco", "rco-greedy"], "what was there was trained again"
    assert len({json.dumps(line["figures"]["anchor_epochs"]) for line in lines}) > 1
    assert len({line["id"] for line in lines}) == 3
    students.run(replace(part, ends=time.time()))
    assert len(finished(part.out / STUDENTS)) == 3
    assert "all its students are there" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["cut", "other data"])
def test_a_route_that_cannot_be_used_is_trained_anew(
    part: Part, harm: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(students, "_SMOKE_STUDENTS", 0)  # the teacher alone
    students.run(part)
    kept = part.out / "route-digits.tar"
    if harm == "cut":
        kept.write_bytes(kept.read_bytes()[:4000])
    else:
        with tarfile.open(kept, "w") as tar:
            (part.scratch / "manifest.json").write_text("{}")
            tar.add(part.scratch / "manifest.json", "manifest.json")
    students.run(part)
    assert "route-digits.tar is not used, its teacher is trained anew" in capsys.readouterr().out
    with tarfile.open(kept) as tar:
        assert "manifest.json" in tar.getnames()
        assert len(tar.getnames()) > 3
