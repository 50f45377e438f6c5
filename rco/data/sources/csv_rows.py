"""What a CSV file of paths and labels says, row by row.

Its first row names the columns; commas, semicolons or tabs part them; it is UTF-8. What is wrong is told with the numbers of
the lines, of all that are wrong in the same way.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import IO, Any, NamedTuple

from rco.core.errors import InputError
from rco.data.sources.parts import plain_part

MOST_BYTES = 2**30  # of a file: some ten million rows
_LONGEST_LINE = 2**17  # characters; the csv module itself has this limit for a field
_DELIMITERS = ",;\t"
_SHOWN = 60  # characters of a cell in a message
#: In place of a column's name: there is none.
NONE = "none"
_PART_COLUMNS = ("split", "part")


class Row(NamedTuple):
    """One image.

    Attributes:
        line: where it is listed, from 1.
        path: as it is written.
        label: the name of its class.
        part: "train", "val" or "test"; "train" if there is no such column.
    """

    line: int
    path: str
    label: str
    part: str


class Columns(NamedTuple):
    """The names of the columns, as the settings `csv_path_column`, `csv_label_column` and `csv_part_column` have them."""

    path: str
    label: str
    part: str


class Complaints:
    """What is wrong with the lines of a file."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._lines: dict[tuple[str, str], list[int]] = {}
        self._values: dict[tuple[str, str], list[str]] = {}

    def add(self, line: int, problem: str, remedy: str, value: str = "") -> None:
        """Note a problem ("has no label"); `value` is shown of the first few lines that have it."""
        self._lines.setdefault((problem, remedy), []).append(line)
        values = self._values.setdefault((problem, remedy), [])
        if value and value not in values and len(values) < 3:
            values.append(value)

    def tell(self) -> None:
        """Raise InputError if there was anything to note: about the problem that was noted first."""
        for (problem, remedy), lines in self._lines.items():
            values = self._values[problem, remedy]
            such_as = f" (such as {', '.join(map(shown, values))})" if values else ""
            raise InputError("dataset", self._address, f"{problem} in {_lines(lines)}{such_as}", remedy)


def shown(cell: str) -> str:
    """A cell, quoted, and shortened if it is long."""
    return repr(cell if len(cell) <= _SHOWN else cell[: _SHOWN - 3] + "...")


def _lines(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]}"
    if len(numbers) <= 5:
        return f"lines {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    return f"lines {', '.join(map(str, numbers[:5]))} and {len(numbers) - 5:,} more"


def read_rows(path: Path, address: str, columns: Columns) -> list[Row]:
    """The rows of the file at `path`.

    Args:
        address: of the file, for messages.

    Raises:
        InputError: no readable CSV file, a column that is missing, or rows without what they must have.
    """
    remedy = "Write it as UTF-8 text, with one header and one image a line"
    if path.stat().st_size > MOST_BYTES:
        raise InputError("dataset", address, f"has more than {MOST_BYTES / 2**30:g} GiB, as no list of images", remedy)
    line = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as text:
            reader, header = _begun(text, address)
            at = _places(header, columns, address)
            complaints, rows = Complaints(address), list[Row]()
            for cells in reader:
                line = reader.line_num
                if any(cell.strip() for cell in cells):
                    _read(cells, line, header, at, complaints, rows)
    except UnicodeDecodeError:
        raise InputError("dataset", address, f"is not UTF-8 text, after line {line}", remedy) from None
    except csv.Error as error:
        raise InputError("dataset", address, f"cannot be read after line {line} ({error})", remedy) from None
    complaints.tell()
    return rows


def _begun(text: IO[str], address: str) -> tuple[Any, list[str]]:
    """A reader behind the header, and the header."""
    lines, first = _bounded(text), list[str]()
    for line in lines:
        first.append(line)
        if line.strip():
            break
    else:
        raise InputError("dataset", address, "is empty", "Write a header such as path,label and one image a line")
    delimiter = max(_DELIMITERS, key=lambda mark: len(next(csv.reader([first[-1]], delimiter=mark))))
    reader = csv.reader(chain(first, lines), delimiter=delimiter, strict=True)
    header = next(cells for cells in reader if any(cell.strip() for cell in cells))
    return reader, [cell.strip() for cell in header]


def _bounded(text: IO[str]) -> Iterator[str]:
    while line := text.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise csv.Error(f"a line has more than {_LONGEST_LINE:,} characters")
        yield line


def _places(header: Sequence[str], columns: Columns, address: str) -> tuple[int, int, int | None]:
    """Where path, label and part are in a row."""
    known = {cell.lower() for cell in header}
    if len(header) == 2 and not {columns.path.lower(), columns.label.lower()} & known:
        raise InputError(
            "dataset",
            address,
            f"begins with two columns, {shown(header[0])} and {shown(header[1])}, and none is called {columns.path!r} or "
            f"{columns.label!r}: it has no header, or other names",
            f"Begin it with the line {columns.path},{columns.label}, or set csv_path_column and csv_label_column",
        )
    path = _place(header, "csv_path_column", columns.path, address)
    label = _place(header, "csv_label_column", columns.label, address)
    if columns.part.lower() == NONE:
        return path, label, None
    if columns.part:
        return path, label, _place(header, "csv_part_column", columns.part, address)
    found = [i for i, cell in enumerate(header) if cell.lower() in _PART_COLUMNS]
    if len(found) > 1:
        named = " and ".join(shown(header[i]) for i in found[:2])
        problem = f"is not clear: {address} has the columns {named}"
        raise InputError("csv_part_column", columns.part, problem, f"Name one of them, or {NONE}")
    return path, label, found[0] if found else None


def _place(header: Sequence[str], parameter: str, name: str, address: str) -> int:
    found = [i for i, cell in enumerate(header) if cell == name] or [
        i for i, cell in enumerate(header) if cell.lower() == name.lower()
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(parameter, name, f"is the name of {len(found)} columns of {address}", "Give each its own name")
    near = get_close_matches(name, header, n=1) or get_close_matches(name.lower(), header, n=1)
    listed = ", ".join(map(shown, header[:10])) + (", ..." if len(header) > 10 else "")
    raise InputError(
        parameter,
        name,
        f"is not a column of {address}, which has {listed}",
        (f"Did you mean {shown(near[0])}? " if near else "") + f"Set {parameter} to one of them",
    )


def _read(
    cells: Sequence[str],
    line: int,
    header: Sequence[str],
    at: tuple[int, int, int | None],
    complaints: Complaints,
    rows: list[Row],
) -> None:
    if len(cells) != len(header):
        complaints.add(
            line,
            f"has another number of cells than its header, which has {len(header)},",
            "Put quotes around cells with commas",
        )
        return
    path, label = cells[at[0]].strip(), cells[at[1]].strip()
    written = "train" if at[2] is None else cells[at[2]].strip()
    part = plain_part(written)
    if not path:
        complaints.add(line, "has no path", "Write the image's path, or remove the line")
    if not label:
        complaints.add(line, "has no label", "Write the name of the image's class, or remove the line")
    elif not label.isprintable():  # it goes into logs, tables and pictures
        complaints.add(line, "has a label that is not plain text", "Give the class another name", label)
    if not part:
        complaints.add(
            line,
            "has a part that is not train, val or test",
            f"Write train, val (valid, validation, dev) or test; or set csv_part_column, to {NONE} if parts are to be held out",
            written or " ",
        )
    rows.append(Row(line, path, label, part))
