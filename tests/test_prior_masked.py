"""The masked prior: its rounds, its loss, and in-painting that sees what comes later."""

import math

import pytest
import torch

from qvae.priors.masked import Masked, uncovered_after
from qvae.types import Batch, Condition

LABEL = Condition(name="label", kind="category", categories=("a", "b"))


def make(**arguments):
    torch.manual_seed(0)
    settings = {"num_layers": 1, "dim": 16, "num_heads": 2, "num_steps": 4, **arguments}
    return Masked(**{"vocab_size": 5, "num_tokens": 12, **settings}).eval()


def test_rounds_uncover_few_tokens_at_first_and_all_in_the_end():
    for num_tokens, num_steps in [(64, 8), (5, 5), (12, 1), (49, 12), (2, 2)]:
        counts = uncovered_after(num_tokens, num_steps)
        steps = [b - a for a, b in zip([0, *counts], counts, strict=False)]
        assert counts[-1] == num_tokens and min(steps) >= 1 and len(counts) == num_steps
    assert uncovered_after(64, 8)[0] < 64 / 8 < 64 - uncovered_after(64, 8)[-2]


@pytest.mark.parametrize("uncover", ["confidence", "order"])
def test_as_many_tokens_are_uncovered_as_the_rounds_say(uncover):
    prior = make(uncover=uncover)
    hidden = []

    def count(tokens, is_known, cond):
        hidden.append(int((~is_known.expand_as(tokens)).sum(1)[0]))
        return Masked.logits(prior, tokens, is_known, cond)

    prior.logits = count
    prior.sample(3)
    assert [12 - h for h in hidden] == [0, *uncovered_after(12, 4)[:-1]]


@torch.no_grad()
def test_the_network_sees_known_tokens_on_both_sides_and_no_hidden_one():
    prior = make()
    tokens = torch.randint(5, (1, 12))
    cond = torch.zeros(1, 0)
    is_known = torch.arange(12)[None] != 5
    before = prior.logits(tokens, is_known, cond)[0, 5]
    for n in range(12):
        other = tokens.clone()
        other[0, n] = (tokens[0, n] + 1) % 5
        assert torch.equal(prior.logits(other, is_known, cond)[0, 5], before) == (n == 5)


def test_the_training_loss_is_that_of_hidden_tokens_times_n_over_their_number():
    prior = make(null_prob=0.0)
    tokens = torch.randint(5, (64, 12))
    torch.manual_seed(3)
    loss = prior.train()(Batch(x=tokens))
    torch.manual_seed(3)
    share = torch.cos(math.pi / 2 * torch.rand(64, 1))
    num = (share * 12).ceil().clamp(1, 12)
    is_hidden = torch.rand(64, 12).argsort(1).argsort(1) < num
    log_probs = prior.logits(tokens, ~is_hidden, torch.zeros(64, 0)).log_softmax(-1)
    picked = log_probs.gather(-1, tokens[..., None])[..., 0]
    expected = -torch.where(is_hidden, picked, 0.0).sum(1) * 12 / num[:, 0]
    torch.testing.assert_close(loss.nll, expected)


def test_it_learns_and_in_paints_from_what_comes_later():
    """All tokens of a sample are equal: one known token, the last, tells all the others."""
    torch.manual_seed(0)
    prior = make(dim=32, num_heads=4, conditions=(LABEL,)).train()
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2)
    for _ in range(120):
        token = torch.randint(5, (32, 1))
        optimizer.zero_grad()
        prior(Batch(x=token.expand(-1, 12), cond=torch.zeros(32, 1))).total.backward()
        optimizer.step()
    prior.eval()
    drawn = prior.sample(40, seed=1)
    assert (drawn == drawn[:, :1]).float().mean() > 0.9 and len(drawn[:, 0].unique()) >= 3
    keep = torch.arange(12) == 11
    painted = prior.sample(4, known=torch.full((12,), 3), keep=keep)
    assert (painted == 3).float().mean() > 0.95


@pytest.mark.parametrize(
    "arguments",
    [{"num_steps": 0}, {"num_steps": 13}, {"dim": 15}, {"dropout": 1.0}, {"null_prob": 2.0}],
    ids=str,
)
def test_a_value_out_of_range_is_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=name):
        make(**arguments)
