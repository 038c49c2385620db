"""What every prior is: a distribution over token sequences, with or without a condition.

A token of codebook k lives in ``[offset_k, offset_k + size_k)``, offset_k being the sum of the
earlier sizes, and position n belongs to codebook ``n % num_codebooks``. Inside this package a
*digit* is a token less its codebook's offset. A prior never gives probability to a token outside
its position's codebook, and refuses to score one.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from qvae.errors import UsageError
from qvae.priors.sampling import uniforms
from qvae.registry import did_you_mean, resolve
from qvae.types import Batch, Condition, Loss

__all__ = ["Prior", "build_prior", "to_digits", "token_ranges"]


def token_ranges(
    codebook_sizes: Sequence[int], num_tokens: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """Return the first token of each position's codebook, and the one after its last.

    Example:
        >>> low, high = token_ranges((8, 5), 4)
        >>> low.tolist(), high.tolist()
        ([0, 8, 0, 8], [8, 13, 8, 13])
    """
    sizes = torch.tensor(codebook_sizes)
    ids = torch.arange(num_tokens) % len(sizes)
    high = sizes.cumsum(0)
    return (high - sizes)[ids], high[ids]


def to_digits(
    tokens: Shaped[Tensor, "..."], low: Int[Tensor, " N"], high: Int[Tensor, " N"]
) -> Int[Tensor, "B N"]:
    """Check tokens against their ranges and count them from their codebook's first.

    Raises:
        ValueError: no integers, another length, or a token out of range; the first such is named
            with its position and value.
    """
    if tokens.ndim != 2 or tokens.shape[1] != len(low):
        raise ValueError(f"tokens of shape {tuple(tokens.shape)}: needs [B, {len(low)}]")
    if tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise ValueError(f"tokens of {tokens.dtype}: must be integers")
    tokens = tokens.long()
    wrong = (tokens < low) | (tokens >= high)
    if wrong.any():
        row, position = (int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"token {int(tokens[row, position])} at position {position} of row {row}:"
            f" must be in {int(low[position])}..{int(high[position]) - 1}, its codebook's range"
        )
    return tokens - low


class Prior(nn.Module, ABC):
    """Model tokens ``[B, N]``: score them, sample them, learn them.

    Args:
        vocab_size: number of tokens, the sum of ``codebook_sizes``; >= 1.
        num_tokens: N, tokens in a sample; >= 1 and a multiple of the number of codebooks.
        conditions: what ``cond`` columns mean; a row of raw numbers, NaN = not told.
        codebook_sizes: size of each of the K codebooks, innermost in the token order;
            None is one codebook of ``vocab_size``.

    Raises:
        ValueError: sizes that do not fit together.
    """

    config: dict[str, Any]
    """How :func:`build_prior` made this; empty when built by hand."""
    low: Int[Tensor, " N"]
    high: Int[Tensor, " N"]

    def __init__(
        self,
        *,
        vocab_size: int,
        num_tokens: int,
        conditions: Iterable[Condition] = (),
        codebook_sizes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        sizes = tuple(codebook_sizes) if codebook_sizes is not None else (vocab_size,)
        if not sizes or any(size < 1 for size in sizes) or sum(sizes) != vocab_size:
            raise ValueError(
                f"codebook_sizes={sizes}: sizes are >= 1 and sum to vocab_size={vocab_size}"
            )
        if num_tokens < 1 or num_tokens % len(sizes):
            raise ValueError(
                f"num_tokens={num_tokens}: must be a positive multiple of the"
                f" {len(sizes)} codebooks"
            )
        self.vocab_size = vocab_size
        self.num_tokens = num_tokens
        self.conditions = tuple(conditions)
        self.codebook_sizes = sizes
        self.config = {}
        low, high = token_ranges(sizes, num_tokens)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("high", high, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the prior computes."""
        return self.low.device

    @abstractmethod
    def log_probs(
        self, tokens: Shaped[Tensor, "B N"], cond: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B N S"]:
        """Return log p(digit | earlier tokens, cond) of every digit, in nats.

        S is the largest codebook; float32, -inf where a codebook is smaller than S. The tokens
        must be in range: ``nll`` and ``forward`` check them, this does not.
        """

    @abstractmethod
    def sample(
        self,
        num: int,
        cond: Float[Tensor, "..."] | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "num N"]:
        """Draw tokens; each sample has its own random stream, see ``sampling.uniforms``.

        Args:
            num: samples to draw; >= 0.
            cond: raw conditions ``[num, M]``, NaN = not told; ``[M]`` or ``[1, M]`` is given
                to all samples; None tells nothing.
            temperature: divides the logits; >= 0, and 0 takes the most probable digit.
            top_k: keep the k most probable digits; >= 1.
            top_p: keep the fewest digits that hold this probability; in (0, 1].
            guidance: g in ``null + g * (told - null)`` of the logits; 1 is plain sampling.
            seed: sample i depends on (seed, i) alone; a sequence gives each sample its own
                seed, and sample i is then what ``sample(1, seed=seed[i])`` draws.
            generator: draws the seed, when given.

        Raises:
            ValueError: an argument outside its range.
        """

    def nll(
        self, tokens: Shaped[Tensor, "..."], cond: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, " B"]:
        """Score tokens: ``-log p(tokens | cond)``, nats per sample.

        Raises:
            ValueError: a token outside its position's codebook, or ``cond`` of another width.
        """
        digits = to_digits(tokens, self.low, self.high)
        return _pick(self.log_probs(tokens, cond), digits).sum(1).neg()

    def forward(self, batch: Batch) -> Loss:
        """Return the objective: the mean negative log-likelihood of a batch of tokens."""
        digits = to_digits(batch.x, self.low, self.high)
        return self._loss(self.log_probs(batch.x, batch.cond), digits)

    def after_step(self) -> None:
        """Do nothing: no state of a prior changes outside the optimizer."""

    def discard_step(self) -> None:
        """Do nothing: there is nothing that was counted."""

    def check_cond(self, cond: Float[Tensor, "..."] | None, num: int) -> Float[Tensor, "num M"]:
        """Return float32 conditions on the prior's device; None is all NaN.

        Raises:
            ValueError: another shape.
        """
        width = len(self.conditions)
        if cond is None:
            return torch.full((num, width), math.nan, device=self.device)
        rows = torch.as_tensor(cond, dtype=torch.float32, device=self.device)
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.shape[1] != width or rows.shape[0] not in (1, num):
            raise ValueError(
                f"cond of shape {tuple(cond.shape)}: needs [{num}, {width}],"
                f" a column for each of {[c.name for c in self.conditions]}"
            )
        return rows.expand(num, width)

    def _loss(self, log_probs: Float[Tensor, "B N S"], digits: Int[Tensor, "B N"]) -> Loss:
        picked = _pick(log_probs, digits)
        nll = picked.sum(1).neg()
        per_token = nll.detach().mean() / self.num_tokens
        # amax is 15x as fast as argmax on a CPU; a tie counts as a hit.
        hits = picked.detach() >= log_probs.detach().amax(-1)
        metrics = {
            "nats_per_token": per_token,
            "bits_per_token": per_token / math.log(2),
            "accuracy": hits.float().mean(),
        }
        zero = torch.zeros_like(nll.detach())
        return Loss(total=nll.mean(), nll=nll, rate=zero, penalty=zero, metrics=metrics)

    def _noise(
        self, num: int, seed: int | Sequence[int], generator: torch.Generator | None
    ) -> Float[Tensor, "num N"]:
        if generator is not None:
            seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        # float64 decides draws; one kind of device has none.
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.from_numpy(uniforms(num, self.num_tokens, seed)).to(dtype).to(self.device)


def _pick(log_probs: Float[Tensor, "B N S"], digits: Int[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    return log_probs.gather(-1, digits.unsqueeze(-1)).squeeze(-1)


_FROM_TOKENS = ("vocab_size", "num_tokens", "conditions", "codebook_sizes")


def build_prior(
    config: Mapping[str, Any],
    *,
    vocab_size: int,
    num_tokens: int,
    conditions: Iterable[Condition] = (),
    codebook_sizes: Sequence[int] | None = None,
) -> Prior:
    """Build a prior by name and keep the recipe of it in its ``config``.

    Args:
        config: ``{"name": "transformer", **arguments}``.
        vocab_size: number of tokens.
        num_tokens: tokens in a sample.
        conditions: what the columns of ``cond`` mean.
        codebook_sizes: as in :class:`Prior`.

    Raises:
        UsageError: an unknown name or argument.
        ValueError: a value out of range.

    Example:
        >>> build_prior({"name": "uniform"}, vocab_size=8, num_tokens=4).num_tokens
        4
    """
    args = dict(config)
    name = args.pop("name", None)
    if not isinstance(name, str):
        raise UsageError(f"prior={dict(config)!r}: needs a name, such as transformer")
    component = resolve("prior", name)
    known = [key for key in inspect.signature(component).parameters if key not in _FROM_TOKENS]
    for key in args:
        if key not in known:
            hint = did_you_mean(key, known) or f"; known: {', '.join(known) or 'none'}"
            raise UsageError(f"prior.{key}: {name} has no such argument{hint}")
    prior: Prior = component(
        vocab_size=vocab_size,
        num_tokens=num_tokens,
        conditions=conditions,
        codebook_sizes=codebook_sizes,
        **args,
    )
    prior.config = {"name": name, **args}
    return prior
