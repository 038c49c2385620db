"""Entropy coding: a prior's probabilities drive a range coder, and a sample becomes bytes.

Encoder and decoder must see the same probabilities to the last bit, so both take the same walk
through the prior: one sample, float32, one thread, token after token. That holds on one type of
machine and one release of torch; elsewhere a rounding may differ, and then the CRC says so.

A payload is refused unless it is what its tokens are coded as, so nothing can be hidden after it.
What stands before it is in :mod:`qvae.coding_header`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qvae.arguments import check_tensors, check_whole
from qvae.coding_header import Header
from qvae.errors import FormatError, UsageError
from qvae.eval_mode import eval_mode
from qvae.metrics.reconstruction import psnr
from qvae.pretrained import model_hash
from qvae.priors.base import Prior, build_prior
from qvae.tokenizer import Tokenizer

__all__ = [
    "Compressed",
    "compress",
    "decode_tokens",
    "decompress",
    "encode_tokens",
    "uniform_prior",
]


_DAMAGED = "damaged, or written on another type of machine"


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
        ValueError: no flat tensor, a token out of range, none or too many.
        UsageError: constriction is not installed, or the prior is not on the CPU.

    Example:
        >>> from qvae.priors.uniform import Uniform
        >>> prior = Uniform(vocab_size=16, num_tokens=4)  # 4 tokens of 4 bits
        >>> encode_tokens(prior, torch.tensor([3, 1, 4, 15])).hex()
        '314f'
    """
    library = _library()
    check_tensors(tokens=tokens)
    if tokens.ndim != 1:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)}: needs [L], those of one sample")
    encoder = library.stream.queue.RangeEncoder()
    padded = F.pad(tokens, (0, max(0, prior.num_tokens - len(tokens)))).to(prior.device)
    _, digits, _ = prior.read(padded[None], torch.tensor([len(tokens)]))

    def choose(logits: Tensor, n: int) -> Tensor:
        if n < len(tokens):
            encoder.encode(int(digits[0, n]), _model(library, logits, prior, n))
        return digits[:, n]

    _walk(prior, cond, choose, len(tokens))
    return _payload(encoder)


