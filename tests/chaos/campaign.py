"""The fault campaign: python -m tests.chaos.campaign [--short] [--faults 84] [--seed 0] [--output FILE]

After every fault the task is run again, as a cluster or a person would. It must then have made, to the last bit, what it makes
without faults, and MLflow must have every epoch once. Where a fault is met with an error, it must say what is wrong in words.
Prints a line a fault and a table; the exit status is 1 if anything was not so.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from mlflow import MlflowClient

from rco.core.files import sha256_of
from rco.tasks.report import delivery_of
from rco.tracking.context import Context
from rco.tracking.delivery import deliver
from rco.tracking.record import Record
from rco.tracking.registry import registered_version
from rco.tracking.runs import open_parent, require_parent
from tests import faults
from tests.chaos import disk, trap
from tests.chaos.chain import LIMIT, ROOT, TRAINING, Chain, Ended, Step, content, differences, run, small_run
from tests.servers import Postgres, Seaweed, mlflow_server, postgres, seaweed

_TEMPORARY = re.compile(r"^\..+\.[a-z0-9_]{8}$")

T = TypeVar("T")


@dataclass
class Fault:
    """One fault and how it was met.

    Attributes:
        kind: what was done.
        task: to which task.
        turn: which of its kind it is, so that every variant has its turn.
        detail: when, or where.
        outcome: "same result", or "clear error, then same result"; anything else breaks the promise.
        kills: how often a process was killed by it.
        kept: of a training, the part of the work that the second attempt did not have to do again, 0 to 1; None: not known.
        seconds_lost: both attempts, less what the task takes without faults.
    """

    kind: str
    task: str
    turn: int = 0
    detail: str = ""
    outcome: str = ""
    kills: int = 0
    kept: float | None = None
    seconds_lost: float = 0.0

    def variant(self, of: Sequence[T]) -> T:
        """The one whose turn it is."""
        return of[self.turn % len(of)]

    @property
    def survived(self) -> bool:
        """Whether what is promised was kept."""
        return self.outcome in ("same result", "clear error, then same result")


class BrokenPromiseError(Exception):
    """What is promised was not kept."""


@dataclass(frozen=True)
class Place:
    """Where the tasks of a campaign work.

    Attributes:
        chain: without faults.
        root: for all that is written.
        mlflow: address of a server; `proxy` stands before it.
        store: an S3 store, `store_proxy` before it.
    """

    chain: Chain
    root: Path
    mlflow: str
    mlflow_proxy: faults.Proxy
    database: Postgres
    store: Seaweed
    store_proxy: faults.Proxy

    def environment(self, name: str, **more: str) -> dict[str, str]:
        """Of the tasks of one fault: a pipeline run of its own."""
        return {
            "MLFLOW_TRACKING_URI": self.mlflow,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "RCO_PIPELINE_RUN": name,
            "RCO_RESUME": str(self.root / "resume" / name),
            "RCO_RESUME_EVERY": "0.003",
            **more,
        }


# What is checked ------------------------------------------------------------------------------------------------------------


def opened_run(place: Place, name: str) -> Context:
    context = Context(tracking_uri=place.mlflow, pipeline_run=name)
    open_parent(context, f"chaos-{name}", name, {"why": "chaos"})
    return context


def own(step: Step, name: str) -> Step:
    """The step with a model name in the registry that no other fault has."""
    settings = step.arguments.get("settings", {})
    if "registered_model" not in settings:
        return step
    return replace(step, arguments={**step.arguments, "settings": {**settings, "registered_model": f"m-{name}"}})


def same(place: Place, step: Step, folder: Path) -> None:
    """Raise unless the step has made what it makes without faults."""
    if odd := differences(place.chain.made[step.name], content(step, folder)):
        raise BrokenPromiseError(f"{', '.join(odd[:5])} differ from those of a run without faults")


def tracked(place: Place, step: Step, folder: Path, context: Context) -> None:
    """Raise unless the server has every epoch of the step's record once, and nothing of it runs."""
    client = context.client()
    for path in sorted(folder.rglob("record.json")) if step.trains else ():
        _tracked(Record.read(path.parent), client, context)


