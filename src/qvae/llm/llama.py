"""A small Llama that learns text and images at once, and exports as a stock one."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qvae.llm.layers import EPS, LlamaBlock, rms_norm, rotation
from qvae.llm.rows import IGNORED
from qvae.llm.start import start_to_look
from qvae.llm.tables import SharedTable, Table, word_index
from qvae.llm.vocabulary import Vocabulary
from qvae.priors.attention import causal_mask
from qvae.types import Batch, Loss

__all__ = ["MAX_LENGTH", "Llama"]

MAX_LENGTH = 4096
"""Ids of a context, as the exported configuration says."""


class Llama(nn.Module):
    """Decoder-only transformer over text and image ids: ``p(next id | ids, the grammar)``.

    "LLaMA", arXiv:2302.13971. What is exported (:mod:`qvae.llm.folder`) computes the same logits
    in ``transformers.LlamaForCausalLM``; parameters are shared in training only, see
    :class:`~qvae.llm.tables.SharedTable`. The loss is normalised over what the grammar allows at
    a place, since nothing else is ever drawn: over the codes of the codebook for a code, over
    text and ``begin`` for text, and a marker that has to come costs nothing.

    Shapes: a batch's ``x`` is int64 ``[B, 2, T]``: ids, and labels with -100 where nothing is
    learned. Rows are padded on the right.

    Args:
        vocabulary: of text and image.
        features: ``[text_size, F]`` of numbers among the text; see :class:`SharedTable`.
        num_layers: blocks; >= 1.
        dim: width; a multiple of ``num_heads``.
        num_heads: attention heads, of even width; >= 1.
        hidden_dim: width inside the SwiGLU network; >= 1.
        rope_theta: base of the rotary angles; > 1.
        text_weight: weight of a text label beside that of a code, >= 0. There are few of the
            first, and they hold what is asked.
        swap_prob: share of code inputs replaced by another row's code while training, in [0, 1);
            the model then forgives its own slips.
        is_tied: whether the head's rows are the embedding's.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> words = Vocabulary(codebook_sizes=(8,), grid=(2,), tokenizer_hash="", text_size=9)
        >>> model = Llama(words, features=torch.zeros(9, 3), num_layers=1, dim=8, num_heads=2,
        ...               hidden_dim=8)
        >>> model.logits(torch.tensor([[1, 2, words.begin]])).shape[:2]
        torch.Size([1, 3])
    """

    books: Int[Tensor, " C"]
    """The codebook that each code is of."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        features: Float[Tensor, "T F"] | None = None,
        num_layers: int = 5,
        dim: int = 192,
        num_heads: int = 6,
        hidden_dim: int = 512,
        rope_theta: float = 10_000.0,
        text_weight: float = 4.0,
        swap_prob: float = 0.0,
        is_tied: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 1 or num_heads < 1 or dim < 1 or hidden_dim < 1 or dim % num_heads:
            raise ValueError(
                f"num_layers={num_layers}, dim={dim}, num_heads={num_heads}, hidden_dim="
                f"{hidden_dim}: all are >= 1 and dim is a multiple of num_heads"
            )
        if dim // num_heads % 2:
            raise ValueError(f"dim={dim}: a head's width, {dim // num_heads}, must be even")
        if rope_theta <= 1 or text_weight < 0 or not 0 <= swap_prob < 1:
            raise ValueError(
                f"rope_theta={rope_theta}, text_weight={text_weight}, swap_prob={swap_prob}:"
                " must be > 1, >= 0 and in [0, 1)"
            )
        self.vocabulary = vocabulary
        self.dim, self.num_layers, self.num_heads = dim, num_layers, num_heads
        self.hidden_dim, self.rope_theta = hidden_dim, rope_theta
        self.text_weight, self.swap_prob, self.is_tied = text_weight, swap_prob, is_tied
        embedding = SharedTable(vocabulary, dim=dim, features=features)
        self.embedding: Table = embedding
        self.head: Table = embedding
        if not is_tied:
            self.head = SharedTable(vocabulary, dim=dim, features=features, has_blocks=False)
        self.layers = nn.ModuleList(
            LlamaBlock(dim=dim, num_heads=num_heads, hidden_dim=hidden_dim)
            for _ in range(num_layers)
        )
        sizes = torch.tensor(vocabulary.codebook_sizes)
        books = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        self.register_buffer("books", books, persistent=False)
        self._init_weights()
        first = self.layers[0]
        assert isinstance(first, LlamaBlock)
        start_to_look(embedding, first)

    def _init_weights(self) -> None:
        for name, parameter in self.layers.named_parameters():
            nn.init.normal_(parameter, std=0.5 / math.sqrt(parameter.shape[1]))
            if name.endswith(("attention_out.weight", "down.weight")):
                parameter.data.div_(math.sqrt(2 * self.num_layers))

    def hidden(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """Return what the head reads: the normed residual stream after the last block."""
        x = self.embedding(ids)
        if torch.is_autocast_enabled(x.device.type):
            # The residual stream in the low type too: a third of the time on a CPU is its traffic.
            x = x.to(torch.get_autocast_dtype(x.device.type))
        length = ids.shape[1]
        mask = causal_mask(length, device=x.device, dtype=x.dtype)
        angles = rotation(
            0,
            length,
            head_dim=self.dim // self.num_heads,
            theta=self.rope_theta,
            device=x.device,
            dtype=x.dtype,
        )
        for layer in self.layers:
            x = layer(x, angles, mask)
        return rms_norm(x)

    def logits(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Return the logits of every id after each position, as the exported model does."""
        return F.linear(self.hidden(ids), self.head.rows())

    def forward(self, batch: Batch) -> Loss:
        """Return the objective: nats of the labels, those of text weighted while training."""
        head = self.head
        if not isinstance(head, SharedTable):
            raise ValueError("model: was exported, so its codes are rows of their own; train a run")
        ids, labels = batch.x[:, 0], batch.x[:, 1]
        inputs = self._swap(ids) if self.training and self.swap_prob else ids
        hidden, targets = self.hidden(inputs[:, :-1]), labels[:, 1:]
        words = self.vocabulary
        at = targets - words.code_first
        is_code = (at >= 0) & (at < words.repeat * words.num_codes)
        index = word_index(targets, words)
        is_text = (targets != IGNORED) & ~is_code & (index <= words.text_size)
        # A block's own row moves all logits of the block alike, so it cancels.
        groups = self.books if len(words.codebook_sizes) > 1 else None
        code_nll = _nll(hidden, is_code, at % words.num_codes, head.codes, groups)
        text_nll = _nll(hidden, is_text, index, head.words()[: words.text_size + 1])
        penalty = (self.text_weight - 1) * text_nll if self.training else torch.zeros_like(text_nll)
        nll = code_nll + text_nll
        num_codes, num_text = is_code.sum().clamp(min=1), is_text.sum().clamp(min=1)
        metrics = {
            "nats_per_code": code_nll.detach().sum() / num_codes,
            "nats_per_word": text_nll.detach().sum() / num_text,
        }
        total = (nll + penalty).mean()
        zero = torch.zeros_like(nll.detach())
        return Loss(total=total, nll=nll, rate=zero, penalty=penalty, metrics=metrics)

    def _swap(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Replace some codes by what another row has there, where that is of the same codebook."""
        words = self.vocabulary
        at, other = ids - words.code_first, ids.roll(1, dims=0) - words.code_first
        limit = words.repeat * words.num_codes
        both = (at >= 0) & (at < limit) & (other >= 0) & (other < limit)
        mine, theirs = at % words.num_codes, other % words.num_codes
        both &= self.books[mine] == self.books[theirs]
        chosen = both & (torch.rand(ids.shape, device=ids.device) < self.swap_prob)
        return torch.where(chosen, ids - mine + theirs, ids)

    def after_step(self) -> None:
        """Do nothing: no state changes outside the optimizer."""

    def discard_step(self) -> None:
        """Do nothing: there is nothing that was counted."""

    def config(self) -> dict[str, Any]:
        """Return the stock config of the exported model, less its special ids."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary.size,
            "hidden_size": self.dim,
            "intermediate_size": self.hidden_dim,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "head_dim": self.dim // self.num_heads,
            "hidden_act": "silu",
            "rms_norm_eps": EPS,
            "rope_theta": self.rope_theta,
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": self.is_tied,
        }


def _nll(
    hidden: Float[Tensor, "B T D"],
    chosen: Bool[Tensor, "B T"],
    targets: Int[Tensor, "B T"],
    rows: Float[Tensor, "C D"],
    groups: Int[Tensor, " C"] | None = None,
) -> Float[Tensor, " B"]:
    """Sum the nats of the chosen positions' targets over each row of the batch.

    A target competes with the rows of its own group only.
    """
    # One flat index: the gradient of a lookup by two indices takes much longer.
    flat = chosen.flatten().nonzero()[:, 0]
    logits = F.linear(hidden.flatten(0, 1).index_select(0, flat), rows).float()
    wanted = targets.flatten()[flat]
    if groups is not None:
        logits = logits.masked_fill(groups != groups[wanted, None], -torch.inf)
    nll = F.cross_entropy(logits, wanted, reduction="none")
    samples = flat.div(chosen.shape[1], rounding_mode="floor")
    return nll.new_zeros(len(hidden)).index_add(0, samples, nll)
