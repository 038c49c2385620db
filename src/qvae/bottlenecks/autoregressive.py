"""A learned density over a vector: each coordinate given those before it, a mixture of bells."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["AutoregressiveDensity"]

_NUM_BELLS = 8
_LOG_2PI = math.log(2 * math.pi)


class _Masked(nn.Linear):
    """A linear map in which some inputs do not reach some outputs."""

    mask: Tensor

    def __init__(self, before: Tensor, after: Tensor, *, strict: bool) -> None:
        super().__init__(len(before), len(after))
        allowed = after[:, None] > before if strict else after[:, None] >= before
        self.register_buffer("mask", allowed.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class AutoregressiveDensity(nn.Module):
    """Learn ``p(z) = prod_d p(z_d | z_1..z_{d-1})``, each factor a mixture of eight Gaussians.

    Papers: the masks are those of MADE, Germain et al. 2015, arXiv:1502.03509; a mixture for each
    factor is RNADE, Uria et al. 2013, arXiv:1306.0186. Ours differs: the order of the coordinates
    is fixed. It starts as a mixture around N(0, 1).

    Shapes: z [*N, dim] -> log_prob [*N, dim], in nats; the sum over the last axis is log p(z).

    Args:
        dim: coordinates, >= 1.
        hidden: width of both hidden layers, >= 1.

    Example:
        >>> AutoregressiveDensity(3).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    def __init__(self, dim: int, *, hidden: int = 256) -> None:
        super().__init__()
        self.dim = dim
        inputs = torch.arange(1, dim + 1)
        inner = torch.arange(hidden) % max(1, dim - 1) + 1
        outputs = inputs.repeat(3 * _NUM_BELLS)
        self.layers = nn.Sequential(
            _Masked(inputs, inner, strict=False),
            nn.SiLU(),
            _Masked(inner, inner, strict=False),
            nn.SiLU(),
            _Masked(inner, outputs, strict=True),
        )
        for parameter in self.parameters():  # an orthogonal update would not keep to the masks
            parameter.use_muon = False  # type: ignore[attr-defined]
        last = self.layers[-1]
        assert isinstance(last, _Masked)
        nn.init.zeros_(last.weight)
        with torch.no_grad():  # logits 0, means spread so that the bells can part, scales 1
            last.bias.zero_()
            last.bias.view(3, _NUM_BELLS, dim)[1] = torch.linspace(-1, 1, _NUM_BELLS)[:, None]

    def log_prob(self, z: Float[Tensor, "*N dim"]) -> Float[Tensor, "*N dim"]:
        """Return log p(z_d | z_<d) of each coordinate."""
        logits, means, log_scales = self._bells(z)
        value = z.float().unsqueeze(-2)
        bells = -0.5 * ((value - means) * (-log_scales).exp()).square() - log_scales
        return (logits.log_softmax(-2) + bells).logsumexp(-2) - 0.5 * _LOG_2PI

    def from_noise(
        self, noise: Float[Tensor, "*N dim"], choice: Float[Tensor, "*N dim"]
    ) -> Float[Tensor, "*N dim"]:
        """Draw one coordinate after another.

        Args:
            noise: standard normal, moves z within its bell.
            choice: standard normal, its place in its own distribution chooses the bell.
        """
        z = torch.zeros_like(noise)
        share = torch.special.ndtr(choice.float()).clamp(max=1 - 1e-6)
        for d in range(self.dim):
            logits, means, log_scales = (part[..., d] for part in self._bells(z))
            heights = logits.softmax(-1).cumsum(-1)
            bell = (heights < share[..., d, None]).sum(-1, keepdim=True).clamp(max=_NUM_BELLS - 1)
            mean, log_scale = (part.gather(-1, bell)[..., 0] for part in (means, log_scales))
            z[..., d] = mean + log_scale.exp() * noise[..., d]
        return z

    def quantile(self, share: Float[Tensor, "*N dim"]) -> Float[Tensor, "*N dim"]:
        """Return z with ``P(z_d' < z_d | z_<d) = share_d``, one coordinate after another.

        A mixture has no closed inverse, so its distribution function is bisected, to the last
        digits of float32. Uniform shares give draws of the density.

        Args:
            share: in (0, 1).
        """
        z = torch.zeros_like(share)
        for d in range(self.dim):
            logits, means, log_scales = (part[..., d] for part in self._bells(z))
            weights, scales = logits.softmax(-1), log_scales.exp()
            low, high = (means - 12 * scales).amin(-1), (means + 12 * scales).amax(-1)
            for _ in range(48):
                middle = (low + high) / 2
                below = torch.special.ndtr((middle[..., None] - means) / scales)
                is_short = (weights * below).sum(-1) < share[..., d]
                low, high = torch.where(is_short, middle, low), torch.where(is_short, high, middle)
            z[..., d] = (low + high) / 2
        return z

    def _bells(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, means and log scales, each [*N, bells, dim]."""
        with torch.autocast(z.device.type, enabled=False):  # narrow bells need float32
            out = self.layers(z.float()).unflatten(-1, (3, _NUM_BELLS, self.dim))
        logits, means, log_scales = out.unbind(-3)
        return logits, means, log_scales.clamp(-7.0, 7.0)
