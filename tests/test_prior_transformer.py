"""The transformer: cached decoding equals the full pass, it learns, and its options do."""

import math

import numpy as np
import pytest
import torch

from qvae.priors.decoding import Decoder
from qvae.priors.hf import to_gpt2
from qvae.priors.order import schedule
from qvae.priors.rope import rope_table, rotate
from qvae.priors.transformer import Transformer
from qvae.types import Batch, Condition

TIME = Condition(name="time", kind="cyclic", period=12.0, unit="h")
COND = torch.tensor([[4.33], [math.nan], [11.9]])
SIZES = [(7,), (5, 3), (4, 4, 4)]


def make(sizes=(7,), num_tokens=12, **arguments):
    arguments = {"num_layers": 2, "dim": 16, "num_heads": 2, "conditions": (TIME,), **arguments}
    prior = Transformer(
        vocab_size=sum(sizes), num_tokens=num_tokens, codebook_sizes=sizes, **arguments
    ).eval()
    for name, parameter in prior.named_parameters():
        if "norm" not in name:
            parameter.data.mul_(3)
    return prior


def forced(prior, tokens, cond, guidance=1.0):
    """Run the cached decoder along given tokens and return the logits of every step."""
    seen = []

    def choose(logits, n):
        seen.append(logits.clone())
        return tokens[:, n] - prior.low[n]

    digits = Decoder(prior).run(cond, choose, guidance=guidance)
    assert torch.equal(digits + prior.low, tokens)
    return torch.stack(seen, 1)


