"""The rows of a language model's embedding and head, made of fewer numbers while it learns.

A stock model holds one free row an id. Here three kinds of row are sums that training shares, and
that :meth:`SharedTable.rows` writes out, so that the exported model is a stock one to the bit:

- text and markers: a free row each;
- text with *features* (a number, say): a learned linear map of them, so that numbers which were
  rare or never seen lie where their neighbours say;
- codes: a row for the code plus, where codes have several blocks of ids, one for the block.
"""

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from qvae.llm.vocabulary import Vocabulary

__all__ = ["FreeTable", "SharedTable", "Table", "word_index"]


class Table(nn.Module, ABC):
    """Rows ``[V, D]``, one an id: of an embedding or of a head."""

    @abstractmethod
    def rows(self) -> Float[Tensor, "V D"]:
        """Return a row for every id, in the order of the ids."""

    @abstractmethod
    def forward(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """Look rows up."""


class FreeTable(Table):
    """A table whose rows are all written out: what an exported model holds.

    Args:
        weight: ``[V, D]``.
    """

    def __init__(self, weight: Float[Tensor, "V D"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def rows(self) -> Float[Tensor, "V D"]:
        """Return the rows."""
        return self.weight

    def forward(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """Look rows up."""
        return F.embedding(ids, self.weight)


class SharedTable(Table):
    """Rows that share what they can: the table of a model that learns.

    Args:
        vocabulary: whose ids.
        dim: D.
        features: ``[text_size, F]`` fixed features of text ids; zero rows have a free row.
            None gives all a free row.
        has_blocks: whether the blocks of the codes have rows of their own. In a head they would
            move all logits of a block alike, which changes nothing.
        std: of the first values.
    """

    features: Float[Tensor, "T F"]
    is_free: Float[Tensor, "T 1"]

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        dim: int,
        features: Float[Tensor, "T F"] | None = None,
        has_blocks: bool = True,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        if features is None:
            features = torch.zeros(vocabulary.text_size, 0)
        if features.ndim != 2 or len(features) != vocabulary.text_size:
            raise ValueError(
                f"features: shape {tuple(features.shape)}, needs ({vocabulary.text_size}, F)"
            )
        num_markers = vocabulary.code_first - vocabulary.first
        has_features = features.abs().sum(1, keepdim=True) > 0
        self.register_buffer("features", features.float())
        self.register_buffer("is_free", (~has_features).float(), persistent=False)
        self.text = nn.Parameter(torch.randn(vocabulary.text_size, dim) * std)
        self.markers = nn.Parameter(torch.randn(num_markers, dim) * std)
        self.feature_map = nn.Parameter(torch.randn(features.shape[1], dim) * std)
        self.codes = nn.Parameter(torch.randn(vocabulary.num_codes, dim) * std)
        self.blocks: nn.Parameter | None = None
        if has_blocks and vocabulary.repeat > 1:
            self.blocks = nn.Parameter(torch.randn(vocabulary.repeat, dim) * std)
        for parameter in self.parameters():
            parameter.use_weight_decay = False  # type: ignore[attr-defined]

    def words(self) -> Float[Tensor, "W D"]:
        """Return the rows of the text, then those of the markers."""
        text = self.text * self.is_free + self.features @ self.feature_map
        return torch.cat([text, self.markers])

    def rows(self) -> Float[Tensor, "V D"]:
        """Return a row for every id, in the order of the ids."""
        words, num_text = self.words(), self.vocabulary.text_size
        text, markers = words[:num_text], words[num_text:]
        codes = self.codes.expand(self.vocabulary.repeat, -1, -1)
        if self.blocks is not None:
            codes = codes + self.blocks[:, None]
        image = [markers, codes.flatten(0, 1)]
        return torch.cat([text, *image] if self.vocabulary.is_text_first else [*image, text])

    def forward(self, ids: Int[Tensor, "..."]) -> Float[Tensor, "... D"]:
        """Look rows up without writing the table out."""
        vocabulary = self.vocabulary
        at = ids - vocabulary.code_first
        is_code = (at >= 0) & (at < vocabulary.repeat * vocabulary.num_codes)
        at = at * is_code
        code = F.embedding(at % vocabulary.num_codes, self.codes)
        if self.blocks is not None:
            code = code + F.embedding(at // vocabulary.num_codes, self.blocks)
        word = F.embedding(word_index(ids, vocabulary) * ~is_code, self.words())
        return torch.where(is_code.unsqueeze(-1), code, word)


def word_index(ids: Int[Tensor, "..."], vocabulary: Vocabulary) -> Int[Tensor, "..."]:
    """Count text ids from 0 and markers after them: the order of :meth:`SharedTable.words`."""
    text = ids - vocabulary.text_first
    marker = ids - vocabulary.first + vocabulary.text_size
    is_text = (text >= 0) & (text < vocabulary.text_size)
    return torch.where(is_text, text, marker)
