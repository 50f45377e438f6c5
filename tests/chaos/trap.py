"""A task that dies at a chosen moment of writing: python -m tests.chaos.trap CALL NUMBER NAME arguments.json

CALL is fsync (the content is there, the name is not), replace (just before the name appears) or replaced (just after). With
NUMBER 0 nothing dies, and the numbers of calls are printed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from rco.tasks import process

CALLS = ("fsync", "replace", "replaced")


def main(arguments: list[str]) -> int:
    call, number, *rest = arguments
    counted: Counter[str] = Counter()

    def trapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*given: Any, **more: Any) -> Any:
            counted[name] += 1
            counted[f"{name}d"] += 1
            if call == name and counted[name] == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*given, **more)
            if call == f"{name}d" and counted[call] == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return instead

    os.fsync = trapped("fsync", os.fsync)
    os.replace = trapped("replace", os.replace)
    code = process.main(rest)
    if number == "0":
        print(" ".join(f"{name}={counted[name]}" for name in CALLS))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
