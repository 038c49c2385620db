"""Entropy coding: a prior's probabilities drive a range coder, and a sample becomes bytes.

    QV  version  axes << 4 | conditions  shape...  psnr  tokenizer  prior  crc  cond...  payload
    2b  1        1                       varints   2     6          6      4    4 each

Version 2 is for more than 15 raw numbers of conditions: their four bits are 0, and how many there
are is a varint after the shape. Numbers are little-endian, but for the payload's words. ``psnr`` is
the quality, in hundredths of a dB; ``tokenizer`` and ``prior`` are the first 6 bytes of their
hashes; ``crc`` is CRC-32 of the tokens as uint32.

Encoder and decoder must see the same probabilities to the last bit, so both take the same walk
through the prior: one sample, float32, one thread, token after token. That holds on one type of
machine and one release of torch; elsewhere a rounding may differ, and then the CRC says so.
"""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qvae.errors import FormatError, UsageError
from qvae.metrics.reconstruction import psnr
from qvae.pretrained import model_hash
from qvae.priors.base import Prior, build_prior
from qvae.tokenizer import Tokenizer
from qvae.types import cond_width

__all__ = [
    "Compressed",
    "compress",
    "decode_tokens",
    "decompress",
    "encode_tokens",
    "uniform_prior",
]

_MAGIC, _HASH_BYTES = b"QV", 6
_MOST_SHORT = 15  # numbers of conditions that version 1 can count


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """A compressed sample: its bytes, and what they decode to."""

    data: bytes
    tokens: Int[Tensor, " N"]
    recon: Float[Tensor, "*CS"]
    psnr: float
    """Of the reconstruction rounded to 8 bits, in dB, to a hundredth."""
    payload: int
    """How many of the bytes are the coded tokens; the rest is the header."""


def uniform_prior(tokenizer: Tokenizer) -> Prior:
    """Return the prior for a tokenizer that has none: every code costs the same."""
    return build_prior(
        {"name": "uniform"},
        vocab_size=tokenizer.vocab_size,
        num_tokens=tokenizer.num_tokens,
        conditions=tokenizer.spec.conditions,
        codebook_sizes=tokenizer.codebook_sizes,
        grid=tokenizer.grid,
    )


def encode_tokens(
    prior: Prior, tokens: Int[Tensor, " L"], cond: Float[Tensor, " M"] | None = None
) -> bytes:
    """Code one sample's tokens with a prior; there may be fewer than it has positions.

    Raises:
        ValueError: a token out of range, none or too many.
        UsageError: constriction is not installed, or the prior is not on the CPU.
    """
    library = _library()
    encoder = library.stream.queue.RangeEncoder()
    padded = F.pad(tokens, (0, max(0, prior.num_tokens - len(tokens)))).to(prior.device)
    _, digits, _ = prior.read(padded[None], torch.tensor([len(tokens)]))

    def choose(logits: Tensor, n: int) -> Tensor:
        if n < len(tokens):
            encoder.encode(int(digits[0, n]), _model(library, logits, prior, n))
        return digits[:, n]

    _walk(prior, cond, choose, len(tokens))
    words = encoder.get_compressed().astype(">u4").tobytes()
    return bytes(words.rstrip(b"\0"))  # the decoder reads zeros after the end anyway


def decode_tokens(
    prior: Prior,
    data: bytes,
    cond: Float[Tensor, " M"] | None = None,
    *,
    length: int | None = None,
) -> Int[Tensor, " L"]:
    """Undo :func:`encode_tokens` of ``length`` tokens (None: all); other bytes give other tokens.

    Raises:
        UsageError: constriction is not installed, or the prior is not on the CPU.
    """
    library = _library()
    words = np.frombuffer(data + b"\0" * (-len(data) % 4), dtype=">u4").astype(np.uint32)
    decoder = library.stream.queue.RangeDecoder(words)
    length = prior.num_tokens if length is None else length

    def choose(logits: Tensor, n: int) -> Tensor:
        if n >= length:
            return torch.zeros(1, dtype=torch.long)
        return torch.tensor([int(decoder.decode(_model(library, logits, prior, n)))])

    return (_walk(prior, cond, choose, length) + prior.low)[:length]


def compress(
    x: Float[Tensor, "*CS"],
    *,
    tokenizer: Tokenizer,
    prior: Prior,
    cond: Float[Tensor, " M"] | None = None,
) -> Compressed:
    """Compress one sample, and decode it again to be sure.

    Args:
        x: in [0, 1], in the shape of the tokenizer's data.
        tokenizer: makes and reads the tokens.
        prior: of these tokens; :func:`uniform_prior` where there is none.
        cond: raw conditions, NaN = not told; they are kept in the bytes.

    Raises:
        ValueError: another shape.
        UsageError: constriction is not installed, or the prior is not on the CPU.
        FormatError: what was written does not decode to the same tokens on this machine.
    """
    rows = None if cond is None else cond[None]
    tokens = tokenizer.encode(x[None], rows)[0]
    recon = tokenizer.decode(tokens[None], rows)[0]
    found = psnr(_rounded(recon)[None], _rounded(x)[None]).item()
    quality = round(min(max(found * 100, 0), 65535))
    payload = encode_tokens(prior, tokens, cond)
    header = _header(tuple(x.shape), quality, tokenizer, prior, tokens, cond)
    data = header + payload
    if not torch.equal(_read(data, tokenizer, prior)[0], tokens):
        raise FormatError("compressed bytes decode to other tokens on this machine; not written")
    return Compressed(
        data=data, tokens=tokens, recon=recon, psnr=quality / 100, payload=len(payload)
    )


