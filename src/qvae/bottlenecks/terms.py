"""Auxiliary terms: what is added to the loss so that encoder and codebook train well.

Each is in nats or squared distance, for one grid cell, and none makes a table of every vector by
every code. A quantizer computes a term only where its weight is not 0.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "Evenness",
    "bit_entropy",
    "commitment",
    "from_uniform",
    "orthogonality",
    "require_evenness",
    "uncovered",
    "unused_entropy",
    "unused_pairs",
]

Evenness = Literal["entropy", "coverage"]
"""How a batch's use is told from even use: ``from_uniform`` or ``uncovered``."""


def require_evenness(evenness: str) -> None:
    """Raise ValueError for a name that is no measure of evenness."""
    if evenness not in list(_EVENNESS):
        raise ValueError(f"evenness={evenness!r}: must be one of {', '.join(_EVENNESS)}")


def commitment(z_e: Float[Tensor, "*N D"], z_q: Float[Tensor, "*N D"]) -> Float[Tensor, "*N"]:
    """Return ``||z_e - sg(z_q)||^2`` of each vector, the pull of the encoder to its code.

    Paper: van den Oord et al. 2017, arXiv:1711.00937, equation 3, last term.

    Example:
        >>> commitment(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2)).tolist()
        [25.0]
    """
    return F.mse_loss(z_e.float(), z_q.detach().float(), reduction="none").sum(-1)


def orthogonality(table: Float[Tensor, "V D"]) -> Float[Tensor, ""]:
    """Return the mean squared cosine between two different rows: 0 where all are orthogonal.

    Paper: Shin et al. 2021, arXiv:2112.00384, section 3.2, ``||E E^T - I||^2 / V^2`` of unit
    rows. Ours differs: ``||E E^T||^2 = ||E^T E||^2``, so the matrix is D by D and not V by V.

    Example:
        >>> orthogonality(torch.tensor([[2.0, 0.0], [0.0, 1.0]])).item()
        0.0
    """
    unit = F.normalize(table.float(), dim=1)
    pairs = len(table) * max(1, len(table) - 1)
    return ((unit.T @ unit).square().sum() - len(table)).clamp(min=0) / pairs


def from_uniform(prob: Float[Tensor, " V"]) -> Float[Tensor, ""]:
    """Return ``ln V - H(prob)``, nats; its gradient is finite where a probability is 0.

    Example:
        >>> from_uniform(torch.tensor([0.5, 0.5])).item()
        0.0
    """
    negative_entropy = (prob * prob.clamp(min=1e-20).log()).sum()
    return (math.log(len(prob)) + negative_entropy).clamp(min=0)


def uncovered(prob: Float[Tensor, " V"]) -> Float[Tensor, ""]:
    """Return ``KL(uniform || prob) = -mean ln(V prob)``, nats: how far some codes are from use.

    ``from_uniform`` is the divergence the other way round. That one charges most for a code that
    is used too much, such as the one of a white background, and hardly anything for one that is
    never used; this one charges for the latter, and lets a code be as frequent as the data are.

    Example:
        >>> often, never = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.5, 0.499, 0.001])
        >>> [round(f(p).item(), 2) for f in (from_uniform, uncovered) for p in (often, never)]
        [0.06, 0.4, 0.06, 1.67]
    """
    return -(len(prob) * prob.clamp(min=1e-20)).log().mean().clamp(max=0)


def bit_entropy(
    signs: Float[Tensor, "*N L"], *, temperature: float = 1.0
) -> tuple[Float[Tensor, "*N"], Float[Tensor, "*N L"]]:
    """Return the entropy of a soft choice of signs, in nats, and each sign's probability of +1.

    The choice is among all 2^L corners of a cube, with probability
    ``softmax(-||signs - corner||^2 / temperature)``. It falls apart into one coin for each
    coordinate, ``sigmoid(4 sign / temperature)``, so its entropy is a sum of L terms.

    Paper: Yu et al. 2023, arXiv:2310.05737, equation 5, first term; the factors are Zhao et al.
    2024, arXiv:2406.07548, section 3.3.

    Example:
        >>> entropy, prob = bit_entropy(torch.zeros(1, 3))
        >>> round(entropy.item() / math.log(2), 4), prob.tolist()
        (3.0, [[0.5, 0.5, 0.5]])
    """
    logits = 4 * signs.float() / temperature
    prob = torch.sigmoid(logits)
    # -p log p - (1 - p) log(1 - p) in a form without a logarithm of zero.
    entropy = F.softplus(logits) - prob * logits
    return entropy.sum(-1), prob


