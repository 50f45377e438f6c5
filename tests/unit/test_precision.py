"""`precision = auto` on a CPU: a trial decides, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rco.models.spec import NetworkSpec
from rco.tasks.precision import _networks
from rco.tasks.validate import validate
from rco.training import precision
from rco.training.precision import Trial, cpu_computes_bf16, try_precisions
from tests.in_process import run_of, settings_of

STUDENT = NetworkSpec(model="digits-cnn-s", stem="auto", in_channels=1, num_classes=10, image_size=8)
TEACHER = NetworkSpec(model="resnet8", stem="auto", in_channels=1, num_classes=10, image_size=12)
FASTER, AS_FAST = Trial(fp32=0.012, bf16=0.010), Trial(fp32=0.0119, bf16=0.010)


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Trial]:
    """A processor with bf16, and what the trials on it will find; none is left when all were made."""
    found: list[Trial] = []
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: True)
    monkeypatch.setattr(precision, "try_precisions", lambda *asked: found.pop(0))
    monkeypatch.setenv("RCO_RESULTS", str(tmp_path / "results"))
    return found


def chosen(**parameters: object) -> set[str]:
    """The precision of all tasks."""
    settings = settings_of({"device": "cpu", **parameters})
    tasks = settings.branches["student"]
    computing = (settings.teacher, tasks.init, tasks.distill.stage, tasks.evaluate)
    assert settings.filing.parameters["precision"] == settings.teacher.compute.precision
    return {task.compute.precision for task in computing}


def test_bf16_where_it_is_a_fifth_faster(trials: list[Trial], said: Callable[[], str]) -> None:
    trials += [FASTER]
    assert chosen() == {"bf16"}
    assert "1.20 times as fast as in fp32 (10.0 ms, 12.0 ms): computing in bf16" in said()


def test_fp32_where_it_is_not(trials: list[Trial], said: Callable[[], str]) -> None:
    trials += [AS_FAST]
    assert chosen() == {"fp32"}
    assert "computing in fp32" in said()


def test_what_a_trial_has_found_stays(trials: list[Trial], tmp_path: Path) -> None:
    trials += [FASTER, AS_FAST]
    assert chosen() == chosen(seed=3, tau=2.0) == {"bf16"}
    assert trials == [AS_FAST]
    assert chosen(batch_size=33) == {"fp32"}, "of other steps it says nothing"
    assert not trials


def test_a_damaged_trial_is_made_again(trials: list[Trial], tmp_path: Path) -> None:
    trials += [FASTER, AS_FAST]
    assert chosen() == {"bf16"}
    (file,) = (tmp_path / "results").glob("*/*-trial.json")
    file.write_text('{"fp32": 1.0}')
    assert chosen() == {"fp32"}


def test_nothing_is_tried_where_nothing_is_to_be_decided(trials: list[Trial], monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(precision="fp32") == {"fp32"}
    assert chosen(precision="bf16") == {"bf16"}
    assert settings_of({"device": "cuda"}).teacher.compute.precision == "bf16"
    assert validate(run_of({"device": "cpu"})).precision == "fp32", "a look at the settings makes no trial"
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: False)
    assert chosen() == {"fp32"}


def test_a_network_that_fails_in_bf16_is_trained_in_fp32(
    trials: list[Trial], said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*asked: object) -> Trial:
        raise RuntimeError("not implemented for 'BFloat16'")

    monkeypatch.setattr(precision, "try_precisions", fails)
    assert chosen() == {"fp32"}
    assert "computing in fp32: the trial of bf16 failed (RuntimeError: not implemented for 'BFloat16')" in said()


def test_the_trial_trains_both_and_leaves_the_process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LIMIT", 0.0)
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    seen: list[torch.dtype] = []
    step = precision._Step.take

    def take(self: precision._Step) -> None:
        step(self)
        with precision.autocast(self.compute):
            seen.append(self.student(self.images).dtype)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in self.student.parameters())
        assert torch.get_num_threads() == 1

    monkeypatch.setattr(precision._Step, "take", take)
    trial = try_precisions(STUDENT, TEACHER, 64)
    assert trial.fp32 > 0
    assert trial.bf16 > 0
    assert seen == [torch.float32, torch.bfloat16] * 5
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)


def test_the_processor_says_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(words: str) -> None:
        monkeypatch.setattr(Path, "read_text", lambda path: words)

    for flag, can in (("avx512_bf16", True), ("amx_bf16", True), ("bf16", True), ("avx512f avx2", False)):
        says(f"flags\t\t: fpu sse2 {flag} movbe\n")
        assert cpu_computes_bf16() == can
    monkeypatch.setattr(precision.platform, "system", lambda: "Darwin")
    says("bf16")
    assert not cpu_computes_bf16()


def test_the_teacher_is_tried_on_images_as_it_takes_them() -> None:
    student, teacher = _networks(run_of({"student": "digits-cnn-s", "teacher_image_size": 16}))
    assert (student.model, student.image_size, teacher.model, teacher.image_size) == ("digits-cnn-s", 8, "digits-cnn-l", 16)
