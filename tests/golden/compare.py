"""Finds the differences between two sets of facts, and holds them against those that are meant.

An entry of `meant.yaml` names one of:

    where: PATTERN, old: TEXT, new: TEXT     in these facts the text `old` has become `new`
    where: PATTERN, changed: true            these facts may have any value
    where: PATTERN, added: true              the older side lacks them
    where: PATTERN, removed: true            the working tree lacks them
    where: PREFIX, now_at: PREFIX            these facts are found under another name

and always a `reason`. A pattern is a fact's name in which `*` stands for anything; `where` may be a list of patterns. An entry
that explains no difference is stale, which is a failure.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.golden.facts import Facts

_KEYS = {"where", "reason", "old", "new", "changed", "added", "removed", "now_at"}
_KINDS = ({"old", "new"}, {"changed"}, {"added"}, {"removed"}, {"now_at"})

Value = str | list[str] | None


@dataclass(frozen=True)
class Entry:
    """One difference that is meant, or many that are alike."""

    where: tuple[str, ...]
    reason: str
    old: str = ""
    new: str = ""
    changed: bool = False
    added: bool = False
    removed: bool = False
    now_at: str = ""

    @classmethod
    def of(cls, values: Any) -> Entry:
        """An entry as it is written.

        Raises:
            ValueError: it says nothing, or too much.
        """
        if not isinstance(values, dict) or not set(values) <= _KEYS:
            raise ValueError(f"{values!r} is not an entry; its keys are {', '.join(sorted(_KEYS))}")
        given = set(values) - {"where", "reason"}
        if given not in _KINDS or ("old" in given and not values["old"]):
            raise ValueError(f"the entry {values!r} needs one of: old and new, changed, added, removed, now_at")
        where = values.get("where")
        patterns = [where] if isinstance(where, str) else where
        if not patterns or not all(isinstance(pattern, str) for pattern in patterns):
            raise ValueError(f"the entry {values!r} does not say where")
        if not str(values.get("reason") or "").strip():
            raise ValueError(f"the entry {values!r} gives no reason")
        return cls(**{**values, "where": tuple(patterns)})

    def covers(self, name: str) -> bool:
        """Whether a fact's name matches."""
        return any(_matches(pattern, name) for pattern in self.where)

    def concerns(self, parts: Iterable[str]) -> bool:
        """Whether it could explain anything in these parts: only then can it be stale."""
        return any(_matches(pattern.split("/")[0], part) for pattern in self.where for part in parts)


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name, re.DOTALL) is not None


def read_meant(path: Path) -> list[Entry]:
    """The entries of a file; an empty file has none."""
    return [Entry.of(values) for values in yaml.safe_load(path.read_text()) or []]


@dataclass(frozen=True)
class Difference:
    """A fact that the sides do not share. None: a side lacks it."""

    name: str
    old: Value
    new: Value

    def shown(self) -> str:
        """A few lines for people."""
        if self.new is None:
            return f"- {self.name}\n    gone; it was: {_short(self.old)}"
        if self.old is None:
            return f"+ {self.name}\n    new: {_short(self.new)}"
        lines = difflib.unified_diff(_lines(self.old), _lines(self.new), lineterm="", n=1)
        return f"~ {self.name}\n" + "\n".join(f"    {line}" for line in list(lines)[2:40])


def _lines(value: Value) -> list[str]:
    return value if isinstance(value, list) else (value or "").splitlines() or [""]


def _short(value: Value) -> str:
    lines = _lines(value)
    return lines[0][:200] + (f" ... ({len(lines)} lines)" if len(lines) > 1 else "")


