"""README.md and docs/: what is shown as a command is run (tests/release/test_docs.py) or marked with a reason, links lead
somewhere, and all options and targets that are named exist.

A block of `bash`, `sh`, `console` or `python` is run, unless the line above it says why not:

    <!-- not tried: needs a cluster -->
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from benchmarks.evidence.page import BEGINS, ENDS
from pipelines.cli.main import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Those whose links are followed, too.
OTHERS = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")]
SHELLS = ("bash", "sh", "console")
RUNNABLE = (*SHELLS, "python")
SHOWN = ("text", "yaml", "csv", "mermaid")
_REASON = re.compile(r"<!-- not tried: (?P<reason>[^\n]*\S) -->\s*")
_HEREDOC = re.compile(r"<<'?(\w+)'?.*?\n\1$", re.DOTALL | re.MULTILINE)
#: Targets of the Makefile that hand ARGS to the command of the same name.
HANDED_ON = ("run", "compare", "sweep", "doctor", "compile", "upload")
#: Options of other programs that the pages name by themselves.
FOREIGN = {"--allowed-hosts", "--serve-artifacts", "--no-serve-artifacts"}

COMMONMARK = MarkdownIt("commonmark").enable("table")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: relative to the repository.
        line: of its fence, from 1.
        language: what the fence names.
        text: the lines in it.
        reason: why it is not run; empty: it is.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def script(self) -> str:
        """What is run: of a console's block, the lines behind its prompts."""
        if self.language != "console":
            return self.text
        return "".join(line[2:] for line in self.text.splitlines(keepends=True) if line.startswith("$ "))


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    tokens = COMMONMARK.parse(page.read_text())
    found = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "fence":
            assert token.map
            marked = None
            if before is not None and before.type == "html_block" and before.map and before.map[1] == token.map[0]:
                marked = _REASON.fullmatch(before.content)
            reason = marked["reason"] if marked else ""
            name = page.relative_to(ROOT).as_posix()
            found.append(Block(name, token.map[0] + 1, token.info.strip(), token.content, reason))
    return found


def inlines(page: Path) -> Iterator[Token]:
    """Everything within lines: text, code, links."""
    for token in COMMONMARK.parse(page.read_text()):
        yield from token.children or ()


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    found: list[str] = []
    tokens = COMMONMARK.parse(page.read_text())
    for opened, token in itertools.pairwise(tokens):
        if opened.type == "heading_open":
            text = "".join(child.content for child in token.children or ())
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def commands(script: str) -> Iterator[list[str]]:
    """The commands of a shell script, each as words, without the variables that are set before it."""
    for line in _HEREDOC.sub("", script.replace("\\\n", " ")).splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), ";"]:
            if word in ("&&", "||", "|", "&", ";"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"[A-Z_]+=", word):
                words.append(word)


def options(command: click.Command) -> set[str]:
    return {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}


def every(group: click.Group) -> Iterator[click.Command]:
    """The commands of a group, and of the groups in it."""
    for command in group.commands.values():
        yield command
        if isinstance(command, click.Group):
            yield from every(command)


def of_rco(words: list[str]) -> tuple[click.Command, list[str]] | None:
    """The subcommand of `rco` that a command runs, by itself or through make, and what it is given; None: another program's."""
    program, *rest = words
    if program == "make":
        (target, *given) = [word for word in rest if "=" not in word or word.startswith("ARGS=")]
        if target not in HANDED_ON:
            return None
        return main.commands[target], [part for word in given for part in shlex.split(word.removeprefix("ARGS="))]
    if program not in ("rco", ".venv/bin/rco") or not rest or rest[0].startswith("-"):
        return None
    command: click.Command = main
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, *rest = rest
        assert name in command.commands, f"{command.name} has no command {name}"
        command = command.commands[name]
    return command, rest


