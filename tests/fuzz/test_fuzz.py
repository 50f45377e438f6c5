"""Damaged inputs for every reader: 50 here; CI's `make fuzz` has 200 for each, yours ten thousand."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.fuzz.__main__ import ENOUGH
from tests.fuzz.readers import READERS

EXAMPLES = 50


@pytest.fixture(scope="module")
def told() -> str:
    """All readers in one process: what it costs is mostly the imports."""
    command = [sys.executable, "-m", "tests.fuzz", "--examples", str(EXAMPLES)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=580).stdout


@pytest.mark.parametrize("name", READERS)
def test_reader(told: str, name: str) -> None:
    line = re.search(rf"^{name} +([\d,]+) +([\d,]+) ", told, re.MULTILINE)
    assert line, told[-8000:]
    inputs, refused = (int(number.replace(",", "")) for number in line.groups())
    assert inputs >= EXAMPLES * ENOUGH
    assert 0 < refused < inputs, "some are good, some are not: else the inputs say nothing"
