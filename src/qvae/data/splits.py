"""Which samples are for training, for choosing and for reporting: obeyed if told, else a hash.

The hash of a sample's key (its path relative to the data folder, as bytes, or its index as text)
is a number in [0, 1): below .90 is train, below .95 valid, the rest test. It depends on nothing
else, so a sample stays where it is when others come or go, on every machine, for ever.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from qvae.errors import DataError

__all__ = ["PARTS", "column_parts", "folder_parts", "hash_fraction", "part_of", "split_rows"]

PARTS = ("train", "valid", "test")
_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
    "testing": "test",
}
# Shares of the hash for parts that nothing tells: (first fraction, part), by what is missing.
_BOTH = ((0.90, "valid"), (0.95, "test"))


def part_of(word: str) -> str | None:
    """Map a spelling of a part ("val", "Training") to its name, or None.

    Example:
        >>> part_of("Val"), part_of("cats")
        ('valid', None)
    """
    return _WORDS.get(word.strip().lower())


def hash_fraction(key: bytes) -> float:
    """Return a number in [0, 1) that depends on the key alone.

    Example:
        >>> hash_fraction(b"a/b.png")  # doctest: +ELLIPSIS
        0.535...
    """
    return int.from_bytes(hashlib.sha256(key).digest()[:6], "big") / 2**48


def folder_parts(paths: Sequence[str]) -> list[str] | None:
    """Read each sample's part from its top folder, or return None when folders do not tell.

    They tell when every path lies in a folder such as train/, valid/ or test/.

    Raises:
        DataError: two or more such folders exist and samples lie outside of them.
    """
    tops = [path.split("/", 1)[0] if "/" in path else "" for path in paths]
    parts = [part_of(top) for top in tops]
    told = [part for part in parts if part is not None]
    if len(told) == len(parts) and told:
        return told
    if len(set(told)) >= 2:
        stray = next(path for path, part in zip(paths, parts, strict=True) if part is None)
        raise DataError(
            f"{stray!r} lies outside the split folders {', '.join(sorted(set(told)))}: "
            "either every sample lies in one of them or none does"
        )
    return None


def column_parts(
    columns: Mapping[str, Sequence[str]], where: str, names: Sequence[str] | None = None
) -> list[str] | None:
    """Read each sample's part from the column "split", if there is one.

    Errors call the rows by ``names``, or count them.

    Raises:
        DataError: a word that names no part.
    """
    told = []
    for row, word in enumerate(columns.get("split", ())):
        part = part_of(word)
        if part is None:
            place = f"row {row + 1}" if names is None else names[row]
            raise DataError(f"{where}: split={word!r} in {place}, needs train, valid or test")
        told.append(part)
    return told if "split" in columns else None


def split_rows(keys: Sequence[bytes], told: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Split samples into the rows of train, valid and test; none of them is empty.

    Args:
        keys: one key a sample, hashed where nothing tells the part.
        told: one of PARTS a sample, obeyed. A part that it never names is taken from the train
            samples by the hash: 90/5/5 of them when both are missing, a twelfth when one is.

    Returns:
        For each of PARTS its rows, ascending.

    Raises:
        DataError: too few samples (3 are needed when nothing is told), or none told to be train.

    Example:
        >>> parts = split_rows([b"a", b"b", b"c", b"d"])
        >>> {part: len(rows) for part, rows in parts.items()}
        {'train': 2, 'valid': 1, 'test': 1}
    """
    parts = np.array(["train"] * len(keys) if told is None else list(told), dtype="U5")
    if told and not (parts == "train").any():
        others = " and ".join(sorted(set(told)))
        raise DataError(f"split: none of {len(told)} samples is of train, they are of {others}")
    missing = [part for part in ("valid", "test") if not (parts == part).any()]
    pool = np.flatnonzero(parts == "train")
    fractions = np.array([hash_fraction(keys[row]) for row in pool.tolist()], dtype=np.float64)
    bounds = _BOTH if len(missing) == 2 else tuple((11 / 12, part) for part in missing)
    for bound, part in bounds:
        parts[pool[fractions >= bound]] = part
    _fill_empty(parts, pool, fractions, ["train", *missing])
    return {part: np.flatnonzero(parts == part) for part in PARTS}


def _fill_empty(
    parts: np.ndarray, pool: np.ndarray, fractions: np.ndarray, free: list[str]
) -> None:
    """Give each free part at least one sample, from the largest free part, by hash order."""
    if len(pool) < len(free):
        raise DataError(
            f"{len(pool)} samples cannot be split into {' + '.join(free)}: "
            f"at least {len(free)} are needed"
        )
    order = pool[np.lexsort((pool, -fractions))]
    for part in free:
        if not (parts == part).any():
            donor = max(free, key=lambda name: int((parts[pool] == name).sum()))
            parts[order[parts[order] == donor][0]] = part