def unused_entropy(
    prob: Float[Tensor, "*N L"],
    mask: Bool[Tensor, "*N"] | None = None,
    *,
    group_bits: int = 8,
    evenness: Evenness = "entropy",
) -> Float[Tensor, ""]:
    """Return ``L ln 2 - H(mean of the choices)``: how far from evenly codes are used, in nats.

    The entropy of 2^L codes is bounded by the sum over groups of coordinates; within a group it
    is exact. One coordinate a group is the paper's factors, and sees no dependence between bits.

    Paper: Yu et al. 2023, arXiv:2310.05737, equation 5, second term, with its sign turned and a
    constant added, so that it is never negative; Zhao et al. 2024, arXiv:2406.07548, section 3.3.

    Args:
        prob: each vector's probability of +1, by coordinate.
        mask: True where a vector counts.
        group_bits: coordinates whose joint use is measured, >= 1; memory is N * 2^group_bits.
        evenness: ``coverage`` takes :func:`uncovered` in the entropy's place.

    Example:
        >>> signs = torch.tensor([[1.0, 1.0], [0.0, 0.0]])  # two bits that always agree
        >>> [round(unused_entropy(signs, group_bits=g).item() / math.log(2), 3) for g in (1, 2)]
        [0.0, 1.0]
    """
    distance = _EVENNESS[evenness]
    rows = prob.flatten(0, -2) if mask is None else prob[mask]
    unused = torch.zeros((), device=prob.device)
    num = rows.detach().new_ones(len(rows)).sum()  # no branch: a compiled graph may hold this
    for group in rows.split(group_bits, dim=1):
        joint = torch.ones(len(group), 1, device=prob.device)
        for bit in group.unbind(dim=1):
            joint = torch.cat([joint * (1 - bit[:, None]), joint * bit[:, None]], dim=1)
        mean = joint.sum(0) / num.clamp(min=1)
        unused = unused + distance(mean) * (num > 0)
    return unused


def unused_pairs(
    choices: Sequence[Float[Tensor, "*N _"]],
    mask: Bool[Tensor, "*N"] | None = None,
    *,
    evenness: Evenness = "entropy",
) -> Float[Tensor, ""]:
    """Return how far from evenly digits are used, two coordinates at a time, in nats a vector.

    For soft choices of a digit in each of D coordinates: ``ln(L_a L_b) - H(mean of p_a p_b)``,
    summed over all pairs and divided by D - 1. Were pairs independent, that is the sum over
    coordinates; a pair that goes together costs more. The means of all pairs are one product of
    matrices, ``[sum L, N] [N, sum L]``, so nothing of the size of the codebook exists.

    Args:
        choices: for each coordinate the probabilities of its digits.
        mask: True where a vector counts.
        evenness: ``coverage`` takes :func:`uncovered` in the entropy's place.

    Example:
        >>> even, twice = torch.eye(2), torch.eye(2)  # two coordinates that always agree
        >>> round(unused_pairs([even, twice]).item() / math.log(2), 3)
        1.0
    """
    distance = _EVENNESS[evenness]
    sizes = [choice.shape[-1] for choice in choices]
    rows = torch.cat(list(choices), dim=-1)
    rows = rows.flatten(0, -2) if mask is None else rows[mask]
    num = rows.detach().new_ones(len(rows)).sum()  # no branch: a compiled graph may hold this
    if len(sizes) == 1:
        return distance(rows.sum(0) / num.clamp(min=1)) * (num > 0)
    joint = rows.T @ rows / num.clamp(min=1)
    blocks = [part.split(sizes, dim=1) for part in joint.split(sizes)]
    unused = [distance(blocks[b][a].flatten()) for b in range(len(sizes)) for a in range(b)]
    return torch.stack(unused).sum() * (num > 0) / (len(sizes) - 1)


_EVENNESS = {"entropy": from_uniform, "coverage": uncovered}