def _registered(step: Step, folder: Path, context: Context, result: Any) -> None:
    """Raise unless the registry has this student once, and as it was made."""
    name = step.arguments["settings"]["registered_model"]
    versions = context.client().search_model_versions(f"name = '{name}'")
    digest = sha256_of(Path(str(step.arguments["students"])) / "seed-0" / "student.safetensors")
    if len(versions) != 1 or str(versions[0].version) != str(result["version"]) or not result["champion"]:
        raise BrokenPromiseError(f"the registry has {len(versions)} versions of it, and the task says {result}")
    if versions[0].tags.get("rco.sha256") != digest or not registered_version(context, name, digest):
        raise BrokenPromiseError(f"version {versions[0].version} is of other weights")


def _tracked(record: Record, client: MlflowClient, context: Context) -> None:
    parent = require_parent(context, client)
    found = client.search_runs(
        [parent.info.experiment_id], f"tags.`rco.pipeline_run` = '{context.pipeline_run}' AND tags.`rco.key` = '{record.key}'"
    )
    if len(found) != 1:
        raise BrokenPromiseError(f"MLflow has {len(found)} runs of the {record.key}")
    if found[0].info.status != "FINISHED":
        raise BrokenPromiseError(f"the run of the {record.key} is {found[0].info.status}")
    expected = [(row["step"], row["metrics"]["loss"]) for row in record.rows]
    history = client.get_metric_history(found[0].info.run_id, "loss")
    if sorted((m.step, m.value) for m in history) != expected:
        raise BrokenPromiseError(f"MLflow has epochs {[m.step for m in history]} for {[step for step, _ in expected]}")
    for stage in record.stages[-1:]:
        model = client.get_logged_model(found[0].data.tags[f"rco.anchor.{stage['anchor_epoch']}"])
        if not str(model.status).endswith("READY") or model.tags["rco.sha256"] != stage["anchor_sha256"]:
            raise BrokenPromiseError(f"the anchor of epoch {stage['anchor_epoch']} is {model.status}")


def clear(ended: Ended, words: str) -> None:
    """Raise unless an attempt that failed has said why in its lines for people, in these words."""
    if ended.code == 0:
        return
    if not any(re.search(words, line) for line in ended.said):
        raise BrokenPromiseError(f"it failed without saying /{words}/: {ended.text[-600:]}")


def going_on(ended: Ended) -> float | None:
    """The part of the epochs that an attempt did not do again."""
    found = re.search(r"going on from epoch (\d+)", ended.text)
    total = re.search(r": epoch \d+/(\d+)", ended.text)
    if total is None:
        return None
    return (int(found[1]) - 1) / int(total[1]) if found else 0.0


# The faults -----------------------------------------------------------------------------------------------------------------


def killed(place: Place, fault: Fault, step: Step, name: str, rng: random.Random, times: int = 1) -> None:
    """kill -9 at random moments, and again."""
    folder, spent, usual = place.root / "faults" / name, 0.0, place.chain.seconds[step.name]
    environment = place.environment(name)
    context = opened_run(place, name)
    moments: list[float] = []
    longest = 1.5 if step.trains else 0.95  # beside others it takes longer
    while len(moments) < times:
        moment = rng.uniform(0.05, longest) * usual
        first = run(step, folder, environment, kill_after=moment)
        spent += first.seconds
        if first.code == -signal.SIGKILL:
            moments.append(moment)
        elif first.code == 0:  # it was quicker than usual, the more so if it went on from far: again, from the start
            shutil.rmtree(folder)
            shutil.rmtree(environment["RCO_RESUME"], ignore_errors=True)
            longest *= 0.7
        else:
            raise BrokenPromiseError(f"it fails by itself: {first.text[-800:]}")
    fault.kills = times
    fault.detail = ", ".join(f"after {moment:.1f} s" for moment in moments)
    again(place, fault, step, folder, environment, context, spent)


