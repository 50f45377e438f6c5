"""Words for people."""

from __future__ import annotations


def counted(number: int, thing: str, things: str = "") -> str:
    """ "1 student", "1,200 students".

    Args:
        things: the plural, where it is not made with an s.
    """
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"
