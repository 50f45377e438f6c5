"""Verification and identification: by hand, against the definitions written out, and what must hold for any embeddings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.evaluation import openset
from rco.evaluation.openset import figures, identification, measure, table, verification

Floats = NDArray[np.float64]


def at(*degrees: float) -> Floats:
    """Unit vectors in the plane."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def cloud(seed: int, sizes: tuple[int, ...] = (5, 4, 3), spread: float = 1.0, d: int = 6) -> tuple[Floats, NDArray[np.int64]]:
    """Identities of so many images each, gathered around random centres."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return rng.normal(size=(len(sizes), d))[labels] + spread * rng.normal(size=(len(labels), d)), labels


clouds = st.builds(
    cloud,
    st.integers(0, 10_000),
    st.lists(st.integers(2, 6), min_size=2, max_size=5).map(tuple),
    st.sampled_from([0.1, 1.0, 5.0]),
)


def cosine(a: Floats, b: Floats) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


class TestVerification:
    def test_by_hand(self) -> None:
        # Genuine: 0-10 (10 degrees apart), 60-100 (40). Impostors: 10-60 (50), 0-60 (60), 10-100 (90), 0-100 (100).
        found = verification(at(0, 10, 60, 100), np.array([0, 0, 1, 1]), far=[0.25, 0.5, 0.9])
        assert (found.genuine, found.impostors) == (2, 4)
        assert found.tar_at_far == {0.25: 1.0, 0.5: 1.0, 0.9: 1.0}
        # Genuine 0-50 and 60-100 (50, 40); impostors 50-60 (10), 50-100 (50), 0-60 (60), 0-100 (100).
        found = verification(at(0, 50, 60, 100), np.array([0, 0, 1, 1]), far=[0.25, 0.49, 0.5, 0.75])
        # One false accept lets the threshold down to 40 degrees; the tie at 50 degrees costs a second one.
        assert found.tar_at_far == {0.25: 0.5, 0.49: 0.5, 0.5: 1.0, 0.75: 1.0}
        assert found.threshold_at_far[0.25] == pytest.approx(math.cos(math.radians(40)), abs=2e-6)
        assert found.threshold_at_far[0.5] == pytest.approx(math.cos(math.radians(50)), abs=2e-6)
        assert found.false_accepts.tolist() == [0, 1, 1, 2, 3, 4]
        assert found.true_accepts.tolist() == [0, 0, 1, 2, 2, 2]

    def test_a_far_that_the_pairs_cannot_show_is_not_made_up(self) -> None:
        found = verification(at(0, 10, 60, 100), np.array([0, 0, 1, 1]), far=[0.24, 0.25])
        assert math.isnan(found.tar_at_far[0.24])
        assert math.isnan(found.threshold_at_far[0.24])
        assert found.tar_at_far[0.25] == 1.0
        assert found.smallest_far == 0.25

    def test_far_is_taken_as_it_is_written(self) -> None:
        """0.29 * 100 is 28.999999999999996 in binary."""
        sizes = (10, 10)  # 100 impostor pairs
        vectors, labels = cloud(0, sizes, 5.0)
        found = verification(vectors, labels, far=[0.29])
        assert found.impostors == 100
        assert (found.false_accepts <= 29).sum() - 1 == np.searchsorted(found.false_accepts, 29, side="right") - 1
        assert found.tar_at_far[0.29] == found.true_accepts[found.false_accepts <= 29][-1] / found.genuine
        assert 29 in found.false_accepts, "the example tells 28 from 29"
        below = found.thresholds[found.false_accepts <= 28][-1]
        assert found.threshold_at_far[0.29] < below

    def test_ties_count_against_the_model(self) -> None:
        """All alike: no threshold accepts a genuine pair without all impostors."""
        found = verification(np.ones((6, 3)), np.array([0, 0, 0, 1, 1, 1]), far=[0.5, 0.9])
        assert set(found.tar_at_far.values()) == {0.0}
        assert all(math.isfinite(t) and t > 1 for t in found.threshold_at_far.values())

    def test_a_zero_vector_is_like_nothing(self) -> None:
        found = verification(np.array([[0.0, 0], [0, 0], [1, 0], [1, 0]]), np.array([0, 0, 1, 1]), far=[0.9])
        assert found.tar_at_far[0.9] == 0.5

    @settings(deadline=None, max_examples=30)
    @given(clouds, st.floats(0.02, 0.98))
    def test_is_the_definition_written_out(self, made: Any, far: float) -> None:
        vectors, labels = made
        pairs = [
            (round(cosine(vectors[i], vectors[j]) * 2**20), labels[i] == labels[j])
            for i in range(len(labels))
            for j in range(i + 1, len(labels))
        ]
        genuine = [s for s, same in pairs if same]
        impostors = [s for s, same in pairs if not same]
        found = verification(vectors, labels, far=[far])
        assert (found.genuine, found.impostors) == (len(genuine), len(impostors))
        allowed = Fraction(str(far)) * len(impostors)
        best = 0.0
        for t in {s for s, _ in pairs}:
            if sum(s >= t for s in impostors) <= allowed:
                best = max(best, sum(s >= t for s in genuine) / len(genuine))
        if allowed >= 1:
            assert found.tar_at_far[far] == best
        else:
            assert math.isnan(found.tar_at_far[far])

    @settings(deadline=None, max_examples=30)
    @given(clouds)
    def test_tar_rises_with_far_to_one(self, made: Any) -> None:
        found = verification(*made, far=[0.3, 0.5, 0.7, 0.9])
        known = [v for v in found.tar_at_far.values() if not math.isnan(v)]
        assert known == sorted(known)
        far, tar = found.roc()
        assert (np.diff(far) > 0).all()
        assert (np.diff(tar) >= 0).all()
        assert (far[0], far[-1], tar[-1]) == (found.smallest_far, 1.0, 1.0)

    def test_blocks_make_no_difference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = cloud(3, (9, 8, 7, 6))
        whole = verification(*made)
        monkeypatch.setattr(openset, "_BLOCK", 7)
        pieces = verification(*made)
        assert pieces.tar_at_far.keys() == whole.tar_at_far.keys()
        np.testing.assert_array_equal(pieces.true_accepts, whole.true_accepts)
        np.testing.assert_array_equal(pieces.false_accepts, whole.false_accepts)
        np.testing.assert_array_equal(pieces.thresholds, whole.thresholds)

    @pytest.mark.parametrize(
        ("vectors", "labels", "far", "words"),
        [
            (np.eye(3), [0, 0, 0], [0.1], "no images of two identities"),
            (np.eye(3), [0, 1, 2], [0.1], "no two images of one identity"),
            (np.eye(3), [0, 1], [0.1], "do not fit"),
            (np.full((3, 2), np.nan), [0, 0, 1], [0.1], "not finite"),
            (np.eye(3), [0, 0, 1], [0.0], "far = 0.0"),
            (np.eye(3), [0, 0, 1], [1.0], "far = 1.0"),
        ],
    )
    def test_refused_in_words(self, vectors: Floats, labels: list[int], far: list[float], words: str) -> None:
        with pytest.raises(InputError, match=words):
            verification(vectors, np.array(labels), far=far)


class TestIdentification:
    def test_by_hand(self) -> None:
        # Identity 0 at 0, 10, 40 degrees; the one distractor at 22.
        found = identification(
            at(0, 10, 40), np.zeros(3, int), [1], distractors=at(22), distractor_labels=np.array([1]), trials=2
        )
        # Probe 0: mate 10 beats 22, mate 40 does not. Probe 10: 0 (10 away) beats 12, 40 (30) not. Probe 40: neither beats 18.
        assert found.searches == 6
        assert found.rank1 == {1: 2 / 6}

    def test_a_tie_with_a_distractor_is_wrong(self) -> None:
        for angle, right in ((10, 0.0), (10.1, 0.5)):
            found = identification(at(0, 10), np.zeros(2, int), [1], distractors=at(angle), trials=1)
            assert found.rank1 == {1: right}

    def test_an_image_is_no_mate_of_its_own(self) -> None:
        found = identification(at(0, 90), np.zeros(2, int), [1], distractors=at(45), trials=1)
        assert found.rank1 == {1: 0.0}

    def test_distractors_are_of_other_identities(self) -> None:
        """Of identity 0 there is an image between probe and mate; it is no distractor of theirs."""
        found = identification(at(0, 5, 10, 90, 95), np.array([0, 0, 0, 1, 1]), [1, 2], trials=4)
        assert found.rank1 == {1: 1.0, 2: 1.0}

    def test_single_images_are_distractors_only(self) -> None:
        found = identification(at(0, 10, 50), np.array([0, 0, 1]), [1], trials=1)
        assert found.searches == 2
        assert found.rank1 == {1: 1.0}

    @settings(deadline=None, max_examples=20)
    @given(clouds, st.integers(0, 99))
    def test_is_the_protocol_written_out(self, made: Any, seed: int) -> None:
        vectors, labels = made
        available = len(labels) - np.bincount(labels).max()
        sizes = sorted({1, min(3, available), available})
        found = identification(vectors, labels, sizes, trials=2, seed=seed)
        for trial in range(2):
            order = np.random.Generator(np.random.PCG64((seed, trial))).permutation(len(labels))
            for size, rate in zip(sizes, found.trials[trial], strict=True):
                wins: list[bool] = []
                for i in range(len(labels)):
                    gallery = [d for d in order if labels[d] != labels[i]][:size]
                    nearest = max(round(cosine(vectors[i], vectors[d]) * 2**20) for d in gallery)
                    mates = [j for j in np.flatnonzero(labels == labels[i]) if j != i]
                    wins += [round(cosine(vectors[i], vectors[j]) * 2**20) > nearest for j in mates]
                assert rate == np.mean(wins)

    @settings(deadline=None, max_examples=30)
    @given(clouds, st.integers(0, 99))
    def test_more_distractors_never_help(self, made: Any, seed: int) -> None:
        vectors, labels = made
        available = int(len(labels) - np.bincount(labels).max())
        found = identification(vectors, labels, range(1, available + 1), seed=seed)
        assert (np.diff(found.trials, axis=1) <= 0).all()

    def test_the_seed_decides_and_nothing_else(self) -> None:
        made = cloud(0, (20, 20, 20), 3.0)
        first, again, other = (identification(*made, [1, 2, 5], seed=s).trials for s in (0, 0, 1))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_blocks_make_no_difference(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = cloud(3, (9, 8, 7), 3.0)
        whole = identification(*made, [1, 5, 12])
        monkeypatch.setattr(openset, "_BLOCK", 3)
        np.testing.assert_array_equal(identification(*made, [1, 5, 12]).trials, whole.trials)

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"sizes": [1, 4]}, "beyond the 3 distractors"),
            ({"sizes": [2, 1]}, "do not increase"),
            ({"sizes": [0]}, "do not increase from 1"),
            ({"sizes": []}, "do not increase"),
            ({"sizes": [1], "trials": 0}, "trials = 0"),
            ({"sizes": [1], "distractors": np.ones((2, 5))}, "2 dimensions"),
            ({"sizes": [1], "labels": np.arange(6)}, "no two of one identity"),
        ],
    )
    def test_refused_in_words(self, options: dict[str, Any], words: str) -> None:
        given_ = {"probes": at(0, 1, 2, 3, 4, 5), "labels": np.array([0, 0, 0, 1, 1, 1]), **options}
        with pytest.raises(InputError, match=words):
            identification(**given_)


TRANSFORMS: dict[str, Callable[[Floats], Floats]] = {
    "rotation": lambda v: v @ np.linalg.qr(np.random.default_rng(1).normal(size=(v.shape[1],) * 2))[0],
    "lengths": lambda v: v * np.random.default_rng(1).uniform(1e-3, 1e3, (len(v), 1)),
    "tiny": lambda v: v * 1e-200,
    "zeros added": lambda v: np.hstack([v, np.zeros_like(v)]),
}


class TestMeasure:
    @settings(deadline=None, max_examples=15)
    @given(st.integers(0, 10_000), st.sampled_from(sorted(TRANSFORMS)))
    def test_only_angles_matter(self, seed: int, transform: str) -> None:
        vectors, labels = cloud(seed, (8, 7, 6))
        before, after = measure(vectors, labels), measure(TRANSFORMS[transform](vectors), labels)
        assert after == before

    def test_order_of_the_images_does_not_matter_to_verification(self) -> None:
        vectors, labels = cloud(5, (8, 7, 6))
        shuffled = np.random.default_rng(0).permutation(len(labels))
        a, b = measure(vectors, labels), measure(vectors[shuffled], labels[shuffled])
        assert a["tar_at_far"] == b["tar_at_far"]

    def test_perfect_embeddings_score_one(self) -> None:
        labels = np.repeat([7, 8, 9], 30)
        measured = measure(np.eye(10)[labels] * 3.0, labels)
        assert set(measured["tar_at_far"].values()) == {None, 1.0}
        assert set(measured["rank1"].values()) == {1.0}
        assert list(measured["rank1"]) == ["1", "2", "5", "10", "20", "50"]

    def test_random_embeddings_score_chance(self) -> None:
        """With labels that mean nothing, the mate is one of D + 1 equals, and TAR is FAR."""
        rng = np.random.default_rng(0)
        measured = measure(rng.normal(size=(600, 16)), rng.integers(0, 3, 600))
        for size, rate in measured["rank1"].items():
            assert rate == pytest.approx(1 / (int(size) + 1), abs=0.02)
        for far in ("0.01", "0.1"):
            assert measured["tar_at_far"][far] == pytest.approx(float(far), rel=0.2)

    def test_what_is_not_known_is_null_and_no_metric(self) -> None:
        vectors, labels = cloud(0, (5, 4, 3))  # 47 impostor pairs
        measured = json.loads(json.dumps(measure(vectors, labels), allow_nan=False))
        assert [far for far, tar in measured["tar_at_far"].items() if tar is None] == ["0.0001", "0.001", "0.01"]
        assert set(figures(measured)) == {"open_tar_at_far_0.1", *(f"open_rank1_at_{d}" for d in (1, 2, 5))}
        heads, rows = table({"teacher": measured, "student": measured})
        assert all(len(row) == len(heads) for row in rows)
        assert rows[0] == ["TAR at FAR 0.0001", *["not known: 47 impostor pairs show no FAR below 0.021"] * 2]