def again(
    place: Place,
    fault: Fault,
    step: Step,
    folder: Path,
    environment: Mapping[str, str],
    context: Context,
    spent: float,
) -> None:
    """The attempt that must come to an end, and what must then be true."""
    points = Path(environment["RCO_RESUME"])
    there = any(points.rglob("point-*.safetensors")) if points.is_absolute() else False
    last = run(step, folder, environment)
    if last.code != 0:
        raise BrokenPromiseError(f"the next attempt fails: {last.text[-800:]}")
    if there and "going on from epoch" not in last.text:
        raise BrokenPromiseError(f"there was a resume point, and the training began anew: {last.text[-800:]}")
    same(place, step, folder)
    tracked(place, step, folder, context)
    if step.task == "register_student":
        _registered(step, folder, context, last.result)
    fault.kept = going_on(last) if step.trains_one else None
    fault.seconds_lost = spent + last.seconds - place.chain.seconds[step.name]
    fault.outcome = fault.outcome or "same result"


def worker_killed(place: Place, fault: Fault, step: Step, name: str, rng: random.Random) -> None:
    """kill -9 for the process that trains, below the launcher that started it: the task itself must come to its end."""
    folder, context = place.root / "faults" / name, opened_run(place, name)
    moment = rng.uniform(0.3, 2.0) * place.chain.seconds[step.name]  # another process is started, and imports
    ended = run(step, folder, {**place.environment(name), "RCO_PROCESS_RESTARTS": "1"}, kill_after=moment, worker=0)
    if ended.code != 0:
        raise BrokenPromiseError(f"the task ends with its worker: {ended.text[-800:]}")
    again = "started again" in ended.text
    fault.kills, fault.detail = int(again), f"after {moment:.1f} s" if again else "the task was quicker"
    same(place, step, folder)
    tracked(place, step, folder, context)
    fault.kept = going_on(ended) if step.trains_one and again else None
    fault.seconds_lost = ended.seconds - place.chain.seconds[step.name]
    fault.outcome = "same result"


def killed_writing(place: Place, fault: Fault, step: Step, name: str, rng: random.Random) -> None:
    """kill -9 between the content of a file and its name, before, or after."""
    folder, environment, context = place.root / "faults" / name, place.environment(name), opened_run(place, name)
    call = fault.variant(trap.CALLS)
    # A resume point after every step: most of the writing is theirs.
    environment["RCO_RESUME_EVERY"] = "0" if rng.random() < 0.5 else "0.003"
    number = rng.randint(1, 12 if step.trains else 2)
    first = run(step, folder, environment, module=("tests.chaos.trap", call, str(number)))
    if first.code == 0:
        number = 1
        first = run(step, folder, {**environment, "RCO_RESUME": ""}, module=("tests.chaos.trap", call, "1"))
    if first.code >= 0:
        raise BrokenPromiseError(f"the trap at {call} {number} did not spring: {first.text[-500:]}")
    fault.kills = 1
    fault.detail = f"at {call} {number}"
    again(place, fault, step, folder, {**environment, "RCO_RESUME_EVERY": "0.003"}, context, first.seconds)


def disk_full(place: Place, fault: Fault, step: Step, name: str, rng: random.Random) -> None:
    """The file system of outputs and resume points fills up, and is then made larger."""
    environment, context = place.environment(name), opened_run(place, name)
    mounted = place.root / "faults" / name
    with disk.small(mounted, kilobytes=fault.variant((24, 64, 160))) as grow:
        environment["RCO_RESUME"] = str(mounted / "resume")
        first = run(step, mounted / "work", environment)
        clear(first, r"disk full: no space is left .*Make room")
        fault.detail = "full; the task " + ("went on" if first.code == 0 else "stopped with a clear error")
        fault.outcome = "same result" if first.code == 0 else "clear error, then same result"
        grow(512 * 1024)
        again(place, fault, step, mounted / "work", environment, context, first.seconds)


