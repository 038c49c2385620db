"""PixelCNN: what a cell may see, and that cached sampling is the full pass."""

import math

import pytest
import torch

from qvae.priors.pixelcnn import PixelCNN
from qvae.types import Batch, Condition

TIME = Condition(name="time", kind="cyclic", period=12.0, unit="h")
COND = torch.tensor([[4.33], [math.nan], [11.9]])
CASES = [((7,), (5, 6)), ((5, 3), (4, 3)), ((4,), (9,)), ((4,), (2, 3, 4))]


def make(sizes=(7,), grid=(5, 6), **arguments):
    torch.manual_seed(0)
    prior = PixelCNN(
        vocab_size=sum(sizes),
        num_tokens=math.prod(grid) * len(sizes),
        codebook_sizes=sizes,
        grid=grid,
        conditions=(TIME,),
        **{"num_layers": 3, "dim": 8, "kernel": 3, **arguments},
    ).eval()
    for parameter in prior.parameters():
        parameter.data.mul_(2)
    return prior


@pytest.mark.parametrize(("sizes", "grid"), CASES, ids=str)
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@torch.no_grad()
def test_cached_sampling_equals_the_full_pass(sizes, grid, kernel, guidance):
    prior = make(sizes, grid, kernel=kernel)
    tokens = prior.sample(3, COND, seed=1)
    seen = []

    def choose(logits, n):
        seen.append(logits.clone())
        return tokens[:, n] - prior.low[n]

    digits = prior.walk(COND, choose, guidance=guidance)
    assert torch.equal(digits + prior.low, tokens)
    told, null = prior.logits(tokens, COND), prior.logits(tokens, torch.full_like(COND, math.nan))
    expected = torch.where(told == -math.inf, told, null + guidance * (told - null))
    torch.testing.assert_close(torch.stack(seen, 1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("sizes", "grid"), CASES, ids=str)
@torch.no_grad()
def test_a_token_sees_only_those_before_it_and_there_is_no_blind_spot(sizes, grid):
    prior = make(sizes, grid, num_layers=6, kernel=5)
    tokens = prior.sample(1, COND[:1], seed=1)
    before = prior.logits(tokens, COND[:1])[0]
    reaches_end = []
    for n in range(prior.num_tokens):
        other = tokens.clone()
        size = prior.high[n] - prior.low[n]
        other[0, n] = prior.low[n] + (tokens[0, n] - prior.low[n] + 1) % size
        changed = (prior.logits(other, COND[:1])[0] != before).any(-1)
        assert not changed[: n + 1].any()
        reaches_end.append(bool(changed[-1]))
    if math.prod(grid) <= 30 and len(grid) < 3:  # six layers of kernel 5 reach all of these
        assert all(reaches_end[:-1])


def test_it_learns_a_deterministic_pattern():
    """A cell is the sum of its upper and left neighbours mod 3; the first row and column are 1."""
    torch.manual_seed(0)
    prior = PixelCNN(vocab_size=3, num_tokens=16, grid=(4, 4), num_layers=2, dim=24, kernel=3)
    pattern = torch.ones(4, 4, dtype=torch.long)
    for r in range(1, 4):
        for c in range(1, 4):
            pattern[r, c] = (pattern[r - 1, c] + pattern[r, c - 1]) % 3
    batch = Batch(x=pattern.view(1, 16).expand(8, -1))
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        prior(batch).total.backward()
        optimizer.step()
    assert torch.equal(prior.eval().sample(3), batch.x[:3])


@pytest.mark.parametrize("arguments", [{"kernel": 4}, {"num_layers": 0}, {"null_prob": 2.0}])
def test_a_value_out_of_range_is_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=name):
        make(**arguments)
