"""The cross-entropy of a large vocabulary without the matrix of its logits.

With thousands of codes the logits of a batch are far larger than everything else in a step, and
writing and reading them takes longer than computing them. So they are made in chunks of rows that
stay in the cache, reduced at once, and made again in backward; the result is the same.
"Cut Your Losses in Large-Vocabulary Language Models", arXiv 2411.09009, does this on GPUs.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["linear_cross_entropy"]

_CHUNK_NUMBERS = 2**20


def linear_cross_entropy(
    x: Float[Tensor, "R D"], weight: Float[Tensor, "V D"], targets: Int[Tensor, " R"]
) -> tuple[Float[Tensor, " R"], Bool[Tensor, " R"]]:
    """Return each row's ``-log softmax(x @ weight.T)[target]`` in nats, and whether it is the best.

    The product is in autocast's type where that is on, else in that of ``x``; everything after it
    in float32. A tie counts as the best.

    Example:
        >>> nll, is_best = linear_cross_entropy(torch.eye(2), torch.eye(2), torch.tensor([0, 0]))
        >>> [round(value, 4) for value in nll.tolist()], is_best.tolist()
        ([0.3133, 1.3133], [True, False])
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        x, weight = x.to(dtype), weight.to(dtype)
    with torch.autocast(kind, enabled=False):
        nll, is_best = _LinearCrossEntropy.apply(x, weight, targets)
    return nll, is_best


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        nll = torch.empty(len(x), device=x.device)
        total, is_best = torch.empty_like(nll), torch.empty_like(targets, dtype=torch.bool)
        for part in _parts(x, weight):
            logits = torch.mm(x[part], weight.t()).float()
            picked = logits.gather(1, targets[part, None])[:, 0]
            best = logits.amax(1)
            total[part] = best + logits.sub_(best[:, None]).exp_().sum(1).log_()
            nll[part] = total[part] - picked
            is_best[part] = picked >= best
        ctx.save_for_backward(x, weight, targets, total)
        ctx.mark_non_differentiable(is_best)
        return nll, is_best

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, targets, total = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        grad_weight = torch.zeros(weight.shape, device=weight.device)
        for part in _parts(x, weight):
            probs = torch.mm(x[part], weight.t()).float()
            probs.sub_(total[part, None]).exp_()
            rows = torch.arange(len(probs), device=x.device)
            probs[rows, targets[part]] -= 1
            probs = probs.mul_(grads[0][part, None]).to(x.dtype)
            grad_x[part] = torch.mm(probs, weight)
            grad_weight += torch.mm(probs.t(), x[part])
        return grad_x, grad_weight.to(weight.dtype), None


def _parts(x: Tensor, weight: Tensor) -> list[slice]:
    size = max(1, _CHUNK_NUMBERS // len(weight))
    return [slice(start, start + size) for start in range(0, len(x), size)]
