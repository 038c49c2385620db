"""What reading and writing token files share: the versions, the dtype and the checks of values."""

import numpy as np

from qvae.errors import FormatError

__all__ = ["LENGTH_DTYPE", "PLAIN", "WITH_LENGTHS", "check_lengths", "check_tokens", "token_dtype"]

PLAIN, WITH_LENGTHS = 1, 2
"""The format's versions: the second has the length of each row beside its tokens."""
LENGTH_DTYPE = np.dtype("<u4")


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smaller of uint16 and uint32 that holds every id, little-endian.

    Example:
        >>> token_dtype(65536), token_dtype(65537)
        (dtype('uint16'), dtype('uint32'))
    """
    if not 1 <= vocab_size <= 2**32:
        raise ValueError(f"vocab_size={vocab_size}: must be in 1..2**32")
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def check_tokens(tokens: np.ndarray, vocab_size: int, where: str, rows: np.ndarray) -> None:
    """Check that ids are in ``0..vocab_size-1``.

    Args:
        tokens: ``[B, N]`` integers.
        vocab_size: how many ids there are.
        where: the split or file, for the message.
        rows: ``[B]`` each row's position in the split, for the message.

    Raises:
        FormatError: naming the split, the position and the value.
    """
    if tokens.size and (int(tokens.max()) >= vocab_size or int(tokens.min()) < 0):
        row, position = np.argwhere((tokens < 0) | (tokens >= vocab_size))[0]
        raise FormatError(
            f"{where}: sample {rows[row]} has id {tokens[row, position]} at position {position}, "
            f"the vocabulary is 0..{vocab_size - 1}"
        )


def check_lengths(
    lengths: np.ndarray, num_tokens: int, num_codebooks: int, where: str, rows: np.ndarray
) -> None:
    """Check that lengths are whole cells: multiples of ``num_codebooks`` up to ``num_tokens``.

    Args:
        lengths: ``[B]`` integers.
        num_tokens: tokens of a full sample.
        num_codebooks: tokens of a cell.
        where: the split or file, for the message.
        rows: ``[B]`` each row's position in the split, for the message.

    Raises:
        FormatError: naming the split, the sample and the length.
    """
    is_bad = (lengths < 1) | (lengths > num_tokens) | (lengths % num_codebooks != 0)
    if is_bad.any():
        row = int(np.argmax(is_bad))
        unit = f", in cells of {num_codebooks}" if num_codebooks > 1 else ""
        raise FormatError(
            f"{where}: sample {rows[row]} has length {lengths[row]}, needs 1..{num_tokens}{unit}"
        )