def disk_full_under_a_run(place: Place, fault: Fault, step: Step, name: str, rng: random.Random) -> None:
    """The file system of a whole local run fills up: its tasks' outputs, the cache, MLflow's database and the log lie there."""
    student = Path("last-run/student/student.safetensors")
    flags = [
        f"--{key.replace('_', '-')}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in small_run().items()
    ]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}

    def whole(home: Path) -> Ended:
        command = [sys.executable, "-m", "pipelines.cli", "run", "--home", str(home), *flags]
        began = time.monotonic()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT,
        )
        return Ended(done.returncode, done.stdout + done.stderr, time.monotonic() - began)

    usual = whole(place.root / "whole")
    if usual.code != 0:
        raise RuntimeError(f"a run fails without any fault: {usual.text[-2000:]}")
    mounted = place.root / "faults" / name
    kilobytes = fault.variant((2400, 1200, 3600, 64))
    with disk.small(mounted, kilobytes) as grow:
        first = whole(mounted / "home")
        fault.detail = f"{kilobytes} kB; the run " + ("went on" if first.code == 0 else "stopped with a clear error")
        if first.code != 0 and not re.search(r"rco: no space is left .*Make room", first.text):
            raise BrokenPromiseError(f"it failed without saying what is missing: {first.text[-1500:]}")
        fault.outcome = "same result" if first.code == 0 else "clear error, then same result"
        grow(512 * 1024)
        last = whole(mounted / "home")
        if last.code != 0:
            raise BrokenPromiseError(f"the next attempt fails: {last.text[-1500:]}")
        if sha256_of(mounted / "home" / student) != sha256_of(place.root / "whole" / student):
            raise BrokenPromiseError("the student differs from that of a run without faults")
    fault.seconds_lost = first.seconds + last.seconds - usual.seconds


def clock_wrong(place: Place, fault: Fault, step: Step, name: str, rng: random.Random) -> None:
    """The clock of the first attempt is far off, and right again for the second."""
    folder, environment, context = place.root / "faults" / name, place.environment(name), opened_run(place, name)
    offset = fault.variant(("+400d", "-400d", "+3h", "-3h"))
    moment = rng.uniform(0.5, 0.95) * place.chain.seconds[step.name]
    clock = {"LD_PRELOAD": disk.faketime(), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
    first = run(step, folder, {**environment, **clock}, kill_after=moment)
    fault.detail = f"{offset}, killed after {moment:.1f} s"
    again(place, fault, step, folder, environment, context, first.seconds)


def tracking_down(place: Place, fault: Fault, step: Step, name: str, rng: random.Random) -> None:
    """The tracking server is away from the start, goes away, or comes back; the work goes on, and a report makes up for it."""
    context = opened_run(place, name)
    folder, proxy = place.root / "faults" / name, place.mlflow_proxy
    environment = place.environment(name, MLFLOW_TRACKING_URI=proxy.address)
    fault.detail = fault.variant(("from the start", "from the middle", "for three seconds", "connections cut", "answers lost"))
    usual = place.chain.seconds[step.name]
    try:
        if fault.detail == "from the start":
            proxy.down()
        elif fault.detail == "connections cut":
            proxy.inject(faults.Fault(cut_at=rng.randint(0, 200)), times=3)
        elif fault.detail == "answers lost":
            proxy.inject(faults.Fault(lose_answer=True), method="POST", path="log-batch", times=2)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run, step, folder, environment)
            time.sleep(rng.uniform(0.4, 0.8) * usual)
            if fault.detail in ("from the middle", "for three seconds"):
                proxy.down()
            if fault.detail == "for three seconds":
                time.sleep(3)
                proxy.up()
            ended = running.result()
    finally:
        proxy.up()
        proxy.clear()
    if ended.code != 0:
        raise BrokenPromiseError(f"the work stopped because tracking did: {ended.text[-800:]}")
    same(place, step, folder)
    # What the report does, with the server back.
    records = [Record.read(path.parent) for path in sorted(folder.rglob("record.json"))]
    anchors = Path(str(step.arguments.get("anchors", folder / step.outputs[0])))
    deliver(context, [delivery_of(record, anchors, {}) for record in records], headline={}, files=[])
    tracked(place, step, folder, context)
    fault.seconds_lost = ended.seconds - usual
    fault.outcome = "same result"


