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


def kept_at(commit: str, parts: list[str]) -> Path:
    """Where the facts of a revision are kept: they hold for these questions, these libraries and this kind of processor."""
    questions = [
        path.read_bytes() for path in sorted(HERE.glob("*")) if path.suffix in (".py", ".yaml") and path.stem != "meant"
    ]
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), platform.processor())
    about = [commit, parts, sys.version, cpu, (ROOT / "requirements-dev.lock").read_text(), version("torch")]
    digest = hashlib.sha256(b"\0".join([*questions, json.dumps(about).encode()])).hexdigest()
    return KEPT / f"{commit[:12]}-{digest[:16]}.json"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("--base", required=True, metavar="REV", help="the revision to compare with")
    names = ", ".join((*ASKED, *SCENARIOS))
    parser.add_argument("--only", default="", metavar="A,B,...", help=f"parts to compare, from: {names}")
    parser.add_argument("--propose", action="store_true", help="print entries for meant.yaml, ready to be given reasons")
    parser.add_argument(
        "--fresh", action="store_true", help="run the older side too, though its facts are kept in build/golden"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the state of both sides in a new folder")
    return parser.parse_args()


def questions_for(parts: list[str]) -> dict[str, Any]:
    """What the driver is asked."""
    lines = [line.split() for line in QUESTIONS["commands"]]
    deployment = str(ROOT / "docs" / "kubernetes" / "deployment.yaml")
    return {**QUESTIONS, "commands": lines, "parts": [part for part in ASKED if part in parts], "deployment": deployment}


def main() -> int:
    """Exit status 0: nothing differs but what is meant."""
    given = arguments()
    commit = revision(given.base)
    known = [*ASKED, *SCENARIOS]
    parts = [part for part in given.only.split(",") if part] or known
    if wrong := [part for part in parts if part not in known]:
        sys.exit(f"--only {wrong[0]}: is not a part; parts: {', '.join(known)}")
    entries = read_meant(HERE / "meant.yaml")
    scenarios = needed([part for part in parts if part in SCENARIOS])
    questions = questions_for(parts)
    kept = kept_at(commit, sorted(parts))
    folder = given.keep or Path(tempfile.mkdtemp(prefix="golden-"))
    folder = folder.absolute()
    started = time.monotonic()
    try:
        sides = [Side("working tree", ROOT, folder / "tree")]
        if given.fresh or not kept.exists():
            checkout(commit, folder / "code")
            sides.append(Side(commit[:7], folder / "code", folder / "base"))
        with ThreadPoolExecutor(len(sides)) as pool:
            found: list[Facts] = list(pool.map(lambda side: collect(side, questions, scenarios), sides))
        if len(sides) == 2:
            KEPT.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(found[1]))
        base: Facts = json.loads(kept.read_text())
    finally:
        if not given.keep:
            shutil.rmtree(folder, ignore_errors=True)
    accepted = [name for name in base if name.endswith("/status") and base[name] != "0" and name.split("/")[0] in SCENARIOS]
    if accepted:
        sys.exit(f"{commit[:7]} fails at {', '.join(accepted)}: nothing can be compared with it (--fresh --keep DIR shows why)")
    account = compare(base, found[0], entries)
    print(account.shown())
    print(f"{commit[:12]} and the working tree; {time.monotonic() - started:.0f} s")
    if given.propose and account.unmeant:
        print("\n# for tests/golden/meant.yaml; give each its reason\n" + proposed(account.unmeant))
    return 0 if account.good else 1


if __name__ == "__main__":
    sys.exit(main())
