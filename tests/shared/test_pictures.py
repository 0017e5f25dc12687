"""Reading pictures: every kind comes out upright and RGB, good files stay as they are, each fault is one line."""

import io
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from shared.pictures import decode_picture, encode_picture, read_picture
from tests.errors import one_line_error

LIMIT = 1_000_000
CORNERS = np.array([[(230, 20, 20), (20, 200, 20)], [(30, 30, 220), (240, 240, 90)]], np.uint8)


def squares(width=40, height=24):
    """Four colours, one in each corner."""
    rows = np.arange(height) * 2 // height
    columns = np.arange(width) * 2 // width
    return Image.fromarray(CORNERS[rows][:, columns])


def content(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(source):
    return read_picture(source, "a picture", LIMIT)


def pixels(source):
    return np.asarray(read(source).pixels, np.int64)


def corners(array):
    """The colours next to the corners."""
    return np.asarray(array)[[4, -5]][:, [4, -5]]


def assert_near(found, expected, difference=8):
    np.testing.assert_allclose(np.asarray(found, float), np.asarray(expected, float), atol=difference)


# ------------------------------------------------------------------------------------------------------ kinds of files


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_kinds_of_files(tmp_path, kind):
    path = tmp_path / "a picture"
    path.write_bytes(content(squares(), kind, quality=95))
    for source in (path, str(path), path.read_bytes()):
        found = read(source)
        assert (found.pixels.mode, found.pixels.size) == ("RGB", (40, 24))
        assert_near(corners(found.pixels), CORNERS)


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (20, 20), (0, 255, 255, 0))
    assert_near(pixels(content(image, "JPEG", quality=95)).mean((0, 1)), (255, 0, 0))


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_palettes(kind):
    np.testing.assert_array_equal(pixels(content(squares().quantize(4), kind)), squares())


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (20, 20), 1), 255),
        (Image.new("L", (20, 20), 70), 70),
        (Image.fromarray(np.full((20, 20), 70 * 256 + 9, np.uint16)), 70),
        (Image.fromarray(np.full((20, 20), 65535, np.uint16)), 255),
    ],
    ids=["1 bit", "8 bits", "16 bits", "white of 16 bits"],
)
def test_grey(image, expected):
    found = pixels(content(image, "PNG"))
    assert found.shape == (20, 20, 3) and np.unique(found).tolist() == [expected]


