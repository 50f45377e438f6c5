"""Run a plan: its teachers, one student a setting, what all of it will cost, then the rest, while there is time."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.evidence.data import prepared, sweep
from benchmarks.evidence.plan import Plan, Student
from benchmarks.evidence.records import append, identity_of, pending, read_records
from benchmarks.evidence.train import Places, teach, train
from rco.core.errors import DivergenceError, InputError

_PR_SET_PDEATHSIG = 1


@dataclass
class Run:
    """A plan at work.

    Args:
        ends: when no student is begun any more that would not be finished, on the clock of `time.time`.
        jobs: processes at once, of one thread each.
        only: settings; empty: all.
    """

    plan: Plan
    records: Path
    places: Places
    ends: float
    jobs: int
    only: tuple[str, ...] = ()
    failed: list[str] = field(default_factory=list)

    def go(self) -> int:
        """Train what is not there yet; returns the exit status: 1 if something could not be trained."""
        sweep(self.places.cache)
        wanted = [s for s in self.plan.students() if not self.only or s.setting in self.only]
        digests = {
            name: prepared(self.plan.settings[name], self.places.cache, self.places.source).manifest.digest
            for name in {s.setting: 0 for s in wanted}
        }
        ids = {student: identity_of(self.plan, student, digests[student.setting]) for student in wanted}
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.jobs, mp_context=context, initializer=end_with, initargs=(os.getpid(),)) as pool:
            routes = self._teachers(pool, wanted)
            ready = [student for student in wanted if (student.setting, student.teacher_seed) in routes]
            self._borrow(ready, ids)
            todo = pending(self.plan, ready, self.known(), ids, routes)
            measured = {record["setting"] for record in self.known()}
            first = {student.setting: student for student in reversed(todo) if student.setting not in measured}
            self._students(pool, list(first.values()))
            todo = pending(self.plan, ready, self.known(), ids, routes)
            said(cost_table(self.plan, ready, todo, self.known()))
            self._students(pool, todo)
        missing = len(pending(self.plan, wanted, self.known(), ids, routes))
        over = "; the time was over for the others" if missing and not self.failed else ""
        said(f"{len(wanted) - missing} of {len(wanted)} students are there{over}")
        for words in self.failed:
            said(f"failed: {words}")
        return bool(self.failed)

    def known(self) -> list[dict[str, Any]]:
        """The records so far."""
        return read_records(self.records)

    def _borrow(self, students: Iterable[Student], ids: Mapping[Student, str]) -> None:
        """Take over the records of the same students from other plans."""
        has = {(record["id"], record["route"]) for record in self.known()}
        files = sorted(path for path in self.records.parent.glob("*.jsonl") if path != self.records)
        theirs = [record for path in files for record in read_records(path)]
        for student in students:
            for record in theirs:
                if record["id"] == ids[student] and (record["id"], record["route"]) not in has:
                    has.add((record["id"], record["route"]))
                    own = {"plan": self.plan.name, "setting": student.setting, "branch": student.branch}
                    append(self.records, {**record, **own, "first_of": record.get("first_of", record["plan"])})

    def _teachers(self, pool: ProcessPoolExecutor, wanted: Iterable[Student]) -> dict[tuple[str, int], str]:
        """The digests of the routes, by setting and teacher seed; teachers that are not in the cache are trained."""
        first: dict[tuple[str, int], Student] = {}
        for student in wanted:
            first.setdefault((student.setting, student.teacher_seed), student)
        routes: dict[tuple[str, int], str] = {}

        def done(student: Student, about: dict[str, Any]) -> None:
            routes[student.setting, student.teacher_seed] = about["route"]
            said(
                f"{student.setting}, teacher {student.teacher_seed}: {100 * about['test_accuracy']:.2f} % on the test part, "
                f"{100 * about['train_accuracy']:.1f} % on its training images, {about['seconds']:.0f} s"
            )

        self._each(pool, teach, list(first.values()), done, lambda student: 0.0)
        return routes

    def _students(self, pool: ProcessPoolExecutor, todo: list[Student]) -> None:

        def done(student: Student, record: dict[str, Any]) -> None:
            append(self.records, record)
            said(f"{student.words}: {100 * record['test_accuracy']:.2f} % on the test part, {record['cost']['seconds']:.0f} s")

        self._each(pool, train, todo, done, lambda student: expected_seconds(self.plan, student, self.known()) or 0.0)

    def _each(
        self,
        pool: ProcessPoolExecutor,
        work: Callable[[Plan, Student, Places], dict[str, Any]],
        todo: list[Student],
        done: Callable[[Student, dict[str, Any]], None],
        seconds: Callable[[Student], float],
    ) -> None:
        """Work on all of them, `jobs` at a time, in order, until the time would not suffice for the next."""
        running: dict[Future[dict[str, Any]], Student] = {}
        left = list(todo)
        while left or running:
            while left and len(running) < self.jobs:
                if time.time() + seconds(left[0]) > self.ends:
                    break
                running[pool.submit(work, self.plan, left[0], self.places)] = left[0]
                left.pop(0)
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                student = running.pop(future)
                try:
                    done(student, future.result())
                except (InputError, DivergenceError) as error:
                    self.failed.append(f"{student.words}: {error}")


def end_with(parent: int) -> None:
    """In a process of the pool: end when the parent is killed; else it would train on for nobody."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def expected_seconds(plan: Plan, student: Student, records: Iterable[Mapping[str, Any]]) -> float | None:
    """What a student will take: as others of its branch and setting did; else as others of its setting did an epoch.

    Returns:
        None: nothing is known of its setting.
    """
    of_setting = [r for r in records if r["setting"] == student.setting]
    alike = [r["cost"]["seconds"] for r in of_setting if r["branch"] == student.branch]
    if alike:
        return float(sum(alike) / len(alike))
    if not of_setting:
        return None
    rate = sum(r["cost"]["seconds"] for r in of_setting) / sum(r["cost"]["epochs"] for r in of_setting)
    return float(rate * plan.config(student).student_train.epochs)


def cost_table(plan: Plan, wanted: Iterable[Student], todo: Iterable[Student], records: list[dict[str, Any]]) -> str:
    """What the plan has cost, and will, setting by setting."""
    lines, waiting, everyone = (
        ["", "| setting | students | to come | hours, one process |", "|---|---|---|---|"],
        list(todo),
        list(wanted),
    )
    whole = 0.0
    for name in dict.fromkeys(student.setting for student in everyone):
        ahead = [expected_seconds(plan, student, records) for student in waiting if student.setting == name]
        hours = sum(seconds or 0.0 for seconds in ahead) / 3600
        whole += hours
        lines.append(f"| {name} | {sum(s.setting == name for s in everyone)} | {len(ahead)} | {hours:.2f} |")
    return "\n".join(
        [
            *lines,
            f"{len(waiting)} students to come: {whole:.2f} hours of one process (estimated from those that were measured)",
            "",
        ]
    )


def said(words: str) -> None:
    """Print at once."""
    print(words, flush=True)
