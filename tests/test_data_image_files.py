"""Decoding: every mode has a defined conversion, every damaged file a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from qvae.data.image_files import (
    BadImageError,
    decode_image,
    fit_image,
    image_to_array,
    to_channels,
    write_png,
)

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(image: Image.Image, kind: str = "PNG", **options) -> np.ndarray:
    return image_to_array(decode_image(encoded(image, kind, **options)))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_are_pixel_exact(kind: str):
    options = {"lossless": True} if kind == "WEBP" else {}
    found = pixels(Image.fromarray(COLOUR), kind, **options)
    assert np.array_equal(found, np.moveaxis(COLOUR, -1, 0))


def test_jpeg_is_close_and_content_not_name_decides(tmp_path):
    smooth = Image.fromarray(np.full((16, 16, 3), 90, np.uint8))
    path = tmp_path / "really_a_jpeg.png"
    path.write_bytes(encoded(smooth, "JPEG", quality=95))
    assert np.abs(image_to_array(decode_image(path)).astype(int) - 90).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(kind: str):
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = pixels(Image.fromarray(ramp), kind)[0]
    assert np.array_equal(found, np.round(ramp / 257).astype(np.uint8))
    big_endian = Image.frombytes("I;16B", (256, 256), ramp.astype(">u2").tobytes())
    assert np.array_equal(pixels(big_endian, "TIFF")[0], found)


def test_one_bit_and_grey_stay_one_channel():
    bits = Image.fromarray(COLOUR[..., 0] > 128)
    assert bits.mode == "1"
    assert np.array_equal(pixels(bits)[0], np.where(COLOUR[..., 0] > 128, 255, 0))
    assert np.array_equal(pixels(Image.fromarray(COLOUR[..., 0])), COLOUR[None, ..., 0])


def test_palette_and_cmyk():
    image = Image.fromarray(COLOUR).quantize(8)
    expected = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)
    assert np.array_equal(pixels(image), expected)
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    assert np.abs(pixels(cmyk, "TIFF")[:, 4, 4].astype(int) - [255, 0, 0]).max() <= 2
    assert np.abs(pixels(cmyk, "JPEG", quality=95)[:, 4, 4].astype(int) - [255, 0, 0]).max() <= 3


def test_alpha_is_composited_on_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0], rgba[0, :, 3] = 200, [0, 128, 255]
    found = pixels(Image.fromarray(rgba))
    assert found[:, 0, 0].tolist() == [255, 255, 255] and found[:, 0, 2].tolist() == [200, 0, 0]
    assert found[:, 0, 1].tolist() == pytest.approx([227, 127, 127], abs=1)
    grey = Image.frombytes("LA", (2, 1), bytes([50, 0, 50, 255]))
    assert pixels(grey)[0].tolist() == [[255, 50]]


def test_transparent_colours_are_white_too():
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    found = pixels(palette, transparency=0)
    assert found[:, 0].T.tolist() == [[255, 255, 255], [40, 50, 60]]
    grey = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert pixels(grey, transparency=7)[0].tolist() == [[255, 8]]
    deep = Image.fromarray(np.array([[257, 514]], np.uint16))
    assert pixels(deep, transparency=257)[0].tolist() == [[255, 2]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int):
    upright = np.zeros((20, 30), np.uint8)
    upright[:5, :8] = 255  # a mark in the top left corner tells all eight apart
    upright[:2, 20:] = 128
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(upright)))
    assert np.array_equal(pixels(stored, exif=exif)[0], upright)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame(kind: str):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert image_to_array(decode_image(data))[:, 2, 2].tolist() == [255, 0, 0]


def test_float_tiff_needs_the_unit_range():
    good = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    assert np.array_equal(pixels(Image.fromarray(good), "TIFF")[0], np.rint(good * 255))
    for bad, text in ((good * 255, r"0 to 255, needs \[0, 1\]"), (good * np.nan, "nan")):
        with pytest.raises(BadImageError, match=text):
            pixels(Image.fromarray(bad), "TIFF")
    with pytest.raises(BadImageError, match="32-bit"):
        pixels(Image.fromarray(np.arange(48, dtype=np.int32).reshape(6, 8)), "TIFF")


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header promises any size over next to no data."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def damaged() -> dict[str, bytes]:
    png = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)))
    jpeg = encoded(Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), "JPEG")
    tiff = encoded(Image.fromarray(COLOUR), "TIFF")
    return {
        "empty": b"",
        "text": b"I am no image",
        "half png": png[: len(png) // 2],
        "half jpeg": jpeg[: len(jpeg) // 2],
        "half tiff": tiff[: len(tiff) - 40],
        "header only": png[:33],
        "flipped byte": png[:200] + bytes([png[200] ^ 255]) + png[201:],
        "169 Mpx": png_of_size(13000, 13000),
        "4000 Mpx": png_of_size(65000, 65000),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "ppm": b"P6 1 1 255 abc",
        "zeros": bytes(500),
    }


@pytest.mark.parametrize("name", damaged())
def test_damaged_files_have_a_reason(name: str, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(damaged()[name])
    for source in (path, path.read_bytes()):
        with pytest.raises(BadImageError) as caught:
            decode_image(source)
        reason = str(caught.value)
        # No object addresses, no second line.
        assert reason and "\n" not in reason and " object at 0x" not in reason


@pytest.mark.parametrize("size", [(13000, 13000), (65000, 65000)])
def test_a_bomb_is_refused_by_its_header(size: tuple[int, int]):
    with pytest.raises(BadImageError, match="more than [0-9]+ pixels"):
        decode_image(png_of_size(*size))


def test_a_missing_file_is_a_bad_image(tmp_path):
    with pytest.raises(BadImageError, match="No such file"):
        decode_image(tmp_path / "none.png")


def test_mutations_raise_nothing_else():
    for kind, count in (("PNG", 150), ("GIF", 100), ("TIFF", 100), ("BMP", 50), ("WEBP", 50)):
        good = encoded(Image.fromarray(COLOUR), kind)
        for _ in range(count):
            data = bytearray(good)
            for at in RNG.integers(0, len(data), 3):
                data[at] = RNG.integers(0, 256)
            try:
                image = decode_image(bytes(data[: RNG.integers(1, len(data) + 1)]))
            except BadImageError:
                continue
            assert image.mode in ("L", "RGB")


def test_truncated_images_are_never_filled_in():
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("size", [(1, 1), (20000, 2), (2, 20000), (300, 20), (64, 64), (65, 64)])
def test_any_size_fits(size: tuple[int, int]):
    assert fit_image(Image.new("RGB", size, "red"), 64, 64).getpixel((32, 32)) == (255, 0, 0)


def test_fit_crops_the_centre():
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 200
    assert np.array(fit_image(Image.fromarray(wide), 10, 10)).min() == 200
    assert np.array(fit_image(Image.fromarray(wide.T.copy()), 5, 5)).min() > 190
    same = Image.fromarray(COLOUR)
    assert fit_image(same, 6, 8) is same


def test_a_hint_only_speeds_a_jpeg_up():
    ramp = np.linspace(0, 255, 512).astype(np.uint8)[None].repeat(512, 0)
    data = encoded(Image.fromarray(ramp), "JPEG", quality=95)
    whole, quick = (
        np.asarray(fit_image(decode_image(data, size_hint=hint), 32, 32), int)
        for hint in (None, 32)
    )
    assert decode_image(data, size_hint=32).size < (512, 512)
    assert np.abs(whole - quick).max() <= 2


def test_channels_agree_with_pillow():
    x = np.moveaxis(COLOUR, -1, 0)
    assert np.array_equal(to_channels(x, 1)[0], np.asarray(Image.fromarray(COLOUR).convert("L")))
    assert np.array_equal(to_channels(x[:1], 3), np.repeat(x[:1], 3, 0))
    assert np.allclose(to_channels(x / 255.0, 1), to_channels(x, 1) / 255, atol=0.003)


def test_png_is_written_whole(tmp_path):
    write_png(np.moveaxis(COLOUR, -1, 0), tmp_path / "a.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), COLOUR)
    with pytest.raises(FileNotFoundError):
        write_png(COLOUR[None, ..., 0], tmp_path / "no" / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
