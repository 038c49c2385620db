"""Autoregressive transformer over tokens, told its condition at every position.

Tokens are decided step by step in an order and a pattern, see :mod:`qvae.priors.order`; raster and
flat, step n decides token n. Step t's input is the embedding of what step t - 1 decided (of step
0: a learned start, plus the condition as a prefix) + a learned position + its own linear map of
the condition's fixed features: the "position x condition table". Without it a prior can reach as
good a likelihood and still ignore the condition.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from qvae.networks.condition import Conditioner
from qvae.priors.attention import Block, causal_mask, check_sizes
from qvae.priors.base import Prior
from qvae.priors.decoding import Decoder
from qvae.priors.draw import Choose
from qvae.priors.head import head_layout, hide_conditions, read_out, swap_tokens
from qvae.priors.order import Order, Pattern, schedule
from qvae.priors.rope import rope_table
from qvae.priors.scoring import head_loss, log_probs_loss
from qvae.types import Batch, Loss

__all__ = ["Transformer"]


class Transformer(Prior):
    """Decoder-only transformer: ``p(tokens | cond)`` as a product over positions.

    "Attention Is All You Need", arXiv 1706.03762, in the shape of GPT-2: LayerNorm first, learned
    positions; ours has no biases and a GELU network of 4 dim. Guidance is "Classifier-Free
    Diffusion Guidance", arXiv 2207.12598, applied to logits; it needs ``null_prob`` > 0.

    Args:
        num_layers: blocks; >= 1.
        dim: width; a multiple of ``num_heads``.
        num_heads: attention heads; >= 1.
        dropout: on what each half of a block adds, in [0, 1).
        null_prob: share of training rows whose condition is hidden, in [0, 1].
        swap_prob: share of training inputs replaced by another row's token, in [0, 1);
            the prior then forgives its own slips.
        cond_table: whether every position has its own map of the condition's features.
        order: how the cells follow each other: raster, spiral or multiscale.
        pattern: how a cell's codebooks do: flat, delayed or parallel.
        rope: whether queries and keys are turned by their cells as well.
        **tokens: what :class:`~qvae.priors.base.Prior` takes.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> prior = Transformer(
        ...     vocab_size=8, num_tokens=4, num_layers=1, dim=16, num_heads=2
        ... )
        >>> prior.sample(3, seed=0).shape
        torch.Size([3, 4])
    """

    head_rows: Int[Tensor, "K S"]
    head_mask: Float[Tensor, "K S"]
    steps: Int[Tensor, "T R"]
    step_of: Int[Tensor, " N"]
    rope: Float[Tensor, "..."] | None

    def __init__(
        self,
        *,
        num_layers: int = 6,
        dim: int = 256,
        num_heads: int = 8,
        dropout: float = 0.0,
        null_prob: float = 0.1,
        swap_prob: float = 0.0,
        cond_table: bool = True,
        order: Order = "raster",
        pattern: Pattern = "flat",
        rope: bool = False,
        **tokens: Any,
    ) -> None:
        super().__init__(**tokens)
        check_sizes(num_layers=num_layers, dim=dim, num_heads=num_heads)
        for name, value in (("dropout", dropout), ("swap_prob", swap_prob)):
            if not 0 <= value < 1:
                raise ValueError(f"{name}={value}: must be in [0, 1)")
        if not 0 <= null_prob <= 1:
            raise ValueError(f"null_prob={null_prob}: must be in [0, 1]")
        self.dim, self.num_layers, self.num_heads = dim, num_layers, num_heads
        self.null_prob, self.swap_prob = null_prob, swap_prob
        self.embedding = nn.Embedding(self.vocab_size, dim)
        self.start = nn.Parameter(torch.empty(dim))
        self._register_steps(order, pattern, rope=rope)
        self.positions = nn.Parameter(torch.empty(len(self.steps), dim))
        self.conditioner = Conditioner(self.conditions, dim=dim) if self.conditions else None
        self.cond_table: nn.Parameter | None = None
        if self.conditioner is not None and cond_table:
            shape = (self.conditioner.feature_dim, len(self.steps), dim)
            self.cond_table = nn.Parameter(torch.empty(shape))
        self.blocks = nn.ModuleList(
            Block(dim=dim, num_heads=num_heads, hidden_dim=4 * dim, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim, bias=False)
        self.head = nn.Linear(dim, self.vocab_size, bias=False)
        self._register_head_layout()
        self._init_weights()

    def _register_steps(self, order: Order, pattern: Pattern, *, rope: bool) -> None:
        """Lay out which positions each step decides, and the step of each position."""
        num_codebooks = len(self.codebook_sizes)
        steps = torch.from_numpy(schedule(self.grid, num_codebooks, order=order, pattern=pattern))
        step_of = torch.empty(self.num_tokens, dtype=torch.long)
        for row in steps.t():
            step_of[row[row >= 0]] = (row >= 0).nonzero()[:, 0]
        self.register_buffer("steps", steps, persistent=False)
        self.register_buffer("step_of", step_of, persistent=False)
        self.is_plain = torch.equal(step_of, torch.arange(self.num_tokens))
        first = (steps >= 0).long().argmax(1, keepdim=True)
        cells = steps.gather(1, first)[:, 0].numpy() // num_codebooks
        head_dim = self.dim // self.num_heads
        table = rope_table(self.grid, cells, head_dim) if rope else None
        self.register_buffer("rope", table, persistent=False)

    def _register_head_layout(self) -> None:
        rows, mask = head_layout(self.codebook_sizes)
        self.register_buffer("head_rows", rows, persistent=False)
        self.register_buffer("head_mask", mask, persistent=False)
        self.is_ragged = len(set(self.codebook_sizes)) > 1

    def _init_weights(self) -> None:
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.5 / math.sqrt(module.in_features))
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(("attention_out.weight", "mlp_out.weight")):
                parameter.data.div_(math.sqrt(2 * self.num_layers))
        nn.init.normal_(self.head.weight, std=0.02)
        for table in (self.embedding.weight, self.start, self.positions, self.cond_table):
            if table is not None:
                nn.init.normal_(table, std=0.02)

    def log_probs(
        self, tokens: Shaped[Tensor, "B N"], cond: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "B N S"]:
        """Return log p of every digit, from one causal pass."""
        return self.logits(tokens, self.check_cond(cond, len(tokens))).log_softmax(-1)

    def forward(self, batch: Batch) -> Loss:
        """Return the objective; in training, hide conditions and swap inputs at random."""
        tokens, digits, is_told = self.read(batch.x, batch.lengths)
        cond = self.check_cond(batch.cond, len(digits))
        cond = hide_conditions(cond, self.null_prob, is_training=self.training)
        inputs = swap_tokens(tokens, self.swap_prob, is_training=self.training)
        if len(self.codebook_sizes) > 1:
            return log_probs_loss(self.logits(inputs, cond).log_softmax(-1), digits, is_told)
        return head_loss(self._features(inputs, cond), self.head.weight, digits, is_told)

    def logits(
        self, tokens: Shaped[Tensor, "B N"], cond: Float[Tensor, "B M"]
    ) -> Float[Tensor, "B N S"]:
        """Return float32 logits of every digit; the inputs are taken as checked."""
        return self._read_out(self._features(tokens, cond))

    def _features(
        self, tokens: Shaped[Tensor, "B N"], cond: Float[Tensor, "B M"]
    ) -> Float[Tensor, "B N D"]:
        """Return what the head reads each position's logits from."""
        x = self.position_inputs(cond)
        x = x + F.pad(self._entering(tokens.long()), (0, 0, 1, 0))
        if torch.is_autocast_enabled(x.device.type):
            # The residual stream in the low type too: a third of the time on a CPU is its traffic.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        mask = causal_mask(len(self.steps), device=x.device, dtype=x.dtype)
        for block in self.blocks:
            x = block(x, mask, self.rope)
        x = self.norm(x)
        return x if self.is_plain else x[:, self.step_of]

    def _entering(self, tokens: Int[Tensor, "B N"]) -> Float[Tensor, "B T1 D"]:
        """Sum the embeddings of what each step but the last decided."""
        if self.is_plain:
            return self.embedding(tokens[:, :-1])
        before = self.steps[:-1]
        entering = self.embedding(tokens[:, before.clamp(min=0)])
        return entering.masked_fill((before < 0)[..., None], 0).sum(2)

    def position_inputs(self, cond: Float[Tensor, "B M"]) -> Float[Tensor, "B T D"]:
        """Sum what enters each step besides the tokens of the one before."""
        x = self.positions.expand(len(cond), -1, -1)
        prefix = self.start.expand(len(cond), -1)
        if self.conditioner is not None:
            # In float32 under any autocast: few operations, and a time needs its digits.
            with torch.autocast(cond.device.type, enabled=False):
                features = self.conditioner.features(cond)
                prefix = prefix + self.conditioner.embed(features)
                if self.cond_table is not None:
                    table = self.cond_table.flatten(1)
                    x = x + (features.to(table.dtype) @ table).view(x.shape)
        return x + F.pad(prefix.unsqueeze(1), (0, 0, 0, len(self.steps) - 1))

    def _read_out(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N S"]:
        logits = read_out(x, self.head.weight, self.head_rows)
        if not self.is_ragged:
            return logits
        return logits + self.head_mask.repeat(self.num_tokens // len(self.head_mask), 1)

    def walk(
        self,
        cond: Float[Tensor, "B M"],
        choose: Choose,
        *,
        guidance: float = 1.0,
        needed: Sequence[bool] | None = None,
    ) -> Int[Tensor, "B N"]:
        """Decide tokens step by step with a cache of keys and values.

        Inside ``torch.autocast`` the matrix products are in its type, else in the weights'.
        """
        return Decoder(self).run(cond, choose, guidance=guidance, needed=needed)
