"""Masked transformer: it sees some tokens and guesses the others, all at once, in a few rounds."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from qvae.priors.attention import Block, check_sizes
from qvae.priors.base import Prior
from qvae.priors.cross_entropy import linear_cross_entropy
from qvae.priors.draw import Choose, Draw
from qvae.priors.head import PositionInputs, head_layout, hide_conditions, read_out
from qvae.priors.scoring import loss_of, pick_log_probs, spread
from qvae.types import Batch, Loss

__all__ = ["Masked", "uncovered_after"]


def uncovered_after(num_tokens: int, num_steps: int) -> list[int]:
    """Return how many tokens are uncovered after each step: few at first, by a cosine.

    Example:
        >>> uncovered_after(64, 8)
        [2, 5, 11, 19, 29, 40, 52, 64]
    """
    counts: list[int] = []
    for step in range(1, num_steps + 1):
        hidden = math.floor(num_tokens * math.cos(math.pi / 2 * step / num_steps))
        least = counts[-1] + 1 if counts else 1
        counts.append(min(max(num_tokens - hidden, least), num_tokens - (num_steps - step)))
    return counts


class Masked(Prior):
    """Transformer without an order: any tokens may be known, and the rest are guessed from them.

    "MaskGIT: Masked Generative Image Transformer", arXiv 2202.04200, sections 3.1 and 3.2: train
    on a random share of hidden tokens, the share cos(pi/2 u); sample in ``num_steps`` rounds that
    each keep the guesses of most confidence. In-painting sees all known tokens at once.

    The likelihood. Which token MaskGIT keeps depends on what was drawn, and that sampler's
    probability of a sample has no formula. ``nll`` is that of another sampler with the same
    network and rounds: it uncovers the positions in one fixed shuffled order, those of a round
    independently. That is a distribution (it sums to one), what ``uncover: order`` draws from, and
    with one token a round an autoregressive model in that order. It says how well the network
    predicts; compare it with an autoregressive prior's nll only as an upper bound of what this
    network can do. In training the loss is an estimate: (N / hidden) * the hidden tokens' nll, for
    a uniform share the order-averaged bound of arXiv 2110.02037, equation 4.

    Args:
        num_layers: blocks; >= 1.
        dim: width; a multiple of ``num_heads``.
        num_heads: attention heads; >= 1.
        dropout: on what each half of a block adds, in [0, 1).
        null_prob: share of training rows whose condition is hidden, in [0, 1].
        cond_table: whether every position has its own map of the condition's features.
        num_steps: rounds of the sampler and of ``nll``; in 1..N.
        uncover: by confidence, or in the fixed order of ``nll``.
        choice_temperature: of the noise on confidences, falling to 0 in the last round; >= 0.
        **tokens: what :class:`~qvae.priors.base.Prior` takes.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> prior = Masked(vocab_size=8, num_tokens=4, num_layers=1, dim=16, num_heads=2,
        ...                num_steps=2)
        >>> prior.sample(3, seed=0).shape
        torch.Size([3, 4])
    """

    round_of: Int[Tensor, " N"]
    short: Float[Tensor, "N S"]
    head_rows: Int[Tensor, "K S"]

    def __init__(
        self,
        *,
        num_layers: int = 6,
        dim: int = 256,
        num_heads: int = 8,
        dropout: float = 0.0,
        null_prob: float = 0.1,
        cond_table: bool = True,
        num_steps: int = 8,
        uncover: Literal["confidence", "order"] = "confidence",
        choice_temperature: float = 4.5,
        **tokens: Any,
    ) -> None:
        super().__init__(**tokens)
        check_sizes(num_layers=num_layers, dim=dim, num_heads=num_heads)
        if not 0 <= dropout < 1 or not 0 <= null_prob <= 1:
            raise ValueError(
                f"dropout={dropout}, null_prob={null_prob}: must be in [0, 1) and in [0, 1]"
            )
        if uncover not in ("confidence", "order") or not 0 <= choice_temperature < math.inf:
            raise ValueError(
                f"uncover={uncover!r}, choice_temperature={choice_temperature}: must be confidence"
                " or order, and >= 0"
            )
        self.null_prob, self.num_steps = null_prob, num_steps
        self.uncover, self.choice_temperature = uncover, choice_temperature
        self.embedding = nn.Embedding(self.vocab_size + 1, dim)  # the last one is "hidden"
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.inputs = PositionInputs(
            self.conditions, num=self.num_tokens, dim=dim, cond_table=cond_table
        )
        self.blocks = nn.ModuleList(
            Block(dim=dim, num_heads=num_heads, hidden_dim=4 * dim, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, bias=False)
        self.head = nn.Linear(dim, self.vocab_size, bias=False)
        nn.init.normal_(self.head.weight, std=0.02)
        self._register_layout(num_steps)

    def _register_layout(self, num_steps: int) -> None:
        """Lay out the head, and the round in which the fixed order uncovers each position."""
        rows, mask = head_layout(self.codebook_sizes)
        self.register_buffer("head_rows", rows, persistent=False)
        self.register_buffer("short", mask.repeat(len(self.low) // len(rows), 1), persistent=False)
        if not 1 <= num_steps <= self.num_tokens:
            raise ValueError(f"num_steps={num_steps}: must be in 1..{self.num_tokens}")
        counts = uncovered_after(self.num_tokens, num_steps)
        shuffled = torch.from_numpy(np.random.default_rng(0).permutation(self.num_tokens))
        rounds = torch.empty(self.num_tokens, dtype=torch.long)
        rounds[shuffled] = torch.searchsorted(
            torch.tensor(counts), torch.arange(self.num_tokens), right=True
        )
        self.register_buffer("round_of", rounds, persistent=False)

    def logits(
        self,
        tokens: Shaped[Tensor, "B N"],
        is_known: Bool[Tensor, "..."],
        cond: Float[Tensor, "B M"],
    ) -> Float[Tensor, "B N S"]:
        """Return float32 logits of every digit, short codebooks not yet masked."""
        x = self._features(tokens, is_known, cond)
        return read_out(x, self.head.weight, self.head_rows)

    def _features(
        self, tokens: Shaped[Tensor, "B N"], is_known: Bool[Tensor, "..."], cond: Tensor
    ) -> Float[Tensor, "B N D"]:
        seen = torch.where(is_known, tokens.long(), self.vocab_size)
        x = self.inputs(cond) + self.embedding(seen)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        everything = x.new_zeros(1, 1)
        for block in self.blocks:
            x = block(x, everything)
        return self.norm(x)

    def log_probs(
        self, tokens: Shaped[Tensor, "B N"], cond: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B N S"]:
        """Return log p of every digit in the fixed order, from one pass a round."""
        rows = self.check_cond(cond, len(tokens))
        found = None
        for step in range(self.num_steps):
            logits = self.logits(tokens, self.round_of < step, rows) + self.short
            is_now = (self.round_of == step)[:, None]
            found = logits if found is None else torch.where(is_now, logits, found)
        assert found is not None, "there is at least one round"
        return found.log_softmax(-1)

    def forward(self, batch: Batch) -> Loss:
        """Return the objective: in training an estimate of it from hidden tokens."""
        if not self.training:
            return super().forward(batch)
        tokens, digits, is_told = self.read(batch.x, batch.lengths)
        cond = self.check_cond(batch.cond, len(digits))
        cond = hide_conditions(cond, self.null_prob, is_training=True)
        share = torch.cos(math.pi / 2 * torch.rand(len(digits), 1, device=digits.device))
        num_hidden = (share * self.num_tokens).ceil().clamp(1, self.num_tokens)
        ranks = torch.rand(digits.shape, device=digits.device).argsort(1).argsort(1)
        is_hidden = ranks < num_hidden
        is_asked = is_hidden if is_told is None else is_hidden & is_told  # padding costs nothing
        nll, hits = self._hidden_nll(tokens, digits, is_hidden, is_asked, cond)
        nll = nll.sum(1) * (self.num_tokens / num_hidden[:, 0])
        accuracy = hits.sum() / max(len(hits), 1)
        return loss_of(nll, self.num_tokens, is_told, accuracy=accuracy)

    def _hidden_nll(
        self, tokens: Tensor, digits: Tensor, is_hidden: Tensor, is_asked: Tensor, cond: Tensor
    ) -> tuple[Float[Tensor, "B N"], Bool[Tensor, " H"]]:
        """Return the nll of tokens asked for, 0 elsewhere, and which were the best guess."""
        x = self._features(tokens, ~is_hidden, cond)
        if len(self.codebook_sizes) == 1:
            found, hits = linear_cross_entropy(x[is_asked], self.head.weight, digits[is_asked])
            return spread(found, is_asked), hits
        logits = read_out(x, self.head.weight, self.head_rows) + self.short
        log_probs = logits.log_softmax(-1)
        picked = pick_log_probs(log_probs, digits)
        hits = (picked.detach() >= log_probs.detach().amax(-1))[is_asked]
        return picked.masked_fill(~is_asked, 0).neg(), hits

    @property
    def noise_length(self) -> int:
        """How many uniform numbers the draw of one sample takes."""
        rounds = 2 * self.num_steps if self.uncover == "confidence" else 1
        return rounds * self.num_tokens

    @torch.no_grad()
    def walk(
        self,
        cond: Float[Tensor, "B M"],
        choose: Choose,
        *,
        guidance: float = 1.0,
        needed: Sequence[bool] | None = None,
    ) -> Int[Tensor, "B N"]:
        """Decide the tokens in the fixed order, those of a round from the same logits."""
        digits = torch.zeros(len(cond), self.num_tokens, dtype=torch.long, device=self.device)
        for step in range(self.num_steps):
            is_known = self.round_of < step
            logits = self._guided(digits + self.low, is_known, cond, guidance)
            for n in (self.round_of == step).nonzero()[:, 0].tolist():
                digits[:, n] = choose(logits[:, n], n)
        return digits

    def _guided(
        self, tokens: Tensor, is_known: Tensor, cond: Tensor, guidance: float
    ) -> Float[Tensor, "B N S"]:
        if guidance == 1 or not cond.shape[1]:
            return self.logits(tokens, is_known, cond) + self.short
        both = torch.cat([cond, torch.full_like(cond, torch.nan)])
        known = is_known.expand_as(tokens).repeat(2, 1)
        told, null = self.logits(tokens.repeat(2, 1), known, both).chunk(2)
        return null + guidance * (told - null) + self.short

    def _draw(self, cond: Float[Tensor, "B M"], draw: Draw) -> Int[Tensor, "B N"]:
        """Uncover tokens round by round; what is fixed is known from the first."""
        digits, is_known = draw.digits, draw.is_fixed
        num_open = (~is_known).sum(1, keepdim=True)
        counts = uncovered_after(self.num_tokens, self.num_steps)
        for step, count in enumerate(counts):
            logits = self._guided(digits + self.low, is_known, cond, draw.sampler.guidance)
            if self.uncover == "order":
                guesses = draw.sampler.pick(logits, draw.noise)
                is_chosen = (self.round_of <= step) & ~is_known
            else:
                noise, choice = draw.noise.unflatten(1, (self.num_steps, 2, -1))[:, step].unbind(1)
                guesses = draw.sampler.pick(logits, noise)
                quota = (num_open * count / self.num_tokens).ceil()
                quota = quota - (num_open - (~is_known).sum(1, keepdim=True))
                is_chosen = self._confident(logits, guesses, choice, is_known, quota, step)
            digits = torch.where(is_chosen, guesses, digits)
            is_known = is_known | is_chosen
            draw.found, draw.is_found = digits, is_known
            draw.report(count)
        return digits

    def _confident(
        self,
        logits: Tensor,
        guesses: Tensor,
        choice: Tensor,
        is_known: Tensor,
        quota: Tensor,
        step: int,
    ) -> Bool[Tensor, "B N"]:
        """Choose as many hidden tokens as a row's quota says, by confidence with Gumbel noise."""
        confidence = pick_log_probs(F.log_softmax(logits, -1), guesses)
        gumbel = -torch.log(-torch.log(choice.clamp(1e-12, 1 - 1e-12)))
        heat = self.choice_temperature * (1 - (step + 1) / self.num_steps)
        score = (confidence + heat * gumbel).masked_fill(is_known, -torch.inf)
        ranks = torch.argsort(score, dim=1, descending=True, stable=True).argsort(1)
        return (ranks < quota) & ~is_known
