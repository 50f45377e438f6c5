"""A task that does what it is told, attempt by attempt: for tests of what starts it, watches it and starts it again."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rco.core.errors import InputError
from rco.tasks.launch import in_workers
from rco.tasks.process import task


@task
@in_workers(lambda settings: settings["compute"])
def act(settings: Mapping[str, Any], *, folder: Path, others: list[Path] | None = None) -> dict[str, Any]:
    """Follow the words of this attempt.

    Args:
        settings: `attempts` has a line for each: "point 3; die" writes a resume point and is killed. Words that begin with the
            number of a worker ("1:die") are for that one.
        folder: receives a line from every attempt.
    """
    rank = int(os.environ.get("RANK", 0))
    log = folder / f"attempts-{rank}"
    with log.open("a") as file:
        file.write(f"{os.getpid()} {os.environ.get('RCO_RESTARTED', '')}\n")
    attempt = len(log.read_text().splitlines()) - 1
    if settings["compute"]["workers_per_task"] > 1:
        from rco.training.distributed import World

        World.current().barrier()  # all have begun
    for words in settings["attempts"][attempt].split("; "):
        who, _, what = words.rpartition(":")
        if int(who or 0) == rank:
            _do(*what.split(" "), folder=folder)
    if settings["compute"]["workers_per_task"] > 1:
        World.current().barrier()
    return {"attempt": attempt, "pid": os.getpid(), "others": [path.name for path in others or ()], "number": 0.1 + 0.2}


def _do(what: str, *more: str, folder: Path) -> None:
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "exit":
        print("some last words", file=sys.stderr, flush=True)
        sys.exit(int(more[0]))
    elif what == "leave":
        import torch.distributed

        torch.distributed.destroy_process_group()
        time.sleep(1.0)
        os._exit(int(more[0]))
    elif what == "point":
        Path(os.environ["RCO_PROGRESS"]).write_text(more[0])
    elif what == "refuse":
        raise InputError("lr", (1, 2), "is two numbers", "Give one")
    elif what == "diverge":
        from rco.training.resume import ExplainedError

        raise ExplainedError("the loss is not a finite number. Lower lr")
    elif what == "fill":
        raise OSError(28, "No space left on device", str(folder))
    elif what == "wait":
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        (folder / "waits").touch()
        time.sleep(60)


def main(arguments: list[str]) -> None:
    """Be the launcher of a task whose settings are given as JSON."""
    settings, folder = arguments
    print(json.dumps(act(json.loads(settings), folder=Path(folder))))


if __name__ == "__main__":
    # By the module's name, under which workers find the task.
    from tests import launched

    launched.main(sys.argv[1:])
