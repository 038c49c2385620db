"""The few types that everything else speaks, and the legend of shapes.

    B   samples in a batch            C   channels of the data
    *S  the data's spatial axes       *G  the latent grid's axes (may be none: one latent a sample)
    D   width of one latent vector    K   codebooks, that is integers in one grid cell
    N   tokens in a sample            M   raw numbers of all conditions

Every model of the ladder is the same graph

    x --encoder--> h --bottleneck--> z --decoder--> params --likelihood--> p(x|z)

and has the same loss, per sample and in nats: ``nll + beta * rate + penalty``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float, Int, Shaped
from torch import Tensor

__all__ = ["Batch", "Condition", "DataSpec", "Latent", "Loss", "cond_width"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latent:
    """What every bottleneck returns, always."""

    z: Float[Tensor, "B *G D"]
    """Channels last; carries the gradient to the encoder."""
    rate: Float[Tensor, " B"]
    """What the code costs, nats per sample."""
    penalty: Float[Tensor, " B"]
    """Training aids only, already weighted, nats per sample."""
    codes: Int[Tensor, "B *G K"] | None = None
    """Integers on the grid; None for a continuous bottleneck."""
    kl: Float[Tensor, "B D"] | None = None
    """The rate by coordinate, summed over the grid, where it falls apart like that."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached scalars: each named loss term, usage, perplexity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What every trainable model returns from ``forward``: the objective and its parts."""

    total: Float[Tensor, ""]
    """Mean over the batch of ``nll + price(rate) + penalty``, the price ``beta * rate`` unless the
    rung has another; the only tensor with a gradient."""
    nll: Float[Tensor, " B"]
    """-log p(x|z), nats per sample."""
    rate: Float[Tensor, " B"]
    """Nats per sample."""
    penalty: Float[Tensor, " B"]
    """Nats per sample."""
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    """Detached scalars for the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples as a model sees them.

    ``x`` is data ``[B, C, *S]`` for an autoencoder, tokens ``[B, N]`` for a prior. A row of
    ``cond`` holds the raw numbers of each condition of the :class:`DataSpec`, in its order; NaN
    means "not told". ``ids`` are the samples' positions in their split. ``lengths`` say how many
    tokens each row has, in 1..N, what follows being padding; None is N for all. ``step`` counts
    optimizer steps from 0 and is None outside training: what a schedule weighs is a function of it,
    so there is no schedule to save.
    """

    x: Shaped[Tensor, "B *rest"]
    cond: Float[Tensor, "B M"] | None = None
    ids: Int[Tensor, " B"] | None = None
    lengths: Int[Tensor, " B"] | None = None
    step: Int[Tensor, ""] | None = None

    def __len__(self) -> int:
        return len(self.x)

    def to(self, device: Any) -> "Batch":
        """The same batch on a device."""
        return Batch(
            x=self.x.to(device),
            cond=None if self.cond is None else self.cond.to(device),
            ids=None if self.ids is None else self.ids.to(device),
            lengths=None if self.lengths is None else self.lengths.to(device),
            step=self.step,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One named quantity that a model may be told, and how ``width`` raw numbers stand for it.

    A ``category`` is stored as the index of its name in ``categories``; a ``number`` as
    ``(value - mean) / std``; a ``cyclic`` quantity as the value itself, in ``unit``, modulo
    ``period`` (4:20 under ``cyclic(12h)`` is 4.333). These take one number, and the others
    ``width``: a ``vector`` is numbers, each with a mean and a std of its own; a ``text`` is
    words, where ``i + 2`` stands for word i of ``categories``, 1 for a word that is not among
    them, and 0 for none, after the last word. A block with a NaN in it is "not told" as a whole.
    """

    name: str
    kind: Literal["category", "number", "cyclic", "vector", "text"]
    categories: tuple[str, ...] = ()
    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0
    period: float = 1.0
    unit: str = ""
    width: int = 1


def cond_width(conditions: Iterable[Condition]) -> int:
    """Count the raw numbers in a row of conditions: M of ``cond [B, M]``.

    Example:
        >>> cond_width([Condition(name="a", kind="number"), Condition(name="b", kind="category")])
        2
    """
    return sum(condition.width for condition in conditions)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """The shape of one sample and what is known beside it.

    Example:
        >>> DataSpec(shape=(3, 64, 64)).num_dims
        12288
    """

    shape: tuple[int, ...]
    """``(C, *S)``; the number of spatial axes is ``len(shape) - 1``."""
    conditions: tuple[Condition, ...] = ()
    levels: int | None = None
    """Values a channel can take when the data is discrete: 256 for 8-bit pixels ``k / 255``,
    2 for binary ones, None for real numbers."""

    def __post_init__(self) -> None:
        if not self.shape or any(size < 1 for size in self.shape):
            raise ValueError(f"shape={self.shape}: needs (channels, *spatial), every size >= 1")

    @property
    def num_dims(self) -> int:
        """Numbers in one sample."""
        total = 1
        for size in self.shape:
            total *= size
        return total
