"""Read a short sentence into a vector: its words one after the other, by a small recurrent net."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["TextReader"]


class TextReader(nn.Module):
    """Turn the word numbers of a ``text`` condition into a vector in which their order counts.

    "Learning Phrase Representations using RNN Encoder-Decoder", arXiv 1406.1078, section 2.3: one
    layer of gated recurrent units over learned word vectors, and what it holds after the last
    word. What follows the last word is not seen. An unknown word has a vector of zeros, always:
    it takes its place in the sentence and says nothing.

    Shapes: numbers [B W] as in :class:`~qvae.types.Condition` -> [B dim].

    Args:
        num_words: words that are known, >= 1.
        dim: width of a word's vector and of what is returned, >= 1.

    Example:
        >>> read = TextReader(num_words=3, dim=8)
        >>> read(torch.tensor([[2.0, 4.0, 0.0], [4.0, 2.0, 1.0]])).shape
        torch.Size([2, 8])
    """

    def __init__(self, *, num_words: int, dim: int) -> None:
        super().__init__()
        self.dim, self.num_words = dim, num_words
        self.embed = nn.Embedding(num_words + 2, dim, padding_idx=1)
        self.gru = nn.GRU(dim, dim, batch_first=True)

    def forward(self, numbers: Float[Tensor, "B W"]) -> Float[Tensor, "B dim"]:
        """Read each row up to its first 0, in float32 under any autocast.

        Raises:
            ValueError: a number that stands for no word.
        """
        words = numbers.long()
        if not torch.compiler.is_compiling():
            wrong = numbers[(words != numbers) | (words < 0) | (words >= self.num_words + 2)]
            if len(wrong):
                raise ValueError(f"{wrong[0].item():g} is none of 0..{self.num_words + 1}")
        if len(words) == 0:
            return numbers.new_zeros(0, self.dim)
        with torch.autocast(words.device.type, enabled=False):
            states, _ = self.gru(self.embed(words))
        last = (words > 0).cumprod(1).sum(1).clamp(min=1) - 1
        return states[torch.arange(len(words), device=words.device), last]