def store_hurts(place: Place, fault: Fault, step: Step, name: str, rng: random.Random) -> None:
    """Resume points lie in S3, which refuses, is slow, cuts connections, returns wrong bytes, or is away."""
    context = opened_run(place, name)
    folder, proxy = place.root / "faults" / name, place.store_proxy
    environment = place.environment(
        name, RCO_RESUME=f"s3://chaos/{name}", RCO_RESUME_EVERY="0.02", **place.store.environment(proxy.address)
    )
    usual = place.chain.seconds[step.name]
    first = run(step, folder, environment, kill_after=rng.uniform(0.6, 0.95) * usual)
    met = {
        "refuses": faults.Fault(answer=(403, b"<Error><Code>AccessDenied</Code></Error>")),
        "is slow": faults.Fault(delay=0.2, rate=2e6),
        "cuts": faults.Fault(cut_at=1000),
        "returns wrong bytes": faults.Fault(damage=True),
        "is overloaded": faults.SLOW_DOWN,
        "is away": None,
    }
    fault.detail = fault.variant(list(met))
    try:
        if (kind := met[fault.detail]) is None:
            proxy.down()
        else:
            proxy.inject(kind, times=None)
        second = run(step, folder, environment)
    finally:
        proxy.up()
        proxy.clear()
    clear(second, r"refused: .*s3://")
    fault.outcome = "same result" if second.code == 0 else "clear error, then same result"
    if second.code == 0:
        same(place, step, folder)
    again(place, fault, step, folder, environment, context, first.seconds + second.seconds)


def database_restarts(place: Place, fault: Fault, step: Step, name: str, rng: random.Random) -> None:
    """PostgreSQL crashes behind the tracking server while a task trains, and starts again."""
    context = opened_run(place, name)
    folder, environment = place.root / "faults" / name, place.environment(name)
    fault.detail = "crash and restart"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, step, folder, environment)
        time.sleep(rng.uniform(0.3, 0.9) * place.chain.seconds[step.name])
        place.database.server.kill()
        time.sleep(1)
        place.database.server.start()
        ended = running.result()
    if ended.code != 0:
        raise BrokenPromiseError(f"the work stopped because the database did: {ended.text[-800:]}")
    again(place, fault, step, folder, environment, context, ended.seconds)


# The campaign ---------------------------------------------------------------------------------------------------------------

Inject = Callable[[Place, Fault, Step, str, random.Random], None]

_WRITING = ("prepare_data", "train_teacher", "init_students", "select_anchors", "distill_students")
#: kind, what does it, whether it must be alone, the tasks (None: all), its share of a full campaign.
KINDS: tuple[tuple[str, Inject, bool, tuple[str, ...] | None, int], ...] = (
    ("kill -9", killed, False, None, 34),
    ("kill -9 of a worker", worker_killed, False, (*TRAINING, "evaluate_students"), 6),
    ("kill -9, three times", lambda *given: killed(*given, times=3), False, TRAINING, 4),
    (
        "kill -9 while writing",
        killed_writing,
        False,
        _WRITING,
        14,
    ),
    (
        "disk full",
        disk_full,
        False,
        ("prepare_data", "train_teacher", "init_students", "select_anchors", "distill_students"),
        6,
    ),
    ("disk full, whole run", disk_full_under_a_run, True, ("report",), 2),
    ("clock wrong", clock_wrong, False, ("train_teacher", "distill_students"), 4),
    ("MLflow away", tracking_down, True, ("train_teacher", "distill_students"), 6),
    ("S3 fails", store_hurts, True, ("train_teacher", "distill_students"), 6),
    ("PostgreSQL crashes", database_restarts, True, ("train_teacher", "distill_students"), 2),
)


@contextmanager
def prepared(root: Path) -> Iterator[Place]:
    """Servers, and the chain without faults."""
    with ExitStack() as stack:
        database = stack.enter_context(postgres(root / "postgres"))
        store = stack.enter_context(seaweed(root / "seaweed"))
        store.make_bucket("chaos")
        server = stack.enter_context(mlflow_server(root / "mlflow", backend=database.uri))
        mlflow_proxy = stack.enter_context(faults.Proxy(server))
        store_proxy = stack.enter_context(faults.Proxy(store.endpoint))
        chain = Chain.build(root)
        yield Place(chain, root, server, mlflow_proxy, database, store, store_proxy)