def decode_tokens(
    prior: Prior,
    data: bytes,
    cond: Float[Tensor, " M"] | None = None,
    *,
    length: int | None = None,
) -> Int[Tensor, " L"]:
    """Undo :func:`encode_tokens` of ``length`` tokens (None: all).

    What was decoded is coded again beside, which costs next to nothing, so bytes that
    :func:`encode_tokens` would not have written are refused, and so is anything after them.

    Raises:
        ValueError: a length that is not in 1..N.
        FormatError: bytes that are not the code of any tokens; bytes that are the code of others,
            such as those of another prior, give others.
        UsageError: constriction is not installed, or the prior is not on the CPU.

    Example:
        >>> from qvae.priors.uniform import Uniform
        >>> prior = Uniform(vocab_size=16, num_tokens=4)
        >>> decode_tokens(prior, encode_tokens(prior, torch.tensor([3, 1, 4, 15]))).tolist()
        [3, 1, 4, 15]
    """
    library = _library()
    length = prior.num_tokens if length is None else length
    check_whole("length", length)
    if not 1 <= length <= prior.num_tokens:
        raise ValueError(f"length={length}: must be in 1..{prior.num_tokens}")
    words = np.frombuffer(data + b"\0" * (-len(data) % 4), dtype=">u4").astype(np.uint32)
    decoder = library.stream.queue.RangeDecoder(words)
    encoder = library.stream.queue.RangeEncoder()

    def choose(logits: Tensor, n: int) -> Tensor:
        if n >= length:
            return torch.zeros(1, dtype=torch.long)
        model = _model(library, logits, prior, n)
        try:
            digit = int(decoder.decode(model))
        except AssertionError:  # what constriction raises for bytes that no encoder writes
            raise FormatError(f"no token {n} can be decoded: {_DAMAGED}") from None
        encoder.encode(digit, model)
        return torch.tensor([digit])

    tokens = (_walk(prior, cond, choose, length) + prior.low)[:length]
    own = _payload(encoder)
    if own != data:
        raise FormatError(
            f"{len(data)} bytes of payload are not the {len(own)} that their tokens are coded as: "
            f"{_DAMAGED}"
        )
    return tokens


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
    header = Header(
        shape=tuple(x.shape),
        quality=quality,
        tokenizer=tokenizer.hash,
        prior=model_hash(prior),
        cond=() if cond is None else tuple(cond.tolist()),
    )
    data = replace(header, crc=header.checksum(tokens)).to_bytes() + payload
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

    Example:
        >>> import qvae
        >>> from qvae.autoencoder import build_autoencoder
        >>> parts = {"encoder": {"name": "mlp"}, "bottleneck": {"name": "fsq", "levels": [8, 5]},
        ...          "decoder": {"name": "mlp"}, "likelihood": {"name": "gaussian"}}
        >>> spec = qvae.DataSpec(shape=(1, 8, 8))
        >>> tokenizer = qvae.Tokenizer(build_autoencoder(parts, spec).eval())
        >>> models = {"tokenizer": tokenizer, "prior": uniform_prior(tokenizer)}
        >>> found = compress(torch.rand(1, 8, 8), **models)
        >>> torch.equal(decompress(found.data, **models).tokens, found.tokens)
        True
    """
    tokens, cond, quality, payload = _read(data, tokenizer, prior)
    recon = tokenizer.decode(tokens[None], None if cond is None else cond[None])[0]
    return Compressed(data=data, tokens=tokens, recon=recon, psnr=quality / 100, payload=payload)


def _read(
    data: bytes, tokenizer: Tokenizer, prior: Prior
) -> tuple[Int[Tensor, " N"], Float[Tensor, " M"] | None, int, int]:
    """Check the header and decode: tokens, conditions, quality, bytes of payload."""
    header, at = Header.read(data)
    hashes = (
        ("tokenizer", header.tokenizer, tokenizer.hash),
        ("prior", header.prior, model_hash(prior)),
    )
    for what, found, full in hashes:
        own = full[: len(found)]
        if found != own:
            raise FormatError(f"written with {what} {found}, this run's is {own}")
    if header.shape != tokenizer.spec.shape:
        raise FormatError(f"shape {header.shape}, the tokenizer's is {tokenizer.spec.shape}")
    cond = torch.tensor(header.cond) if header.cond else None
    try:
        prior.check_cond(cond, 1)
    except ValueError as error:
        raise FormatError(f"conditions of the header: {error}") from None
    tokens = decode_tokens(prior, data[at:], cond)
    if header.checksum(tokens) != header.crc:
        raise FormatError(f"header and tokens do not match their checksum: {_DAMAGED}")
    return tokens, cond, header.quality, len(data) - at


def _walk(prior: Prior, cond: Tensor | None, choose: Any, length: int) -> Int[Tensor, " N"]:
    if prior.device.type != "cpu":
        raise UsageError(f"device={prior.device}: coding needs the CPU, where sums are repeatable")
    with _repeatable(), eval_mode(prior):
        needed = [n < length for n in range(prior.num_tokens)]
        return prior.walk(prior.check_cond(cond, 1), choose, needed=needed)[0]


def _model(library: Any, logits: Tensor, prior: Prior, n: int) -> Any:
    """Return the coder's model of position n: constriction rounds these to 24 bits."""
    size = int(prior.high[n] - prior.low[n])
    values = logits[0, :size].double().numpy()
    probs = np.exp(values - values.max())
    return library.stream.model.Categorical((probs / probs.sum()).astype(np.float32), perfect=False)


def _payload(encoder: Any) -> bytes:
    words = encoder.get_compressed().astype(">u4").tobytes()
    return bytes(words.rstrip(b"\0"))  # the decoder reads zeros after the end anyway


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
