"""Running mean and covariance of vectors, and the map between them and a standard cloud."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from qvae.bottlenecks.functional import all_reduce_sum, in_backward, select_rows

__all__ = ["Moments"]

_SMALLEST = 1e-4


class Moments(nn.Module):
    """Follow mean and covariance by moving averages; whiten vectors with them, and undo it.

    ``root`` is the symmetric square root of the covariance, which does not jump when two axes
    become equally long. A direction with less than a hundredth of the largest spread is treated
    as if it had that, so that the map can be turned round. State changes in ``after_step`` only;
    until the first one the map is the identity.

    Args:
        dim: width of the vectors, >= 1.
        decay: of the averages a step, in [0, 1).

    Example:
        >>> moments, z = Moments(2), torch.randn(500, 2) @ torch.tensor([[3.0, 0.0], [1.0, 0.5]])
        >>> moments.stage(z)
        >>> moments.after_step()
        >>> torch.allclose(moments.whiten(z).T.cov(correction=0), torch.eye(2), atol=1e-3)
        True
    """

    mean: Tensor
    root: Tensor
    inverse: Tensor
    ema: Tensor
    is_initialized: Tensor
    staged: Tensor

    def __init__(self, dim: int, *, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("root", torch.eye(dim))
        self.register_buffer("inverse", torch.eye(dim))
        # Sums of (1, z)(1, z)^T: count, sums and products; a running mean, and this step's.
        self.register_buffer("ema", torch.zeros(dim + 1, dim + 1))
        self.register_buffer("is_initialized", torch.zeros((), dtype=torch.bool))
        self.register_buffer("staged", torch.zeros(dim + 1, dim + 1), persistent=False)

    def whiten(self, z: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Take the vectors to mean 0 and covariance 1, in float32 under any autocast."""
        with torch.autocast(z.device.type, enabled=False):
            return (z.float() - self.mean) @ self.inverse

    def colour(self, w: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Undo :meth:`whiten`."""
        with torch.autocast(w.device.type, enabled=False):
            return self.mean + w @ self.root

    def stage(self, vectors: Float[Tensor, "*N D"], mask: Bool[Tensor, "*N"] | None = None) -> None:
        """Count vectors for the next step; what is masked or not finite is left out."""
        _stage(vectors.detach(), mask, self.staged)

    @torch.no_grad()
    def after_step(self) -> None:
        """Commit what was staged, on all processes alike."""
        staged = all_reduce_sum(self.staged)
        self.ema.lerp_(staged, 1.0 - self.decay * self.is_initialized.float())
        exact = self.ema.cpu().double()  # small, and not every device has float64
        if exact[0, 0] > 1e-6:
            mean = exact[0, 1:] / exact[0, 0]
            covariance = exact[1:, 1:] / exact[0, 0] - torch.outer(mean, mean)
            values, axes = torch.linalg.eigh(covariance)
            spread = values.clamp(min=_SMALLEST * float(values.max().clamp(min=1e-6))).sqrt()
            self.mean.copy_(mean)
            self.root.copy_(axes * spread @ axes.T)
            self.inverse.copy_(axes / spread @ axes.T)
            self.is_initialized.fill_(True)
        self.discard_step()

    @torch.no_grad()
    def make_round(self) -> None:
        """Give every direction the same spread, the root of the mean variance."""
        spread = self.root.norm() * len(self.root) ** -0.5
        self.root.copy_(torch.eye(len(self.root), device=spread.device) * spread)
        self.inverse.copy_(torch.eye(len(self.root), device=spread.device) / spread)

    def discard_step(self) -> None:
        """Drop what was staged."""
        self.staged.zero_()


@torch.library.custom_op("qvae::stage_moments", mutates_args=("staged",))
def _stage(vectors: Tensor, mask: Tensor | None, staged: Tensor) -> None:
    """Add up ``(1, z)(1, z)^T``; one operator for the reasons of ``qvae::stage``."""
    if in_backward():
        return
    vectors = select_rows(vectors, mask).float()
    vectors = vectors[vectors.isfinite().all(1)]
    rows = torch.cat([vectors.new_ones(len(vectors), 1), vectors], dim=1)
    with torch.autocast(vectors.device.type, enabled=False):
        staged += rows.T @ rows
