"""What every prior is: a distribution over token sequences, with or without a condition.

A token of codebook k lives in ``[offset_k, offset_k + size_k)``, offset_k being the sum of the
earlier sizes, and position n belongs to codebook ``n % num_codebooks``. Inside this package a
*digit* is a token less its codebook's offset. A prior never gives probability to a token outside
its position's codebook, and refuses to score one.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from qvae.arguments import check_tensors, check_whole
from qvae.errors import UsageError
from qvae.eval_mode import eval_mode
from qvae.priors.digits import to_digits, token_layout, token_ranges
from qvae.priors.draw import (
    Choose,
    Draw,
    OnStep,
    OnTokens,
    Sampler,
    draws,
    fixed_tokens,
    is_within,
    noise_of,
)
from qvae.priors.scoring import log_probs_loss, pick_log_probs, row_sums
from qvae.priors.told import check_guidance, told_rows
from qvae.registry import did_you_mean, resolve
from qvae.types import Batch, Condition, Loss

__all__ = ["Prior", "build_prior", "to_digits", "token_ranges"]


class Prior(nn.Module, ABC):
    """Model tokens ``[B, N]``: score them, sample them, learn them.

    A subclass gives ``log_probs``, and ``walk``, which decides the tokens of a sample in the
    prior's own order; the two describe one distribution.

    Args:
        vocab_size: number of tokens, the sum of ``codebook_sizes``; >= 1.
        num_tokens: N, tokens in a sample; >= 1 and a multiple of the number of codebooks.
        conditions: what ``cond`` columns mean; a row of raw numbers, NaN = not told.
        codebook_sizes: size of each of the K codebooks, innermost in the token order;
            None is one codebook of ``vocab_size``.
        grid: axes of the cells, in raster order; None is one axis.

    Raises:
        ValueError: sizes that do not fit together.
    """

    config: dict[str, Any]
    """How :func:`build_prior` made this; empty when built by hand."""
    null_prob: float = 0.0
    """Share of training rows that were told nothing; guidance needs some."""
    low: Int[Tensor, " N"]
    high: Int[Tensor, " N"]

    def __init__(
        self,
        *,
        vocab_size: int,
        num_tokens: int,
        conditions: Iterable[Condition] = (),
        codebook_sizes: Sequence[int] | None = None,
        grid: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        sizes, self.grid = token_layout(vocab_size, num_tokens, codebook_sizes, grid)
        self.codebook_sizes = sizes
        self.vocab_size, self.num_tokens = vocab_size, num_tokens
        self.conditions = tuple(conditions)
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
        """Return log p(digit | tokens decided before it, cond) of every digit, in nats.

        S is the largest codebook; float32, -inf where a codebook is smaller than S. The tokens
        must be in range: ``nll`` and ``forward`` check them, this does not.
        """

    @abstractmethod
    def walk(
        self,
        cond: Float[Tensor, "B M"],
        choose: Choose,
        *,
        guidance: float = 1.0,
        needed: Sequence[bool] | None = None,
    ) -> Int[Tensor, "B N"]:
        """Decide every token in the prior's order and return the digits.

        Args:
            cond: checked conditions.
            choose: is given the logits of each position in turn and returns its digits.
            guidance: as in :meth:`sample`.
            needed: which positions have to be decided; once none is left the rest may stay 0.
        """

    @property
    def noise_length(self) -> int:
        """How many uniform numbers the draw of one sample takes."""
        return self.num_tokens

    def sample(
        self,
        num: int,
        cond: Float[Tensor, "..."] | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        guidance: float = 1.0,
        seed: int | Sequence[int] = 0,
        generator: torch.Generator | None = None,
        known: Shaped[Tensor, "..."] | None = None,
        keep: Shaped[Tensor, "..."] | None = None,
        lengths: Shaped[Tensor, "..."] | None = None,
        on_step: OnStep | None = None,
        on_tokens: OnTokens | None = None,
    ) -> Int[Tensor, "num N"]:
        """Draw tokens; each sample has its own random stream, see ``sampling.uniforms``.

        The prior is in eval mode meanwhile.

        Args:
            num: samples to draw; >= 0.
            cond: raw conditions ``[num, M]``, NaN = not told; ``[M]`` or ``[1, M]`` is given
                to all samples; None tells nothing.
            temperature: divides the logits; >= 0, and 0 takes the most probable digit.
            top_k: keep the k most probable digits; >= 1.
            top_p: keep the fewest digits that hold this probability; in (0, 1].
            min_p: keep the digits at least this share as probable as the best; in (0, 1].
            guidance: g in ``null + g * (told - null)`` of the logits; 1 is plain sampling, and
                all that there is without conditions or with ``null_prob`` = 0.
            seed: sample i depends on (seed, i) alone; a sequence gives each sample its own
                seed, and sample i is then what ``sample(1, seed=seed[i])`` draws.
            generator: draws the seed, when given.
            known: in-painting: tokens ``[num, N]`` or ``[N]`` to keep where ``keep`` is True. An
                autoregressive prior has not seen those that come later in its order.
            keep: booleans, in the shape of ``known``.
            lengths: ``[num]`` tokens of each sample, in 1..N; what follows is not drawn, and
                is the first token of its codebook.
            on_step: called with (work done, work in all), in tokens, as the draw goes on.
            on_tokens: called after each step with (sample numbers ``[b]``, their tokens so far
                ``[b, N]``, which of these are decided ``[b, N]``), for 256 samples at a time;
                what is not decided is the first token of its codebook.

        Raises:
            ValueError: an argument of another type or outside its range.
        """
        check_whole("num", num, least=0)
        sampler = Sampler(
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, guidance=guidance
        )
        check_guidance(guidance, conditions=self.conditions, null_prob=self.null_prob)
        rows = self.check_cond(cond, num)
        digits, is_fixed = fixed_tokens(
            num, self.low, self.high, known=known, keep=keep, lengths=lengths
        )
        noise = noise_of(num, self.noise_length, seed, generator, self.device)
        found = digits.clone()
        with torch.no_grad(), eval_mode(self):
            for part, draw in draws(
                noise,
                digits,
                is_fixed,
                low=self.low,
                sampler=sampler,
                on_step=on_step,
                on_tokens=on_tokens,
            ):
                found[part] = self._draw(rows[part], draw)
        return torch.where(is_fixed, digits, found) + self.low

    def _draw(self, cond: Float[Tensor, "B M"], draw: Draw) -> Int[Tensor, "B N"]:
        return self.walk(cond, draw.choose, guidance=draw.sampler.guidance, needed=draw.needed())

    def nll(
        self,
        tokens: Shaped[Tensor, "..."],
        cond: Float[Tensor, "..."] | None = None,
        *,
        lengths: Shaped[Tensor, "..."] | None = None,
    ) -> Float[Tensor, " B"]:
        """Score tokens: ``-log p(tokens | cond)``, nats per sample.

        Args:
            tokens: ``[B, N]`` integers.
            cond: as in :meth:`sample`.
            lengths: ``[B]`` tokens of each sample, in 1..N; what follows may be anything, is read
                as the first token of its codebook and is not scored.

        Raises:
            ValueError: a token outside its position's codebook, or ``cond`` of another width.
        """
        tokens, digits, is_told = self.read(tokens, lengths)
        return row_sums(pick_log_probs(self.log_probs(tokens, cond), digits), is_told).neg()

    def forward(self, batch: Batch) -> Loss:
        """Return the objective: the mean negative log-likelihood of a batch of tokens."""
        tokens, digits, is_told = self.read(batch.x, batch.lengths)
        return log_probs_loss(self.log_probs(tokens, batch.cond), digits, is_told)

    def read(
        self, tokens: Shaped[Tensor, "..."], lengths: Shaped[Tensor, "..."] | None = None
    ) -> tuple[Int[Tensor, "B N"], Int[Tensor, "B N"], Bool[Tensor, "B N"] | None]:
        """Check tokens; return them with padding made harmless, their digits, which are told.

        Raises:
            ValueError: as in :meth:`nll`.
        """
        check_tensors(tokens=tokens)
        if tokens.ndim != 2 or tokens.shape[1] != self.num_tokens:
            raise ValueError(f"tokens of shape {tuple(tokens.shape)}: needs [B, {self.num_tokens}]")
        is_told = None
        if lengths is not None:
            is_told = is_within(lengths, len(tokens), self.num_tokens).to(self.device)
            tokens = torch.where(is_told, tokens, self.low.to(tokens.dtype))
        return tokens.long(), to_digits(tokens, self.low, self.high), is_told

    def after_step(self) -> None:
        """Do nothing: no state of a prior changes outside the optimizer."""

    def discard_step(self) -> None:
        """Do nothing: there is nothing that was counted."""

    def check_cond(self, cond: Float[Tensor, "..."] | None, num: int) -> Float[Tensor, "num M"]:
        """Return float32 conditions on the prior's device; None is all NaN.

        Raises:
            ValueError: another shape, or a number that stands for nothing.
        """
        return told_rows(cond, num, self.conditions, device=self.device)


_FROM_TOKENS = ("vocab_size", "num_tokens", "conditions", "codebook_sizes", "grid", "tokens")


def build_prior(
    config: Mapping[str, Any],
    *,
    vocab_size: int,
    num_tokens: int,
    conditions: Iterable[Condition] = (),
    codebook_sizes: Sequence[int] | None = None,
    grid: Sequence[int] | None = None,
) -> Prior:
    """Build a prior by name and keep the recipe of it in its ``config``.

    Args:
        config: ``{"name": "transformer", **arguments}``.
        vocab_size: number of tokens.
        num_tokens: tokens in a sample.
        conditions: what the columns of ``cond`` mean.
        codebook_sizes: as in :class:`Prior`.
        grid: as in :class:`Prior`.

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
        grid=grid,
        **args,
    )
    prior.config = {"name": name, **args, **prior.config}
    return prior
