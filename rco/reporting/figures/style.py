"""The common dressing of figures: colours, sizes, axes, legends; and the way from a figure to a file or a page.

Nothing touches pyplot or any other global state of matplotlib, so figures are safe in threads and notebooks.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.core.files import atomically

# Okabe and Ito's palette, which people with any colour vision can tell apart.
BLUE, VERMILLION, GREEN = "#0072B2", "#D55E00", "#009E73"
INK, GREY, PALE = "#222222", "#767676", "#DDDDDD"

TITLE, LABEL, TICK, SMALL = 12.0, 10.0, 9.0, 8.0  # points
WIDTH = 8.0  # inches
AXES_POINTS = 0.86 * WIDTH * 72  # about the width that margins leave to the axes


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def dress(ax: Axes, *, x: str = "", y: str = "", grid: bool = True) -> Axes:
    """Give axes their labels and the common look; returns the same axes."""
    ax.set_xlabel(x, fontsize=LABEL, color=INK)
    ax.set_ylabel(y, fontsize=LABEL, color=INK)
    ax.tick_params(labelsize=TICK, color=GREY, labelcolor=INK)
    for side, spine in ax.spines.items():
        spine.set(color=GREY, visible=grid and side in ("left", "bottom"))
    if grid:
        ax.grid(color=PALE, lw=0.6, zorder=0)
        ax.set_axisbelow(True)
    return ax


def add_legend(figure: Figure) -> None:
    """Put a legend of all axes below them."""
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=TICK, labelcolor=INK)


def add_colorbar(ax: Axes, image: Any, label: str, width: float) -> None:
    """Put a colour bar beside axes of about `width` inches, as high as they are."""
    cax = ax.inset_axes((1 + 0.12 / width, 0, 0.16 / width, 1))
    bar = ax.figure.colorbar(image, cax=cax)
    bar.set_label(label, fontsize=LABEL, color=INK)
    cax.tick_params(which="both", labelsize=TICK, color=GREY, labelcolor=INK)
    cax.yaxis.set_major_formatter(FuncFormatter(plain_number))
    bar.outline.set_visible(False)


def plain_number(value: float, _: object = None) -> str:
    """A tick's number without trailing zeros; the second argument is the tick's index, as matplotlib passes it."""
    return f"{value:g}"


def column(rows: Sequence[Mapping[str, Any]], name: str) -> NDArray[np.float64]:
    """One value of every row, NaN where it is missing.

    Raises:
        InputError: no rows.
    """
    if not rows:
        raise InputError("history", rows, "is empty", "Give at least one epoch")
    return np.array([row.get(name) for row in rows], dtype=float)


def print_cells(ax: Axes, image: Any, values: NDArray[np.float64], show: Callable[[float], str]) -> None:
    """Write each finite value into its cell of an image, in white on dark cells."""
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            red, green, blue, _ = image.to_rgba(image.get_array()[i, j])
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            ax.text(j, i, show(value), ha="center", va="center", fontsize=SMALL, color="white" if dark else INK)


def label_step(count: int, most: int) -> int:
    """The step between labels with which no more than `most` of `count` things have one."""
    return -(-count // most)


def save(figure: Figure, path: Path | str, dpi: int = 150) -> None:
    """Write a PNG, atomically."""
    picture = _render(figure, "png", dpi)
    atomically(Path(path), lambda temporary: temporary.write_bytes(picture))


def data_uri(figure: Figure, format: Literal["png", "svg"] = "svg", dpi: int = 150) -> str:
    """The figure as a `data:` address, for the src of an HTML img."""
    mime = {"png": "image/png", "svg": "image/svg+xml"}[format]
    return f"data:{mime};base64,{base64.b64encode(_render(figure, format, dpi)).decode()}"


def _render(figure: Figure, format: str, dpi: int) -> bytes:
    if isinstance(engine := figure.get_layout_engine(), ConstrainedLayoutEngine):  # it takes as long as drawing: once is enough
        engine.execute(figure)
        figure.set_layout_engine("none")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=dpi, metadata={"Date": None} if format == "svg" else None)
    return buffer.getvalue()
