"""Muon: momentum whose matrix is made orthogonal before the step."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["Muon", "orthogonalize"]

_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


def orthogonalize(matrices: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Move the singular values of each matrix towards 1 by five Newton-Schulz iterations.

    Paper: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, "Newton-Schulz":
    ``X <- a X + b (X X^T) X + c (X X^T)^2 X`` with (a, b, c) = (3.4445, -4.7750, 2.0315). They end
    between about .7 and 1.2, not at 1, which is as good for training.

    Shapes: ``[*N, rows, columns]`` -> the same, float32.

    Example:
        >>> values = torch.linalg.svdvals(orthogonalize(torch.randn(4, 6)))
        >>> bool((values > 0.5).all() and (values < 1.5).all())
        True
    """
    a, b, c = _QUINTIC
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if is_tall else matrices
    x = (wide / (wide.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    x = x.reshape(-1, *x.shape[-2:])
    for _ in range(_ITERATIONS):  # sums ride on the products: a pass over bfloat16 costs as much
        gram = x @ x.mT
        mixed = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, mixed, x, beta=a)
    x = x.to(torch.float32).view(wide.shape)
    return x.mT if is_tall else x


class Muon(Optimizer):
    """Update hidden matrices by orthogonalised Nesterov momentum.

    Paper: Jordan et al. 2024 (see :func:`orthogonalize`); the step is scaled by
    ``0.2 sqrt(max(rows, columns))`` as in Liu et al. 2025, arXiv:2502.16982, section 2.2, so that
    a learning rate and a weight decay that suit AdamW suit it too. A convolution's kernel is
    taken as the matrix ``[out, in * kernel]``. Ours differs in nothing but speed: matrices of
    one shape go through the iterations together.

    Args:
        params: parameters with two or more dimensions.
        lr: learning rate, > 0.
        weight_decay: decoupled, >= 0.
        momentum: in [0, 1).
        dtype: of the iterations; bfloat16 is as good and faster where the processor has it.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, defaults)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; a closure is refused."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[len(parameter), parameter[0].numel()].append(parameter)
            for shape, parameters in by_shape.items():
                self._step_together(parameters, shape, group)

    def _step_together(
        self, parameters: list[Tensor], shape: tuple[int, int], group: dict[str, Any]
    ) -> None:
        momentum, updates = group["momentum"], []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - momentum)
            updates.append(parameter.grad.lerp(state["momentum"], momentum).reshape(shape))
        scale = 0.2 * max(shape) ** 0.5
        for parameter, update in zip(
            parameters, orthogonalize(torch.stack(updates), dtype=self._dtype), strict=True
        ):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * scale)
