"""Pictures as a viewer shows them, compared with what they were made of."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from metaguide.data import viewed
from metaguide.data.catalogue import CatalogueError, read_domain
from metaguide.data.viewed import as_viewed

RAMP = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)


def stored(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def seen(image, kind="PNG", **options):
    return np.asarray(as_viewed(stored(image, kind, **options))).astype(int)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey(kind):
    """Fault: a ramp of 16 bits is white from its second pixel on."""
    image = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert np.abs(seen(image, kind) - RAMP[..., None]).max() <= 1


@pytest.mark.parametrize("scale", [1 / 255, 1.0])
def test_floats(scale):
    """Fault: floats from 0 to 1 are all black."""
    image = Image.fromarray(RAMP.astype(np.float32) * np.float32(scale))
    assert np.abs(seen(image, "TIFF") - RAMP[..., None]).max() <= 1


@pytest.mark.parametrize("values", [[-1.0, 2.0], [0.0, 300.0], [np.nan, 1.0]])
def test_floats_of_no_known_range_are_refused(values):
    """Fault: what is white is guessed."""
    image = Image.fromarray(np.array([values], np.float32))
    with pytest.raises(ValueError, match="values"):
        as_viewed(stored(image, "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(mode):
    """Fault: the colour that is hidden under a transparent pixel is seen."""
    image = Image.fromarray(np.full((2, 2, 3), 10, np.uint8))
    if mode == "P":
        image = image.convert("P")
        options = {"transparency": image.getpixel((0, 0))}
        assert (seen(image, "PNG", **options) == 255).all()
        return
    image = image.convert(mode)
    alpha = Image.fromarray(np.array([[0, 255], [128, 0]], np.uint8))
    image.putalpha(alpha)
    found = seen(image)[..., 0]
    assert found[0].tolist() == [255, 10] and abs(found[1, 0] - 132) <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_orientation_is_followed(orientation):
    """Fault: pictures of a phone lie on their side."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(COLOURS[:6])
    content = stored(image, "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(np.asarray(as_viewed(content)), np.asarray(expected))
    if orientation == 6:
        np.testing.assert_array_equal(np.asarray(as_viewed(content)), np.rot90(COLOURS[:6], -1))


def test_a_profile_is_turned_into_srgb():
    """Fault: numbers of another colour space are taken for sRGB."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB", 6500)).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(COLOURS)
    assert np.abs(seen(image, icc_profile=srgb) - COLOURS).max() <= 1
    turned = ImageCms.profileToProfile(
        image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB", 6500), outputMode="LAB"
    )
    found = seen(turned, "TIFF", icc_profile=lab)
    assert np.abs(found - COLOURS).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_plain_modes(mode):
    """Fault: a mode that Pillow turns into RGB is refused."""
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    image = Image.fromarray(COLOURS).convert(mode)
    assert np.abs(seen(image, kind) - np.asarray(image.convert("RGB")).astype(int)).max() <= 3


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded():
    """Fault: a small file of many pixels takes minutes."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    content = bytearray(stored(Image.fromarray(COLOURS)))
    content[16:29] = head
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    with pytest.raises((ValueError, Image.DecompressionBombError), match="pixels"):
        as_viewed(bytes(content))


def shop(folder, *names):
    lines = [json.dumps({"id": str(i), "title": "t", "image": n}) for i, n in enumerate(names)]
    (folder / "products.jsonl").write_text("\n".join(lines))
    return folder


def test_a_file_that_many_products_name_is_decoded_once(tmp_path, monkeypatch):
    """Fault: twenty products of one large picture take twenty times its time."""
    (tmp_path / "a.png").write_bytes(stored(Image.fromarray(COLOURS)))
    calls, real = [], viewed.as_viewed
    monkeypatch.setattr(
        "metaguide.data.catalogue.as_viewed", lambda content: calls.append(1) or real(content)
    )
    domain = read_domain(shop(tmp_path, *["a.png"] * 20))
    assert len(calls) == 1 and len(domain.products) == 20


def test_a_picture_that_is_no_file_of_the_folder_is_refused(tmp_path):
    """Faults: a pipe hangs; a link reads what lies outside of the catalogue."""
    folder = tmp_path / "shop"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(stored(Image.fromarray(COLOURS)))
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    with pytest.raises(CatalogueError, match="leads out of"):
        read_domain(shop(folder, "link.png"))
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(CatalogueError, match="no regular file"):
        read_domain(shop(folder, "pipe.png"))
    os.symlink("/dev/zero", folder / "endless.png")
    with pytest.raises(CatalogueError, match="leads out of"):
        read_domain(shop(folder, "endless.png"))


@pytest.mark.parametrize("name", ["reviews.json", "reviews.jsonl.gz", "REVIEWS.JSONL"])
def test_a_part_under_another_name_is_not_ignored(tmp_path, name):
    """Fault: reviews in a file that is not read are lost without a word."""
    (tmp_path / name).write_text("")
    with pytest.raises(CatalogueError, match="did you mean 'reviews.jsonl'"):
        read_domain(shop(tmp_path))


def test_a_pipe_of_products_does_not_hang(tmp_path):
    """Fault: a named pipe as products.jsonl is waited for without end."""
    os.mkfifo(tmp_path / "products.jsonl")
    with pytest.raises(CatalogueError, match="no regular file"):
        read_domain(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "1", "title": "t", "category": " "}', "field 'category' is empty"),
        ('{"id": "1", "title": "t", "title": "u"}', "the key 'title' occurs twice"),
    ],
)
def test_a_row_that_says_nothing_or_two_things_is_refused(tmp_path, line, message):
    """Faults: an empty category is a class of its own; of two values one is lost."""
    (tmp_path / "products.jsonl").write_text(line)
    with pytest.raises(CatalogueError, match=message):
        read_domain(tmp_path)
