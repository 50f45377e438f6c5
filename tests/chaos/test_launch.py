"""The processes of a task: started, watched, started again where that is of use, and nothing said twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rco.core.errors import DiskFullError, DivergenceError, InputError, ProcessDiedError
from rco.core.settings import jsonable
from rco.tasks import launch
from rco.tasks.launch import process_restarts
from rco.training.config import ComputeConfig
from rco.training.device import count_workers
from tests.launched import act


@pytest.fixture
def do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    def run(*attempts: str, restarts: int | None = 3, workers: int = 1) -> dict[str, Any]:
        if restarts is not None:
            monkeypatch.setenv("RCO_PROCESS_RESTARTS", str(restarts))
        monkeypatch.setenv("RCO_WORKERS_TIMEOUT", "60")
        result: dict[str, Any] = act(settings(*attempts, workers=workers), folder=tmp_path, others=[tmp_path / "x"])
        return result

    return run


def settings(*attempts: str, workers: int = 1) -> dict[str, Any]:
    return {"attempts": attempts, "compute": jsonable(ComputeConfig(device="cpu", threads=1, workers_per_task=workers))}


def begun(folder: Path, rank: int = 0) -> int:
    """How often a worker was started."""
    return len((folder / f"attempts-{rank}").read_text().splitlines())


def test_one_worker_that_is_not_to_be_restarted_is_the_task_s_own_process(do: Callable[..., dict[str, Any]]) -> None:
    assert do("return", restarts=None)["pid"] == os.getpid()
    assert do("return", "return", restarts=0)["pid"] == os.getpid()


def test_what_a_worker_returns_is_what_the_task_returns(do: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    before = dict(os.environ), [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    result = do("return")
    assert result.pop("pid") != os.getpid()
    assert result == {"attempt": 0, "others": ["x"], "number": 0.1 + 0.2}
    after = dict(os.environ), [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    before[0]["RCO_PROCESS_RESTARTS"], before[0]["RCO_WORKERS_TIMEOUT"] = "3", "60"
    assert after == before, "a launch leaves its process as it was"


class TestADeath:
    def test_is_followed_by_another_start_with_the_reason_in_words(
        self, do: Callable[..., dict[str, Any]], tmp_path: Path, said: Callable[[], str]
    ) -> None:
        assert do("point 3; die", "point 4; exit 7", "return")["attempt"] == 2
        killed = "the process was killed by SIGKILL (as when memory runs out)"
        ended = "the process has ended with exit status 7"
        assert f"{killed}; it is started again from the last resume point (1 of 3)" in said()
        assert f"{ended}; it is started again from the last resume point (2 of 3)" in said()
        told = [line.partition(" ")[2] for line in (tmp_path / "attempts-0").read_text().splitlines()]
        assert told == ["", killed, f"{killed}; {ended}"], "for MLflow"

    def test_is_followed_once_by_a_start_from_the_beginning(
        self, do: Callable[..., dict[str, Any]], tmp_path: Path, said: Callable[[], str]
    ) -> None:
        """What kills a process at once, such as too little memory, would do so for ever."""
        with pytest.raises(
            ProcessDiedError, match=r"was killed by SIGKILL .*, without a new resume point since it was started"
        ):
            do("die", "die", "return")
        assert begun(tmp_path) == 2
        assert "it is started again from the beginning (1 of 3)" in said()
        assert "died: the process was killed by SIGKILL" in said()

    def test_at_the_same_resume_point_is_the_last(self, do: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
        with pytest.raises(ProcessDiedError, match="without a new resume point"):
            do("point 3; die", "point 4; die", "die", "return")
        assert begun(tmp_path) == 3

    def test_is_the_last_if_there_were_as_many_as_allowed(self, do: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
        with pytest.raises(ProcessDiedError, match=r"after 1 restarts \(RCO_PROCESS_RESTARTS\)"):
            do("point 1; die", "point 2; die", "return", restarts=1)
        assert begun(tmp_path) == 2


class TestWords:
    """What a person must mend comes from the launcher as from the task itself, once, and is not tried again."""

    def test_of_bad_input(self, do: Callable[..., dict[str, Any]], tmp_path: Path, said: Callable[[], str]) -> None:
        with pytest.raises(InputError) as error:
            do("refuse", "return")
        assert (error.value.parameter, error.value.problem, error.value.remedy) == ("lr", "is two numbers", "Give one")
        assert said().count("is two numbers") == 1
        assert begun(tmp_path) == 1

    def test_of_a_divergence(self, do: Callable[..., dict[str, Any]], tmp_path: Path, said: Callable[[], str]) -> None:
        with pytest.raises(DivergenceError, match=r"^the loss is not a finite number. Lower lr$"):
            do("diverge", "return")
        assert said().count("diverged: the loss is not") == 1
        assert begun(tmp_path) == 1

    def test_of_a_full_disk(self, do: Callable[..., dict[str, Any]], tmp_path: Path, said: Callable[[], str]) -> None:
        with pytest.raises(DiskFullError, match=r"no space is left for what has to be written; .* MiB free"):
            do("fill", "return")
        assert said().count("disk full: no space is left") == 1
        assert begun(tmp_path) == 1


class TestSeveral:
    def test_all_are_started_again_when_one_dies(
        self, do: Callable[..., dict[str, Any]], tmp_path: Path, said: Callable[[], str], capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert do("point 1; 1:exit 9", "return", workers=2)["attempt"] == 1
        assert [begun(tmp_path, rank) for rank in (0, 1)] == [2, 2]
        assert "worker 1 of 2 has ended with exit status 9; all are started again from the last resume point (1 of 3)" in said()
        printed = capfd.readouterr()
        assert "worker 1 said last:\nsome last words\n" in printed.out
        assert "Traceback" not in printed.out + printed.err, "the others say in a line that they were lost"

    def test_one_that_takes_long_to_end_is_named_all_the_same(
        self, do: Callable[..., dict[str, Any]], said: Callable[[], str]
    ) -> None:
        """Not one that it has left alone."""
        assert do("point 1; 1:leave 7", "return", workers=2)["attempt"] == 1
        assert "worker 1 of 2 has ended with exit status 7; all are started again" in said()

    def test_what_one_of_them_refuses_is_not_tried_again(self, do: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"lr = .*: is two numbers. Give one"):
            do("1:refuse", "return", workers=2)
        assert [begun(tmp_path, rank) for rank in (0, 1)] == [1, 1]


def test_a_signal_reaches_the_workers_and_the_launcher_waits_for_them(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.launched", json.dumps(settings("wait")), str(tmp_path)],
        env={**os.environ, "RCO_PROCESS_RESTARTS": "1"},
    )
    try:
        while not (tmp_path / "waits").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
    pid = int((tmp_path / "attempts-0").read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_workers_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.launched", json.dumps(settings("wait")), str(tmp_path)],
        env={**os.environ, "RCO_PROCESS_RESTARTS": "1"},
    )
    while not (tmp_path / "waits").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    pid = int((tmp_path / "attempts-0").read_text().split()[0])
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("the worker goes on")


@pytest.mark.parametrize("text", ["-1", "many", "101", "1.5", "99999999999", "²"])
def test_restarts_that_are_not_a_number_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RCO_PROCESS_RESTARTS", text)
    with pytest.raises(InputError, match=r"RCO_PROCESS_RESTARTS = .*: is not 0 to 100"):
        process_restarts()


def test_fewer_gpus_than_workers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match=r"workers_per_task = 3: needs a GPU for each, and there are 2 here.*train\.gpus"):
        count_workers(ComputeConfig(device="cuda", workers_per_task=3))
    assert count_workers(ComputeConfig(device="cuda")) == 2
    assert count_workers(ComputeConfig(device="cuda", workers_per_task=1)) == 1
    assert count_workers(ComputeConfig(device="cpu")) == 1


def test_the_cause_is_the_first_death_not_those_that_follow() -> None:
    class Failure:
        def __init__(self, exitcode: int, timestamp: int) -> None:
            self.exitcode, self.timestamp = exitcode, timestamp

    failures: Any = {0: Failure(launch.LOST, 5), 1: Failure(143, 5), 2: Failure(-9, 6), 3: Failure(-15, 4)}
    assert launch.cause(failures)[0] == 2
    assert launch.cause({0: failures[0], 3: failures[3]})[0] == 3
