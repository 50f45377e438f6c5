"""How image files become pixels: what is a choice. No NumPy: flags are made of this."""

from __future__ import annotations

from dataclasses import dataclass

from rco.core.errors import InputError, choice
from rco.core.settings import positive

FITS = ("crop", "pad", "squash")
CHANNELS = (0, 1, 3)
MOST_MEGAPIXELS = 178.0
SIXTEEN_BITS = 2**16 - 1


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How image files are decoded.

    Args:
        fit: how an image that is not square becomes one: "crop" (the largest centred square), "pad" (black bars), "squash".
        alpha_background: the colour on which transparent pixels are laid: a name, or #rrggbb.
        max_megapixels: the largest image that is decoded, in millions of pixels.
        white_level: the value of 16-bit grey images that becomes 255; what is above it, too.
    """

    fit: str = "crop"
    alpha_background: str = "white"
    max_megapixels: float = MOST_MEGAPIXELS
    white_level: int = SIXTEEN_BITS

    def __post_init__(self) -> None:
        choice("image_fit", self.fit, FITS)
        positive("max_megapixels", self.max_megapixels)
        if not 1 <= self.white_level <= SIXTEEN_BITS:
            remedy = f"Give 1 to {SIXTEEN_BITS}; 4095 for images of 12 bits"
            raise InputError("white_level", self.white_level, "is not a value of 16 bits", remedy)
        if self.alpha_background != "white":
            self.background  # noqa: B018 (it is refused here)

    @property
    def background(self) -> tuple[int, int, int]:
        """The colour of `alpha_background`, as RGB.

        Raises:
            InputError: it is not a colour.
        """
        from PIL import ImageColor

        try:
            red, green, blue, *_ = ImageColor.getrgb(self.alpha_background)
        except ValueError:
            remedy = "Give a name such as white, black or gray, or #rrggbb"
            raise InputError("alpha_background", self.alpha_background, "is not a colour", remedy) from None
        return red, green, blue
