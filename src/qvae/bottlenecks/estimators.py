"""Gradient estimators: what stands in for the gradient of a choice, which is zero or undefined.

Each returns ``z_q`` to the bit, so that a decoder sees the same numbers in training as after
``decode(codes)``; they differ in the backward pass alone.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Estimator",
    "error_vector",
    "require_estimator",
    "rotation",
    "select_estimator",
    "stop_outward",
    "straight_through",
]

Estimator = Literal["straight_through", "rotation"]
"""Those that a quantizer with a table can be told to use."""
_EPSILON = 1e-6


def straight_through(
    z_e: Float[Tensor, "*N D"], z_q: Float[Tensor, "*N D"]
) -> Float[Tensor, "*N D"]:
    """Return ``z_q`` with the gradient of ``z_e``: exactly ones.

    Paper: van den Oord et al. 2017, arXiv:1711.00937, section 3.2; the estimator is Bengio et
    al. 2013, arXiv:1308.3432. Ours differs: the value is no sum ``z_e + (z_q - z_e)``, which
    would round.

    Example:
        >>> z_e = torch.tensor([0.3], requires_grad=True)
        >>> z = straight_through(z_e, torch.tensor([1.0]))
        >>> z.backward()
        >>> z.item(), z_e.grad.item()
        (1.0, 1.0)
    """
    z: Tensor = _StraightThrough.apply(z_e, z_q)
    return z


def rotation(z_e: Float[Tensor, "*N D"], z_q: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """Return ``z_q`` as a rotated and scaled ``z_e``; rotation and scale get no gradient.

    Paper: Fifty et al. 2024, arXiv:2410.06424, section 4.2: with unit vectors e, q of z_e, z_q
    and ``r = (e + q) / ||e + q||``, ``z = l R z_e``, ``R = I - 2 r r^T + 2 q e^T``,
    ``l = ||z_q|| / ||z_e||``; the gradient is ``l R^T g``. So the angle between gradient and
    code is the angle that the encoder's vector sees. Ours differs: where there is no rotation
    (a zero vector, or exactly opposite ones) the gradient is the straight-through estimator's.

    Example:
        >>> z_e = torch.tensor([[2.0, 0.0]], requires_grad=True)
        >>> rotation(z_e, torch.tensor([[0.0, 1.0]])).backward(torch.tensor([[0.0, 1.0]]))
        >>> torch.allclose(z_e.grad, torch.tensor([[0.5, 0.0]]), atol=1e-6)
        True
    """
    z: Tensor = _Rotation.apply(z_e, z_q)
    return z


def error_vector(z_e: Float[Tensor, "*N D"], z_q: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """Return ``z_e + ||z_q - z_e|| sg(d)``, d the unit vector from ``z_e`` to ``z_q``.

    Paper: Vali, Bäckström & Solin 2025, arXiv:2509.26469. The gradient along the error moves the
    code, what is left of it moves the encoder:
    ``dz_q = (g.d) d``, ``dz_e = g - (g.d) d``. Ours differs: d has no noise, so that training
    sees the very codes.

    Example:
        >>> z_e, z_q = torch.zeros(1, 2).requires_grad_(), torch.eye(2)[:1].requires_grad_()
        >>> error_vector(z_e, z_q).sum().backward()
        >>> z_e.grad.tolist(), z_q.grad.tolist()
        ([[0.0, 1.0]], [[1.0, 0.0]])
    """
    z: Tensor = _ErrorVector.apply(z_e, z_q)
    return z


def stop_outward(z_e: Float[Tensor, "*N D"], limit: Float[Tensor, "*D"]) -> Float[Tensor, "*N D"]:
    """Return ``z_e``; its gradient never asks a coordinate beyond the limit to move farther out.

    Beyond a quantizer's outermost value a step outwards changes no code, so nothing would ever
    stop it, and a coordinate far out does not come back: its code is stuck.

    Example:
        >>> z_e = torch.tensor([-2.0, -0.5, 2.0], requires_grad=True)
        >>> stop_outward(z_e, torch.ones(())).sum().backward()  # descent lowers all three
        >>> z_e.grad.tolist()
        [0.0, 1.0, 1.0]
    """
    z: Tensor = _StopOutward.apply(z_e, limit)
    return z


def require_estimator(estimator: str) -> None:
    """Raise ValueError for a name that is no estimator."""
    if estimator not in list(_ESTIMATORS):
        raise ValueError(f"estimator={estimator!r}: must be one of {', '.join(_ESTIMATORS)}")


def select_estimator(name: str, z_e: Tensor, z_q: Tensor) -> Tensor:
    """Apply the estimator of that name."""
    return _ESTIMATORS[name](z_e, z_q)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_e: Tensor, z_q: Tensor) -> Tensor:
        return _value(z_e, z_q)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_e: Tensor, z_q: Tensor) -> Tensor:
        ctx.save_for_backward(z_e, z_q)
        return _value(z_e, z_q)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        z_e, z_q = (saved.float() for saved in ctx.saved_tensors)
        g = gradient.float()
        norm_e, norm_q = z_e.norm(dim=-1, keepdim=True), z_q.norm(dim=-1, keepdim=True)
        e, q = z_e / norm_e.clamp(min=_EPSILON), z_q / norm_q.clamp(min=_EPSILON)
        norm_r = (e + q).norm(dim=-1, keepdim=True)
        r = (e + q) / norm_r.clamp(min=_EPSILON)
        turned = g - 2 * r * (r * g).sum(-1, keepdim=True) + 2 * e * (q * g).sum(-1, keepdim=True)
        smallest = torch.minimum(torch.minimum(norm_e, norm_q), norm_r)
        turned = turned * norm_q / norm_e.clamp(min=_EPSILON)
        return torch.where(smallest > _EPSILON, turned, g).to(gradient.dtype), None


class _ErrorVector(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_e: Tensor, z_q: Tensor) -> Tensor:
        ctx.save_for_backward(z_e, z_q)
        return _value(z_e, z_q)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        z_e, z_q = ctx.saved_tensors
        error = z_q.float() - z_e.float()
        d = error / error.norm(dim=-1, keepdim=True).clamp(min=_EPSILON)
        g = gradient.float()
        along = d * (d * g).sum(-1, keepdim=True)
        return (g - along).to(z_e.dtype), along.to(z_q.dtype)


class _StopOutward(torch.autograd.Function):
    """Identity whose gradient never asks a coordinate to move farther out than its last value."""

    @staticmethod
    def forward(ctx: Any, z_e: Tensor, limit: Tensor) -> Tensor:
        ctx.save_for_backward(z_e, limit)
        return z_e.view_as(z_e)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        z_e, limit = ctx.saved_tensors
        # Descent moves against the gradient.
        is_outward = (z_e.abs() > limit) & (z_e * gradient < 0)
        return gradient.masked_fill(is_outward, 0.0), None


def _value(z_e: Tensor, z_q: Tensor) -> Tensor:
    return z_q.to(z_e.dtype).clone() if z_q.dtype != z_e.dtype else z_q.clone()


_ESTIMATORS = {"straight_through": straight_through, "rotation": rotation}