@pytest.mark.parametrize("cond_table", [True, False])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@torch.no_grad()
def test_cached_decoding_equals_the_full_pass(sizes, cond_table):
    prior = make(sizes, num_tokens=36, cond_table=cond_table)  # more than one block of the cache
    tokens = prior.sample(3, COND, seed=1)
    torch.testing.assert_close(
        forced(prior, tokens, COND), prior.logits(tokens, COND), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_guidance_is_a_line_through_told_and_null():
    prior = make((5, 3), num_tokens=36)
    tokens = prior.sample(3, COND, seed=1)
    told, null = prior.logits(tokens, COND), prior.logits(tokens, torch.full_like(COND, math.nan))
    expected = torch.where(told == -math.inf, told, null + 2.5 * (told - null))
    found = forced(prior, tokens, COND, guidance=2.5)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_guidance_of_one_is_plain_and_zero_is_unconditional():
    prior = make((5, 3))
    plain = prior.sample(3, COND)
    assert torch.equal(prior.sample(3, COND, guidance=1.0), plain)
    assert not torch.equal(prior.sample(3, COND, guidance=4.0), plain)
    assert torch.equal(prior.sample(3, COND, guidance=0.0), prior.sample(3))


def test_many_samples_are_decoded_in_chunks():
    prior = make()
    many = prior.sample(300, seed=4)
    assert torch.equal(many[:5], prior.sample(5, seed=4))
    assert torch.equal(many[290:], prior.sample(300, torch.full((300, 1), math.nan), seed=4)[290:])


@torch.no_grad()
def test_the_past_does_not_see_the_future():
    prior = make((5, 3))
    tokens = prior.sample(2, COND[:2])
    other = tokens.clone()
    other[:, 6] = (tokens[:, 6] + 1) % 5
    before, after = prior.logits(tokens, COND[:2]), prior.logits(other, COND[:2])
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


def test_the_condition_reaches_every_position_through_the_table():
    prior = make()
    loss = prior(Batch(x=prior.sample(3), cond=COND)).total
    loss.backward()
    assert (prior.cond_table.grad.abs().sum((0, 2)) > 0).all()
    assert all(parameter.grad is not None for parameter in prior.parameters())
    shape = (prior.conditioner.feature_dim, prior.num_tokens, prior.dim)
    assert prior.cond_table.shape == shape and make(cond_table=False).cond_table is None


def test_autocast_computes_in_its_type_and_scores_in_float32():
    prior = make((5, 3))
    tokens = prior.sample(3, COND)
    with torch.autocast("cpu", torch.bfloat16):
        loss = prior(Batch(x=tokens, cond=COND))
        assert Decoder(prior).dtype == torch.bfloat16
        drawn = prior.sample(3, COND)
        prior.nll(drawn, COND)
    assert loss.nll.dtype == torch.float32 and Decoder(prior).dtype == torch.float32
    torch.testing.assert_close(loss.nll, prior.nll(tokens, COND), rtol=0.05, atol=0.5)


def test_training_noise_is_off_in_eval_and_follows_the_global_seed():
    prior = make(null_prob=0.5, swap_prob=0.5)
    batch = Batch(x=prior.sample(3, seed=[1, 2, 3]), cond=COND)
    assert torch.equal(prior(batch).nll, prior(batch).nll)
    prior.train()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(prior(batch).nll)
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_null_prob_hides_the_condition_and_swap_prob_only_the_inputs():
    prior = make(null_prob=1.0).train()
    tokens = prior.sample(3)
    torch.testing.assert_close(prior(Batch(x=tokens, cond=COND)).nll, prior.nll(tokens))
    swapping = make(swap_prob=0.999, null_prob=0.0).train()
    same = tokens[:1].expand(3, -1)
    torch.testing.assert_close(  # another row's tokens are the same: nothing changes
        swapping(Batch(x=same, cond=COND)).nll, swapping.nll(same, COND)
    )
    assert not torch.equal(swapping(Batch(x=tokens, cond=COND)).nll, swapping.nll(tokens, COND))


def test_dropout_is_off_in_eval():
    prior = make(dropout=0.5)
    tokens = prior.sample(3)
    assert torch.equal(prior.nll(tokens), prior.nll(tokens))
    assert not torch.equal(prior.train().nll(tokens), prior.nll(tokens))


@pytest.mark.parametrize(
    "arguments",
    [
        {"dim": 15},
        {"num_layers": 0},
        {"num_heads": 0},
        {"dropout": 1.0},
        {"null_prob": -0.1},
        {"swap_prob": 1.0},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=name):
        make(**arguments)


def train(prior, batch, steps):
    optimizer = torch.optim.AdamW(prior.parameters(), lr=1e-2, weight_decay=0)
    prior.train()
    for _ in range(steps):
        loss = prior(batch())
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    return float(loss.metrics["nats_per_token"])


def test_it_learns_a_deterministic_chain_and_draws_it():
    """Token n + 1 = (3 token n + 1) mod 7: only the first is unknown, ln 7 / 12 = .162 a token."""
    prior = Transformer(vocab_size=7, num_tokens=12, num_layers=1, dim=32, num_heads=4)

    def chain():
        tokens = torch.randint(7, (32, 1))
        for _ in range(11):
            tokens = torch.cat([tokens, (3 * tokens[:, -1:] + 1) % 7], 1)
        return Batch(x=tokens)

    assert train(prior, chain, 150) < 0.2
    drawn = prior.eval().sample(50)
    assert ((3 * drawn[:, :-1] + 1) % 7 == drawn[:, 1:]).float().mean() > 0.99
    assert len(drawn[:, 0].unique()) == 7


def test_it_learns_what_the_condition_says():
    """Token n is the hour + n mod 12: with the condition all is known, without it ln 12."""
    prior = Transformer(
        vocab_size=12, num_tokens=6, num_layers=1, dim=32, num_heads=4, conditions=(TIME,)
    )

    def clock():
        hours = torch.randint(12, (64, 1))
        return Batch(x=(hours + torch.arange(6)) % 12, cond=hours.float())

    train(prior, clock, 150)
    hours = torch.arange(12.0)[:, None]
    expected = (hours.long() + torch.arange(6)) % 12
    assert (prior.eval().sample(12, hours) == expected).float().mean() > 0.95
    with torch.no_grad():
        null, told = prior.nll(expected).mean(), prior.nll(expected, hours).mean()
    assert abs(float(null) - math.log(12)) < 0.8 and float(told) < 0.6


# -- orders, patterns, rotary positions ---------------------------------------------------------

WAYS = [
    {"order": "spiral"},
    {"order": "multiscale"},
    {"pattern": "delayed"},
    {"pattern": "parallel"},
    {"pattern": "delayed", "order": "spiral", "rope": True},
    {"rope": True},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
@torch.no_grad()
def test_cached_decoding_equals_the_full_pass_in_any_order(way, guidance):
    prior = make((5, 3), num_tokens=40, grid=(4, 5), **way)
    tokens = prior.sample(3, COND, seed=1)
    seen = {}

    def choose(logits, n):
        seen[n] = logits.clone()
        return tokens[:, n] - prior.low[n]

    Decoder(prior).run(COND, choose, guidance=guidance)
    told, null = prior.logits(tokens, COND), prior.logits(tokens, torch.full_like(COND, math.nan))
    expected = torch.where(told == -math.inf, told, null + guidance * (told - null))
    found = torch.stack([seen[n] for n in range(40)], 1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("way", WAYS, ids=str)
@torch.no_grad()
def test_a_token_sees_what_earlier_steps_decided_and_nothing_else(way):
    prior = make((5, 3), num_tokens=24, grid=(3, 4), **way)
    tokens = prior.sample(1, COND[:1])
    before = prior.logits(tokens, COND[:1])[0]
    for n in range(prior.num_tokens):
        other = tokens.clone()
        other[0, n] = prior.low[n] + (tokens[0, n] - prior.low[n] + 1) % (prior.high - prior.low)[n]
        changed = (prior.logits(other, COND[:1])[0] != before).any(-1)
        is_later = prior.step_of > prior.step_of[n]
        assert not changed[~is_later].any() and bool(changed.any()) == bool(is_later.any())


def test_schedules_decide_every_position_once():
    for order in ("raster", "spiral", "multiscale"):
        for pattern in ("flat", "delayed", "parallel"):
            for grid in [(1,), (4, 3), (2, 3, 2), (8, 8)]:
                table = schedule(grid, 3, order=order, pattern=pattern)
                found = sorted(table[table >= 0].tolist())
                assert found == list(range(3 * math.prod(grid)))
    assert schedule((3,), 2, order="multiscale").ravel().tolist() == [0, 4, 2, 1, 5, 3]
    assert schedule((2,), 2, pattern="parallel").tolist() == [[0, 1], [2, 3]]


def test_rotary_scores_depend_on_the_distance_of_cells_alone():
    table = rope_table((4, 6), np.arange(24), 8)
    q, k = torch.randn(2, 1, 1, 8).expand(2, 1, 24, 8)
    turned = rotate(torch.stack([q, k]), table)
    scores = turned[0] @ turned[1].transpose(1, 2)
    # Step t reads cell t - 1: from cell (2, 3) to (1, 1) as from (3, 5) to (2, 3).
    assert float(scores[0, 15, 8]) == pytest.approx(float(scores[0, 23, 16]), abs=1e-5)
    assert float(scores[0, 15, 8]) != pytest.approx(float(scores[0, 15, 9]), abs=1e-5)
    with pytest.raises(ValueError, match="even width"):
        rope_table((4,), np.arange(4), 3)


@torch.no_grad()
def test_it_is_a_stock_gpt2_of_transformers():
    prior = make((11,), num_tokens=24, conditions=()).eval()
    model = to_gpt2(prior)
    tokens = prior.sample(2, seed=1)
    words = torch.cat([torch.full((2, 1), 11), tokens], 1)
    ours = prior.logits(tokens, torch.zeros(2, 0))
    theirs = model(words[:, :-1]).logits[..., :11]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    start = words[:1, :1]
    drawn = model.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=24, do_sample=False
    )
    assert torch.equal(drawn[:, 1:], prior.sample(1, temperature=0.0))
    with pytest.raises(ValueError, match="GPT-2 has no conditions"):
        to_gpt2(make())
