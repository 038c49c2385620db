"""The parts of a Llama block, in the form that trains fastest on a CPU; equal to the stock ones.

Queries, keys and values are one matrix, gate and up another. Norms have no weights of their own:
the matrix after a norm can say the same, and the export writes ones. Attention is written out,
because a bf16 backward of ``F.scaled_dot_product_attention`` takes seven times as long there; the
norm and the rotation have written-out gradients for the same reason.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EPS", "LlamaBlock", "Rotation", "rms_norm", "rotate", "rotation"]

EPS = 1e-5
"""What is added to the mean square before the root, as ``rms_norm_eps`` of the export."""


class _RMSNorm(torch.autograd.Function):
    """``y = x r`` with ``r = (mean(x^2) + eps)^-1/2``; ``dx = r (dy - y mean(dy y))``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
        scale = norm.square_().div_(x.shape[-1]).add_(EPS).rsqrt_().to(x.dtype)
        y = x * scale
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        y, scale = ctx.saved_tensors
        shared = (grads[0] * y).mean(-1, keepdim=True)
        return torch.addcmul(grads[0], y, shared, value=-1).mul_(scale)


def rms_norm(x: Tensor) -> Tensor:
    """Scale each vector to a root mean square of one; "Root Mean Square Layer Normalization",
    arXiv:1910.07467, equation 4, without its gain.

    Example:
        >>> rms_norm(torch.tensor([[3.0, 4.0]])).square().mean().round(decimals=3).item()
        1.0
    """
    result: Tensor = _RMSNorm.apply(x)
    return result


class Rotation(NamedTuple):
    """Cosines and sines of the angles, each ``[T, head_dim / 2]``."""

    cos: Tensor
    sin: Tensor


def rotation(
    start: int, length: int, *, head_dim: int, theta: float, device: Any, dtype: torch.dtype
) -> Rotation:
    """Compute the angles of positions ``start`` to ``start + length - 1``.

    "RoFormer", arXiv:2104.09864, equation 15, with pairs (i, i + head_dim / 2) as in Llama.
    """
    powers = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    positions = torch.arange(start, start + length, device=device, dtype=torch.float32)
    angles = positions[:, None] * theta**-powers
    return Rotation(angles.cos().to(dtype), angles.sin().to(dtype))


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs (i, i + half) of the last axis: one product and two fused sums."""
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    result = torch.empty_like(x)
    torch.mul(left, cos, out=result[..., :half]).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=result[..., half:]).addcmul_(left, sin)
    return result


class _Rotate(torch.autograd.Function):
    """A rotation; its gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0].contiguous(), cos, -sin), None, None


def rotate(x: Tensor, angles: Rotation) -> Tensor:
    """Turn ``[..., T, head_dim]`` by the angles of its positions."""
    result: Tensor = _Rotate.apply(x, angles.cos, angles.sin)
    return result


class LlamaBlock(nn.Module):
    """Attention with rotary positions, then a SwiGLU network, both after an RMS norm.

    "LLaMA", arXiv:2302.13971, section 2.2; the network is "GLU Variants Improve Transformer",
    arXiv:2002.05202, equation 6.

    Args:
        dim: width; a multiple of ``num_heads``.
        num_heads: attention heads; the width of one must be even.
        hidden_dim: width inside the network.
    """

    def __init__(self, *, dim: int, num_heads: int, hidden_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim, bias=False)
        self.gate_up = nn.Linear(dim, 2 * hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x: Tensor, angles: Rotation, mask: Tensor) -> Tensor:
        """Transform ``[B, T, D] -> [B, T, D]``; ``mask`` ``[T, T]`` is added to the scores."""
        x = x + self._attention(rms_norm(x), angles, mask)
        gate, up = self.gate_up(rms_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def _attention(self, x: Tensor, angles: Rotation, mask: Tensor) -> Tensor:
        batch, length, dim = x.shape
        heads, head_dim = self.num_heads, dim // self.num_heads
        qkv = self.qkv(x).view(batch, length, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
        turned = rotate(qkv[:2].reshape(2, batch * heads, length, head_dim), angles)
        values = qkv[2].reshape(batch * heads, length, head_dim)
        mask = mask.to(turned.dtype)
        scores = torch.baddbmm(mask, turned[0], turned[1].transpose(1, 2), alpha=head_dim**-0.5)
        mixed = torch.bmm(scores.softmax(-1, dtype=scores.dtype), values)
        mixed = mixed.view(batch, heads, length, head_dim).transpose(1, 2)
        return self.attention_out(mixed.reshape(batch, length, dim))
