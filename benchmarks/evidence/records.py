"""One record a student, in records/PLAN.jsonl: settings, seed, curve, test accuracy, cost, versions, machine.

A student is found again by its identity: its whole configuration, the digest of its data, both seeds. It does not depend on
the machine, on versions, or on the bits of the teacher's weights, all of which the record has: so a plan goes on anywhere, and
on code that was edited since. Of the configuration it is what differs from the defaults: a parameter that is new later does not
make old records another student's. A default that changes would, and has to be named in the plans from then on. What must be
the same for a comparison, the teacher, is looked at when it is made (`groups`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence.plan import Plan, Student
from rco.config.parameters import PARAMETERS
from rco.training.identity import name_of

RECORDS = Path(__file__).with_name("records")
#: Groups of parameters that do not change a student: where its data lie, and what is written of it.
_NO_PART = ("data", "tracking", "services", "compute")


def identity_of(plan: Plan, student: Student, data_digest: str) -> str:
    """Of all that a student is to be; plans that ask for the same student share it."""
    flat = plan.flat(student)
    config = {p.name: flat[p.name] for p in PARAMETERS.values() if p.group not in _NO_PART and flat[p.name] != p.default}
    return name_of({"parameters": config, "restarts": plan.restarts(student.branch), "data": data_digest}, 32)


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; a machine that was switched off may have left half a one."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if isinstance(document, dict) and "id" in document:
            found.append(document)
    return found


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Add a line, also after half a one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.is_file() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a") as lines:
        lines.write("\n" * half + json.dumps(record, separators=(",", ":")) + "\n")


Found = dict[tuple[str, int, int], dict[str, dict[str, Any]]]


def groups(plan: Plan, records: Iterable[Mapping[str, Any]]) -> Found:
    """(setting, teacher seed, seed) -> branch -> record: students that are compared with each other have learnt from the very
    same teacher. Where a teacher was trained twice, with other bits, the one that more branches have counts."""
    found: Found = {}
    by_route: dict[tuple[str, int, int], dict[str, dict[str, dict[str, Any]]]] = {}
    for record in records:
        if _is_of(plan, record):
            key = (record["setting"], record["teacher_seed"], record["seed"])
            by_route.setdefault(key, {}).setdefault(record["route"], {})[record["branch"]] = dict(record)
    for key, routes in by_route.items():
        found[key] = max(routes.values(), key=len)
    return found


def _is_of(plan: Plan, record: Mapping[str, Any]) -> bool:
    """Whether a record is of a student of the plan, as the plan is now: of one that was edited, old records count no more."""
    names = {name: record[name] for name in ("setting", "branch", "seed", "teacher_seed")}
    known = record["setting"] in plan.settings and record["branch"] in plan.branches
    within = record["seed"] < plan.seeds and record["teacher_seed"] < plan.teacher_seeds
    return known and within and identity_of(plan, Student(**names), record["data"]["digest"]) == record["id"]


def pending(
    plan: Plan,
    students: Iterable[Student],
    records: Iterable[Mapping[str, Any]],
    ids: Mapping[Student, str],
    routes: Mapping[tuple[str, int], str],
) -> list[Student]:
    """The students that are still to be trained, in order.

    Args:
        ids: identities of the students.
        routes: digest of the route that is here, by setting and teacher seed.
    """
    known: dict[str, set[str]] = {}
    for record in records:
        known.setdefault(record["id"], set()).add(record["route"])
    todo = []
    for student in students:
        mates = [
            ids[other]
            for other in ids
            if (other.setting, other.teacher_seed, other.seed) == (student.setting, student.teacher_seed, student.seed)
        ]
        whole = set.intersection(*(known.get(mate, set()) for mate in mates))
        if not whole and routes.get((student.setting, student.teacher_seed)) not in known.get(ids[student], set()):
            todo.append(student)
    return todo
