"""From log-probabilities of digits to the objective of a prior; padding is not scored.

``is_told`` says which digits are part of their row, ``[B, N]``; None is all of them.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qvae.priors.cross_entropy import linear_cross_entropy
from qvae.types import Loss

__all__ = ["head_loss", "log_probs_loss", "loss_of", "pick_log_probs", "row_sums", "spread"]


def pick_log_probs(
    log_probs: Float[Tensor, "B N S"], digits: Int[Tensor, "B N"]
) -> Float[Tensor, "B N"]:
    """Return the log-probability of each digit."""
    return log_probs.gather(-1, digits.unsqueeze(-1)).squeeze(-1)


def row_sums(values: Float[Tensor, "B N"], is_told: Bool[Tensor, "..."] | None) -> Tensor:
    """Add up each row of values less its padding, ``[B]``."""
    return (values if is_told is None else values.masked_fill(~is_told, 0)).sum(1)


def spread(values: Float[Tensor, " H"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Put the values of a mask's places back there, with zeros around them."""
    return torch.zeros(mask.shape).to(values).masked_scatter(mask, values)


def loss_of(
    nll: Float[Tensor, " B"],
    num_tokens: int,
    is_told: Bool[Tensor, "..."] | None = None,
    **metrics: Tensor,
) -> Loss:
    """Return the objective of rows with these negative log-likelihoods, in nats.

    Example:
        >>> loss_of(torch.tensor([2.0, 4.0]), 2).metrics["nats_per_token"].item()
        1.5
    """
    length = num_tokens if is_told is None else is_told.sum() / len(is_told)
    per_token = nll.detach().mean() / length
    zero = torch.zeros_like(nll.detach())
    rates = {"nats_per_token": per_token, "bits_per_token": per_token / math.log(2)}
    return Loss(total=nll.mean(), nll=nll, rate=zero, penalty=zero, metrics=rates | metrics)


def log_probs_loss(
    log_probs: Float[Tensor, "B N S"],
    digits: Int[Tensor, "B N"],
    is_told: Bool[Tensor, "B N"] | None = None,
) -> Loss:
    """Return the objective of digits with these log-probabilities."""
    picked = pick_log_probs(log_probs, digits)
    # amax is 15x as fast as argmax on a CPU; a tie counts as a hit.
    hits = picked.detach() >= log_probs.detach().amax(-1)
    hits = hits if is_told is None else hits[is_told]
    nll = row_sums(picked, is_told).neg()
    return loss_of(nll, digits.shape[1], is_told, accuracy=hits.float().mean())


def head_loss(
    x: Float[Tensor, "B N D"],
    weight: Float[Tensor, "V D"],
    digits: Int[Tensor, "B N"],
    is_told: Bool[Tensor, "B N"] | None = None,
) -> Loss:
    """Return the objective of what one codebook's head reads, without the matrix of logits."""
    if is_told is None:
        nll, hits = linear_cross_entropy(x.flatten(0, 1), weight, digits.flatten())
        rows = nll.view(digits.shape)
    else:
        nll, hits = linear_cross_entropy(x[is_told], weight, digits[is_told])
        rows = spread(nll, is_told)
    return loss_of(rows.sum(1), digits.shape[1], is_told, accuracy=hits.float().mean())
