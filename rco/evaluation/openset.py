"""Open-set recognition from embeddings: verification of pairs, and identification among distractors. NumPy only.

Both ask of classes ("identities") that were never trained on whether images of one are closer to each other than to the rest.
Closeness is cosine similarity, and a zero vector is as close to everything as is orthogonal (0). Similarities are computed in
float64 and compared on a grid of 2**-20, about the precision that float32 embeddings have: what is equal but for rounding is a
tie. Pairs are visited in blocks, so memory does not grow with their number, and nothing is sampled that could be counted.

The protocols are ours, in the manner of the field's: TAR at FAR as in face verification, rank-1 among distractors as in
MegaFace (Kemelmacher-Shlizerman et al. 2016), which is the benchmark of the RCO paper's third experiment. That benchmark
itself, its images and its lists of pairs and distractors, is not reproduced here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rco.core.errors import InputError

FARS = (1e-4, 1e-3, 1e-2, 1e-1)
"""False accept rates at which `measure` reports."""
DISTRACTORS = tuple(m * 10**e for e in range(7) for m in (1, 2, 5))[:-2]
"""Numbers of distractors at which `measure` reports, as far as there are so many: 1, 2, 5, 10, ... 1,000,000."""
TRIALS = 10

_GRID = 2**20
_BLOCK = 1024
_BELOW_ALL = -_GRID - 1

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


@dataclass(frozen=True)
class Verification:
    """Every operating point of "same identity if the similarity is at least t", from the strictest t to the laxest.

    Attributes:
        thresholds: (P,) t, decreasing; the first is one step above all similarities and accepts nothing.
        true_accepts: (P,) genuine pairs (of one identity) that are accepted; not decreasing.
        false_accepts: (P,) impostor pairs (of two) that are accepted; not decreasing.
        genuine: number of genuine pairs.
        impostors: number of impostor pairs.
        tar_at_far: TAR at each FAR that was asked for; NaN if FAR * impostors < 1, see `smallest_far`.
        threshold_at_far: the t that goes with it; NaN likewise.
    """

    thresholds: NDArray[np.float64]
    true_accepts: NDArray[np.int64]
    false_accepts: NDArray[np.int64]
    genuine: int
    impostors: int
    tar_at_far: dict[float, float]
    threshold_at_far: dict[float, float]

    @property
    def smallest_far(self) -> float:
        """The smallest FAR above 0 that the impostor pairs can show: one false accept."""
        return 1 / self.impostors

    def roc(self, points: int = 100) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """FAR and TAR, both (Q,) with Q <= points, at FARs spaced evenly on a logarithmic axis from `smallest_far` to 1."""
        allowed = np.unique(np.geomspace(1, self.impostors, points).round().astype(np.int64))
        at = np.searchsorted(self.false_accepts, allowed, side="right") - 1
        return allowed / self.impostors, self.true_accepts[at] / self.genuine


def verification(embeddings: Floats, labels: Ints, far: Sequence[float] = FARS) -> Verification:
    """Compare every image with every other: (N^2 - N) / 2 pairs, genuine where the labels agree, else impostors.

    TAR at a FAR of f is the largest part of genuine pairs that any threshold accepts while it accepts f of the impostors or
    less. Pairs of equal similarity are accepted together or not at all, so ties count against the model: one that embeds
    everything alike has a TAR of 0 at every FAR below 1. An f below 1 / impostors is NaN: the data cannot tell it from 0.

    Args:
        embeddings: (N, d), any length.
        labels: (N,), identities.
        far: false accept rates, above 0 and below 1.

    Raises:
        InputError: a rate out of range, embeddings that are not finite or do not fit the labels, no two images of one identity,
            or one identity only.
    """
    for rate in far:
        if not 0 < rate < 1:
            raise InputError("far", rate, "is not a false accept rate", "Give numbers above 0 and below 1, such as 0.01")
    units = _units(embeddings, labels, "embeddings")
    size = 2 * _GRID + 1
    genuine, impostors = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for top in range(0, len(units), _BLOCK):
        for left in range(top, len(units), _BLOCK):
            rows, columns = slice(top, top + _BLOCK), slice(left, left + _BLOCK)
            bins = _similarities(units[rows], units[columns]) + _GRID
            same = labels[rows, None] == labels[None, columns]
            if left == top:  # each pair once, and no image with itself
                once = np.triu(np.ones(bins.shape, bool), 1)
                bins, same = bins[once], same[once]
            genuine += np.bincount(bins[same], minlength=size)
            impostors += np.bincount(bins[~same], minlength=size)
    if not genuine.any() or not impostors.any():
        lacking = "two images of one identity" if not genuine.any() else "images of two identities"
        raise InputError("labels", f"{len(labels)} images", f"have no {lacking}", "Verification needs both kinds of pairs")
    occupied = np.flatnonzero(genuine + impostors)[::-1]
    thresholds = (np.concatenate([[occupied[0] + 1], occupied]) - _GRID) / _GRID
    true_accepts, false_accepts = (np.concatenate([[0], h[occupied].cumsum()]) for h in (genuine, impostors))
    total, others = int(true_accepts[-1]), int(false_accepts[-1])
    tar, threshold = {}, {}
    for rate in far:
        allowed = int(Fraction(str(float(rate))) * others)  # as it is written: 0.29 of 100 is 29, though 0.29 * 100 is less
        point = np.searchsorted(false_accepts, allowed, side="right") - 1
        tar[float(rate)] = float(true_accepts[point] / total) if allowed else float("nan")
        threshold[float(rate)] = float(thresholds[point]) if allowed else float("nan")
    return Verification(thresholds, true_accepts, false_accepts, total, others, tar, threshold)


@dataclass(frozen=True)
class Identification:
    """Rank-1 rates.

    Attributes:
        sizes: (S,) numbers of distractors.
        trials: (T, S) rank-1 rate, 0 to 1, of each trial; not increasing along a row.
        searches: how many (probe, mate) pairs a rate is the mean of.
    """

    sizes: tuple[int, ...]
    trials: NDArray[np.float64]
    searches: int

    @property
    def rank1(self) -> dict[int, float]:
        """Mean over the trials by number of distractors."""
        return {size: float(rate) for size, rate in zip(self.sizes, self.trials.mean(axis=0), strict=True)}


def identification(
    probes: Floats,
    labels: Ints,
    sizes: Sequence[int],
    *,
    distractors: Floats | None = None,
    distractor_labels: Ints | None = None,
    trials: int = TRIALS,
    seed: int = 0,
) -> Identification:
    """Search for a probe in galleries that hold one image of its identity and a growing number of distractors.

    The protocol, in the manner of MegaFace's challenge 1:

    - Every image is a probe once with each other image of its identity as its mate (ordered pairs). So an identity of n images
      counts n (n - 1) times, and one of a single image not at all.
    - The gallery is the mate and D distractors: images of other identities than the probe's.
    - A search is right at rank 1 if the mate is more similar to the probe than each distractor; a tie is wrong.
    - In a trial the distractors are put into one random order, a function of (seed, trial). The gallery of D holds the first D
      of that order that are not of the probe's identity. So galleries are nested, and rank-1 cannot rise with D.

    Args:
        probes: (N, d), any length.
        labels: (N,), identities.
        sizes: of the galleries without the mate (D), increasing, from 1.
        distractors: (M, d). None: the probes serve each other as distractors, each those of the other identities.
        distractor_labels: (M,), in the same numbering as `labels`. None: all are of other identities than the probes.

    Raises:
        InputError: sizes out of order or larger than some identity has distractors, no two images of one identity, or
            embeddings that are not finite or do not fit each other or their labels.
    """
    if trials < 1:
        raise InputError("trials", trials, "must be 1 or more", "Give a whole number above 0")
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
        raise InputError("sizes", list(sizes), "do not increase from 1 or more", "Give numbers of distractors such as 1,10,100")
    units = _units(probes, labels, "probes")
    if distractors is None:
        others, identity = units, np.asarray(labels)
    else:
        free = int(labels.max()) + 1
        identity = np.full(len(distractors), free) if distractor_labels is None else distractor_labels
        others = _units(distractors, identity, "distractors")
    if units.shape[1] != others.shape[1]:
        raise InputError("distractors", others.shape, f"are not of the probes' {units.shape[1]} dimensions", "Use one model")
    identities = [c for c, n in zip(*np.unique(labels, return_counts=True), strict=True) if n > 1]
    if not identities:
        raise InputError("labels", f"{len(labels)} images", "have no two of one identity", "A probe needs a mate")
    available = min(int((identity != c).sum()) for c in identities)
    if sizes[-1] > available:
        raise InputError("sizes", list(sizes), f"go beyond the {available} distractors that there are", "Leave out the largest")
    orders = [np.random.Generator(np.random.PCG64((seed, trial))).permutation(len(others)) for trial in range(trials)]
    correct = np.zeros((trials, len(sizes)), np.int64)
    searches = 0
    for c in identities:
        members = np.flatnonzero(labels == c)
        searches += len(members) * (len(members) - 1)
        queues = [order[identity[order] != c] for order in orders]
        for start in range(0, len(members), _BLOCK):
            block = units[members[start : start + _BLOCK]]
            mates = _similarities(block, units[members])
            mates[np.arange(len(block)), start + np.arange(len(block))] = _BELOW_ALL  # an image is not its own mate
            for trial, queue in enumerate(queues):
                nearest = np.full(len(block), _BELOW_ALL)
                done = 0
                for column, size in enumerate(sizes):
                    for first in range(done, size, _BLOCK):
                        chunk = others[queue[first : min(first + _BLOCK, size)]]
                        nearest = np.maximum(nearest, _similarities(block, chunk).max(axis=1))
                    done = size
                    correct[trial, column] += (mates > nearest[:, None]).sum()
    return Identification(tuple(sizes), correct / searches, searches)


def measure(embeddings: Floats, labels: Ints, *, trials: int = TRIALS, seed: int = 0) -> dict[str, Any]:
    """Verification at `FARS`, and identification at `DISTRACTORS` as far as there are so many images, JSON-ready.

    Each image's distractors are the images of the other identities; images of training classes play no part.

    Args:
        embeddings: (N, d).
        labels: (N,), identities.

    Returns:
        images, genuine_pairs, impostor_pairs, smallest_far, tar_at_far and threshold_at_far (by FAR; None where the FAR is
        below the smallest), roc (far and tar), searches, trials, rank1 and rank1_std (over trials; by distractors).

    Raises:
        InputError: as `verification` and `identification`.
    """
    verified = verification(embeddings, labels)
    _, counts = np.unique(labels, return_counts=True)
    available = len(labels) - int(counts[counts > 1].max())
    sizes = [size for size in DISTRACTORS if size <= available]
    found = identification(embeddings, labels, sizes, trials=trials, seed=seed)
    far, tar = verified.roc()
    return {
        "images": len(labels),
        "genuine_pairs": verified.genuine,
        "impostor_pairs": verified.impostors,
        "smallest_far": verified.smallest_far,
        "tar_at_far": _keyed(verified.tar_at_far),
        "threshold_at_far": _keyed(verified.threshold_at_far),
        "roc": {"far": far.tolist(), "tar": tar.tolist()},
        "searches": found.searches,
        "trials": trials,
        "rank1": {str(size): rate for size, rate in found.rank1.items()},
        "rank1_std": {str(s): float(d) for s, d in zip(found.sizes, found.trials.std(axis=0), strict=True)},
    }


@dataclass(frozen=True, kw_only=True)
class Roc:
    """A receiver operating characteristic: both (P,), 0 to 1."""

    far: tuple[float, ...]
    tar: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Unseen:
    """The fields of `measure`'s result that later tasks read."""

    images: int
    genuine_pairs: int
    impostor_pairs: int
    smallest_far: float
    tar_at_far: dict[str, float | None]
    roc: Roc
    rank1: dict[str, float]
    rank1_std: dict[str, float]

    def __post_init__(self) -> None:
        sizes = list(self.rank1)
        if not sizes or sizes != list(self.rank1_std) or not all(size.isdecimal() and len(size) < 10 for size in sizes):
            raise InputError("rank1", sizes, "is not by numbers of distractors, with deviations", "Measure it again")
        if min(self.rank1_std.values()) < 0:
            raise InputError("rank1_std", self.rank1_std, "has a deviation below 0", "Measure it again")
        if not self.roc.far or len(self.roc.far) != len(self.roc.tar):
            raise InputError("roc", len(self.roc.far), "is not a curve", "Measure it again")


