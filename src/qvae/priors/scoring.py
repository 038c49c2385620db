"""From log-probabilities of digits to the objective of a prior."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qvae.priors.cross_entropy import linear_cross_entropy
from qvae.types import Loss

__all__ = ["head_loss", "loss_of", "pick_log_probs"]


def pick_log_probs(
    log_probs: Float[Tensor, "B N S"], digits: Int[Tensor, "B N"]
) -> Float[Tensor, "B N"]:
    """Return the log-probability of each digit."""
    return log_probs.gather(-1, digits.unsqueeze(-1)).squeeze(-1)


def loss_of(nll: Float[Tensor, " B"], num_tokens: int, **metrics: Tensor) -> Loss:
    """Return the objective of rows with these negative log-likelihoods, in nats.

    Example:
        >>> loss_of(torch.tensor([2.0, 4.0]), 2).metrics["nats_per_token"].item()
        1.5
    """
    per_token = nll.detach().mean() / num_tokens
    zero = torch.zeros_like(nll.detach())
    rates = {"nats_per_token": per_token, "bits_per_token": per_token / math.log(2)}
    return Loss(total=nll.mean(), nll=nll, rate=zero, penalty=zero, metrics=rates | metrics)


def head_loss(
    x: Float[Tensor, "B N D"], weight: Float[Tensor, "V D"], digits: Int[Tensor, "B N"]
) -> Loss:
    """Return the objective of what one codebook's head reads, without the matrix of logits."""
    nll, hits = linear_cross_entropy(x.flatten(0, 1), weight, digits.flatten())
    rows = nll.view(digits.shape).sum(1)
    return loss_of(rows, digits.shape[1], accuracy=hits.float().mean())
