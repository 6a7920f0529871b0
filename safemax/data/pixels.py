"""One stored image becomes (C, H, W) uint8: transparency is composited, wide ranges are scaled, nothing is clipped."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from safemax.errors import InputError

AUTO = "auto"
BACKGROUNDS = ("white", "black")
# Pillow's EPS reader starts Ghostscript, which runs the program that the file is; the others only name what they cannot read.
_NOT_READ = {"EPS", "MPEG", "BUFR", "GRIB", "HDF5", "WMF"}
_COMMON = ("PNG", "JPEG", "WEBP", "TIFF")  # tried first
_WHITE_IS_ZERO, _BITS, _PHOTOMETRIC = 0, 258, 262  # TIFF 6.0: BitsPerSample, PhotometricInterpretation
_SIXTEEN_BITS = 65535
_SLACK = 1e-6  # of the range: 0.1 is a little more in a file of 32-bit floats
FIRST_FRAME = "hold several frames, of which the first is read"
BLANK = "show a shape only in their transparency, which background = {background} hides; the other background shows it"


@dataclass(frozen=True)
class PixelOptions:
    """How stored pixels become bytes.

    Args:
        size: side in pixels of the result; None keeps a square image's own.
        background: white or black, the ground under transparent pixels.
        pixel_range: LOW,HIGH: the values of black and white in grey images of 16 bits, 32 bits or floats. auto is the
            whole range of the file's bits for up to 16 bits, and refuses the others, whose range no file states.
    """

    size: int | None = None
    background: str = BACKGROUNDS[0]
    pixel_range: str = AUTO

    def __post_init__(self) -> None:
        """Raise InputError for a value that is not allowed."""
        if self.size is not None and self.size < 1:
            raise InputError(f"size = {self.size} is not allowed; size is a number of pixels of at least 1")
        if self.background not in BACKGROUNDS:
            raise InputError(f"background = {self.background!r} is not allowed; it is {' or '.join(BACKGROUNDS)}")
        self.limits  # noqa: B018 - raises

    @property
    def limits(self) -> tuple[float, float] | None:
        """The values of black and white, None where the file decides."""
        if self.pixel_range == AUTO:
            return None
        try:
            low, high = (float(each) for each in self.pixel_range.split(","))
        except ValueError:
            low = high = math.nan
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise InputError(
                f"pixel_range = {self.pixel_range!r} is not allowed; it is auto, or LOW,HIGH with LOW < HIGH, such as 0,65535"
            )
        return low, high


@dataclass(frozen=True)
class Decoded:
    """An image and what a reader of the log should know about it.

    Args:
        pixels: (C, H, W) uint8, C is 1 or 3, H = W.
        remarks: of FIRST_FRAME and BLANK.
    """

    pixels: np.ndarray
    remarks: tuple[str, ...] = ()


@cache
def formats() -> tuple[str, ...]:
    """Return the image formats that are read: Pillow's, and HEIC where pillow-heif is installed."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return (*_COMMON, *(name for name in Image.OPEN if name not in (*_COMMON, *_NOT_READ)))


@cache
def suffixes() -> frozenset[str]:
    """Return the endings, in lower case, of files that are read as images."""
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


def read_image(source: bytes | Path, options: PixelOptions) -> Decoded:
    """Decode an image file or its bytes; of several frames, the first.

    Raises:
        InputError: the pixels' range is not known or not kept, or the image is not square and `size` is None.
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: damaged; see decoding.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats()) as image:
        remarks = [FIRST_FRAME] if getattr(image, "is_animated", False) else []
        image.load()
        upright = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            upright = _grey_bytes(upright, _scale(image, options))
    if options.size is None and upright.width != upright.height:
        raise InputError(f"is {upright.width}x{upright.height}, not square; pass size=PIXELS")
    flat = _opaque(upright, options.background)
    if upright.has_transparency_data and _is_hidden(upright, flat):
        remarks.append(BLANK.format(background=options.background))
    return Decoded(square(flat, options.size), tuple(remarks))


def square(image: Image.Image, size: int | None) -> np.ndarray:
    """Return an image of mode L or RGB as (C, H, W) uint8, its centre cut out and resized."""
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if image.mode == "L" else pixels.transpose(2, 0, 1)


def _opaque(image: Image.Image, background: str) -> Image.Image:
    """Return an image of mode L or RGB; grey modes and palettes of greys become L."""
    flat = image
    if image.has_transparency_data:
        flat = Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))
    if image.mode in ("1", "L", "LA", "La"):
        return flat.convert("RGB").getchannel("R") if flat.mode == "RGBA" else flat.convert("L")
    flat = flat.convert("RGB")
    return flat.getchannel("R") if image.mode in ("P", "PA") and _is_grey(flat) else flat


def _is_grey(image: Image.Image) -> bool:
    red, green, blue = (each.tobytes() for each in image.split())
    return red == green == blue


def _is_hidden(image: Image.Image, flat: Image.Image) -> bool:
    low, high = image.convert("RGBA").getchannel("A").getextrema()
    return low != high and len(flat.getcolors(1) or ()) == 1


def _scale(image: Image.Image, options: PixelOptions) -> Callable[[np.ndarray], np.ndarray]:
    """Return what maps the stored values of a grey image of more than 8 bits to 0..255."""
    tags = getattr(image, "tag_v2", {})
    invert = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    limits = options.limits
    if limits is None and image.mode.startswith("I;16"):
        bits = int(tags.get(_BITS, (16,))[0])
        white = 255 if invert else 0
        return lambda values: (values >> (bits - 8)).astype(np.uint8) ^ np.uint8(white)
    if limits is None and image.format == "PPM" and image.mode == "I":
        limits = (0, _SIXTEEN_BITS)  # Pillow scales PGM to it
    return lambda values: _scaled(values, limits, invert)


def _scaled(values: np.ndarray, limits: tuple[float, float] | None, invert: bool) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if limits is None:
        raise InputError(
            f"has values from {low:g} to {high:g} of unknown range; pass pixel_range=LOW,HIGH, black and white"
        )
    span = limits[1] - limits[0]
    slack = _SLACK * span
    if not (limits[0] - slack <= low and high <= limits[1] + slack):  # not a number is outside, too
        raise InputError(f"has values from {low:g} to {high:g}, outside pixel_range = {limits[0]:g},{limits[1]:g}")
    share = ((values.astype(np.float64) - limits[0]) / span).clip(0, 1)
    return np.rint(255 * (1 - share if invert else share)).astype(np.uint8)


def _grey_bytes(image: Image.Image, scale: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """Return a grey image of 8 bits; a transparent value becomes an alpha channel."""
    values = np.asarray(image)
    grey = Image.fromarray(scale(values))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey
