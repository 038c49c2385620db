"""One block of a transformer: self-attention under a mask, then a GELU network.

LayerNorm (not RMSNorm), GELU (not SwiGLU), no biases and written-out matmul-softmax attention
are what this project measured as fastest on a CPU: a bf16 backward of
``F.scaled_dot_product_attention`` takes 7x as long there, RMSNorm 2-3x LayerNorm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvae.priors.rope import rotate

__all__ = ["Block", "causal_mask", "check_sizes"]


def causal_mask(length: int, *, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores: 0 on and below the diagonal, -inf above it.

    Example:
        >>> causal_mask(2, device=torch.device("cpu"), dtype=torch.float32).tolist()
        [[0.0, -inf], [0.0, 0.0]]
    """
    return torch.full((length, length), -torch.inf, device=device, dtype=dtype).triu_(1)


def check_sizes(*, num_layers: int, dim: int, num_heads: int) -> None:
    """Refuse sizes of which no stack of blocks can be made.

    Raises:
        ValueError: a size below 1, or a width that the heads cannot share.
    """
    if num_layers < 1 or num_heads < 1 or dim < 1 or dim % num_heads:
        raise ValueError(
            f"num_layers={num_layers}, dim={dim}, num_heads={num_heads}: all are >= 1"
            " and dim is a multiple of num_heads"
        )


class Block(nn.Module):
    """Mix positions, then features: ``x + attention(norm(x))``, ``x + mlp(norm(x))``.

    "Language Models are Unsupervised Multitask Learners" (GPT-2), section 2.3, less the biases.

    Args:
        dim: width; a multiple of ``num_heads``.
        num_heads: attention heads.
        hidden_dim: width inside the GELU network.
        dropout: on what both halves add, in [0, 1).
    """

    def __init__(self, *, dim: int, num_heads: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(dim, bias=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim, bias=False)
        self.norm_mlp = nn.LayerNorm(dim, bias=False)
        self.mlp_in = nn.Linear(dim, hidden_dim, bias=False)
        self.mlp_out = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor, rope: Tensor | None = None) -> Tensor:
        """Transform ``[B, N, D] -> [B, N, D]``.

        Args:
            x: features.
            mask: added to the scores, ``[N, N]`` or a broadcast of it.
            rope: None, or the rotary positions of :func:`qvae.priors.rope.rope_table`.
        """
        x = x + self._drop(self.attention(self.norm_attention(x), mask, rope))
        return x + self._drop(self.mlp_out(F.gelu(self.mlp_in(self.norm_mlp(x)))))

    def attention(self, x: Tensor, mask: Tensor, rope: Tensor | None = None) -> Tensor:
        """Attend to the positions that the mask leaves, ``[B, N, D] -> [B, N, D]``."""
        batch, length, dim = x.shape
        heads, head_dim = self.num_heads, dim // self.num_heads
        qkv = self.qkv(x).view(batch, length, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, batch * heads, length, head_dim)
        if rope is not None:
            q, k = rotate(torch.stack([q, k]), rope)
        scores = torch.baddbmm(mask.to(q.dtype), q, k.transpose(1, 2), alpha=head_dim**-0.5)
        # autocast must not lift the softmax back to float32 (it does on CUDA; both are right).
        mixed = torch.bmm(scores.softmax(-1, dtype=scores.dtype), v)
        mixed = mixed.view(batch, heads, length, head_dim).transpose(1, 2)
        return self.attention_out(mixed.reshape(batch, length, dim))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
