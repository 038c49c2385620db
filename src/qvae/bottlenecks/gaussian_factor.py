"""FactorVAE: charge for the total correlation of z, as a discriminator estimates it."""

from collections.abc import Mapping
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qvae.bottlenecks.base import require_positive
from qvae.bottlenecks.functional import scatter_rows, select_rows, sum_per_sample
from qvae.bottlenecks.gaussian import Gaussian

__all__ = ["GaussianFactor", "permute_dims"]


def permute_dims(z: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Shuffle each column over the batch: a draw from the product of the marginals.

    Paper: Kim & Mnih 2018, arXiv:1802.05983, algorithm 1.

    Example:
        >>> z = torch.arange(8.0).view(4, 2)
        >>> permute_dims(z).sort(0).values.equal(z)
        True
    """
    return z.gather(0, torch.rand_like(z).argsort(0))


class GaussianFactor(Gaussian):
    """Train a discriminator between z and its shuffled columns; charge z for what it finds.

    Paper: FactorVAE, Kim & Mnih 2018, arXiv:1802.05983, eq. 2 and 3 and algorithm 2. TC is the mean
    of the discriminator's logit. The penalty is ``tc_weight * logit`` with the discriminator's
    weights held constant, plus the discriminator's loss on z held constant: two games, one
    backward pass, one optimizer. The rate stays the whole KL. Ours differs: the shuffled z come
    from the same batch as z, and the discriminator shares optimizer and learning rate.

    The penalty may be negative and depends on the batch. In a grid each cell counts as a sample.
    Shapes and units: as :class:`~qvae.bottlenecks.gaussian.Gaussian`.

    Args:
        dim: number of latent coordinates in a grid cell, >= 1.
        tc_weight: the paper's gamma, >= 0.
        hidden: width of the discriminator, >= 1 (1000 in the paper).
        num_layers: its hidden layers, >= 1 (6 in the paper).

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> bottleneck = GaussianFactor(dim=2, hidden=16, num_layers=2)
        >>> bottleneck(torch.zeros(8, 4)).penalty.shape
        torch.Size([8])
    """

    def __init__(
        self, *, dim: int, tc_weight: float = 35.0, hidden: int = 1000, num_layers: int = 6
    ) -> None:
        super().__init__(dim=dim)
        require_positive(hidden=hidden, num_layers=num_layers)
        if tc_weight < 0:
            raise ValueError(f"tc_weight={tc_weight}: must not be negative")
        self.tc_weight = tc_weight
        widths = [dim, *[hidden] * num_layers]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.LeakyReLU(0.2)]
        self.discriminator = nn.Sequential(*layers, nn.Linear(hidden, 1))

    def aid(
        self, z: Tensor, mean: Tensor, log_var: Tensor, mask: Tensor | None
    ) -> tuple[Float[Tensor, " B"], Mapping[str, Tensor]]:
        """Charge for the logit, and train the discriminator."""
        rows = select_rows(z, mask)
        frozen = {name: value.detach() for name, value in self.discriminator.named_parameters()}
        call = torch.func.functional_call(self.discriminator, frozen, rows)
        tc = call.float()[:, 0]
        joint = self.discriminator(rows.detach()).float()[:, 0]
        shuffled = self.discriminator(permute_dims(rows.detach())).float()[:, 0]
        errors = 0.5 * (F.softplus(-joint) + F.softplus(shuffled))
        charged = scatter_rows(self.tc_weight * tc + errors, z.shape[:-1], mask)
        metrics = {"tc": tc.detach().mean(), "discriminator_loss": errors.detach().mean()}
        return sum_per_sample(charged, mask), metrics
