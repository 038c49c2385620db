"""Tables whose rows are running means of the vectors that choose them."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.bottlenecks.base import require_not_negative
from qvae.bottlenecks.estimators import Estimator, require_estimator, select_estimator
from qvae.bottlenecks.functional import all_reduce_sum
from qvae.bottlenecks.kept_table import KeptTable
from qvae.bottlenecks.terms import commitment
from qvae.types import Latent

__all__ = ["EMATable"]


class EMATable(KeptTable):
    """Follow the vectors of each code by moving averages, in float32.

    A subclass says how a row follows from a sum of vectors and its count (:meth:`_row`).

    Args:
        codebook_size: number of codes V, >= 1.
        dim: width of a code, >= 1.
        commitment_weight: weight of ``||z_e - sg(e)||^2``, >= 0.
        ema_decay: the decay a step, in [0, 1).
        revival: whether codes that fell out of use are set to fresh vectors.
        estimator: how the gradient passes the choice.
    """

    ema_sums: Tensor
    staged_sums: Tensor

    def __init__(
        self,
        *,
        codebook_size: int = 512,
        dim: int = 64,
        commitment_weight: float = 0.25,
        ema_decay: float = 0.99,
        revival: bool = True,
        estimator: Estimator = "straight_through",
    ) -> None:
        super().__init__(
            codebook_size=codebook_size,
            dim=dim,
            commitment_weight=commitment_weight,
            usage_decay=ema_decay,
            revival=revival,
        )
        require_not_negative(ema_decay=ema_decay)
        if ema_decay >= 1:
            raise ValueError(f"ema_decay={ema_decay}: must be in [0, 1)")
        require_estimator(estimator)
        self.estimator = estimator
        self.register_buffer("codebook", self.place(torch.randn(codebook_size, dim)))
        self.register_buffer("ema_sums", self.codebook.clone())
        self.register_buffer("staged_sums", torch.zeros(codebook_size, dim), persistent=False)

    @abstractmethod
    def _row(self, sums: Float[Tensor, "V D"], counts: Float[Tensor, " V"]) -> Tensor:
        """Return the rows that sums of vectors and their counts make."""

    def forward(self, z_e: Tensor, mask: Tensor | None = None) -> Latent:
        """Quantise; in training also count, for ``after_step``."""
        z, codes, z_q = self._quantise(z_e)
        to_encoder = commitment(z, z_q)
        self._count(z, codes, to_encoder, mask)
        # Nothing pulls the encoder to a table that has not seen its vectors yet.
        terms = {"commitment": (self.commitment_weight * self.is_initialized, to_encoder)}
        z_q = select_estimator(self.estimator, z, z_q).to(z_e.dtype)
        return self._latent(z_q, codes, mask=mask, terms=terms)

    @property
    def _staged_sums(self) -> Float[Tensor, "V D"]:
        return self.staged_sums

    def discard_step(self) -> None:
        """Drop the counts."""
        super().discard_step()
        self.staged_sums.zero_()

    def _reduce(self) -> None:
        all_reduce_sum(self.staged_sums)

    def _update(self) -> None:
        self.ema_sums.lerp_(self.staged_sums, 1 - self.usage_decay)
        alive = self.ema_counts > 1e-12
        rows = self._row(self.ema_sums, self.ema_counts.clamp(min=1e-12))
        self.codebook.copy_(torch.where(alive[:, None], rows, self.codebook))

    def _set_rows(self, rows: Tensor, vectors: Tensor, counts: Tensor) -> None:
        """Set rows with their running sums, so that the next update keeps them."""
        super()._set_rows(rows, self.place(vectors), counts)
        self.ema_sums[rows] = self.codebook[rows] * counts[:, None]
