"""Which samples a step sees, and which noise: pure functions, so a checkpoint needs only the step.

The data is an endless stream of epochs, each a permutation of the split. Step ``s`` takes the
positions ``s * batch_size`` to ``(s + 1) * batch_size``; a step may reach into the next epoch.
Nothing depends on the number of processes: each takes its share ``batch[rank::world]``.
"""

import hashlib
import struct
from functools import lru_cache

import numpy as np

__all__ = ["epoch_permutation", "noise_seed", "step_indices"]


@lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Shuffle ``0..num_samples - 1`` by (seed, epoch).

    The raw stream of Philox is sorted, because NumPy promises that stream for ever and its
    ``permutation`` only within a release.

    Returns:
        int64 ``[num_samples]``, read-only.

    Example:
        >>> sorted(epoch_permutation(0, 3, 5).tolist())
        [0, 1, 2, 3, 4]
    """
    generator = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    order = np.argsort(generator.random_raw(num_samples), kind="stable")
    order.flags.writeable = False
    return order


def step_indices(*, seed: int, step: int, batch_size: int, num_samples: int) -> np.ndarray:
    """Return the samples of a step, over all processes.

    Args:
        seed: of the run.
        step: counts from 0.
        batch_size: samples a step; may exceed ``num_samples``.
        num_samples: length of the split; >= 1.

    Returns:
        int64 ``[batch_size]``.

    Example:
        >>> step_indices(seed=0, step=7, batch_size=4, num_samples=10).shape
        (4,)
    """
    position, end, parts = step * batch_size, (step + 1) * batch_size, []
    while position < end:
        epoch, start = divmod(position, num_samples)
        stop = min(num_samples, start + end - position)
        parts.append(epoch_permutation(seed, epoch, num_samples)[start:stop])
        position += stop - start
    return np.concatenate(parts)


def noise_seed(seed: int, purpose: str, *parts: int) -> int:
    """Hash (seed, purpose, step, micro-batch, rank ...) to a seed in [0, 2^63).

    Example:
        >>> noise_seed(0, "forward", 5, 0, 1) == noise_seed(0, "forward", 5, 1, 0)
        False
    """
    message = purpose.encode() + struct.pack(f"<{1 + len(parts)}q", seed, *parts)
    return int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little") >> 1
