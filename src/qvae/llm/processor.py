"""A logits processor for ``generate()`` that only lets grammatical image spans through."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from qvae.errors import FormatError
from qvae.llm.grammar import Grammar
from qvae.llm.vocabulary import Vocabulary

__all__ = ["GrammarProcessor"]


class GrammarProcessor:
    """Mask what the grammar forbids, for ``model.generate(logits_processor=[...])``.

    Every row of a batch is at its own place, found from its ids alone, so rows may be left-padded
    and beams may be reordered. A row that is one id longer than a row of the call before was
    generated; every other one is a prompt, and is checked. In text, text and ``begin`` pass; a
    prompt that ends with ``begin`` asks for an image. Give ``max_new_tokens`` room for the whole
    span.

    Args:
        vocabulary: of the model.

    Raises:
        FormatError: a prompt breaks the grammar, or the model scores fewer ids than there are.

    Example:
        >>> words = Vocabulary(codebook_sizes=(2,), grid=(2,), tokenizer_hash="", text_size=2)
        >>> process = GrammarProcessor(words)
        >>> process(torch.tensor([[0, 2]]), torch.zeros(1, 6)).isfinite().nonzero()[:, 1].tolist()
        [4, 5]
    """

    supports_continuous_batching = False
    """It looks at whole rows."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._grammar = Grammar(vocabulary)
        self._seen: frozenset[bytes] = frozenset()

    def __call__(
        self, input_ids: Int[Tensor, "B T"], scores: Float[Tensor, "B V"]
    ) -> Float[Tensor, "B V"]:
        """Return the scores with -inf wherever the grammar forbids an id."""
        num_ids, size = scores.shape[-1], self._grammar.vocabulary.size
        if num_ids < size:
            raise FormatError(
                f"scores of {num_ids} ids: the vocabulary has {size}; the model must be extended"
            )
        rows = input_ids.cpu().numpy()
        for row in rows:
            # What is generated is right, or a beam that has no chance left: it is not checked.
            if row[:-1].tobytes() not in self._seen:
                list(self._grammar.spans(row, may_go_on=True))
        self._seen = frozenset(row.tobytes() for row in rows)
        allowed = self._grammar.allowed(self._grammar.places(input_ids), num_ids)
        return scores.masked_fill(~allowed, -torch.inf)
