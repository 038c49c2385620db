"""Product quantization: cut each vector into pieces, and quantise each piece on its own."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qvae.bottlenecks.base import require_positive
from qvae.bottlenecks.wrapper import Inner, Wrapper, build_inner, mean_metrics
from qvae.types import Latent

__all__ = ["Grouped"]

_INNER = {"name": "vq_ema", "codebook_size": 512, "dim": 16}


class Grouped(Wrapper):
    """Give each group of coordinates a quantizer of its own.

    Paper: Jégou, Douze & Schmid 2011, Product quantization for nearest neighbor search, section
    II-B: V codes a group and G groups make V^G vectors from G V rows. Ours differs: the quantizer
    of a group may be any.

    Shapes: ``z_e [B, *G, num_groups * D]`` where D is the inner quantizer's width; ``codes [B,
    *G, num_groups]`` (times its codebooks). Units: rate and penalty are sums over groups.

    Args:
        num_groups: number of groups, >= 1.
        quantizer: of each group, a name and its arguments.

    Raises:
        ValueError: for fewer than one group, or a quantizer that has no codes.

    Example:
        >>> grouped = Grouped(num_groups=2, quantizer={"name": "fsq", "levels": [4, 4]})
        >>> grouped.in_dim, grouped.codebook_sizes
        (4, (16, 16))
    """

    def __init__(self, *, num_groups: int = 4, quantizer: Inner = _INNER) -> None:
        super().__init__()
        require_positive(num_groups=num_groups)
        groups = [build_inner(quantizer) for _ in range(num_groups)]
        self.quantizers = nn.ModuleList(groups)
        self.in_dim = num_groups * groups[0].in_dim
        self.out_dim = num_groups * groups[0].out_dim
        self.codebook_sizes = groups[0].codebook_sizes * num_groups

    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Quantise group by group."""
        self.check_vectors(z_e)
        pieces = z_e.chunk(len(self.quantizers), dim=-1)
        latents = [q(piece, mask) for q, piece in zip(self._inner, pieces, strict=True)]
        return Latent(
            z=torch.cat([latent.z for latent in latents], dim=-1),
            rate=torch.stack([latent.rate for latent in latents]).sum(0),
            penalty=torch.stack([latent.penalty for latent in latents]).sum(0),
            codes=torch.cat([latent.codes for latent in latents], dim=-1),
            metrics=mean_metrics([latent.metrics for latent in latents]),
        )

    def encode(self, z_e: Float[Tensor, "*N in_dim"]) -> Int[Tensor, "*N K"]:
        """Return the codes of all groups."""
        self.check_vectors(z_e)
        pieces = z_e.chunk(len(self.quantizers), dim=-1)
        codes = [q.encode(piece) for q, piece in zip(self._inner, pieces, strict=True)]
        return torch.cat(codes, dim=-1)

    def decode(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        """Put the groups' vectors side by side."""
        self.check_codes(codes)
        parts = codes.chunk(len(self.quantizers), dim=-1)
        return torch.cat([q.decode(p) for q, p in zip(self._inner, parts, strict=True)], dim=-1)
