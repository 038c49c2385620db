"""The VQ-VAE's quantizer with a codebook that follows its vectors by moving averages."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from qvae.bottlenecks.base import Quantizer, require_finite, require_positive
from qvae.bottlenecks.functional import (
    all_reduce_sum,
    broadcast_from_main,
    code_counts,
    code_sums,
    commitment,
    in_backward,
    perplexity,
    straight_through,
    sum_per_sample,
    usage,
)
from qvae.kernels import nearest
from qvae.types import Latent

__all__ = ["VQEMA"]

_LLOYD_ITERATIONS = 10
_DEAD_BELOW = 0.1
_REVIVE_EVERY = 10


class VQEMA(Quantizer):
    """Replace each vector by the nearest row of a table of running means.

    Paper: van den Oord et al. 2017, arXiv:1711.00937, appendix A.1:
    ``N_i <- g N_i + (1 - g) n_i``, ``m_i <- g m_i + (1 - g) sum z``, ``e_i = m_i / N_i``.
    Ours differs: the table starts at the k-means centres of the first vectors, and every 10 steps
    a code that is used less than a tenth of its even share is set, with its running sums, to a
    vector of the current batch (Zeghidour et al. 2021, arXiv:2107.03312, section III-C, who reset
    the code alone). All of it is float32 and happens in ``after_step``.

    Shapes: ``z_e [B, *G, dim]``; ``codes [B, *G, 1]``. Units: rate = cells * ln V.

    Args:
        codebook_size: number of codes V, >= 1.
        dim: width of a code, >= 1.
        commitment_weight: weight of ``||z_e - sg(e)||^2``, >= 0.
        ema_decay: the paper's gamma, in [0, 1).
        revival: whether codes that fell out of use are set to fresh vectors.

    Raises:
        ValueError: for a size below 1, a negative weight, a decay outside [0, 1).

    Example:
        >>> vq = VQEMA(codebook_size=4, dim=2)
        >>> vq(torch.randn(8, 3, 2)).codes.shape
        torch.Size([8, 3, 1])
        >>> vq.after_step()  # k-means over the 24 vectors
        >>> bool(vq.is_initialized)
        True
    """

    codebook: Tensor
    ema_counts: Tensor
    ema_sums: Tensor
    num_steps: Tensor
    is_initialized: Tensor
    staged_counts: Tensor
    staged_sums: Tensor
    pool: Tensor
    pool_fill: Tensor

    def __init__(
        self,
        *,
        codebook_size: int,
        dim: int,
        commitment_weight: float = 0.25,
        ema_decay: float = 0.99,
        revival: bool = True,
    ) -> None:
        super().__init__()
        require_positive(codebook_size=codebook_size, dim=dim)
        if commitment_weight < 0:
            raise ValueError(f"commitment_weight={commitment_weight}: must not be negative")
        if not 0 <= ema_decay < 1:
            raise ValueError(f"ema_decay={ema_decay}: must be in [0, 1)")
        self.in_dim = self.out_dim = dim
        self.codebook_sizes = (codebook_size,)
        self.commitment_weight = commitment_weight
        self.ema_decay = ema_decay
        self.revival = revival
        # State of the model: saved, and changed in after_step only.
        self.register_buffer("codebook", torch.randn(codebook_size, dim))
        self.register_buffer("ema_counts", torch.ones(codebook_size))
        self.register_buffer("ema_sums", self.codebook.clone())
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("is_initialized", torch.zeros((), dtype=torch.bool))
        # What the forwards since the last step counted: empty between steps, so never saved.
        self.register_buffer("staged_counts", torch.zeros(codebook_size), persistent=False)
        self.register_buffer("staged_sums", torch.zeros(codebook_size, dim), persistent=False)
        self.register_buffer("pool", torch.zeros(2 * codebook_size, dim), persistent=False)
        self.register_buffer("pool_fill", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise; in training also count, for ``after_step``."""
        codes = self.encode(z_e)
        z_q = F.embedding(codes[..., 0], self.codebook)
        vectors = z_e.detach().float().reshape(-1, self.in_dim)
        flat = codes.reshape(-1)
        if mask is not None:
            vectors, flat = vectors[mask.reshape(-1)], flat[mask.reshape(-1)]
        counts = code_counts(flat, self.codebook_sizes[0])
        if self.training and not in_backward():
            self._stage(vectors, flat)
        to_encoder = commitment(z_e, z_q)
        cells = torch.full_like(to_encoder, self.nats_per_cell)
        return Latent(
            z=straight_through(z_e, z_q),
            rate=sum_per_sample(cells, mask),
            penalty=self.commitment_weight * sum_per_sample(to_encoder, mask),
            codes=codes,
            metrics={
                "commitment": sum_per_sample(to_encoder, mask).detach().mean(),
                "usage": usage(counts),
                "perplexity": perplexity(counts),
            },
        )

    def encode(self, z_e: Float[Tensor, "*N in_dim"]) -> Int[Tensor, "*N K"]:
        """Return the index of the nearest code."""
        if not self.training:
            require_finite(z_e, "VQEMA")
        return nearest(z_e.reshape(-1, self.in_dim), self.codebook).view(*z_e.shape[:-1], 1)

    def decode(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        """Look the codes up."""
        self.check_codes(codes)
        return F.embedding(codes[..., 0], self.codebook)

    @torch.no_grad()
    def _stage(self, vectors: Float[Tensor, "N D"], codes: Int[Tensor, " N"]) -> None:
        finite = torch.isfinite(vectors).all(1)
        if not finite.all():  # the loop refuses such a step; alone, the class stays clean too
            vectors, codes = vectors[finite], codes[finite]
        size = self.codebook_sizes[0]
        self.staged_counts += code_counts(codes, size)
        self.staged_sums += code_sums(vectors, codes, size)
        start = int(self.pool_fill)
        taken = vectors[: len(self.pool) - start]
        self.pool[start : start + len(taken)] = taken
        self.pool_fill += len(taken)

    @torch.no_grad()
    def after_step(self) -> None:
        """Commit the counts: k-means at first, then moving averages and revival.

        Every process runs the same collectives in the same order, whatever it counted.
        """
        counts, sums = all_reduce_sum(self.staged_counts), all_reduce_sum(self.staged_sums)
        fill = broadcast_from_main(self.pool_fill)
        self.num_steps += 1
        if not self.is_initialized:
            # Wait, over several steps if need be, for a vector for each code.
            if fill >= self.codebook_sizes[0]:
                self._initialize(broadcast_from_main(self.pool)[: int(fill)])
                self.discard_step()
            else:
                self.staged_counts.zero_()
                self.staged_sums.zero_()
            return
        self.ema_counts.lerp_(counts, 1 - self.ema_decay)
        self.ema_sums.lerp_(sums, 1 - self.ema_decay)
        alive = self.ema_counts > 1e-12
        means = self.ema_sums / self.ema_counts.clamp(min=1e-12)[:, None]
        self.codebook.copy_(torch.where(alive[:, None], means, self.codebook))
        if self.revival and self.num_steps % _REVIVE_EVERY == 0:
            self._revive(broadcast_from_main(self.pool)[: int(fill)])
        self.discard_step()

    def discard_step(self) -> None:
        """Drop the counts."""
        for staged in (self.staged_counts, self.staged_sums, self.pool_fill):
            staged.zero_()

    def _initialize(self, vectors: Float[Tensor, "N D"]) -> None:
        """Set the table to k-means centres, and the running sums to match them."""
        size = self.codebook_sizes[0]
        centres = vectors[self._permutation(len(vectors))[:size]].clone()
        counts = torch.ones(size, device=vectors.device)
        for _ in range(_LLOYD_ITERATIONS):
            codes = nearest(vectors, centres)
            counts = code_counts(codes, size)
            means = code_sums(vectors, codes, size) / counts.clamp(min=1)[:, None]
            centres = torch.where((counts > 0)[:, None], means, centres)
        counts = counts.clamp(min=1)
        self.codebook.copy_(centres)
        self.ema_counts.copy_(counts)
        # A mean times its count, so that the first update does not shrink the code.
        self.ema_sums.copy_(centres * counts[:, None])
        self.is_initialized.fill_(True)

    def _revive(self, vectors: Float[Tensor, "N D"]) -> None:
        """Set codes that fell out of use to vectors of this step, with their running sums."""
        share = self.ema_counts.mean()
        dead = torch.nonzero(self.ema_counts < _DEAD_BELOW * share)[:, 0][: len(vectors)]
        fresh = vectors[self._permutation(len(vectors))[: len(dead)]]
        self.codebook[dead] = fresh
        self.ema_counts[dead] = share
        self.ema_sums[dead] = fresh * share

    def _permutation(self, length: int) -> Int[Tensor, " length"]:
        """Shuffle by the step's number, so that every process and every resume draws the same."""
        generator = torch.Generator().manual_seed(int(self.num_steps))
        return torch.randperm(length, generator=generator).to(self.codebook.device)
