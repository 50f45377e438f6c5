"""The form that all reports share: a title, tables and pictures as Markdown, as one HTML page and as PNG files."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rco.core.files import atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = tuple[list[str], list[list[str]]]
"""Column heads, and rows of text."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 0 0 1.5rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
img { max-width: 100%; margin: 0 0 1.5rem }
"""


def write_report(
    folder: Path, title: str, sections: Mapping[str, Table], figures: Mapping[str, Figure], sentences: Sequence[str] = ()
) -> None:
    """Write report.md, report.html and a PNG of each figure into a folder, each atomically.

    Args:
        sections: heading -> table.
        figures: name of the file -> figure.
        sentences: a list below the title.
    """
    from rco.reporting.figures import style

    for name, figure in figures.items():
        style.save(figure, folder / f"{name}.png")
    write_text(folder / "report.md", as_markdown(title, sections, sentences))
    pictures = {name: style.data_uri(figure) for name, figure in figures.items()}
    write_text(folder / "report.html", as_page(title, sections, pictures, sentences))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    atomically(path, lambda temporary: temporary.write_text(text))


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same columns as CSV; None becomes an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def percent(value: float) -> str:
    """A part of 1 in per cent."""
    return f"{100 * value:.2f} %"


def as_markdown(title: str, sections: Mapping[str, Table], sentences: Sequence[str] = ()) -> str:
    """A report as Markdown: title, sentences as a list, tables."""
    parts = [f"# Route Constrained Optimization\n\n{title}\n"]
    if sentences:
        parts += [*(f"- {sentence}" for sentence in sentences), ""]
    for name, (heads, rows) in sections.items():
        parts.append(f"## {name}\n")
        parts += [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
        parts.append("")
    return "\n".join(parts)


def as_page(title: str, sections: Mapping[str, Table], pictures: Mapping[str, str], sentences: Sequence[str] = ()) -> str:
    """A report as one HTML page, pictures (data: addresses) included."""

    def row(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = [f"<h1>Route Constrained Optimization</h1><p>{html.escape(title)}</p>"]
    if sentences:
        body.append(f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>")
    for name, (heads, rows) in sections.items():
        body.append(
            f"<h2>{html.escape(name)}</h2><table>{row('th', heads)}{''.join(row('td', cells) for cells in rows)}</table>"
        )
    body += [f'<img alt="{html.escape(name)}" src="{uri}">' for name, uri in pictures.items()]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>RCO report</title><style>{_STYLE}</style>'
        f"<body>{''.join(body)}</body></html>\n"
    )
