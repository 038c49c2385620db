"""What a picture costs as PNG, WebP and JPEG, the last two at no less than a given PSNR."""

import io
import math
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from qvae.data.image_files import decode_image, image_to_array

__all__ = ["bytes_at_psnr"]

_SETTINGS: dict[str, list[dict[str, Any]]] = {
    "webp": [{"method": 6}],
    "jpeg": [{"optimize": True, "subsampling": sampling} for sampling in (0, 2)],
}


def bytes_at_psnr(
    pixels: UInt8[np.ndarray, "C H W"], psnr: float
) -> dict[str, dict[str, float | int | None]]:
    """Return each codec's smallest file whose PSNR is at least this.

    PNG is lossless. WebP is tried at every quality and lossless, JPEG at every quality with and
    without subsampled colour.

    Args:
        pixels: 1 or 3 channels.
        psnr: in dB.

    Returns:
        codec -> ``{"bytes", "psnr"}``; both None where no quality is good enough, and the PSNR is
        None where nothing is lost.

    Example:
        >>> found = bytes_at_psnr(np.zeros((1, 8, 8), np.uint8), 30.0)
        >>> sorted(found), found["png"]["psnr"]
        (['jpeg', 'png', 'webp'], None)
    """
    flat = pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1)
    image = Image.fromarray(np.ascontiguousarray(flat))
    found: dict[str, dict[str, float | int | None]] = {
        "png": {"bytes": len(_save(image, "png", optimize=True)), "psnr": None}
    }
    for codec, settings in _SETTINGS.items():
        files = [
            _save(image, codec, quality=quality, **setting)
            for setting in settings
            for quality in range(101)
        ]
        if codec == "webp":
            files.append(_save(image, codec, lossless=True, quality=100, method=6))
        rated = [(len(data), _psnr(data, pixels)) for data in files]
        good = [(size, value) for size, value in rated if value >= psnr]
        size, value = min(good) if good else (None, None)
        found[codec] = {
            "bytes": size,
            "psnr": None if value is None or math.isinf(value) else round(value, 2),
        }
    return found


def _save(image: Image.Image, codec: str, **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=codec.upper(), **settings)
    return file.getvalue()


def _psnr(data: bytes, pixels: UInt8[np.ndarray, "C H W"]) -> float:
    decoded = image_to_array(decode_image(data)).astype(float)
    if len(decoded) != len(pixels):  # WebP has no grey: three equal channels
        decoded = decoded[:1]
    error = float(np.square(decoded - pixels).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