def decompress(data: bytes, *, tokenizer: Tokenizer, prior: Prior) -> Compressed:
    """Undo :func:`compress`.

    Raises:
        FormatError: not such bytes, damaged ones, or of another tokenizer or prior.
        UsageError: constriction is not installed, or the prior is not on the CPU.
    """
    tokens, cond, quality, payload = _read(data, tokenizer, prior)
    recon = tokenizer.decode(tokens[None], None if cond is None else cond[None])[0]
    return Compressed(data=data, tokens=tokens, recon=recon, psnr=quality / 100, payload=payload)


def _header(
    shape: tuple[int, ...],
    quality: int,
    tokenizer: Tokenizer,
    prior: Prior,
    tokens: Int[Tensor, " N"],
    cond: Float[Tensor, " M"] | None,
) -> bytes:
    values = [] if cond is None else [float(value) for value in cond]
    is_long = len(values) > _MOST_SHORT
    return b"".join(
        [
            _MAGIC,
            bytes([2 if is_long else 1, len(shape) << 4 | (0 if is_long else len(values))]),
            *(_varint(size) for size in shape),
            _varint(len(values)) if is_long else b"",
            struct.pack("<H", quality),
            *(_short_hash(part) for part in (tokenizer.hash, model_hash(prior))),
            struct.pack("<I", _crc(tokens)),
            struct.pack(f"<{len(values)}f", *values),
        ]
    )


def _read(
    data: bytes, tokenizer: Tokenizer, prior: Prior
) -> tuple[Int[Tensor, " N"], Float[Tensor, " M"] | None, int, int]:
    """Check the header and decode: tokens, conditions, quality, bytes of payload."""
    try:
        if data[:2] != _MAGIC:
            raise FormatError(f"starts with {data[:2]!r}, a file of qvae compress with {_MAGIC!r}")
        if data[2] not in (1, 2):
            raise FormatError(f"format version {data[2]}, this release reads 1 and 2")
        num_axes, num_cond = data[3] >> 4, data[3] & 15
        shape, at = [], 4
        for _ in range(num_axes):
            size, at = _read_varint(data, at)
            shape.append(size)
        if data[2] == 2:
            num_cond, at = _read_varint(data, at)
        (quality,) = struct.unpack_from("<H", data, at)
        at += 2
        for what, full in (("tokenizer", tokenizer.hash), ("prior", model_hash(prior))):
            (found,) = struct.unpack_from(f"{_HASH_BYTES}s", data, at)
            at += _HASH_BYTES
            if found != _short_hash(full):
                own = _short_hash(full).hex()
                raise FormatError(f"written with {what} {found.hex()}, this run's is {own}")
        (crc,) = struct.unpack_from("<I", data, at)
        values = struct.unpack_from(f"<{num_cond}f", data, at + 4)
    except (IndexError, struct.error):
        raise FormatError(f"{len(data)} bytes: the header is cut off") from None
    if tuple(shape) != tokenizer.spec.shape:
        raise FormatError(f"shape {tuple(shape)}, the tokenizer's is {tokenizer.spec.shape}")
    cond = torch.tensor(values) if values else None
    if values and len(values) != cond_width(tokenizer.spec.conditions):
        raise FormatError(f"{len(values)} numbers of conditions, the tokenizer has another number")
    payload = data[at + 4 + 4 * num_cond :]
    tokens = decode_tokens(prior, payload, cond)
    if _crc(tokens) != crc:
        raise FormatError("tokens do not match their checksum: damaged, or another type of machine")
    return tokens, cond, quality, len(payload)


def _walk(prior: Prior, cond: Tensor | None, choose: Any, length: int) -> Int[Tensor, " N"]:
    if prior.device.type != "cpu":
        raise UsageError(f"device={prior.device}: coding needs the CPU, where sums are repeatable")
    with _repeatable():
        needed = [n < length for n in range(prior.num_tokens)]
        return prior.walk(prior.check_cond(cond, 1), choose, needed=needed)[0]


def _model(library: Any, logits: Tensor, prior: Prior, n: int) -> Any:
    """Return the coder's model of position n: constriction rounds these to 24 bits."""
    size = int(prior.high[n] - prior.low[n])
    values = logits[0, :size].double().numpy()
    probs = np.exp(values - values.max())
    return library.stream.model.Categorical((probs / probs.sum()).astype(np.float32), perfect=False)


@contextmanager
def _repeatable() -> Iterator[None]:
    """One thread, float32, no gradient: sums in the same order every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_num_threads(threads)


def _library() -> Any:
    try:
        import constriction
    except ImportError:
        raise UsageError(
            "compress: needs constriction; install it with pip install 'qvae[compress]'"
        ) from None
    return constriction


def _rounded(x: Tensor) -> Tensor:
    return (x.float().clamp(0, 1) * 255).round() / 255


def _crc(tokens: Int[Tensor, " N"]) -> int:
    return zlib.crc32(tokens.cpu().numpy().astype("<u4").tobytes())


def _short_hash(full: str) -> bytes:
    return bytes.fromhex(full)[:_HASH_BYTES]


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
