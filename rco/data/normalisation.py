"""What is subtracted from pixels, and what they are divided by: of the training images, or as a teacher was trained."""

from __future__ import annotations

from collections.abc import Sequence

from rco.core.errors import InputError

IMAGENET = "imagenet"
#: Mean and deviation that networks trained on ImageNet are fed with, by the field's convention.
_KNOWN = {IMAGENET: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}

Numbers = tuple[float, ...]


def require_numbers(mean: Sequence[str], std: Sequence[str], prefix: str = "") -> None:
    """Refuse settings that are not numbers of channels.

    Args:
        prefix: of the settings' names where a message speaks of the other one.

    Raises:
        InputError: only one of them is given, or they are of different lengths, or not numbers of pixels in 0..1.
    """
    if bool(mean) != bool(std):
        missing, given = ("image_std", "image_mean") if mean else ("image_mean", "image_std")
        raise InputError(missing, [], f"is left out, and {prefix}{given} is given", "Give both, or neither")
    if mean:
        means, stds = _numbers("image_mean", mean, 0), _numbers("image_std", std, 1)
        if len(means) != len(stds) and 1 not in (len(means), len(stds)):
            remedy = "Give one number for each channel, or one for all"
            raise InputError("image_std", list(std), f"has {len(stds)} numbers, and {prefix}image_mean {len(means)}", remedy)


def normalisation(mean: Sequence[str], std: Sequence[str], channels: int, prefix: str = "") -> tuple[Numbers, Numbers] | None:
    """Mean and deviation of each channel, as the settings say; None: they say nothing.

    Args:
        prefix: of the settings' names.

    Raises:
        InputError: they are of another number of channels.
    """
    if not mean:
        return None
    found = []
    for name, words, which in ((f"{prefix}image_mean", mean, 0), (f"{prefix}image_std", std, 1)):
        numbers = _numbers(name, words, which)
        if len(numbers) not in (1, channels):
            hint = "; or set image_channels = 3, which reads grey images as RGB" if channels == 1 and len(numbers) == 3 else ""
            problem = f"has {len(numbers)} numbers, and the images {channels} channel{'s' if channels > 1 else ''}"
            raise InputError(name, list(words), problem, f"Give one for each channel, or one for all{hint}")
        found.append(numbers * (channels // len(numbers)))
    return found[0], found[1]


def _numbers(name: str, words: Sequence[str], which: int) -> Numbers:
    if len(words) == 1 and words[0].strip().lower() in _KNOWN:
        return _KNOWN[words[0].strip().lower()][which]
    remedy = f"Give numbers of pixels in 0..1, such as 0.485,0.456,0.406, or {IMAGENET}"
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        raise InputError(name, list(words), f"is neither numbers nor {', '.join(_KNOWN)}", remedy) from None
    least = 0.0 if which == 0 else 1e-6
    if not all(least <= number <= 255 for number in numbers):
        raise InputError(name, list(words), "has a number that no such pixels have", remedy)
    if any(number > 1 for number in numbers):
        raise InputError(name, list(words), "is of pixels in 0..255", "Divide by 255: pixels count from 0 to 1 here")
    return numbers
