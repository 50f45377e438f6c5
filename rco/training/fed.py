"""How a route's teacher is fed: it says so itself, and the settings may say it where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rco.core.errors import InputError
from rco.data.config import InputConfig
from rco.data.dataset import Dataset
from rco.data.network_input import NetworkInput
from rco.models.route import Route

_ALIKE = 5e-3  # of pixels in 0..1: between two means or deviations that are taken as the same


def fed(route: Route, data: Dataset, asked: InputConfig | None = None) -> Dataset:
    """The data as the route's teacher takes them.

    Its mean and deviation are those that the route says, unless they are the student's but for another sample of the images.
    Of a route that does not say them they are the settings', or else the student's.

    Args:
        data: as they were prepared.
        asked: what the settings say of the teacher's input.

    Raises:
        InputError: the route says something else than they do; or images that are not square, of another size.
    """
    require_agreement(route, asked or InputConfig())
    size, crop = route.network.image_size, route.crop
    if not route.mean:
        numbers = NetworkInput.asked(asked or InputConfig(), data.manifest)
        return data.seen_by(replace(numbers, size=size, crop=crop))
    own = NetworkInput(size=size, mean=route.mean, std=route.std, crop=crop)
    if route.data_digest != data.manifest.digest and alike(own, NetworkInput.of(data.manifest)):
        own = replace(own, mean=data.manifest.mean, std=data.manifest.std)
    return data.seen_by(own)


def require_agreement(route: Route, asked: InputConfig) -> None:
    """Refuse settings of the teacher's input that are not what the route's teacher was trained with.

    Raises:
        InputError: the first that differs.
    """
    remedy = "Leave it out: the route says what its teacher takes"
    for name, value, own in (
        ("teacher_image_size", asked.image_size, route.network.image_size),
        ("teacher_image_crop", asked.image_crop, route.crop),
    ):
        if value and value != own:
            raise InputError(name, value, f"is not what the route's teacher was trained with ({own:g})", remedy)
    if not (asked.image_mean and route.mean):
        return
    from rco.data.normalisation import normalisation

    numbers = normalisation(asked.image_mean, asked.image_std, len(route.mean), "teacher_")
    for name, values, theirs in zip(("image_mean", "image_std"), numbers or (), (route.mean, route.std), strict=True):
        if not np.allclose(values, theirs, rtol=0, atol=_ALIKE):
            problem = f"is not what the route's teacher was trained with ({in_words(theirs)})"
            raise InputError(f"teacher_{name}", list(getattr(asked, name)), problem, remedy)


def alike(one: NetworkInput, other: NetworkInput) -> bool:
    """Whether two means and deviations are the same but for a sample of the images."""
    pairs = ((one.mean, other.mean), (one.std, other.std))
    return all(len(ours) == len(theirs) and np.allclose(ours, theirs, rtol=0, atol=_ALIKE) for ours, theirs in pairs)


def differences(own: NetworkInput, student: NetworkInput) -> str:
    """How the teacher's input differs from the student's, in words; empty: it does not."""
    found = []
    if own.size != student.size:
        found.append(f"{own.size} pixels (the student: {student.size})")
    if own.crop != student.crop:
        found.append(f"the central {own.crop:g} of each side")
    if (own.mean, own.std) != (student.mean, student.std):
        ours, theirs = (f"mean {in_words(one.mean)} and deviation {in_words(one.std)}" for one in (own, student))
        found.append(f"{ours} (the student: {theirs})")
    return ", ".join(found)


def in_words(values: Sequence[float]) -> str:
    """Numbers as a flag takes them, to four digits."""
    return ",".join(f"{value:.4g}" for value in values)