@dataclass
class Account:
    """What a comparison has found.

    Attributes:
        counted: part -> facts that were compared.
        unmeant: differences that no entry explains.
        meant: differences with the reasons for them.
        stale: entries that explain nothing.
    """

    counted: dict[str, int] = field(default_factory=dict)
    unmeant: list[Difference] = field(default_factory=list)
    meant: list[tuple[Difference, list[Entry]]] = field(default_factory=list)
    stale: list[Entry] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing differs but what is meant, and all that is meant does."""
        return not self.unmeant and not self.stale

    def shown(self) -> str:
        """The account for people."""
        lines = [difference.shown() for difference in self.unmeant]
        for difference, entries in self.meant:
            lines.append(f"meant: {difference.name} ({'; '.join(entry.reason for entry in entries)})")
        lines += [
            f"stale: the entry for {', '.join(entry.where)} ({entry.reason}) explains no difference; remove it"
            for entry in self.stale
        ]
        lines += [f"{part:<12} {number:>6} facts compared" for part, number in sorted(self.counted.items())]
        lines.append(
            f"{len(self.unmeant)} differences that are not meant, {len(self.meant)} that are, {len(self.stale)} stale entries"
        )
        return "\n".join(lines)


def compare(base: Facts, tree: Facts, entries: Sequence[Entry] = ()) -> Account:
    """All differences between the older side and the working tree, each meant or not."""
    account = Account()
    used: set[int] = set()
    base = _moved(base, entries, used)
    names = [*base, *(name for name in tree if name not in base)]
    for name in names:
        part = name.split("/")[0]
        account.counted[part] = account.counted.get(part, 0) + 1
        old, new = _common(base.get(name), tree.get(name))
        if old == new:
            continue
        difference, reasons = _explained(Difference(name, old, new), entries)
        if reasons:
            used.update(reasons)
            account.meant.append((difference, [entries[i] for i in reasons]))
        else:
            account.unmeant.append(difference)
    account.stale = [e for i, e in enumerate(entries) if i not in used and e.concerns(account.counted)]
    return account


def _moved(base: Facts, entries: Sequence[Entry], used: set[int]) -> Facts:
    moved: Facts = {}
    for name, value in base.items():
        for i, entry in enumerate(entries):
            prefix = next((w for w in entry.where if entry.now_at and name.startswith(w)), None)
            if prefix is not None:
                name = entry.now_at + name.removeprefix(prefix)
                used.add(i)
        moved[name] = value
    return moved


def _common(old: Value, new: Value) -> tuple[Value, Value]:
    """Of two lists, the order of what both have: what only one has is a difference of its own elsewhere."""
    if isinstance(old, list) and isinstance(new, list):
        return [item for item in old if item in new], [item for item in new if item in old]
    return old, new


def _explained(difference: Difference, entries: Sequence[Entry]) -> tuple[Difference, list[int]]:
    """The entries that explain a difference whole; without any, what they leave of it."""
    old, new = difference.old, difference.new
    here = [i for i, entry in enumerate(entries) if entry.covers(difference.name)]
    for i in here:
        entry = entries[i]
        if (entry.added and old is None) or (entry.removed and new is None):
            return difference, [i]
        if entry.changed and old is not None and new is not None:
            return difference, [i]
    if not (isinstance(old, str) and isinstance(new, str)):
        return difference, []
    text, worked = old, []
    for i in here:
        entry = entries[i]
        if entry.old and entry.old in text:
            # An entry for a whole text says what became of that, whatever other entries say of parts of it.
            if old == entry.old and new == entry.new:
                return difference, [i]
            text = text.replace(entry.old, entry.new)
            worked.append(i)
    return (difference, worked) if text == new else (Difference(difference.name, text, new), [])


def proposed(differences: Iterable[Difference]) -> str:
    """Entries for differences, ready to be given their reasons; one for all facts in which the same words changed."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for difference in differences:
        if difference.old is None:
            keys = [("added",)]
        elif difference.new is None:
            keys = [("removed",)]
        elif isinstance(difference.old, list) or isinstance(difference.new, list):
            keys = [("changed",)]
        else:
            keys = [("text", old, new) for old, new in _changes(difference.old, difference.new)] or [("changed",)]
        for key in dict.fromkeys(keys):
            groups.setdefault(key, []).append(difference.name)
    return "".join(_entry(key, names) for key, names in groups.items())


def _entry(key: Sequence[str], names: list[str]) -> str:
    entry: dict[str, Any] = {"where": names[0] if len(names) == 1 else names}
    entry.update({"old": key[1], "new": key[2]} if key[0] == "text" else {key[0]: True})
    dumped: str = yaml.safe_dump([{**entry, "reason": ""}], sort_keys=False, allow_unicode=True, width=120)
    return dumped


def _changes(old: str, new: str) -> list[tuple[str, str]]:
    """What became what: blocks of lines, in a single line the words that differ. Empty where there is nothing to quote."""
    if not old:
        return []
    before, after = old.splitlines(), new.splitlines()
    found = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        if kind == "insert":  # hangs on the line before it
            i, k = max(i - 1, 0), max(k - 1, 0)
            j, m = max(j, i + 1), max(m, k + 1)
        removed, added = "\n".join(before[i:j]), "\n".join(after[k:m])
        if kind == "delete":
            removed += "\n" if j < len(before) else ""
        elif "\n" not in removed + added:
            found += _words(removed, added)
            continue
        found.append((removed, added))
    # As words, they may be rewritten elsewhere in the text too: then only the whole text says it.
    text = old
    for removed, added in found:
        text = text.replace(removed, added) if removed else text
    return found if text == new else [(old, new)]


def _words(old: str, new: str) -> list[tuple[str, str]]:
    before, after = old.split(" "), new.split(" ")
    changes: list[list[int]] = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        while len(" ".join(before[i:j])) < 16 and (i or j < len(before)):  # enough to be found by
            if j < len(before) and m < len(after) and before[j] == after[m]:
                j, m = j + 1, m + 1
            elif i and k and before[i - 1] == after[k - 1]:
                i, k = i - 1, k - 1
            else:
                break
        if changes and i < changes[-1][1] + 2:  # one change, rather than two that touch
            changes[-1][1], changes[-1][3] = max(j, changes[-1][1]), max(m, changes[-1][3])
        else:
            changes.append([i, j, k, m])
    return [(" ".join(before[i:j]), " ".join(after[k:m])) for i, j, k, m in changes]
