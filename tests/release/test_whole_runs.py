"""Whole local runs that go another way than the usual one: a lost cache, a task that fails, a training that diverges."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.local.run import RunFailedError
from tests import zygote
from tests.local_runs import ONE_STAGE, TINY, Ran, flags, paragraphs, shows_everything, statuses

pytestmark = pytest.mark.usefixtures("_zygote")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    return Ran(tmp_path_factory.mktemp("home"), strategy="equal-interval")


def test_without_its_cache_a_second_run_finds_what_was_trained(first: Ran) -> None:
    shutil.rmtree(first.home / "cache")
    second = Ran(first.home, strategy="equal-interval")
    assert second.cached == set()
    found = [line for line in second.lines if f"found, trained by run {first.lines[0].split()[1].rstrip(';')}" in line]
    assert len(found) == 1 + len(first.summary["stages"]), "the teacher, and every stage"
    assert not any(": epoch " in line for line in second.lines)
    shows_everything(first, second)


FACTORY = """
import torch
class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear(64, num_classes)
    def forward(self, x):
        {trap}
        return self.layer(x.flatten(1))
"""


def test_a_failing_task_fails_the_run_and_leaves_nothing_running(
    first: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = "if self.training and x.device.type != 'meta' and len(x) > 8: raise RuntimeError('trap sprung')"
    (tmp_path / "mynets.py").write_text(FACTORY.format(trap=trap))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RunFailedError, match="trap sprung"):
        Ran(first.home, student="mynets:Net", **ONE_STAGE)
    assert "RUNNING" not in statuses(first.home)
    assert "FAILED" in statuses(first.home)
    # What was done is kept: the next run goes on from there.
    (tmp_path / "mynets.py").write_text(FACTORY.format(trap="pass"))
    mended = Ran(first.home, student="mynets:Net", **ONE_STAGE)
    assert "train-teacher" in mended.cached
    assert mended.summary["student"]["model"] == "mynets:Net"


def test_a_divergence_is_one_paragraph(first: Ran) -> None:
    process = zygote.cli("run", "--home", str(first.home), *flags(TINY), "--lr=1e9")
    said = process.communicate()
    assert process.returncode == 1, said
    (paragraph,) = paragraphs(said)
    assert "is not a finite number in epoch 1 at step " in paragraph
    assert "Lower lr or lengthen warmup_epochs" in paragraph
    assert "Traceback" not in said
    assert "RUNNING" not in statuses(first.home)
