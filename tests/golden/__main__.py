"""python -m tests.golden: compares the working tree with an older revision. See the package's docstring."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.golden.compare import compare, proposed, read_meant
from tests.golden.facts import Facts
from tests.golden.runs import QUESTIONS, SCENARIOS, Side, collect, needed

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ASKED = ("help", "packages", "checks", "commands")
KEPT = ROOT / "build" / "golden"


def revision(name: str) -> str:
    """The full hash of a revision.

    Raises:
        SystemExit: this clone does not have it.
    """
    done = subprocess.run(
        ["git", "rev-parse", "--verify", "-q", f"{name}^{{commit}}"], cwd=ROOT, text=True, capture_output=True, check=False
    )
    if done.returncode:
        sys.exit(f"BASE={name} is not a revision of this clone; in a shallow one: git fetch --unshallow")
    return done.stdout.strip()


def checkout(commit: str, folder: Path) -> None:
    """The files of a revision."""
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)


def kept_at(commit: str) -> Path:
    """Where a revision's facts are kept, by part. They hold for these questions, these libraries, this kind of processor."""
    questions = [
        path.read_bytes() for path in sorted(HERE.glob("*")) if path.suffix in (".py", ".yaml") and path.stem != "meant"
    ]
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), platform.processor())
    about = [commit, sys.version, cpu, (ROOT / "requirements-dev.lock").read_text(), version("torch")]
    digest = hashlib.sha256(b"\0".join([*questions, json.dumps(about).encode()])).hexdigest()
    return KEPT / f"{commit[:12]}-{digest[:16]}.json"


def by_part(facts: Facts) -> dict[str, Facts]:
    """Facts by the part that they belong to."""
    parts: dict[str, Facts] = {}
    for name, value in facts.items():
        parts.setdefault(name.split("/")[0], {})[name] = value
    return parts


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--base", required=True, metavar="REV", help="the revision to compare with")
    names = ", ".join((*ASKED, *SCENARIOS))
    parser.add_argument("--only", default="", metavar="A,B,...", help=f"parts to compare, from: {names}")
    parser.add_argument("--propose", action="store_true", help="print entries for meant.yaml, ready to be given reasons")
    parser.add_argument(
        "--fresh", action="store_true", help="ask the older side again, though its facts are kept in build/golden"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the state of both sides in a new folder")
    return parser.parse_args()


def questions_for(parts: list[str]) -> dict[str, Any]:
    """What the driver is asked."""
    lines = [line.split() for line in QUESTIONS["commands"]]
    deployment = str(ROOT / "docs" / "kubernetes" / "deployment.yaml")
    return {**QUESTIONS, "commands": lines, "parts": [part for part in ASKED if part in parts], "deployment": deployment}


def answers(side: Side, parts: list[str]) -> Facts:
    """All facts of these parts of one side; and of the scenarios that they need."""
    return collect(side, questions_for(parts), needed([part for part in parts if part in SCENARIOS]))


def main() -> int:
    """Exit status 0: nothing differs but what is meant."""
    given = arguments()
    commit = revision(given.base)
    known = [*ASKED, *SCENARIOS]
    parts = [part for part in given.only.split(",") if part] or known
    if wrong := [part for part in parts if part not in known]:
        sys.exit(f"--only {wrong[0]}: is not a part; parts: {', '.join(known)}")
    entries = read_meant(HERE / "meant.yaml")
    kept_file = kept_at(commit)
    kept: dict[str, Facts] = json.loads(kept_file.read_text()) if kept_file.exists() and not given.fresh else {}
    folder = (given.keep or Path(tempfile.mkdtemp(prefix="golden-"))).absolute()
    started = time.monotonic()
    try:
        sides = [(Side("working tree", ROOT, folder / "tree"), parts)]
        if lacking := [part for part in parts if part not in kept]:
            checkout(commit, folder / "code")
            sides.append((Side(commit[:7], folder / "code", folder / "base"), lacking))
        with ThreadPoolExecutor(len(sides)) as pool:
            found = [by_part(facts) for facts in pool.map(lambda asked: answers(*asked), sides)]
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
    kept.update(found[-1] if lacking else {})
    if failed := [name for name in SCENARIOS if kept.get(name, {}).get(f"{name}/status", "0") != "0"]:
        sys.exit(f"{commit[:7]} fails at {', '.join(failed)}: nothing can be compared with it (--fresh --keep DIR shows why)")
    KEPT.mkdir(parents=True, exist_ok=True)
    kept_file.write_text(json.dumps(kept))
    base, tree = ({name: v for part in parts for name, v in side.get(part, {}).items()} for side in (kept, found[0]))
    account = compare(base, tree, entries)
    print(account.shown())
    print(f"{commit[:12]} and the working tree; {time.monotonic() - started:.0f} s")
    if given.propose and account.unmeant:
        print("\n# for tests/golden/meant.yaml; give each its reason\n" + proposed(account.unmeant))
    return 0 if account.good else 1


if __name__ == "__main__":
    sys.exit(main())