@dataclass(frozen=True, kw_only=True)
class OpenSet:
    """The results of `measure` for teacher and student."""

    classes: tuple[str, ...]
    teacher: Unseen
    student: Unseen

    def __post_init__(self) -> None:
        teacher, student = self.teacher, self.student
        if list(teacher.rank1) != list(student.rank1) or list(teacher.tar_at_far) != list(student.tar_at_far):
            raise InputError("open_set", list(student.rank1), "differs between teacher and student", "Measure it again")


def figures(measured: Mapping[str, Any]) -> dict[str, float]:
    """The result of `measure` as metrics: open_tar_at_far_F and open_rank1_at_D. An unknown TAR is left out."""
    tar = {f"open_tar_at_far_{far}": value for far, value in measured["tar_at_far"].items() if value is not None}
    return tar | {f"open_rank1_at_{size}": value for size, value in measured["rank1"].items()}


def both_figures(open_set: Mapping[str, Any] | None) -> dict[str, float]:
    """`figures` of "teacher" and "student", each with its prefix; empty without an open set."""
    if open_set is None:
        return {}
    return {f"{role}_{name}": value for role in ("teacher", "student") for name, value in figures(open_set[role]).items()}


def sentence(open_set: Mapping[str, Any]) -> str:
    """The result with the largest gallery, in one sentence."""
    size, rate = list(open_set["student"]["rank1"].items())[-1]
    return (
        f"Of {len(open_set['classes'])} classes never trained on it finds the right image among {int(size):,} distractors in "
        f"{100 * rate:.2f} % of searches, its teacher in {100 * open_set['teacher']['rank1'][size]:.2f} %."
    )


