"""Quantizers whose codes are the rows of a table: the nearest row is the code."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qvae.bottlenecks.base import Quantizer, require_not_negative, require_positive
from qvae.kernels import nearest

__all__ = ["TableQuantizer"]


class TableQuantizer(Quantizer):
    """Look up the nearest row of a table.

    Args:
        codebook_size: number of rows V, >= 1.
        dim: width of a row, >= 1.
        commitment_weight: weight of ``||z_e - sg(e)||^2``, >= 0.
    """

    def __init__(self, *, codebook_size: int, dim: int, commitment_weight: float) -> None:
        super().__init__()
        require_positive(codebook_size=codebook_size, dim=dim)
        require_not_negative(commitment_weight=commitment_weight)
        self.in_dim = self.out_dim = dim
        self.codebook_sizes = (codebook_size,)
        self.commitment_weight = commitment_weight

    @property
    @abstractmethod
    def table(self) -> Float[Tensor, "V D"]:
        """The rows, with whatever gradient they have."""

    def place(self, z_e: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
        """Move vectors to where the rows are; here they are there already."""
        return z_e

    def encode(self, z_e: Float[Tensor, "*N in_dim"]) -> Int[Tensor, "*N K"]:
        """Return the index of the nearest row."""
        self.check_vectors(z_e)
        return self._nearest(self.place(z_e), self.table)

    def decode(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        """Look the codes up."""
        self.check_codes(codes)
        return F.embedding(codes[..., 0], self.table)

    def _quantise(self, z_e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the placed vectors, their codes and the rows of these; the table is made once."""
        self.check_vectors(z_e)
        z, table = self.place(z_e), self.table
        codes = self._nearest(z, table)
        return z, codes, F.embedding(codes[..., 0], table)

    def _nearest(self, z: Tensor, table: Tensor) -> Tensor:
        with torch.no_grad():
            return nearest(z.reshape(-1, self.in_dim), table).view(*z.shape[:-1], 1)
