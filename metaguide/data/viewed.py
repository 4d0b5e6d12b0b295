"""Pictures as a viewer shows them, for any mode, depth, orientation and colour profile."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

MOST_PIXELS = 50_000_000
"""Limit of a picture: larger ones take seconds to decode, only to be reduced to 32 pixels."""


def as_viewed(content: bytes) -> Image.Image:
    """Return the RGB picture that a viewer shows for a file.

    16-bit values and floats in [0, 1] or [0, 255] are converted to 8 bits, transparency is put on
    white, a camera's orientation is applied, a colour profile is converted to sRGB, and of several
    frames the first is used.

    Args:
        content: content of the file.

    Raises:
        ValueError: a viewer could not show it either, or it has more than `MOST_PIXELS`.
        Exception: Pillow's errors for a damaged file, which are of many kinds.
    """
    with Image.open(io.BytesIO(content)) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
        picture, profile = ImageOps.exif_transpose(image), image.info.get("icc_profile")
        picture.load()
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        picture = _eight_bits(np.asarray(picture))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        below = Image.new("RGBA", picture.size, "white")
        colours = picture if profile is None else _in_srgb(picture, profile)
        picture = Image.alpha_composite(below, colours)
    elif profile is not None:
        picture = _in_srgb(picture, profile)
    return picture.convert("RGB")


def _eight_bits(values: np.ndarray) -> Image.Image:
    """Return grey values of more than 8 bits as an 8-bit picture."""
    if not values.size or not np.isfinite(values).all():
        raise ValueError("its values are not finite")
    least, most = values.min(), values.max()
    if np.issubdtype(values.dtype, np.floating):
        scale, known = (255, least >= 0) if most <= 1 else (1, least >= 0 and most <= 255)
    else:
        scale, known = 1 / 257, least >= 0 and most <= 65535
    if not known:
        raise ValueError(f"its values go from {least} to {most}, so it is unknown what is white")
    return Image.fromarray(np.rint(values * scale).astype(np.uint8))


def _in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """Return a picture in sRGB, with its transparency unchanged."""
    if picture.mode == "RGBA":
        colours = _in_srgb(picture.convert("RGB"), profile)
        colours.putalpha(picture.getchannel("A"))
        return colours
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    about: Any = own.profile
    space = about.xcolor_space.strip()
    modes = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
    if space not in modes:
        raise ValueError(f"its colour profile is of {space}")
    srgb = ImageCms.createProfile("sRGB")
    turned = ImageCms.profileToProfile(
        picture.convert(modes[space]) if picture.mode != modes[space] else picture,
        own,
        srgb,
        outputMode="RGB",
    )
    assert turned is not None  # None is returned only for conversion in place
    return turned
