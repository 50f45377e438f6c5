"""Warm tasks: when, and of what."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from pipelines.local import warm
from rco.core.errors import InputError


@pytest.mark.parametrize(("value", "expected"), [("0", False), ("1", True), ("", True)])
def test_the_switch(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("RCO_WARM", value)
    assert warm.wanted() == (expected and sys.platform == "linux")


def test_a_switch_that_is_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCO_WARM", "no")
    with pytest.raises(InputError, match="RCO_WARM = 'no': must be 0 or 1"):
        warm.wanted()


@pytest.mark.parametrize("name", [*warm.FIRST, *warm.ALWAYS, *warm.SOMETIMES])
def test_what_the_parent_imports_exists(name: str) -> None:
    """It would go without, and slower."""
    assert importlib.util.find_spec(name)
