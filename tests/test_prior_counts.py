"""The two priors that only count: uniform and unigram."""

import math

import pytest
import torch

from prior_work import make
from qvae.data.base import Split
from qvae.priors.unigram import fit_unigram
from qvae.types import Batch


def test_uniform_is_n_ln_v():
    nll = make({"name": "uniform"}, sizes=(5, 3)).nll(torch.tensor([[0, 5] * 6]))
    assert float(nll) == pytest.approx(6 * math.log(5) + 6 * math.log(3))


class Tokens(Split):
    def __init__(self, tokens):
        self.tokens = tokens

    def __len__(self):
        return len(self.tokens)

    def batch(self, indices):
        return Batch(x=self.tokens[torch.from_numpy(indices)])


def test_unigram_counts():
    tokens = torch.tensor([[0, 4, 0, 5], [1, 4, 0, 5], [1, 4, 0, 5]])
    prior = fit_unigram(Tokens(tokens), codebook_sizes=(4, 3), num_tokens=4, smoothing=2.0)
    assert prior.config["name"] == "unigram"
    table = prior.table().exp()
    shared = torch.tensor([5.0, 3.0, 1.0, 1.0]) / 10  # 4 + 1, 2 + 1 and two never seen, add-one
    expected = (torch.tensor([1.0, 2.0, 0.0, 0.0]) + 2 * shared) / (3 + 2)
    torch.testing.assert_close(table[0], expected)
    other = fit_unigram(Tokens(tokens), codebook_sizes=(4, 3), num_tokens=4, is_per_position=False)
    torch.testing.assert_close(other.table().exp()[2], shared)
    with pytest.raises(ValueError, match="smoothing=0"):
        make({"name": "unigram", "smoothing": 0.0})
    with pytest.raises(ValueError, match="token 6 at position 0"):
        prior.count(torch.tensor([[6, 4, 0, 5]]))


def test_an_unfitted_unigram_is_uniform():
    tokens = torch.tensor([[0, 5] * 6])
    uniform, unigram = make({"name": "uniform"}), make({"name": "unigram"})
    torch.testing.assert_close(uniform.nll(tokens), unigram.nll(tokens))