def table(open_set: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column heads and rows of text: one row a measure, teacher beside student.

    Args:
        open_set: results of `measure` for "teacher" and "student", by these names.
    """
    models = [open_set[role] for role in ("teacher", "student")]
    first = models[0]

    def tar(far: str) -> list[str]:
        too_few = f"not known: {first['impostor_pairs']:,} impostor pairs show no FAR below {first['smallest_far']:.2g}"
        values = [m["tar_at_far"][far] for m in models]
        return [f"TAR at FAR {far}", *(too_few if value is None else f"{100 * value:.2f} %" for value in values)]

    rows = [tar(far) for far in first["tar_at_far"]]
    for size in first["rank1"]:
        rates = (f"{100 * m['rank1'][size]:.2f} % (sd {100 * m['rank1_std'][size]:.2f})" for m in models)
        rows.append([f"rank-1 among {int(size):,} distractor{'s' if size != '1' else ''}", *rates])
    return ["", "teacher", "student"], rows


def _keyed(by_far: Mapping[float, float]) -> dict[str, float | None]:
    return {f"{far:g}": None if np.isnan(value) else value for far, value in by_far.items()}


def _units(embeddings: Floats, labels: Ints, name: str) -> NDArray[np.float64]:
    """Embeddings scaled to length 1 (zero stays zero), in float64."""
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not embeddings.size:
        raise InputError(name, embeddings.shape, f"do not fit labels of {labels.shape}", "Give (N, d) and (N,), N of 1 or more")
    vectors = embeddings.astype(np.float64)
    if not np.isfinite(vectors).all():
        raise InputError(
            name,
            f"{np.count_nonzero(~np.isfinite(vectors))} of {vectors.size} values",
            "are not finite",
            "The model has diverged: lower lr",
        )
    # First by the largest component: squares of very large or very small ones would overflow or vanish.
    vectors /= np.maximum(np.abs(vectors).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    length = np.sqrt((vectors**2).sum(axis=1, keepdims=True))
    units: NDArray[np.float64] = vectors / np.where(length > 0, length, 1)
    return units


def _similarities(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.int64]:
    """Cosine similarities (A, B) of unit vectors in steps of the grid: -2**20 to 2**20."""
    return np.rint(np.clip(a @ b.T, -1, 1) * _GRID).astype(np.int64)