def plan(chain: Chain, faults: int, seed: int, *, short: bool) -> list[tuple[str, Inject, bool, Step, int, int]]:
    """Which faults, in which tasks, with which seeds: shares are kept, and every kind and every task has its turn.

    Args:
        short: of each kind one, of kills three, in the tasks that train; no whole run.
    """
    total = sum(share for *_, share in KINDS)
    planned = []
    for kind, inject, alone, tasks, share in KINDS:
        if short and inject is disk_full_under_a_run:
            continue
        steps = [s for s in chain.steps if s.task in (tasks or (TRAINING if short else {s.task}))]
        count = (3 if kind == "kill -9" else 1) if short else max(1, round(faults * share / total))
        for i in range(count):
            planned.append((kind, inject, alone, steps[i % len(steps)], i + seed, seed * 1_000_003 + len(planned)))
    return planned


def inflict(place: Place, number: int, kind: str, inject: Inject, step: Step, turn: int, seed: int) -> Fault:
    """One fault, from its injection to its verdict."""
    name = f"fault-{number:03d}"
    fault = Fault(kind, step.name, turn)
    began = time.monotonic()
    try:
        inject(place, fault, own(step, name), name, random.Random(seed))
    except BrokenPromiseError as error:
        fault.outcome = f"BROKEN: {error}"
    except Exception:  # a fault of the campaign itself must be seen as well
        fault.outcome = f"BROKEN: {traceback.format_exc()}"
    kept = "" if fault.kept is None else f", {100 * fault.kept:.0f} % of the epochs kept"
    print(f"{name}  {kind}, {fault.task}, {fault.detail}: {fault.outcome}{kept} ({time.monotonic() - began:.0f} s)", flush=True)
    return fault


def table(faults: list[Fault]) -> str:
    """Figures by kind, as Markdown."""
    groups: dict[str, list[Fault]] = defaultdict(list)
    for fault in faults:
        groups[fault.kind].append(fault)
    lines = [
        "| fault | injected | survived | with a clear error first | epochs kept (mean) | seconds lost (median, most) |",
        "|---|---|---|---|---|---|",
    ]
    for kind, group in [*groups.items(), ("all", faults)]:
        lost = sorted(f.seconds_lost for f in group if f.survived)
        kept = [f.kept for f in group if f.kept is not None]
        cells = [
            kind,
            str(len(group)),
            str(sum(f.survived for f in group)),
            str(sum(f.outcome.startswith("clear error") for f in group)),
            f"{100 * sum(kept) / len(kept):.0f} %" if kept else "",
            f"{lost[len(lost) // 2]:.1f}, {lost[-1]:.1f}" if lost else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=84, help="how many, about")
    parser.add_argument(
        "--short", action="store_true", help="one fault of each kind, and two kills more, in the tasks that train"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds that hold this text")
    parser.add_argument("--workers", type=int, default=2, help="faults at the same time, where they do not need to be alone")
    parser.add_argument("--output", type=Path, help="file for the figures, as JSON")
    given = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("needs root, to mount file systems that are too small, and to start PostgreSQL as its own user")
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "RCO_", "AWS_")):
            del os.environ[name]
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what was started is stopped
    began = time.monotonic()
    with TemporaryDirectory(prefix="rco-chaos-") as scratch, prepared(Path(scratch)) as place:
        print(f"without faults: {', '.join(f'{k} {v:.1f} s' for k, v in place.chain.seconds.items())}", flush=True)
        planned = [p for p in plan(place.chain, given.faults, given.seed, short=given.short) if given.only in p[0]]
        numbered = list(enumerate(planned, start=1))

        def one(item: tuple[int, Any]) -> Fault:
            number, (kind, inject, _, step, turn, seed) = item
            return inflict(place, number, kind, inject, step, turn, seed)

        with ThreadPoolExecutor(given.workers) as pool:
            faults = list(pool.map(one, [item for item in numbered if not item[1][2]]))
        faults += [one(item) for item in numbered if item[1][2]]
        figures = {
            "faults": len(faults),
            "survived": sum(fault.survived for fault in faults),
            "kills": sum(fault.kills for fault in faults),
            "seed": given.seed,
            "seconds": round(time.monotonic() - began, 1),
            "seconds_without_faults": {name: round(value, 2) for name, value in place.chain.seconds.items()},
            "each": [asdict(fault) for fault in faults],
        }
    print(table(faults))
    print(f"{figures['survived']} of {figures['faults']} faults survived ({figures['kills']} kills) in {figures['seconds']} s")
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["survived"] == figures["faults"] else 1


if __name__ == "__main__":
    sys.exit(main())
