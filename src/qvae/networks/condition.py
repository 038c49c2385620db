"""What a model may be told, as a vector: names, numbers, angles, sentences; each may be missing."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qvae.networks.text import TextReader
from qvae.types import Condition, cond_width

__all__ = ["ConditionFeatures", "Conditioner"]

_NUMBER_ANGLES = (math.pi / 4, math.pi / 2, math.pi)
_TEXT_DIM = 64


class ConditionFeatures(nn.Module):
    """Describe a row of named conditions by features; NaN means "not told".

    Paper: Fourier features, Tancik et al. 2020, arXiv:2006.10739, section 4. Ours differs: fixed
    harmonics of the period in place of random frequencies, so the features are exactly periodic.
    Every condition gives its features and a flag, 1 where it is not told (its features are then
    0), so a network can learn "not told" like a value, from samples that lack one and from a
    prior's hidden conditions. There is nothing to train here, but for a ``text``.

    A ``category`` gives one feature per name; a ``number`` (standardised, as in
    :class:`~qvae.types.Condition`) itself and three sine/cosine pairs; a ``cyclic`` value v the
    harmonics 1..8 of its period, and, if the period is a whole number above 1 of a named unit,
    also those of one unit: ``cyclic(12h)`` yields the angles of both hands of a clock. A
    ``vector`` gives its numbers, and a ``text`` what a
    :class:`~qvae.networks.text.TextReader` of its own reads.

    Shapes: cond [B M] -> [B dim].

    Args:
        conditions: what the columns of ``cond`` mean, at least one.
        harmonics: of a cyclic quantity, >= 1. With 1, a linear map of the features turns with
            the quantity and can do nothing else.

    Raises:
        ValueError: if there is no condition, one is empty, has no period or another width than
            its kind, or harmonics < 1.

    Example:
        >>> time = Condition(name="time", kind="cyclic", period=12.0, unit="h")
        >>> ConditionFeatures((time,))(torch.tensor([[4.5], [float("nan")]])).shape
        torch.Size([2, 33])
    """

    def __init__(self, conditions: tuple[Condition, ...], *, harmonics: int = 8) -> None:
        super().__init__()
        if not conditions:
            raise ValueError("conditions=(): needs at least one condition")
        if harmonics < 1:
            raise ValueError(f"harmonics={harmonics}: must be at least 1")
        for condition in conditions:
            _check(condition)
        self.conditions, self.harmonics = tuple(conditions), harmonics
        self.readers = nn.ModuleList(
            TextReader(num_words=len(item.categories), dim=_TEXT_DIM)
            for item in conditions
            if item.kind == "text"
        )
        self.dim = sum(_num_features(condition, harmonics) + 1 for condition in conditions)

    @property
    def turns(self) -> tuple[tuple[int, int], ...]:
        """Columns of the features that are sine and cosine of an angle: first harmonics."""
        found, start = [], 0
        for condition in self.conditions:
            width = _num_features(condition, self.harmonics)
            if condition.kind == "cyclic":
                sines = range(start, start + width, 2 * self.harmonics)
                found += [(sine, sine + self.harmonics) for sine in sines]
            start += width + 1
        return tuple(found)

    def forward(self, cond: Float[Tensor, "B M"]) -> Float[Tensor, "B dim"]:
        """Compute the features, condition after condition, each followed by its flag.

        Raises:
            ValueError: if the number of columns is not that of the conditions, or a number
                stands for no category or word.
        """
        width = cond_width(self.conditions)
        if cond.shape[-1] != width:
            names = ", ".join(condition.name for condition in self.conditions)
            raise ValueError(f"cond has {cond.shape[-1]} columns: it needs {width} ({names})")
        cond = cond.float()  # 2 pi 8 v is not safe in 16 bits
        parts, readers = [], iter(self.readers)
        blocks = cond.split([condition.width for condition in self.conditions], dim=-1)
        for condition, block in zip(self.conditions, blocks, strict=True):
            unknown = block.isnan().any(-1, keepdim=True)
            told = block.masked_fill(unknown, 0.0)
            if condition.kind == "text":
                values = next(readers)(told)
            else:
                values = _features(condition, told, self.harmonics)
            parts += [values.masked_fill(unknown, 0.0), unknown.to(values.dtype)]
        return torch.cat(parts, dim=-1)


class Conditioner(nn.Module):
    """Embed a row of named conditions: their features through a two-layer network.

    Shapes: cond [B M] -> [B dim].

    Args:
        conditions: what the columns of ``cond`` mean, at least one.
        dim: width of the resulting vector, >= 1.

    Raises:
        ValueError: as in :class:`ConditionFeatures`, or dim below 1.

    Example:
        >>> time = Condition(name="time", kind="cyclic", period=12.0, unit="h")
        >>> told = Conditioner((time,), dim=16)
        >>> told.feature_dim, told(torch.tensor([[4.5], [float("nan")]])).shape
        (33, torch.Size([2, 16]))
    """

    def __init__(self, conditions: tuple[Condition, ...], *, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim}: the width must be >= 1")
        self.features = ConditionFeatures(conditions)
        self.conditions, self.dim = self.features.conditions, dim
        self.feature_dim = self.features.dim
        self.embed = nn.Sequential(nn.Linear(self.feature_dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, cond: Float[Tensor, "B M"]) -> Float[Tensor, "B dim"]:
        """Turn rows of raw numbers into vectors."""
        return self.embed(self.features(cond))


def _check(condition: Condition) -> None:
    if condition.kind in ("category", "text") and not condition.categories:
        raise ValueError(f"condition {condition.name!r}: a {condition.kind} needs a name or word")
    if condition.width < 1 or (condition.width > 1 and condition.kind not in ("vector", "text")):
        raise ValueError(
            f"condition {condition.name!r}: width={condition.width} of a {condition.kind}"
        )
    if condition.kind == "cyclic" and not condition.period > 0:
        raise ValueError(
            f"condition {condition.name!r}: period={condition.period} must be positive"
        )


def _has_unit_harmonics(condition: Condition) -> bool:
    whole = float(condition.period).is_integer()
    return bool(condition.unit) and whole and condition.period > 1


def _num_features(condition: Condition, harmonics: int) -> int:
    if condition.kind == "category":
        return len(condition.categories)
    if condition.kind == "vector":
        return condition.width
    if condition.kind == "text":
        return _TEXT_DIM
    if condition.kind == "number":
        return 1 + 2 * len(_NUMBER_ANGLES)
    return 2 * harmonics * (2 if _has_unit_harmonics(condition) else 1)


def _features(
    condition: Condition, block: Float[Tensor, "B W"], harmonics: int
) -> Float[Tensor, "B F"]:
    if condition.kind == "vector":
        return block
    value = block[:, 0]
    if condition.kind == "category":
        return _one_hot(condition, value)
    if condition.kind == "number":
        scales = value.new_tensor(_NUMBER_ANGLES)
        return torch.cat([value[:, None], _sin_cos(value[:, None] * scales)], dim=-1)
    multiples = torch.arange(1, harmonics + 1, device=value.device, dtype=value.dtype)
    turns = [(value / condition.period) % 1.0]
    if _has_unit_harmonics(condition):
        turns.append(value % 1.0)
    return torch.cat([_sin_cos(2 * math.pi * turn[:, None] * multiples) for turn in turns], dim=-1)


def _sin_cos(angles: Float[Tensor, "B H"]) -> Float[Tensor, "B F"]:
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _one_hot(condition: Condition, value: Float[Tensor, " B"]) -> Float[Tensor, "B V"]:
    num = len(condition.categories)
    hot = (value[:, None] == torch.arange(num, device=value.device)).to(value.dtype)
    if not torch.compiler.is_compiling():
        wrong = value[hot.sum(dim=-1) == 0]
        if len(wrong):
            raise ValueError(
                f"condition {condition.name!r}: index {wrong[0].item():g} is none of the "
                f"{num} categories 0..{num - 1}"
            )
    return hot