def named(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Every command that a page names, and where: in blocks, whether they are run or not, and within lines."""
    for block in blocks(page):
        if block.language in SHELLS:
            yield from ((block.where, words) for words in commands(block.script))
    for token in inlines(page):
        if token.type == "code_inline" and token.content.startswith(("rco ", ".venv/bin/rco ", "make ")):
            yield from ((f"{page.name}: `{token.content}`", words) for words in commands(token.content))


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGINS)  # the table of what was found grows with it
    assert len((before + rest.partition(ENDS)[2]).splitlines()) <= 150
    linked = {str(token.attrs.get("href", "")).partition("#")[0] for token in inlines(readme)}
    assert {page.relative_to(ROOT).as_posix() for page in PAGES[1:]} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_run_or_has_a_reason(page: Path) -> None:
    found = blocks(page)
    for block in found:
        assert block.language in (*RUNNABLE, *SHOWN), f"{block.where}: {block.language or 'no language'}"
        assert not block.reason or block.language in RUNNABLE, f"{block.where} is marked, and would not be run anyway"
        assert block.script.strip(), f"{block.where} has nothing to run"
    # A mark that is spelt otherwise, or stands elsewhere, would mean nothing; an indented block would be overlooked.
    text = page.read_text().replace(BEGINS, "").replace(ENDS, "")  # of a table that is made by a command
    assert text.count("<!--") == sum(bool(block.reason) for block in found)
    assert [token.map for token in COMMONMARK.parse(page.read_text()) if token.type == "code_block"] == []


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for token in inlines(page):
        address = str(token.attrs.get("href") or token.attrs.get("src") or "")
        path, _, anchor = address.partition("#")
        if not address or re.match(r"[a-z]+:", address):
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {address}"
        assert target.is_relative_to(ROOT), f"{page.name}: {address}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {address}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path) -> None:
    targets = re.findall(r"^\.PHONY: ([a-z-]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for where, words in named(page):
        if words[0] == "make":
            asked = [word for word in words[1:] if "=" not in word]
            assert asked, where
            assert set(asked) <= set(targets), f"{where}: {asked}"
        if not (found := of_rco(words)):
            continue
        command, given = found
        unknown = {word.partition("=")[0] for word in given if word.startswith("--")} - options(command)
        assert not unknown, f"{where}: rco {command.name} has no {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_blocks_are_complete(page: Path) -> None:
    for block in blocks(page):
        for words in commands(block.script) if block.language in SHELLS else ():
            if found := of_rco(words):
                command, given = found
                try:
                    command.make_context(str(command.name), list(given))
                except click.exceptions.Exit:
                    assert "--help" in given  # it is printed when the line is parsed
                except click.UsageError as error:
                    pytest.fail(f"{block.where}: {' '.join(words)}: {error.format_message()}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_stand_alone_exist(page: Path) -> None:
    known = FOREIGN.union(*map(options, every(main)))
    for token in inlines(page):
        if token.type == "code_inline" and token.content.startswith("--"):
            given = {word.partition("=")[0] for word in token.content.split() if word.startswith("--")}
            assert given <= known, f"{page.name}: `{token.content}`"


def test_what_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The readers of these tests themselves."""
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b`, c\n## A b c\n\n<!-- not tried: needs a cluster -->\n```bash\nX=1 rco run --tau 2 \\\n --lam 1  # words\n```\n"
        "<!-- not tried: too far above -->\n\n```console\n$ make run ARGS='--nonsense 3' DOCKER=x && cat <<'EOF'\nout\n```\n"
    )
    marked, plain = blocks(page)
    assert (marked.where, marked.reason) == ("page.md:5", "needs a cluster")
    assert (plain.reason, plain.script) == ("", "make run ARGS='--nonsense 3' DOCKER=x && cat <<'EOF'\n")
    assert anchors(page) == {"a-b-c", "a-b-c-1"}
    assert list(commands(marked.script)) == [["rco", "run", "--tau", "2", "--lam", "1"]]
    assert list(commands("cat > f <<'EOF'\nit's\nEOF\nrco clean | head")) == [["cat", ">", "f"], ["rco", "clean"], ["head"]]
    found = of_rco(next(commands("make run ARGS='--nonsense 3' DOCKER=x")))
    assert found == (main.commands["run"], ["--nonsense", "3"])
    assert "--nonsense" not in options(found[0])
    assert of_rco(["kubectl", "apply"]) is None
    with pytest.raises(AssertionError, match="no command"):
        of_rco(["rco", "nonsense"])
