"""A soft choice among the rows of a table, in tiles: all get a gradient, none much memory."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["SoftChoice", "soft_choice"]

_TILE = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftChoice:
    """The distribution ``q = softmax(-precision ||z - e||^2 / 2)`` over rows, as far as needed."""

    mean: Float[Tensor, "N D"]
    """``y @ sg(table)``, y = q or a draw near a corner: its gradient is that of the choice."""
    entropy: Float[Tensor, " N"]
    """Of q, nats."""
    use: Float[Tensor, " V"]
    """The mean of q over the vectors that count."""
    codes: Int[Tensor, " N"] | None
    """Drawn from q; None without noise, where the choice is the nearest row."""


def soft_choice(
    z: Float[Tensor, "N D"],
    table: Float[Tensor, "V D"],
    *,
    precision: Float[Tensor, ""] | float = 1.0,
    mask: Bool[Tensor, " N"] | None = None,
    temperature: float | None = None,
) -> SoftChoice:
    """Weigh every row of a table by its distance to each vector.

    An N by V matrix exists a tile at a time, in the forward and again in the backward pass, which
    computes it anew. Distances are float32 under any autocast.

    Args:
        z: the vectors.
        table: the rows.
        precision: of q, > 0.
        mask: True where a vector counts for ``use``.
        temperature: draw the code by the Gumbel-max trick, and let y be the Gumbel-softmax of
            that draw (Jang et al. 2016, arXiv:1611.01144, equation 2); None is y = q.

    Example:
        >>> choice = soft_choice(torch.zeros(1, 1), torch.tensor([[-1.0], [1.0]]))
        >>> choice.mean.item(), choice.use.tolist()
        (0.0, [0.5, 0.5])
    """
    with torch.autocast(z.device.type, enabled=False):
        z, table = z.float(), table.float()
        precision = torch.as_tensor(precision, device=z.device)
        counts = torch.ones(len(z), device=z.device) if mask is None else mask.float()
        rows = max(1, _TILE // len(table))
        tiles = [
            checkpoint(
                _tile,
                z[i : i + rows],
                table,
                precision,
                counts[i : i + rows],
                temperature,
                use_reentrant=False,
                preserve_rng_state=temperature is not None,
            )
            for i in range(0, len(z), rows)
        ]
    means, entropies, uses, codes = zip(*tiles, strict=True) if tiles else ([z], [z[:, 0]], [], [])
    total = sum(uses, torch.zeros(len(table), device=z.device))
    return SoftChoice(
        mean=torch.cat(list(means)),
        entropy=torch.cat(list(entropies)),
        use=total / counts.sum().clamp(min=1),
        codes=None if temperature is None else torch.cat([z.new_zeros(0).long(), *codes]),
    )


def _tile(
    z: Tensor, table: Tensor, precision: Tensor, counts: Tensor, temperature: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    centre = table.detach().mean(0)  # the terms that would cancel are then small
    rows = table - centre
    scores = torch.addmm(-rows.square().sum(1) / 2, z - centre, rows.T)
    log_q = (precision * scores).log_softmax(1)
    q = log_q.exp()
    entropy = -(q * log_q).sum(1)
    y, codes = q, None
    if temperature is not None:
        noise = -torch.empty_like(log_q).exponential_().log()
        codes = (log_q.detach() + noise).argmax(1)
        y = ((log_q + noise) / temperature).softmax(1)
    return y @ table.detach(), entropy, counts @ q, codes