def png(bits, colours, rows, extra=b""):
    """A PNG of a kind that Pillow does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 20, len(rows), bits, colours, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_colours_of_16_bits_become_8():
    source = png(16, 2, [struct.pack(">60H", *(20 * [51200, 25600, 1280]))] * 20)
    assert np.unique(pixels(source).reshape(-1, 3), axis=0).tolist() == [[200, 100, 5]]
    kept = encode_picture(read(source))
    assert kept != source and kept[24] == 8  # bits of a channel
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(kept))), pixels(source))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_parts_lie_on_white(mode):
    if mode == "P":
        image = Image.new("P", (20, 20), 3)
        image.putpalette([0, 0, 0] * 3 + [0, 200, 0])
        image.paste(0, (0, 0, 20, 10))
        source, colour = content(image, "PNG", transparency=0), (0, 200, 0)
    elif mode == "RGB":
        image = Image.new("RGB", (20, 20), (0, 200, 0))
        image.paste((9, 9, 9), (0, 0, 20, 10))
        source, colour = content(image, "PNG", transparency=(9, 9, 9)), (0, 200, 0)
    else:
        colour = (0, 200, 0) if mode == "RGBA" else (120, 120, 120)
        image = Image.new("RGBA", (20, 20), (*colour, 255))
        image.paste((0, 0, 0, 0), (0, 0, 20, 10))
        source = content(image.convert(mode), "PNG")
    found = pixels(source)
    assert (found[:10] == 255).all() and (found[10:] == colour).all()
    assert encode_picture(read(source)) != source
    half = content(Image.new("RGBA", (20, 20), (0, 0, 0, 128)), "WEBP", lossless=True)
    assert_near(pixels(half), 127, 1)


TURNED = {
    **{1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]},
    **{5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1)},
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_orientation_is_honoured_and_not_kept(kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    lying = Image.fromarray(np.ascontiguousarray(TURNED[orientation](np.asarray(squares()))))
    found = read(content(lying, kind, exif=exif, quality=95))
    assert found.pixels.size == (40, 24)
    assert_near(corners(found.pixels), CORNERS)
    kept = Image.open(io.BytesIO(encode_picture(found)))
    assert kept.size == (40, 24) and kept.getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_damaged_exif_is_no_reason_to_refuse_a_picture():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_near(corners(pixels(content(squares(), "JPEG", quality=95, exif=b"Exif\0\0junk!" * 9))), CORNERS)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO"])  # the last is what some cameras write
def test_the_first_frame_of_what_moves(kind):
    others = [Image.new("RGB", (40, 24), colour) for colour in ("white", "black")]
    source = content(squares(), kind, save_all=True, append_images=others, duration=100, lossless=True)
    found = read(source)
    assert_near(corners(found.pixels), CORNERS)
    kept = Image.open(io.BytesIO(encode_picture(found)))
    assert getattr(kept, "n_frames", 1) == 1 and kept.mode == "RGB"
    assert_near(corners(kept), CORNERS, 12)


# --------------------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9])
def test_files_that_were_cut_off(kind, share):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    whole = content(noise, kind)
    message = one_line_error(lambda: read(whole[: round(share * len(whole))]), "a picture: ")
    assert any(part in message for part in ("cut off", "not a picture", "empty (0 bytes)"))


@pytest.mark.parametrize("junk", [b"words", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"<svg/>", bytes(99)])
def test_files_that_are_no_pictures(junk):
    one_line_error(lambda: read(junk), "a picture: not a picture", "JPEG, PNG, WEBP, GIF, BMP")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "dog.jpg").touch()
    one_line_error(lambda: read(tmp_path / "dgo.jpg"), tmp_path / "dgo.jpg", "no such picture", "dog.jpg")
    one_line_error(lambda: read(tmp_path / "dog.jpg"), "a picture: empty (0 bytes)")
    one_line_error(lambda: read(tmp_path), "a picture: cannot be read: Is a directory")
    one_line_error(lambda: read("a\0b"), "a picture: cannot be read")


@pytest.mark.parametrize("size", [(1, 1), (15, 100), (100, 15)])
def test_pictures_that_are_too_small(size):
    source = content(Image.new("RGB", size), "PNG")
    one_line_error(lambda: read(source), "a picture: {}x{} pixels are too few".format(*size))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_pictures_that_are_too_large_are_refused_before_they_are_decoded(kind):
    sides = (16000, 16000) if kind == "WEBP" else (20000, 20000)
    source = bytearray(content(Image.new("L" if kind != "WEBP" else "RGB", (64, 64)), kind))
    if kind == "PNG":
        source[16:24] = struct.pack(">II", *sides)
        source[29:33] = struct.pack(">I", zlib.crc32(source[12:29]))
    elif kind == "JPEG":
        start = source.index(b"\xff\xc0") + 5
        source[start : start + 4] = struct.pack(">HH", *sides)
    elif kind == "GIF":
        source[6:10] = struct.pack("<HH", *sides)
    elif kind == "BMP":
        source[18:26] = struct.pack("<ii", *sides)
    else:
        start = source.index(b"\x9d\x01\x2a") + 3
        source[start : start + 4] = struct.pack("<HH", *sides)
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_line_error(lambda: read(bytes(source)), "{}x{} pixels".format(*sides), f"data.max_pixels={LIMIT}")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_the_limit_is_ours_and_not_pillows():
    source = content(Image.new("1", (10_000, 20_000)), "PNG")  # Pillow refuses such a one
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read_picture(source, "a picture", 200_000_000)
        assert decode_picture(encode_picture(found), 20).shape == (20, 20, 3)
    one_line_error(lambda: read_picture(source, "a picture", 199_999_999), "10000x20000 pixels")
    assert Image.MAX_IMAGE_PIXELS is not None


# ------------------------------------------------------------------------------------------------------------- encoding


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(16, 16), (256, 256), (300, 256)])
def test_good_files_stay_byte_for_byte(kind, size):
    source = content(squares(*size), kind, quality=60)
    assert encode_picture(read(source)) == source


@pytest.mark.parametrize(("kind", "kept"), [("JPEG", "JPEG"), ("PNG", "PNG"), ("WEBP", "JPEG"), ("BMP", "JPEG")])
@pytest.mark.parametrize(("size", "scaled"), [((400, 600), (256, 384)), ((900, 300), (768, 256))])
def test_large_pictures_are_scaled_down(kind, kept, size, scaled):
    found = Image.open(io.BytesIO(encode_picture(read(content(squares(*size), kind, quality=95)))))
    assert (found.format, found.mode, found.size) == (kept, "RGB", scaled)
    assert_near(corners(found), CORNERS)


def test_small_pictures_are_not_scaled_up():
    for kind in ("GIF", "BMP", "WEBP"):
        assert Image.open(io.BytesIO(encode_picture(read(content(squares(30, 20), kind))))).size == (30, 20)


@pytest.mark.parametrize("kind", ["BMP", "PNG"])
def test_very_long_pictures_are_squashed(kind):
    found = Image.open(io.BytesIO(encode_picture(read_picture(content(squares(20, 70_000), kind), "", 2_000_000))))
    assert found.size == (20, 4096)
    assert_near(np.asarray(found)[[8, -9]][:, [4, -5]], CORNERS)


def test_what_is_no_picture_in_a_file_is_not_kept():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(300_000)
    for kind in ("JPEG", "PNG"):
        source = content(squares(), kind, icc_profile=profile, comment="words" * 9)
        kept = encode_picture(read(source + bytes(1 << 18)))
        assert len(kept) < 2000 and b"words" not in kept
        assert_near(corners(Image.open(io.BytesIO(kept))), CORNERS)


def test_grey_jpegs_become_rgb():
    source = content(Image.new("L", (20, 20), 70), "JPEG")
    assert Image.open(io.BytesIO(encode_picture(read(source)))).mode == "RGB"


# ------------------------------------------------------------------------------------------------------------- decoding


@pytest.mark.parametrize("size", [16, 64, 300])
def test_decoding_squashes_to_a_square(size):
    kept = encode_picture(read(content(squares(120, 60), "PNG")))
    found = decode_picture(kept, size)
    assert (found.dtype, found.shape) == (np.uint8, (size, size, 3))
    assert_near(corners(found), CORNERS)
    assert found.flags.writeable and (found == decode_picture(kept, size)).all()


def test_decoding_takes_all_pixels_into_account():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    found = decode_picture(content(Image.fromarray(stripes), "PNG"), 32)
    assert_near(found, 127.5, 6)


def test_pictures_of_the_wanted_size_are_decoded_pixel_for_pixel():
    np.testing.assert_array_equal(decode_picture(content(squares(64, 64), "PNG"), 64), squares(64, 64))
