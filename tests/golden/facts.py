"""What the two sides left behind, as facts by name that can be compared: without ids, times and places.

A fact is text, or a list of names whose order counts. `normalised` takes out of text what differs between two runs of the same
code; what is measured with a clock is left out by name (`TIMED`) or by column.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Facts = dict[str, str | list[str]]

#: Names of figures that a clock decides.
TIMED = re.compile(r"per_second|latency|seconds|duration|throughput|(^|_)time(_|$)|elapsed")
#: Values that name one run of the pipeline, and nothing else.
_IDS = (
    (re.compile(r"\blocal-\d{8}-\d{6}-[0-9a-f]{6}\b"), "<pipeline run>"),
    (re.compile(r"\bm-[0-9a-f]{32}\b"), "<model id>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<run id>"),
    (re.compile(r"\brco-python:[0-9a-f]{12}\b"), "rco-python:<content>"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[ T-]\d\d[:-]\d\d[:-]\d\d([.-]\d+)?"), "<time>"),
)
_SEPARATORS = re.compile(r"[|│┃]")
_DRAWN = set("━─┏┓┗┛┡┩┢┪╇┳┻┴┬└┘├┤┼╈╋")
_CLOCKED_COLUMN = re.compile(r"(^|[ _])(ms|s|seconds|images/s)([ _(,]|$)")
_NUMBERED_TASK = re.compile(r"^([a-z]+(?:-[a-z]+)*)(-\d+)+(?=:|$)")


def normalised(text: str, places: Mapping[str, str]) -> str:
    """Text without ids, times, and the names of the folders in `places` (folder -> the word for it)."""
    for folder in sorted(places, key=len, reverse=True):
        text = text.replace(folder, places[folder])
    for pattern, word in _IDS:
        text = pattern.sub(word, text)
    return without_clocked_columns(text)


def without_clocked_columns(text: str) -> str:
    """Tables (Markdown's, or with lines drawn) without the figures of columns that a clock decides."""
    lines, clocked = [], set[int]()
    for line in text.splitlines():
        cells = _SEPARATORS.split(line)
        if len(cells) < 3:
            clocked = clocked if line.strip() and set(line.strip()) <= _DRAWN else set()
        elif named := {i for i, cell in enumerate(cells) if _CLOCKED_COLUMN.search(cell.strip())}:
            clocked = named
        elif clocked and not set(line) <= set("|- :"):
            line = "|".join(" <measured> " if i in clocked and cell.strip() else cell for i, cell in enumerate(cells))
        lines.append(line)
    return "\n".join(lines)


def printed(text: str) -> str:
    """What a command prints, without what depends on a clock or on the width of a table's columns."""
    kept = []
    for line in without_clocked_columns(text).splitlines():
        if "images/s" in line or not line.strip() or set(line.strip()) <= _DRAWN:
            continue
        kept.append(re.sub(r"\s*[|│┃]\s*", " | ", " ".join(line.split())).strip())
    return "\n".join(kept)


def progress(text: str) -> str:
    """What a run prints while it works. Tasks that do not wait for each other come in any order, and of several that compute
    the same, which have numbers, any may be first."""
    return "\n".join(sorted(_NUMBERED_TASK.sub(r"\1", line) for line in printed(text).splitlines()))


def rows(text: str) -> str:
    """The rows of a CSV file, without the columns that a clock decides."""
    head, *others = list(csv.reader(text.splitlines()))
    kept = [i for i, name in enumerate(head) if not TIMED.search(name)]
    return "\n".join(",".join(row[i] for i in kept) for row in (head, *others))


def flattened(document: Any, where: str) -> Facts:
    """The leaves of a JSON document by their path, but for those that a clock decides."""
    if isinstance(document, dict):
        pairs = [(str(key), value) for key, value in document.items() if not TIMED.search(str(key))]
    elif isinstance(document, list):
        pairs = [(str(number), value) for number, value in enumerate(document)]
    else:
        return {where: json.dumps(document, ensure_ascii=False)}
    found: Facts = {} if pairs else {where: json.dumps(document)}
    for key, value in pairs:
        found.update(flattened(value, f"{where}/{key}"))
    return found


def tensors_digest(file: Path) -> str:
    """Hex sha256 of the tensors of a safetensors file: names, types, shapes, bytes; not of what is said about them."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    digest = hashlib.sha256()
    for name in sorted(name for name in header if name != "__metadata__"):
        about = header[name]
        first, last = (8 + length + offset for offset in about["data_offsets"])
        digest.update(json.dumps([name, about["dtype"], about["shape"]]).encode() + content[first:last])
    return digest.hexdigest()


def file_digest(file: Path) -> str:
    """Hex sha256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
