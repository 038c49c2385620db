"""The contract of a bottleneck, and its laws.

A bottleneck turns the encoder's vectors ``z_e [B, *G, in_dim]`` into a :class:`~qvae.types.Latent`
with ``z [B, *G, out_dim]``. It holds no projection, no layout flag and no condition. It refuses
vectors of another width: ``check_vectors`` comes first in all that takes ``z_e``.

State changes only in ``after_step``. ``forward`` may count into staging buffers while training;
the loop then calls ``after_step`` once for each optimizer step, after it found every number
finite, or ``discard_step`` when it refused the step. So optimizer and codebook commit together or
neither does, and gradient accumulation, recomputation, skipped steps and replicas stay right.

A quantizer also promises, and ``tests/test_bottleneck_laws.py`` checks on every one of them:

- ``decode(out.codes) == out.z`` and ``encode(z_e) == out.codes`` in eval mode;
- ``encode(decode(c)) == c`` for every code (wrappers are exempt);
- codes are int64, in range, and do not depend on the grid's rank or on the rest of the batch;
- in eval mode a sample's loss does not depend on its batch, and no buffer changes;
- masked positions touch neither loss nor codebook nor usage, and it does not matter what is there,
  a NaN neither: a call reads them as 0, and they get no gradient;
- distances are float32 under any autocast, and bfloat16 input gives the codes of its values.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qvae.arguments import is_number, is_whole
from qvae.bottlenecks.functional import sum_per_sample
from qvae.codes import code_counts, perplexity, usage
from qvae.types import Latent

__all__ = [
    "Bottleneck",
    "Quantizer",
    "require_above_zero",
    "require_codes",
    "require_finite",
    "require_levels",
    "require_not_negative",
    "require_positive",
    "require_width",
]

_MOST_COUNTED = 2**20


def require_positive(**values: int) -> None:
    """Raise ValueError for the first value that is no integer or below 1, by name.

    Example:
        >>> require_positive(dim=0)
        Traceback (most recent call last):
        ValueError: dim=0: must be at least 1
    """
    for name, value in values.items():
        if not is_whole(value):
            raise ValueError(f"{name}={value!r}: must be a whole number")
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")


def require_levels(
    levels: Sequence[int], rule: str, *, least: int, most: int | None = None
) -> None:
    """Raise ValueError with the rule unless all are integers in their range."""
    is_list = isinstance(levels, Sequence) and not isinstance(levels, str)
    top = math.inf if most is None else most
    if not is_list or not all(is_whole(level) and least <= level <= top for level in levels):
        raise ValueError(f"levels={levels!r}: {rule}")


def require_not_negative(**values: float) -> None:
    """Raise ValueError for the first value that is no number, below 0 or not finite, by name."""
    for name, value in values.items():
        if not (is_number(value) and 0 <= value < math.inf):
            raise ValueError(f"{name}={value!r}: must be finite and not negative")


def require_above_zero(**values: float) -> None:
    """Raise ValueError for the first value that is no number, not above 0 or infinite, by name."""
    for name, value in values.items():
        if not (is_number(value) and 0 < value < math.inf):
            raise ValueError(f"{name}={value!r}: must be finite and above 0")


def require_width(z_e: Float[Tensor, "*N D"], in_dim: int, who: str) -> None:
    """Raise ValueError for vectors of another width, which might broadcast to a wrong answer.

    Example:
        >>> require_width(torch.zeros(2, 1), 3, "FSQ")
        Traceback (most recent call last):
        ValueError: FSQ: z of shape [2, 1]: its last axis must be 3
    """
    if z_e.shape[-1:] != (in_dim,):
        raise ValueError(f"{who}: z of shape {list(z_e.shape)}: its last axis must be {in_dim}")


def require_finite(z_e: Float[Tensor, "*N D"], who: str) -> None:
    """Raise ValueError with the position of the first NaN or infinity.

    The argmin of a row of NaN is a valid-looking code, so this comes before any search. A compiled
    graph does not branch on data: there it is a RuntimeError, without the position.
    """
    is_finite = torch.isfinite(z_e).all()
    if torch.compiler.is_compiling():
        torch._assert_async(is_finite, f"{who}: z holds a NaN or an infinity: must be finite")
    elif not is_finite:
        position = torch.nonzero(~torch.isfinite(z_e))[0].tolist()
        raise ValueError(f"{who}: z{position} is {z_e[tuple(position)].item()}: must be finite")


def require_codes(codes: Int[Tensor, "*N K"], sizes: Sequence[int]) -> None:
    """Raise ValueError for codes that are not one integer in range for each codebook."""
    if codes.shape[-1] != len(sizes):
        raise ValueError(
            f"codes: last axis is {codes.shape[-1]}, must be {len(sizes)}, "
            "one integer for each codebook"
        )
    if codes.is_floating_point():
        raise ValueError(f"codes: dtype is {codes.dtype}, must be an integer type")
    for k, size in enumerate(sizes):
        wrong = (codes[..., k] < 0) | (codes[..., k] >= size)
        if torch.compiler.is_compiling():  # see require_finite
            text = f"codes: one is out of range in codebook {k}: must be in 0..{size - 1}"
            torch._assert_async(~wrong.any(), text)
        elif wrong.any():
            value = codes[..., k][wrong][0].item()
            raise ValueError(f"codes: {value} in codebook {k}: must be in 0..{size - 1}")


class Bottleneck(nn.Module, ABC):
    """Turn vectors into a :class:`~qvae.types.Latent`."""

    in_dim: int
    """Width of the vectors it takes."""
    out_dim: int
    """Width of the vectors it returns."""

    def __call__(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Call ``forward`` with vectors that are 0 where they are masked.

        What is there may be anything, such as what a network makes of padding. It is replaced and
        not multiplied by 0, since 0 times NaN is NaN, in a loss as in a gradient.
        """
        if mask is not None:
            if mask.dtype != torch.bool or mask.shape != z_e.shape[:-1]:
                raise ValueError(
                    f"mask: {mask.dtype} of shape {list(mask.shape)}, must be torch.bool of shape "
                    f"{list(z_e.shape[:-1])}"
                )
            z_e = torch.where(mask[..., None], z_e, 0.0)
        latent: Latent = super().__call__(z_e, mask)
        return latent

    @property
    def has_fixed_rate(self) -> bool:
        """Whether no weight changes the rate, so that charging more for it teaches nothing."""
        return False

    @abstractmethod
    def forward(
        self, z_e: Float[Tensor, "B *G in_dim"], mask: Bool[Tensor, "B *G"] | None = None
    ) -> Latent:
        """Encode; ``mask`` is True where a position counts."""

    def mode(self, z_e: Float[Tensor, "B *G in_dim"]) -> Float[Tensor, "B *G out_dim"]:
        """Return the most likely z: what ``forward`` returns, without its noise."""
        return self(z_e).z

    def check_vectors(self, z_e: Float[Tensor, "*N D"]) -> None:
        """Raise ValueError for vectors that are not ``in_dim`` wide; comes before anything else."""
        require_width(z_e, self.in_dim, type(self).__name__)

    def after_step(self) -> None:
        """Commit what the forwards since the last step counted."""

    def discard_step(self) -> None:
        """Drop what the forwards since the last step counted."""


