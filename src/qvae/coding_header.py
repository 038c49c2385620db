"""The header of compressed samples: what a reader has to know before it can decode the tokens.

    QV  version  axes << 4 | conditions  shape...  psnr  tokenizer  prior  crc  cond...  payload
    2b  1        1                       varints   2     6          6      4    4 each

Version 2 is for more than 15 raw numbers of conditions: their four bits are 0, and how many there
are is a varint after the shape. Numbers are little-endian, but for the payload's words. ``psnr`` is
the quality, in hundredths of a dB; ``tokenizer`` and ``prior`` are the first 6 bytes of their
hashes; ``crc`` is CRC-32 of the header, with 0 in the place of ``crc``, and of the tokens as
uint32: what a conditional decoder is told decides what is seen, so it must be as it was written.
"""

import struct
import zlib
from dataclasses import dataclass, replace

from jaxtyping import Int
from torch import Tensor

from qvae.errors import FormatError

__all__ = ["Header"]

_MAGIC, _HASH_BYTES = b"QV", 6
_MOST_SHORT = 15  # numbers of conditions that version 1 can count
_MOST_BITS = 56  # of a varint: no size comes near


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What stands before the coded tokens of one sample.

    Example:
        >>> header = Header(shape=(1, 8, 8), quality=3012, crc=7, cond=(0.5,), tokenizer="ab" * 6,
        ...                 prior="cd" * 6)
        >>> Header.read(header.to_bytes() + b"payload") == (header, len(header.to_bytes()))
        True
    """

    shape: tuple[int, ...]
    quality: int
    """PSNR in hundredths of a dB."""
    tokenizer: str
    """Hash, of which the first 12 hexadecimal digits are kept."""
    prior: str
    """The same."""
    crc: int = 0
    cond: tuple[float, ...] = ()
    """Raw numbers that were told; NaN is "not told"."""

    def checksum(self, tokens: Int[Tensor, " N"]) -> int:
        """Return what ``crc`` is for these tokens."""
        own = zlib.crc32(replace(self, crc=0).to_bytes())
        return zlib.crc32(tokens.cpu().numpy().astype("<u4").tobytes(), own)

    def to_bytes(self) -> bytes:
        """Write the header."""
        is_long = len(self.cond) > _MOST_SHORT
        return b"".join(
            [
                _MAGIC,
                bytes([2 if is_long else 1]),
                bytes([len(self.shape) << 4 | (0 if is_long else len(self.cond))]),
                *(_varint(size) for size in self.shape),
                _varint(len(self.cond)) if is_long else b"",
                struct.pack("<H", self.quality),
                *(bytes.fromhex(text)[:_HASH_BYTES] for text in (self.tokenizer, self.prior)),
                struct.pack("<I", self.crc),
                struct.pack(f"<{len(self.cond)}f", *self.cond),
            ]
        )

    @classmethod
    def read(cls, data: bytes) -> tuple["Header", int]:
        """Read the header that data begins with; return it and where the payload starts.

        Raises:
            FormatError: another kind of file, another version, or a header that is cut off.
        """
        if data[:2] != _MAGIC:
            raise FormatError(f"starts with {data[:2]!r}, a file of qvae compress with {_MAGIC!r}")
        try:
            if data[2] not in (1, 2):
                raise FormatError(f"format version {data[2]}, this release reads 1 and 2")
            num_axes, num_cond = data[3] >> 4, data[3] & 15
            shape, at = [], 4
            for _ in range(num_axes):
                size, at = _read_varint(data, at)
                shape.append(size)
            if data[2] == 2:
                num_cond, at = _read_varint(data, at)
            fixed = struct.Struct(f"<H{_HASH_BYTES}s{_HASH_BYTES}sI")
            quality, tokenizer, prior, crc = fixed.unpack_from(data, at)
            values = struct.Struct(f"<{num_cond}f")
            cond = values.unpack_from(data, at + fixed.size)
        except (IndexError, struct.error):
            raise FormatError(f"{len(data)} bytes: the header is cut off") from None
        header = cls(
            shape=tuple(shape),
            quality=quality,
            tokenizer=tokenizer.hex(),
            prior=prior.hex(),
            crc=crc,
            cond=cond,
        )
        return header, at + fixed.size + values.size


def _varint(value: int) -> bytes:
    parts = []
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > _MOST_BITS:
            raise FormatError("a number in the header has no end: damaged")
