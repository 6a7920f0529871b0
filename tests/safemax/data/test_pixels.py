"""Transparency, wide ranges, inverted and palette images come out as a person sees them, or are refused."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from safemax.data.pixels import PixelOptions, formats, read_image
from safemax.data.sources import load
from safemax.errors import InputError
from tests.support.written_data import line_of, write_images

RAMP = np.tile(np.arange(8), (8, 1))
PHOTOMETRIC = 262


def stored(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def first_row(source: bytes, **options: Any) -> list[int]:
    """Return the first row of the first channel of a decoded image."""
    return read_image(source, PixelOptions(**options)).pixels[0, 0].tolist()


def with_alpha(mode: str) -> Image.Image:
    """Draw red (or grey) that fades from transparent to opaque, left to right; the hidden colour is everywhere the same."""
    alpha = (RAMP * 36).astype(np.uint8)
    grey = Image.fromarray(np.full((8, 8), 100, np.uint8))
    image = grey.convert("LA" if mode == "LA" else "RGBA")
    image.putalpha(Image.fromarray(alpha))
    return image


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize(("background", "ground"), [("white", 255), ("black", 0)])
def test_alpha_is_composited_on_the_ground(mode: str, background: str, ground: int) -> None:
    row = first_row(stored(with_alpha(mode)), background=background)
    alpha = RAMP[0] * 36 / 255
    assert row == pytest.approx((100 * alpha + ground * (1 - alpha)).tolist(), abs=1)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_grey_with_alpha_is_grey_and_colour_with_alpha_is_colour(mode: str) -> None:
    channels = {"LA": 1, "RGBA": 3}[mode]
    assert read_image(stored(with_alpha(mode)), PixelOptions()).pixels.shape == (channels, 8, 8)


@pytest.mark.parametrize("transparency", [0, b"\x00\xff"])
@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_transparent_entries_of_a_palette_show_the_ground(transparency: Any, format: str) -> None:
    if format == "GIF" and not isinstance(transparency, int):
        pytest.skip("a GIF's transparency is one entry")
    image = Image.fromarray((RAMP % 2).astype(np.uint8), mode="P")
    image.putpalette([200, 10, 10, 10, 200, 10])
    data = stored(image, format, transparency=transparency)
    assert first_row(data) == [255, 10] * 4
    assert first_row(data, background="black") == [0, 10] * 4


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_a_transparent_colour_shows_the_ground(mode: str) -> None:
    image = Image.fromarray(np.where(RAMP % 2, 255, 0).astype(np.uint8)).convert(mode)
    transparency: Any = (0, 0, 0) if mode == "RGB" else 0
    assert first_row(stored(image, transparency=transparency)) == [255] * 8


def test_a_transparent_value_of_sixteen_bits_shows_the_ground() -> None:
    image = Image.fromarray(np.where(RAMP % 2, 0x8000, 0x1234).astype(np.uint16))
    assert first_row(stored(image, transparency=0x1234)) == [255, 128] * 4


def test_opaque_alpha_changes_nothing() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    opaque = image.copy()
    opaque.putalpha(255)
    one, other = (read_image(stored(each), PixelOptions()).pixels for each in (image, opaque))
    assert np.array_equal(one, other)


def test_a_shape_that_the_ground_hides_is_said(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0")
    ink = Image.new("LA", (8, 8), (255, 0))
    ink.putalpha(Image.fromarray((RAMP * 36).astype(np.uint8)))
    ink.save(folder / "train" / "cat" / "0.png")
    assert any("1 of 4 images show a shape" in note for note in load(str(folder)).notes)
    assert not load(str(folder), background="black").notes


def test_grounds_have_their_own_cache_and_digest(tmp_path: Path) -> None:
    folder = write_images(tmp_path, "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0")
    with_alpha("RGBA").save(folder / "train" / "cat" / "0.png")
    digests = [load(str(folder), background=each).digest for each in ("white", "black", "white")]
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.parametrize(
    ("pixels", "limits"),
    [
        ((RAMP / 7 * 65535).astype(np.int32), "0,65535"),
        ((RAMP / 7 * 1000 - 500).astype(np.int32), "-500,500"),
        ((RAMP / 7).astype(np.float32), "0,1"),
        ((RAMP / 7 * 0.1).astype(np.float32), "0,0.1"),
        ((RAMP / 7 * 4095).astype(np.uint16), "0,4095"),
    ],
)
def test_wide_values_are_scaled_by_the_stated_range(pixels: np.ndarray, limits: str) -> None:
    row = first_row(stored(Image.fromarray(pixels), "TIFF"), pixel_range=limits)
    assert row == pytest.approx((RAMP[0] / 7 * 255).tolist(), abs=1)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_wide_values_without_a_range_are_refused(kind: type) -> None:
    with pytest.raises(InputError, match=r"values from 0 to 7 of unknown range; pass pixel_range=LOW,HIGH"):
        first_row(stored(Image.fromarray(RAMP.astype(kind)), "TIFF"))


@pytest.mark.parametrize("value", [-1.0, 8.0, np.nan, np.inf])
def test_values_outside_the_range_are_refused(value: float) -> None:
    pixels = RAMP.astype(np.float32)
    pixels[3, 3] = value
    with pytest.raises(InputError, match="outside pixel_range = 0,7"):
        first_row(stored(Image.fromarray(pixels), "TIFF"), pixel_range="0,7")


def white_is_zero(pixels: np.ndarray) -> bytes:
    """Return a TIFF whose tag PhotometricInterpretation says so; Pillow would invert the pixels when it writes the tag."""
    entry = struct.pack("<HHI", PHOTOMETRIC, 3, 1)
    data = stored(Image.fromarray(pixels), "TIFF")
    assert data.count(entry + b"\1\0") == 1
    return data.replace(entry + b"\1\0", entry + b"\0\0")


@pytest.mark.parametrize(
    ("kind", "scale", "limits"),
    [(np.uint8, 36, "auto"), (np.uint16, 36 * 256, "auto"), (np.uint16, 8, "0,56"), (np.float32, 8, "0,56")],
)
def test_white_is_zero_is_inverted(kind: type, scale: int, limits: str) -> None:
    row = first_row(white_is_zero((RAMP * scale).astype(kind)), pixel_range=limits)
    assert row[0] == 255
    assert row == sorted(set(row), reverse=True)


def test_sixteen_bits_of_pgm_are_scaled_by_the_files_own_maximum() -> None:
    body = (RAMP * 100).astype(">u2").tobytes()
    assert first_row(b"P5 8 8 700\n" + body) == pytest.approx((RAMP[0] / 7 * 255).tolist(), abs=1)


def test_a_palette_of_greys_is_grey_and_one_of_colours_is_not() -> None:
    image = Image.fromarray((RAMP % 2).astype(np.uint8), mode="P")
    image.putpalette([5, 5, 5, 90, 90, 90])
    assert read_image(stored(image), PixelOptions()).pixels.shape == (1, 8, 8)
    image.putpalette([5, 5, 5, 90, 90, 91])
    assert read_image(stored(image), PixelOptions()).pixels.shape == (3, 8, 8)


def test_of_several_frames_the_first_is_read_and_said() -> None:
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (3, 200)]
    decoded = read_image(stored(frames[0], "GIF", save_all=True, append_images=frames[1:]), PixelOptions())
    assert decoded.pixels[0, 0, 0] == 3
    assert decoded.remarks == ("hold several frames, of which the first is read",)


@pytest.mark.parametrize("format", ["AVIF", "WEBP", "BMP", "JPEG2000", "TGA"])
def test_other_images_that_pillow_reads_are_read_from_folders(tmp_path: Path, format: str) -> None:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    suffix = {"JPEG2000": ".jp2"}.get(format, f".{format.lower()}")
    folder = write_images(tmp_path, "train/cat/0", "train/dog/0", "test/cat/0", "test/dog/0", suffix=suffix)
    assert len(load(str(folder)).train) == 2


def test_formats_that_start_programs_are_not_read() -> None:
    assert "EPS" not in formats()
    with pytest.raises(OSError, match="cannot identify"):
        read_image(stored(Image.new("RGB", (8, 8)), "EPS"), PixelOptions())


@pytest.mark.parametrize("text", ["1", "1,1", "2,1", "0,nan", "0,1,2", "a,b", ""])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    assert f"pixel_range = {text!r} is not allowed" in line_of(lambda: load("digits", pixel_range=text))


def test_an_unknown_ground_is_refused() -> None:
    assert "background = 'grey' is not allowed; it is white or black" in line_of(
        lambda: load("digits", background="grey")
    )