class Quantizer(Bottleneck):
    """A bottleneck whose latents are integers."""

    codebook_sizes: tuple[int, ...]
    """Number of codes of each of the K codebooks."""
    num_levels: int | None = None
    """How many levels the codes have, coarse first, if any first few of them decode alone."""

    @abstractmethod
    def encode(self, z_e: Float[Tensor, "*N in_dim"]) -> Int[Tensor, "*N K"]:
        """Return the codes of each vector."""

    @abstractmethod
    def decode(self, codes: Int[Tensor, "*N K"]) -> Float[Tensor, "*N out_dim"]:
        """Return the vector of each code."""

    @property
    def has_fixed_rate(self) -> bool:
        """True: under a uniform prior every code costs the same."""
        return True

    @property
    def is_started(self) -> Bool[Tensor, ""]:
        """Whether it has seen the data that it starts from; True where it needs none."""
        return getattr(self, "is_initialized", torch.ones((), dtype=torch.bool))

    @property
    def nats_per_cell(self) -> float:
        """The rate of one grid cell under a uniform prior: ``sum(ln V)`` over its codebooks."""
        return sum(math.log(size) for size in self.codebook_sizes)

    @property
    def code_facts(self) -> dict[str, Any]:
        """What a code means, as far as no tensor's name or shape tells: plain values by name.

        A ``state_dict`` has them in its metadata, where torch keeps the versions of modules, and
        ``load_state_dict`` refuses others. So no tensor is added, and a state without them loads.
        """
        return {
            "quantizer": next(c.__name__ for c in type(self).__mro__ if "qvae." in c.__module__),
            "in_dim": self.in_dim,
            "codebook_sizes": list(self.codebook_sizes),
        }

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", {})
        metadata.get(prefix[:-1], {})["code_facts"] = self.code_facts

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        told, own = local_metadata.get("code_facts", {}), self.code_facts
        error_msgs += [
            f"{prefix}{name} was {told[name]!r} and is now {own[name]!r}: must be the same, "
            "or codes change their meaning"
            for name in own
            if name in told and told[name] != own[name]
        ]
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    def check_vectors(self, z_e: Float[Tensor, "*N D"]) -> None:
        """Raise ValueError for vectors of another width, and in eval mode for a NaN or infinity.

        In training the loop refuses a step that is not finite.
        """
        super().check_vectors(z_e)
        if not self.training:
            require_finite(z_e, type(self).__name__)

    def check_codes(self, codes: Int[Tensor, "*N K"]) -> None:
        """Raise ValueError for codes that are not integers, or out of range."""
        require_codes(codes, self.codebook_sizes)

    def _latent(
        self,
        z: Float[Tensor, "B *G out_dim"],
        codes: Int[Tensor, "B *G K"],
        *,
        mask: Bool[Tensor, "B *G"] | None,
        terms: Mapping[str, tuple[float | Tensor, Tensor]],
        rate: Float[Tensor, "B *G"] | None = None,
    ) -> Latent:
        """Sum rate and terms over the unmasked cells, and report use.

        Args:
            z: what goes to the decoder.
            codes: its integers.
            mask: True where a position counts.
            terms: name -> weight and value, of each cell or one for all cells.
            rate: of each cell, nats; None is the uniform prior's.
        """
        cells = codes.shape[:-1]
        if rate is None:
            rate = torch.full(cells, self.nats_per_cell, device=codes.device)
        penalty = torch.zeros(len(codes), device=codes.device)
        metrics = {}
        for name, (weight, value) in terms.items():
            total = sum_per_sample(value.expand(cells), mask)
            penalty = penalty + weight * total
            metrics[name] = total.detach().mean()
        counted = codes.detach() if mask is None else codes.detach()[mask]
        metrics |= _use(counted.flatten(0, -2), self.codebook_sizes)
        return Latent(
            z=z, rate=sum_per_sample(rate, mask), penalty=penalty, codes=codes, metrics=metrics
        )


def _use(codes: Int[Tensor, "N K"], sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Return usage and perplexity, means over codebooks; none where a table would be too large."""
    if max(sizes) > _MOST_COUNTED:
        return {}
    pairs = zip(codes.unbind(1), sizes, strict=True)
    counts = [code_counts(column, size).float() for column, size in pairs]
    return {
        "usage": torch.stack([usage(count) for count in counts]).mean(),
        "perplexity": torch.stack([perplexity(count) for count in counts]).mean(),
    }
