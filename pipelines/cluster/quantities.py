"""Quantities as Kubernetes and people write them: memory, cores, durations."""

from __future__ import annotations

import re

from rco.core.errors import InputError

_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "M": 10**6, "G": 10**9, "T": 10**12}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MEMORY = re.compile(rf"([1-9][0-9]{{0,8}})({'|'.join(_UNITS)})")
_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhd])")
_CPU = re.compile(r"[1-9][0-9]{0,6}m|[0-9]{1,4}(\.[0-9]{1,3})?")


def memory_bytes(name: str, value: str) -> int:
    """Bytes of a quantity such as 16Gi.

    Raises:
        InputError: no whole number with a unit that Kubernetes knows.
    """
    found = _MEMORY.fullmatch(value)
    if not found:
        remedy = f"Write a whole number and a unit ({', '.join(_UNITS)}): 4Gi"
        raise InputError(name, value, "is not an amount of memory", remedy)
    return int(found[1]) * _UNITS[found[2]]


def cores(name: str, value: str) -> float:
    """Cores of a quantity such as 4, 0.5 or 500m.

    Raises:
        InputError: no such quantity, or none at all.
    """
    if not _CPU.fullmatch(value) or not (count := float(value.removesuffix("m")) / (1000 if value.endswith("m") else 1)):
        raise InputError(name, value, "is not an amount of CPU", "Write cores, or thousandths with m: 4, 0.5, 500m")
    return count


def seconds(name: str, value: str) -> int:
    """Seconds of a duration such as 30s, 10m, 12h or 2d.

    Raises:
        InputError: no whole number with a unit.
    """
    found = _DURATION.fullmatch(value)
    if not found:
        raise InputError(name, value, "is not a duration", "Write a whole number and s, m, h or d: 30s, 10m, 12h, 2d")
    return int(found[1]) * _SECONDS[found[2]]
