"""The figure of open-set recognition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from rco.reporting.figures.style import BLUE, GREEN, INK, TITLE, WIDTH, add_legend, dress, new_figure, plain_number


def open_set_figure(open_set: Mapping[str, Any]) -> Figure:
    """Verification (ROC) beside identification (rank-1 as the gallery grows) of classes that were never trained on.

    Args:
        open_set: results of `rco.evaluation.openset.measure` for "teacher" and "student", by these names.
    """
    figure = new_figure(WIDTH, 3.9)
    figure.suptitle("Classes never trained on", fontsize=TITLE, color=INK)
    left, right = figure.subplots(1, 2)
    dress(left, x="False accept rate (log)", y="True accept rate (%)")
    dress(right, x="Distractors in the gallery (log)", y="Rank-1 identification (%), mean and sd")
    for role, color, style in (("teacher", GREEN, (0, (5, 3))), ("student", BLUE, "solid")):
        measured = open_set[role]
        roc = measured["roc"]
        tar = 100 * np.array(roc["tar"], dtype=float)
        left.step(roc["far"], tar, where="post", color=color, ls=style, lw=1.6, label=role.capitalize())
        sizes = [int(size) for size in measured["rank1"]]
        rates, deviations = (100 * np.array(list(measured[key].values()), dtype=float) for key in ("rank1", "rank1_std"))
        right.errorbar(sizes, rates, yerr=deviations, color=color, ls=style, lw=1.6, marker="o", ms=3.5, capsize=2)
    for ax in (left, right):
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(plain_number))
        ax.minorticks_off()
        ax.set_ylim(bottom=0, top=104)
    add_legend(figure)
    return figure
