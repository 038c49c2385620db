"""log p(x) by importance sampling, as a stream: any number of draws at the memory of one chunk."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Estimate", "ImportanceStream", "balanced_weights", "mean_and_errors"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number for each sample, and how sure it is."""

    value: Float[Tensor, " B"]
    """Nats."""
    error: Float[Tensor, " B"]
    """Standard error by the draws, nats; NaN where there are too few to tell."""


class ImportanceStream:
    """Take in log importance weights, chunk after chunk, and estimate bounds of log p(x).

    With ``w = p(x|z) p(z) / q(z|x)``, z drawn from q: ``elbo`` is the mean of log w; ``bound`` the
    mean over chunks of log mean w, which is the importance weighted bound of as many draws as a
    chunk has; ``log_p`` is log mean w over all draws, or of better weights where a chunk brings
    them. Papers: Burda et al. 2015, arXiv:1509.00519, eq. 8, and section 5 for log p(x) by 5,000
    draws; the error of a logarithm of a mean is that of the mean, relative to it (the delta
    method). All three are below log p(x) in the mean, and rise in this order. A q that is too
    narrow misses mass that no draw tells of: then ``log_p`` is low and its error small.

    Args:
        num: samples in the batch.

    Example:
        >>> stream = ImportanceStream(1)
        >>> for chunk in torch.zeros(3, 10, 1):
        ...     stream.update(chunk)
        >>> stream.log_p().value.item(), stream.num_draws
        (0.0, 30)
    """

    def __init__(self, num: int) -> None:
        self.num_draws = self._num_chunks = 0
        zeros = torch.zeros(num, dtype=torch.float64)
        self._top = zeros - math.inf
        self._w, self._w2 = zeros.clone(), zeros.clone()  # sums of w and w^2, relative to the top
        self._log_w, self._log_w2 = zeros.clone(), zeros.clone()
        self._bound, self._bound2 = zeros.clone(), zeros.clone()

    def update(
        self, log_weights: Float[Tensor, "K B"], better: Float[Tensor, "K B"] | None = None
    ) -> None:
        """Take in a chunk; all chunks should have the same number of draws.

        Args:
            log_weights: of draws from q, nats.
            better: log weights of as many draws from a safer density, for ``log_p`` alone.
        """
        chunk = log_weights.detach().double().cpu()
        safe = chunk if better is None else better.detach().double().cpu()
        top = torch.maximum(self._top, safe.max(0).values)
        shrink = (self._top - top).exp()
        w = (safe - top).exp()
        self._w = self._w * shrink + w.sum(0)
        self._w2 = self._w2 * shrink.square() + w.square().sum(0)
        self._top = top
        self._log_w += chunk.sum(0)
        self._log_w2 += chunk.square().sum(0)
        bound = chunk.logsumexp(0) - math.log(len(chunk))
        self._bound += bound
        self._bound2 += bound.square()
        self.num_draws += len(chunk)
        self._num_chunks += 1

    def elbo(self) -> Estimate:
        """Estimate the evidence lower bound."""
        return _mean(self._log_w, self._log_w2, self.num_draws)

    def bound(self) -> Estimate:
        """Estimate the importance weighted bound of a chunk's number of draws."""
        return _mean(self._bound, self._bound2, self._num_chunks)

    def log_p(self) -> Estimate:
        """Estimate log p(x) from all draws."""
        mean = _mean(self._w, self._w2, self.num_draws)
        return Estimate(value=self._top + mean.value.log(), error=mean.error / mean.value)

    def effective_draws(self) -> Float[Tensor, " B"]:
        """Return (sum w)^2 / sum w^2: how many equal weights would be as sure as those of log_p."""
        return self._w.square() / self._w2


def balanced_weights(
    log_joint: Float[Tensor, "S K B"], log_q: Float[Tensor, "S S K B"]
) -> Float[Tensor, "K B"]:
    """Weigh draws from several densities against their mixture: log mean of p(x, z) / mean of q_s.

    K draws come from each density, and one of each makes a row, so rows are independent and the
    mean of their weights is p(x). No draw weighs more than S times what its own density alone gives
    it: a wide second density costs little, and bounds the weights where the first is too narrow.
    Papers: Veach & Guibas 1995, the balance heuristic; Hesterberg 1995, defensive mixtures.

    Args:
        log_joint: log p(x, z) of the draws from each density, nats.
        log_q: log density of the same draws (second axis) under each density (first axis).

    Example:
        >>> balanced_weights(torch.zeros(2, 1, 1), torch.zeros(2, 2, 1, 1)).item()
        0.0
    """
    log_share = math.log(len(log_joint))
    return (log_joint - (log_q.logsumexp(0) - log_share)).logsumexp(0) - log_share


def _mean(total: Tensor, squares: Tensor, num: int) -> Estimate:
    mean = total / num
    variance = (squares / num - mean.square()).clamp(min=0)
    error = (variance / (num - 1)).sqrt() if num > 1 else torch.full_like(mean, math.nan)
    return Estimate(value=mean, error=error)


def mean_and_errors(estimates: list[Estimate]) -> tuple[float, float, float]:
    """Average over samples: the mean, its standard error over the data, and that by the draws.

    The error over the data says how far another test set would lie; it holds the draws' in it. The
    draws' own says how far other draws on this test set would lie.

    Example:
        >>> estimate = Estimate(value=torch.tensor([1.0, 3.0]), error=torch.tensor([0.75, 1.0]))
        >>> mean_and_errors([estimate])
        (2.0, 1.0, 0.625)
    """
    value = torch.cat([part.value for part in estimates]).double()
    error = torch.cat([part.error for part in estimates]).double()
    num = len(value)
    over_data = (value.std() / num**0.5).item() if num > 1 else math.nan
    by_draws = (error.square().sum().sqrt() / num).item()
    return value.mean().item(), over_data, by_draws
