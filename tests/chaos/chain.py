"""The tasks of a small pipeline run as processes of their own, through the door that launchers use, and what they must make."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rco.config.branches import Comparison
from rco.config.parameters import RunConfig
from rco.config.shape import labels
from rco.core.files import sha256_of
from rco.tasks.preflight import preflight
from rco.tasks.settings import Settings
from rco.tasks.validate import shape_of

ROOT = Path(__file__).parents[2]
STAGES = 2
PARAMETERS: dict[str, Any] = {
    "teacher": "digits-cnn-s",
    "student": "digits-mlp",
    "teacher_epochs": 120,
    "teacher_milestones": [0.5],
    "checkpoint_every": 30,
    "epochs": 160,
    "strategy": "equal-interval",
    "n_anchors": STAGES,
    "augment": "shift",
    "device": "cpu",
    "precision": "fp32",
    "threads": 1,
    "workers": 0,
    "experiment": "chaos",
    "registered_model": "chaos",
}


COMPARED = {name: value for name, value in PARAMETERS.items() if name not in ("strategy", "registered_model")}
COMPARED |= {"branches": ["kd", "equal-interval"], "seeds": [0, 1], "epochs": 80}


def small_run() -> dict[str, Any]:
    """Parameters of a whole local run that is over soon."""
    return {**PARAMETERS, "teacher_epochs": 4, "checkpoint_every": 1, "epochs": 4, "n_anchors": 1, "registered_model": ""}


TRAINING = ("train_teacher", "distill_students")
LAUNCHER = "rco.tasks"
_VOLATILE = ("images_per_second", "time", "seconds", "origin", "latency")  # parts of names
LIMIT = 300.0  # seconds; a task that takes longer hangs


@dataclass(frozen=True)
class Step:
    """One task with its arguments.

    Attributes:
        name: unique in the chain.
        task: a function of `rco.tasks`.
        arguments: JSON; paths of inputs as text.
        outputs: arguments that name folders which the task makes.
    """

    name: str
    task: str
    arguments: Mapping[str, Any]
    outputs: Sequence[str] = ()

    @property
    def trains(self) -> bool:
        """Whether it has resume points, and models with runs of their own."""
        return self.task in TRAINING

    @property
    def trains_one(self) -> bool:
        """Whether it trains one model, not several."""
        return self.trains and len(self.arguments["settings"].get("seeds", [0])) == 1


@dataclass
class Ended:
    """A process that has ended.

    Attributes:
        code: exit status; negative: by that signal.
        text: what it printed.
        seconds: how long it took.
    """

    code: int
    text: str
    seconds: float

    @property
    def result(self) -> Any:
        """What the task returned."""
        return json.loads(self.text.strip().splitlines()[-1])

    @property
    def said(self) -> list[str]:
        """Its lines for people."""
        return [line for line in self.text.splitlines() if line.startswith("rco | ")]


def run(
    step: Step,
    folder: Path,
    environment: Mapping[str, str],
    *,
    kill_after: float | None = None,
    number: int = signal.SIGKILL,
    worker: int | None = None,
    prefix: Sequence[str] = (sys.executable, "-m"),
    module: Sequence[str] = (),
) -> Ended:
    """Run a step in `folder`, where its outputs go.

    Args:
        environment: added to this process's.
        kill_after: seconds until its process group is sent `number`.
        worker: send it to this worker of the task instead, once it is there, and wait for what comes of it.
        prefix, module: what comes before the name of the task; default: the launcher of tasks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = folder / "arguments.json"
    arguments.write_text(json.dumps({**step.arguments, **{name: str(folder / name) for name in step.outputs}}))
    began = time.monotonic()
    log = folder / f"log-{time.monotonic_ns()}.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*prefix, *(module or (LAUNCHER,)), step.task, str(arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            process.wait(LIMIT if kill_after is None else kill_after)
        except subprocess.TimeoutExpired:
            if worker is not None and kill_after is not None:
                with suppress(ProcessLookupError):
                    os.kill(worker_of(process.pid, worker), number)
                process.wait(LIMIT)
                return Ended(process.returncode, log.read_text(errors="replace"), time.monotonic() - began)
            os.killpg(process.pid, number if kill_after is not None else signal.SIGKILL)
            process.wait(60)
    return Ended(process.returncode, log.read_text(errors="replace"), time.monotonic() - began)


def worker_of(launcher: int, rank: int, patience: float = 30.0) -> int:
    """The process of a worker, once it is there.

    Raises:
        ProcessLookupError: it does not come, or the launcher has ended.
    """
    for _ in range(int(patience / 0.02)):
        children = Path(f"/proc/{launcher}/task/{launcher}/children")
        with suppress(FileNotFoundError):
            for pid in children.read_text().split():
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if b"RANK=%d" % rank in variables and b"rco.tasks.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
        time.sleep(0.02)
    raise ProcessLookupError(f"process {launcher} has no worker {rank}")


