"""One image file to pixels and back: the only code that decodes images.

What a file is, its bytes say, never its name; only the formats of :data:`FORMATS` are tried. The
conversions are defined, and none clips:

    16-bit grey           scaled, v / 257 rounded       alpha, transparency   composited on white
    float TIFF            must lie in [0, 1], times 255  palette, CMYK, YCbCr  to RGB
    1-bit                 0 and 255                      EXIF orientation      applied
    animation, pages      the first frame                colour profile        ignored

A truncated file, an image bomb (more than about 89 million pixels) and 32-bit integers are bad.
"""

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "BadImageError",
    "decode_image",
    "fit_image",
    "image_to_array",
    "to_channels",
    "write_png",
]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
EXTENSIONS = frozenset(
    [".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"]
)
_REDUCING_GAP = 3.0  # shrink by box averaging down to 3x the target, then LANCZOS


class BadImageError(Exception):
    """A file that is no image we can read; the text is the reason."""


def decode_image(source: Path | bytes, *, size_hint: int | None = None) -> Image.Image:
    """Decode a file, or its bytes, to an image of mode L or RGB.

    Args:
        source: path or content.
        size_hint: the side the image will be resized to; a JPEG much larger than that is decoded
            at a half, a quarter or an eighth of its size.

    Raises:
        BadImageError: with the reason.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file = io.BytesIO(source) if isinstance(source, bytes) else source
            with Image.open(file, formats=FORMATS) as image:
                if size_hint is not None:
                    side = int(size_hint * _REDUCING_GAP)
                    image.draft(None, (side, side))
                image.load()
                return _to_8_bit(ImageOps.exif_transpose(image))
    except BadImageError:
        raise
    except UnidentifiedImageError:
        empty = (len(source) if isinstance(source, bytes) else source.stat().st_size) == 0
        reason = "empty file" if empty else f"not one of {', '.join(FORMATS)}"
        raise BadImageError(reason) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise BadImageError(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except MemoryError:
        raise BadImageError("too large for this machine's memory") from None
    # Decoders raise almost anything on a damaged file; none of it may end a run without a name.
    except Exception as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = text.strip().split("\n")[0][:200]
        raise BadImageError(reason or type(error).__name__) from None


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode == "F":
        return _from_float(image)
    if image.mode.startswith("I"):
        raise BadImageError("32-bit integer pixels have no defined range")
    if image.has_transparency_data:
        grey = image.mode in ("1", "L", "LA", "La")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("L" if grey else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        values[values == clear] = 65535
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _from_float(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise BadImageError(f"float pixels from {low:g} to {high:g}, needs [0, 1]")
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def fit_image(image: Image.Image, height: int, width: int) -> Image.Image:
    """Crop the centre to the aspect ratio asked for, then resize; the right size is untouched.

    Example:
        >>> fit_image(Image.new("L", (300, 20)), 8, 8).size
        (8, 8)
    """
    if image.size == (width, height):
        return image
    w, h = image.size
    scale = min(w / width, h / height)
    crop_w, crop_h = max(round(scale * width), 1), max(round(scale * height), 1)
    left, top = (w - crop_w) // 2, (h - crop_h) // 2
    # Cropped first: resize(box=...) lets what lies outside the box leak in.
    image = image.crop((left, top, left + crop_w, top + crop_h))
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)


def image_to_array(image: Image.Image) -> np.ndarray:
    """Return the pixels of an L or RGB image as uint8 ``[C, H, W]``."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def to_channels(x: np.ndarray, channels: int) -> np.ndarray:
    """Repeat grey to three channels, or weigh RGB to grey (ITU-R 601, as Pillow does).

    Shapes:
        ``x`` ``[..., C, H, W]`` with C 1 or 3, to ``[..., channels, H, W]``.
    """
    if x.shape[-3] == channels:
        return x
    if channels == 3:
        return np.repeat(x, 3, axis=-3)
    if x.dtype == np.uint8:
        # Pillow's own fixed-point weights, so that files and arrays agree bit for bit.
        red, green, blue = np.moveaxis(x.astype(np.uint32), -3, 0)
        grey = (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16
    else:
        red, green, blue = np.moveaxis(x.astype(np.float32), -3, 0)
        grey = (0.299 * red + 0.587 * green + 0.114 * blue).clip(0, 1)
    return np.expand_dims(grey.astype(np.uint8 if x.dtype == np.uint8 else np.float32), -3)


def write_png(pixels: np.ndarray, path: Path) -> None:
    """Write uint8 ``[C, H, W]`` (C 1 or 3) as PNG, whole or not at all."""
    flat = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        Image.fromarray(np.ascontiguousarray(flat)).save(temporary, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
