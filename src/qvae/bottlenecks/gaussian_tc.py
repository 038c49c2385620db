"""beta-TCVAE: charge more for the total correlation of z, estimated from the batch's posteriors."""

import math
from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from qvae.bottlenecks.functional import scatter_rows, select_rows, sum_per_sample
from qvae.bottlenecks.gaussian import Gaussian, normal_log_prob

__all__ = ["GaussianTC", "total_correlation"]


def total_correlation(
    z: Float[Tensor, "N D"],
    mean: Float[Tensor, "N D"],
    log_var: Float[Tensor, "N D"],
    *,
    dataset_size: int | None = None,
) -> Float[Tensor, " N"]:
    """Estimate log q(z) - sum_d log q(z_d) at each z, in nats; its mean estimates TC(z).

    Paper: Chen et al. 2018, arXiv:1802.04942, minibatch-weighted sampling, and in its appendix
    minibatch-stratified sampling. q is the mean of the posteriors of the whole data set, of
    which the batch shows N; row i of z was drawn from posterior i. Ours differs: the weighted
    estimate leaves out the paper's factor 1 / dataset_size, a constant without gradient, so that TC
    is 0 when all posteriors agree; the stratified weights are averaged over which of the other
    samples the paper singles out.

    Args:
        z: draws.
        mean: of the posteriors.
        log_var: of the posteriors.
        dataset_size: None weighs all posteriors of the batch alike: biased, since z's own one is
            among them. A number of training samples weighs z's own by 1 / dataset_size:
            stratified, unbiased for q(z).

    Example:
        >>> import torch
        >>> zeros = torch.zeros(4, 2)
        >>> total_correlation(zeros, zeros, zeros).abs().max().item() < 1e-6  # all posteriors equal
        True
    """
    num = len(z)
    log_weight = z.new_full((num, num), -math.log(num))
    if dataset_size is not None and num > 1:
        log_weight.fill_(math.log((dataset_size - 1) / (dataset_size * (num - 1))))
        log_weight.fill_diagonal_(-math.log(dataset_size))
    by_dim = normal_log_prob(z[:, None], mean, log_var)  # [i, j, d]: z_i under posterior j
    joint = (by_dim.sum(-1) + log_weight).logsumexp(1)
    return joint - (by_dim + log_weight[..., None]).logsumexp(1).sum(-1)


class GaussianTC(Gaussian):
    """Split the KL into index-code information, total correlation and dimensions; weigh the middle.

    Paper: beta-TCVAE, Chen et al. 2018, arXiv:1802.04942, eq. 4 with alpha = gamma = 1 and beta =
    ``tc_weight``. The rate stays the whole KL, so rungs can be compared; the penalty is
    ``(tc_weight - 1) TC`` and may be negative, as an estimate may. It depends on the batch. In a
    grid each cell counts as a sample.

    Shapes and units: as :class:`~qvae.bottlenecks.gaussian.Gaussian`.

    Args:
        dim: number of latent coordinates in a grid cell, >= 1.
        tc_weight: weight of the total correlation in the objective, >= 0; 1 is a VAE.
        estimator: ``weighted`` or ``stratified`` minibatch sampling, see :func:`total_correlation`.
        dataset_size: number of training samples, >= 2; the stratified estimator needs it.

    Raises:
        ValueError: a value outside its range, or ``stratified`` without a size.

    Example:
        >>> import torch
        >>> GaussianTC(dim=2, tc_weight=6.0)(torch.zeros(8, 4)).penalty.shape
        torch.Size([8])
    """

    def __init__(
        self,
        *,
        dim: int,
        tc_weight: float = 6.0,
        estimator: Literal["weighted", "stratified"] = "weighted",
        dataset_size: int | None = None,
    ) -> None:
        super().__init__(dim=dim)
        if tc_weight < 0:
            raise ValueError(f"tc_weight={tc_weight}: must not be negative")
        if estimator not in ("weighted", "stratified"):
            raise ValueError(f"estimator={estimator!r}: must be weighted or stratified")
        if dataset_size is not None and dataset_size < 2:
            raise ValueError(f"dataset_size={dataset_size}: must be at least 2")
        if estimator == "stratified" and dataset_size is None:
            raise ValueError("estimator='stratified': needs dataset_size, the training samples")
        self.tc_weight = tc_weight
        self.dataset_size = dataset_size if estimator == "stratified" else None

    def aid(
        self, z: Tensor, mean: Tensor, log_var: Tensor, mask: Tensor | None
    ) -> tuple[Float[Tensor, " B"], Mapping[str, Tensor]]:
        """Charge for the total correlation once more."""
        rows = (select_rows(values, mask) for values in (z, mean, log_var))
        tc = total_correlation(*rows, dataset_size=self.dataset_size)
        penalty = sum_per_sample(scatter_rows((self.tc_weight - 1) * tc, z.shape[:-1], mask), mask)
        return penalty, {"tc": tc.detach().mean()}