@dataclass
class Chain:
    """A run without faults: what every step is given, what it makes, and how long that takes."""

    root: Path
    settings: Settings
    steps: list[Step] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    made: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def build(cls, root: Path) -> Chain:
        """Run every step once."""
        asked = Comparison.of_run(RunConfig.from_flat(PARAMETERS))
        compiled = shape_of(asked).steps
        self = cls(root, preflight(asked))
        self._do(Step("check", "check", {"parameters": PARAMETERS, "compiled": compiled}))
        s = self.last.result
        data = self._do(Step("prepare_data", "prepare_data", {"settings": s["data"]}, ["dataset"])) / "dataset"
        given: dict[str, Any] = {"settings": s["teacher"], "dataset": str(data)}
        teacher = self._do(Step("train_teacher", "train_teacher", given, ["route", "route_index"]))
        route = {name: str(teacher / name) for name in ("route", "route_index")}
        students, evaluation = self._branch(s, "student", compiled["student"], data, route)
        given = {"settings": s["filing"], "students": students, "evaluation": evaluation}
        self._do(Step("register_student", "register_student", given))
        given = {"settings": s["filing"], "students": students, "evaluations": [evaluation], "registered": {}, **route}
        self._do(Step("report", "report", given, ["folder"]))
        self._compare(data, route)
        return self

    def _compare(self, data: Path, route: Mapping[str, str]) -> None:
        """The tasks of a comparison with the same teacher. Of its two branches only the second one's are hurt."""
        compiled = shape_of(Comparison.of(COMPARED)).steps
        self._do(Step("check-compared", "check", {"parameters": COMPARED, "compiled": compiled}))
        s = self.last.result
        named = labels(compiled)
        evaluations = [
            self._branch(s, named[key], steps, data, route, suffix=f"-{named[key]}", hurt=key == list(compiled)[-1])[1]
            for key, steps in compiled.items()
        ]
        given = {"settings": s["filing"], "evaluations": evaluations, **route}
        self._do(Step("report-compared", "report", given, ["folder"]))

    def _branch(
        self,
        s: Mapping[str, Any],
        label: str,
        steps: int,
        data: Path,
        route: Mapping[str, str],
        *,
        suffix: str = "",
        hurt: bool = True,
    ) -> tuple[str, str]:
        """One branch; returns the students that came out, and their evaluation."""

        def do(task: str, number: str, arguments: Mapping[str, Any], output: str) -> str:
            return str(self._do(Step(f"{task}{number}{suffix}", task, arguments, [output]), hurt=hurt) / output)

        students = do("init_students", "", {"settings": s[f"init_{label}"], "dataset": str(data)}, "students")
        selection: Any = {}
        for k in range(1, steps + 1):
            number = f"-{k}" if steps > 1 else ""
            given = {"settings": s[f"anchors_{label}"], "previous": selection, "last_step": k == steps, **route}
            anchors = do("select_anchors", number, {**given, "students": students}, "anchors")
            selection = self.last.result
            given = {"settings": s[f"distill_{label}"], "selection": selection, "dataset": str(data), "anchors": anchors}
            students = do("distill_students", number, {**given, "students": students}, "distilled")
        given = {"settings": s[f"evaluate_{label}"], "dataset": str(data), "students": students, "anchors": anchors}
        return students, do("evaluate_students", "", given, "evaluation")

    def _do(self, step: Step, *, hurt: bool = True) -> Path:
        folder = self.root / "reference" / step.name
        self.last = run(step, folder, {})
        if self.last.code != 0:
            raise RuntimeError(f"{step.name} fails without any fault:\n{self.last.text[-3000:]}")
        if hurt:
            self.steps.append(step)
            self.seconds[step.name] = self.last.seconds
            self.made[step.name] = content(step, folder)
        return folder


def content(step: Step, folder: Path) -> dict[str, Any]:
    """What a step has made, comparable: hashes of tensors and pictures aside, documents without times."""
    made: dict[str, Any] = {}
    for output in step.outputs:
        for path in sorted((folder / output).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_dir() or path.name.startswith(".") or "outbox" in path.parts:
                continue
            if path.suffix == ".safetensors":
                made[name] = sha256_of(path)
            elif path.suffix == ".json" and path.name != "summary.json":
                made[name] = _still(json.loads(path.read_text()))
            elif path.name == "summary.json":
                summary = json.loads(path.read_text())
                made[name] = _still(summary.get("stages") or summary["branches"])
            else:
                made[name] = path.stat().st_size > 0
    return made


def _still(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _still(v) for k, v in value.items() if not any(part in k for part in _VOLATILE)}
    return [_still(v) for v in value] if isinstance(value, list) else value


def differences(expected: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    """Names of what is not as expected."""
    return sorted(name for name in {*expected, *made} if expected.get(name) != made.get(name))
