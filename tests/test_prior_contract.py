"""What every prior promises: ranges, streams of random numbers, the loss, and its errors."""

import itertools
import math

import numpy as np
import pytest
import torch

from prior_work import (
    COND,
    MASKED,
    PRIORS,
    SIZES,
    TINY,
    case_name,
    make,
    random_tokens,
)
from qvae.errors import UsageError
from qvae.pretrained import load_model, save_model
from qvae.priors.base import build_prior, to_digits, token_ranges
from qvae.priors.uniform import Uniform
from qvae.registry import names
from qvae.types import Batch


@pytest.fixture(params=PRIORS, ids=case_name)
def config(request):
    return request.param


@pytest.fixture(params=SIZES, ids=str)
def prior(request, config):
    prior = make(config, request.param)
    if config["name"] == "unigram":
        prior.count(random_tokens(prior, 50))
    return prior


def test_samples_are_tokens_of_their_positions(prior):
    tokens = prior.sample(100, seed=1)
    assert tokens.shape == (100, prior.num_tokens) and tokens.dtype == torch.int64
    assert ((tokens >= prior.low) & (tokens < prior.high)).all()
    assert not tokens.is_inference()


def test_log_probs_are_a_distribution_over_the_position_s_codebook(prior):
    log_probs = prior.log_probs(random_tokens(prior, 3), COND)
    assert log_probs.shape == (3, prior.num_tokens, max(prior.codebook_sizes))
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(3, prior.num_tokens))
    digits = torch.arange(max(prior.codebook_sizes))
    is_short = digits >= (prior.high - prior.low)[:, None]
    assert (log_probs[:, is_short] == -math.inf).all()
    assert torch.isfinite(log_probs[:, ~is_short]).all()


def test_nll_is_the_sum_of_log_probs(prior):
    tokens = random_tokens(prior, 3)
    log_probs = prior.log_probs(tokens, COND).detach()
    oracle = [
        -sum(float(log_probs[b, n, tokens[b, n] - prior.low[n]]) for n in range(prior.num_tokens))
        for b in range(3)
    ]
    torch.testing.assert_close(prior.nll(tokens, COND), torch.tensor(oracle))


def test_forward_is_the_mean_nll(prior):
    tokens = random_tokens(prior, 3)
    loss = prior(Batch(x=tokens, cond=COND))
    torch.testing.assert_close(loss.nll, prior.nll(tokens, COND))
    torch.testing.assert_close(loss.total, loss.nll.mean())
    assert loss.rate.tolist() == loss.penalty.tolist() == [0.0] * 3
    per_token = float(loss.nll.detach().mean()) / prior.num_tokens
    assert float(loss.metrics["nats_per_token"]) == pytest.approx(per_token)
    assert float(loss.metrics["bits_per_token"]) == pytest.approx(per_token / math.log(2))
    assert 0 <= float(loss.metrics["accuracy"]) <= 1
    assert not any(value.requires_grad for value in loss.metrics.values())


TINY_GRIDS = [((3,), 4, (2, 2)), ((2, 3), 4, (2,))]
"""Codebook sizes, tokens and grid for which every sequence can be listed."""


@pytest.mark.parametrize(("sizes", "num_tokens", "grid"), TINY_GRIDS, ids=str)
def test_nll_is_a_distribution_and_samples_follow_it(config, sizes, num_tokens, grid):
    """Sum over all sequences = 1; the frequencies of samples pass a chi-square test."""
    torch.manual_seed(1)
    prior = make(config, sizes, num_tokens, grid=grid)
    ranges = [range(low, high) for low, high in zip(prior.low, prior.high, strict=True)]
    every = torch.tensor(list(itertools.product(*ranges)))
    probs = prior.nll(every, COND[:1]).neg().exp().detach().double()
    assert float(probs.sum()) == pytest.approx(1, abs=1e-5)
    if by_confidence(prior):
        return  # which token is kept depends on what was drawn: its sampler has no formula
    num = 3000
    drawn = prior.sample(num, COND[0], seed=3)
    codes = (drawn[:, None] == every).all(-1).long().argmax(1)
    found = torch.bincount(codes, minlength=len(every)).double()
    is_common = probs * num >= 5
    chi2 = ((found - probs * num).square() / (probs * num))[is_common].sum()
    rare = found[~is_common].sum() - probs[~is_common].sum() * num
    degrees = int(is_common.sum())
    assert chi2 < degrees + 5 * math.sqrt(2 * degrees) and abs(rare) < 6 * math.sqrt(num * 0.05)


def by_confidence(prior):
    return getattr(prior, "uncover", "") == "confidence"


def test_what_is_kept_stays_and_the_rest_is_drawn(prior):
    known, keep = random_tokens(prior, 3), torch.rand(3, prior.num_tokens) < 0.5
    drawn = prior.sample(3, COND, seed=2, known=known, keep=keep)
    assert torch.equal(drawn[keep], known[keep])
    assert ((drawn >= prior.low) & (drawn < prior.high)).all()
    assert torch.equal(prior.sample(3, known=known, keep=torch.ones_like(keep)), known)
    nothing = torch.zeros_like(keep)
    if not by_confidence(prior):
        assert torch.equal(
            prior.sample(3, COND, seed=2, known=known, keep=nothing), prior.sample(3, COND, seed=2)
        )


def test_padding_is_not_scored_and_not_drawn(prior):
    tokens, lengths = random_tokens(prior, 3), torch.tensor([1, 5, prior.num_tokens])
    other = tokens.clone()
    other[0, 1:], other[1, 5:] = 10**6, -5  # whatever: it is not part of the sample
    nll = prior.nll(tokens, COND, lengths=lengths)
    assert torch.equal(nll, prior.nll(other, COND, lengths=lengths))
    assert torch.equal(nll[2], prior.nll(tokens, COND)[2]) or torch.allclose(
        nll[2], prior.nll(tokens, COND)[2]
    )
    padded = torch.where(torch.arange(prior.num_tokens) < lengths[:, None], tokens, prior.low)
    log_probs = prior.log_probs(padded, COND)
    picked = log_probs.gather(-1, (padded - prior.low)[..., None])[..., 0]
    expected = [-picked[b, : lengths[b]].sum() for b in range(3)]
    torch.testing.assert_close(nll, torch.stack(expected))
    drawn = prior.sample(3, COND, seed=2, lengths=lengths)
    assert torch.equal(drawn[0, 1:], prior.low[1:]) and torch.equal(drawn[1, 5:], prior.low[5:])


def test_a_draw_says_how_far_it_is(prior):
    seen = []
    prior.sample(2, on_step=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] <= seen[-1][1] == prior.num_tokens
    assert max(done for done, _ in seen) == prior.num_tokens


def test_a_draw_hands_out_its_tokens_as_they_are_decided(prior):
    """More and more tokens, which stay what they are: those of the sample in the end."""
    seen = []
    keep = torch.arange(prior.num_tokens) == 1
    known = (prior.high - 1).clone()
    found = prior.sample(
        3, COND, seed=5, known=known, keep=keep, on_tokens=lambda *step: seen.append(step)
    )
    assert torch.equal(found, prior.sample(3, COND, seed=5, known=known, keep=keep))
    before = keep.expand(3, -1)
    for rows, tokens, is_decided in seen:
        assert rows.tolist() == [0, 1, 2] and not tokens.is_inference()
        assert torch.equal(tokens[is_decided], found[is_decided])
        assert torch.equal(tokens[~is_decided], prior.low.expand(3, -1)[~is_decided])
        assert (is_decided | ~before).all() and is_decided.any(1).all()
        before = is_decided
    assert before.all() and len({int(step[2].sum()) for step in seen}) > 1
    many = []
    prior.sample(300, on_tokens=lambda rows, *_: many.append(rows))
    assert sorted(set(torch.cat(many).tolist())) == list(range(300))


def test_a_draw_that_was_broken_off_goes_on_from_its_tokens_so_far(prior):
    """With the same seed, to the very sample that it was on its way to."""
    steps = []
    found = prior.sample(3, COND, seed=5, on_tokens=lambda *step: steps.append(step))
    for _, tokens, is_decided in steps if not by_confidence(prior) else steps[-1:]:
        again = prior.sample(3, COND, seed=5, known=tokens, keep=is_decided)
        assert torch.equal(again, found)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"known": torch.zeros(12, dtype=torch.long)}, "known and keep"),
        ({"known": torch.zeros(12), "keep": torch.ones(12, dtype=torch.bool)}, "must be integers"),
        (
            {"known": torch.zeros(11, dtype=torch.long), "keep": torch.ones(11) > 0},
            r"known of shape \(11,\): needs \[2, 12\]",
        ),
        (
            {"known": torch.full((12,), 99), "keep": torch.ones(12) > 0},
            "token 99 at position 0 of row 0: must be in 0..4",
        ),
        ({"lengths": torch.tensor([0, 3])}, r"lengths=\[0, 3\]: needs 2 integers in 1..12"),
        ({"lengths": torch.tensor([13, 3])}, "in 1..12"),
    ],
    ids=str,
)
def test_what_cannot_be_fixed_is_refused(config, arguments, text):
    with pytest.raises(ValueError, match=text):
        make(config).sample(2, **arguments)


def test_a_grid_of_another_size_is_refused(config):
    with pytest.raises(ValueError, match=r"grid=\(5, 1\): with 2 codebooks it has 10 tokens"):
        make(config, grid=(5, 1))
    with pytest.raises(ValueError, match=r"grid=\(-2, -3\): every axis must be >= 1"):
        make(config, grid=(-2, -3))


def test_a_saved_prior_is_the_same_prior(prior, tmp_path):
    save_model(prior, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.grid == prior.grid and again.config == prior.config
    tokens = random_tokens(prior, 3)
    assert torch.equal(again.nll(tokens, COND), prior.nll(tokens, COND))
    assert torch.equal(again.sample(2, seed=4), prior.sample(2, seed=4))


def test_a_step_of_training_reaches_every_weight(prior):
    if not list(prior.parameters()):
        return
    prior.train()
    torch.manual_seed(0)
    loss = prior(Batch(x=random_tokens(prior, 16), cond=COND[:1].expand(16, -1)))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    without = [name for name, p in prior.named_parameters() if p.grad is None]
    assert not without


def test_every_prior_has_a_case():
    assert {config["name"] for config in PRIORS} == set(names("prior"))


def test_a_sample_does_not_depend_on_the_batch_around_it(prior):
    together = prior.sample(3, COND, seed=[5, 6, 7])
    alone = torch.cat([prior.sample(1, COND[i], seed=5 + i) for i in range(3)])
    assert torch.equal(together, alone)
    assert torch.equal(prior.sample(9, seed=5)[:4], prior.sample(4, seed=5))
    assert not torch.equal(prior.sample(9, seed=5), prior.sample(9, seed=6))


def test_a_generator_gives_the_seed(prior):
    draws = [prior.sample(2, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_sampling_leaves_the_global_random_state_and_the_weights_alone(prior):
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in prior.state_dict().items()}
    prior.sample(2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(weights[k], v) for k, v in prior.state_dict().items())


def test_no_samples(prior):
    assert prior.sample(0).shape == (0, prior.num_tokens)


def test_not_told_is_nan(prior):
    tokens = random_tokens(prior, 2)
    nan = torch.full((2, 2), math.nan)
    assert torch.equal(prior.nll(tokens), prior.nll(tokens, nan))
    assert torch.equal(prior.sample(2), prior.sample(2, nan))


def test_temperature_zero_and_top_k_one_take_the_best(prior):
    if by_confidence(prior):
        return  # its order is drawn as well
    greedy = prior.sample(2, COND[:2], temperature=0.0)
    assert torch.equal(greedy, prior.sample(2, COND[:2], top_k=1, seed=9))
    if not isinstance(prior, Uniform):  # where all are equally probable there is no best
        assert torch.equal(greedy, prior.sample(2, COND[:2], temperature=1e-6, seed=9))
    digits = prior.log_probs(greedy, COND[:2]).argmax(-1)
    assert torch.equal(greedy, digits + prior.low)


@pytest.mark.parametrize(
    ("token", "where"), [(-1, 0), (5, 4), (4, 5), (8, 11)], ids=lambda value: str(value)
)
def test_a_token_of_another_codebook_is_named(config, token, where):
    prior = make(config)
    tokens = prior.low.expand(2, -1).clone()
    tokens[1, where] = token
    with pytest.raises(ValueError, match=f"token {token} at position {where} of row 1"):
        prior.nll(tokens)
    with pytest.raises(ValueError, match=f"token {token} at position {where} of row 1"):
        prior(Batch(x=tokens))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0: must be a whole number >= 1"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_p": 0.0}, "min_p=0.0"),
        ({"guidance": math.inf}, "guidance=inf"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": [1]}, "1 entries"),
    ],
    ids=str,
)
def test_a_setting_that_means_nothing_is_refused(config, arguments, text):
    with pytest.raises(ValueError, match=text):
        make(config).sample(2, **arguments)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e300},
        {"temperature": 1e38, "guidance": 1e6},
        {"temperature": 1e-300, "guidance": -1e6},
        {"guidance": 1e6, "top_p": 1e-12, "min_p": 1.0},
    ],
    ids=str,
)
def test_at_the_ends_of_a_sampler_s_range_tokens_are_in_theirs(prior, settings):
    tokens = prior.sample(50, COND[0], seed=1, **settings)
    assert ((tokens >= prior.low) & (tokens < prior.high)).all()


def test_guidance_zero_is_told_nothing_and_the_sharpest_filters_take_the_best(prior):
    told, silent = prior.sample(3, COND, seed=5, guidance=0.0), prior.sample(3, seed=5)
    assert torch.equal(told, silent)
    assert torch.equal(prior.sample(3, COND, seed=5, top_p=1.0), prior.sample(3, COND, seed=5))
    if isinstance(prior, Uniform):
        return  # where all are equally probable there is no best
    best = prior.sample(3, COND, seed=5, top_k=1)
    for sharp in ({"min_p": 1.0}, {"top_p": 1e-9}, {"temperature": 0.0}):
        assert torch.equal(prior.sample(3, COND, seed=5, **sharp), best)


WHOLE = "must be a whole number >= 0"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"num": 1.5}, f"num=1.5: {WHOLE}"),
        ({"num": True}, f"num=True: {WHOLE}"),
        ({"num": "2"}, f"num='2': {WHOLE}"),
        ({"temperature": "1"}, "temperature='1': must be a number"),
        ({"temperature": None}, "temperature=None: must be a number"),
        ({"temperature": True}, "temperature=True: must be a number"),
        ({"temperature": 10**400}, "temperature=1000"),
        ({"top_k": 2.5}, "top_k=2.5: must be a whole number >= 1"),
        ({"top_k": True}, "top_k=True: must be a whole number >= 1"),
        ({"top_p": True}, "top_p=True: must be a number"),
        ({"min_p": [0.5]}, r"min_p=\[0.5\]: must be a number"),
        ({"guidance": None}, "guidance=None: must be a number"),
        ({"guidance": 1e7}, r"guidance=10000000.0: must be in -1e\+06..1e\+06"),
        ({"seed": 1.5}, f"seed=1.5: {WHOLE}"),
        ({"seed": None}, f"seed=None: {WHOLE}"),
        ({"seed": "12"}, f"seed='12': {WHOLE}"),
        ({"seed": True}, f"seed=True: {WHOLE}"),
        ({"seed": [3, 1.5]}, rf"seed\[1\]=1.5: {WHOLE}"),
        ({"seed": np.array([0.5, 1.5])}, rf"seed\[0\]=0.5: {WHOLE}"),
        ({"generator": 3}, "generator=3: must be a torch.Generator"),
        ({"cond": "a"}, "cond='a': must be a tensor of raw numbers"),
        ({"cond": 4.0}, r"cond of shape \(\): needs \[2, 2\]"),
        ({"lengths": [3, 3]}, "lengths: must be a tensor, came list"),
        (
            {"lengths": torch.tensor([True, True])},
            r"lengths=\[True, True\]: needs 2 integers in 1..12",
        ),
        ({"known": [0] * 12, "keep": [True] * 12}, "known: must be a tensor, came list"),
        ({"known": torch.ones(12) > 0, "keep": torch.ones(12) > 0}, "known of torch.bool and"),
    ],
    ids=str,
)
def test_an_argument_of_another_type_is_refused_by_name(as_users_call, arguments, text):
    """Not by whatever torch or numpy say of it, and never taken for another number."""
    for config in PRIORS[0], PRIORS[2]:
        with pytest.raises(ValueError, match=f"^{text}"):
            make(config).sample(**{"num": 2, **arguments})


def test_seeds_may_be_of_any_integer_type(as_users_call):
    prior = make(PRIORS[2])
    drawn = prior.sample(2, seed=[3, 4])
    for seeds in ((3, 4), np.array([3, 4]), torch.tensor([3, 4])):
        assert torch.equal(prior.sample(2, seed=seeds), drawn)
    assert torch.equal(prior.sample(2, seed=3), prior.sample(2, seed=np.int64(3)))


@pytest.mark.parametrize("tokens", [[[0] * 12], np.zeros((1, 12), int), "0", None], ids=str)
def test_tokens_that_are_no_tensor_are_refused(as_users_call, config, tokens):
    name = type(tokens).__name__
    with pytest.raises(ValueError, match=f"^tokens: must be a tensor, came {name}$"):
        make(config).nll(tokens)


def test_a_flat_row_of_tokens_is_not_spread_over_the_lengths(as_users_call):
    """[N] tokens and N lengths: the same row N times is not what was meant."""
    prior = make(PRIORS[2])
    lengths = torch.full((12,), 3)
    for tokens in (prior.low, prior.low[None, :7]):
        with pytest.raises(ValueError, match=r"^tokens of shape \(.*\): needs \[B, 12\]$"):
            prior.nll(tokens, lengths=lengths)


def test_guidance_needs_a_condition_and_a_null_that_was_trained(config):
    with pytest.raises(ValueError, match="guidance=3.0: must be 1, .* has no conditions"):
        make(config, conditions=()).sample(2, guidance=3.0)
    assert len(make(config, conditions=()).sample(2, guidance=1.0)) == 2
    if config["name"] in ("uniform", "unigram"):
        return  # told or not, it is the same table
    never = make({**config, "null_prob": 0.0})
    with pytest.raises(ValueError, match="guidance=0.5: must be 1, .* null_prob=0"):
        never.sample(3, COND, guidance=0.5)
    assert len(never.sample(3, COND)) == 3


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ([0.0, math.inf], "inf for 'label' in row 1, must be NaN or a whole number in 0..2"),
        ([-math.inf, 0.0], "-inf for 'time' in row 1, must be NaN or finite"),
        ([0.0, 7.0], "7 for 'label'"),
        ([0.0, -1.0], "-1 for 'label'"),
        ([math.nan, 0.5], "0.5 for 'label'"),
    ],
    ids=str,
)
def test_a_condition_that_means_nothing_is_refused(config, row, text):
    prior = make(config)
    cond = torch.tensor([[4.0, 0.0], row, [math.nan, math.nan]])
    tokens = random_tokens(prior, 3)
    with pytest.raises(ValueError, match=text):
        prior.sample(3, cond)
    with pytest.raises(ValueError, match=text):
        prior.nll(tokens, cond)
    with pytest.raises(ValueError, match=text):
        prior(Batch(x=tokens, cond=cond))


def test_shapes_are_checked(config):
    prior = make(config)
    with pytest.raises(ValueError, match=r"needs \[B, 12\]"):
        prior.nll(torch.zeros(2, 11, dtype=torch.long))
    with pytest.raises(ValueError, match="must be integers"):
        prior.nll(torch.zeros(2, 12))
    with pytest.raises(ValueError, match="the raw numbers of"):
        prior.nll(random_tokens(prior, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="num=-1"):
        prior.sample(-1)


def test_tokens_may_be_of_any_integer_type(config):
    prior = make(config)
    tokens = random_tokens(prior, 2)
    assert torch.equal(prior.nll(tokens), prior.nll(tokens.to(torch.uint16)))
    assert torch.equal(prior.nll(tokens), prior(Batch(x=tokens.int())).nll)


def test_build_prior_keeps_the_recipe_and_explains_mistakes():
    assert make(PRIORS[2]).config == PRIORS[2]
    for config, text in [
        ({}, "needs a name"),
        ({"name": "transfromer"}, "did you mean transformer"),
        ({"name": "transformer", "num_layer": 2}, "did you mean num_layers"),
        ({"name": "transformer", "vocab_size": 2}, "prior.vocab_size"),
    ]:
        with pytest.raises(UsageError, match=text):
            make(config)
    for arguments in [{"sizes": (5, 0)}, {"num_tokens": 11}, {"num_tokens": 0}]:
        with pytest.raises(ValueError, match="codebook"):
            make(PRIORS[0], **arguments)
    with pytest.raises(ValueError, match="vocab_size=9"):
        build_prior(PRIORS[0], vocab_size=9, num_tokens=2, codebook_sizes=(5, 3))


def test_ranges():
    low, high = token_ranges((4, 2), 6)
    assert low.tolist() == [0, 4, 0, 4, 0, 4] and high.tolist() == [4, 6] * 3
    tokens = torch.tensor([[3, 5, 0, 4, 1, 4]])
    assert to_digits(tokens, low, high).tolist() == [[3, 1, 0, 0, 1, 0]]


@pytest.mark.parametrize(
    "config",
    [{**MASKED, "dropout": 0.5}, {"name": "transformer", **TINY, "dropout": 0.5},
     {"name": "hf", "architecture": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2,
                                     "resid_pdrop": 0.5}}],
    ids=["masked", "transformer", "hf"],
)  # fmt: skip
def test_nothing_is_dropped_while_a_prior_that_learns_samples(config):
    prior = make(config)
    quiet = prior.sample(4, seed=1)
    prior.train()
    assert torch.equal(prior.sample(4, seed=1), quiet)
    assert all(module.training for module in prior.modules())
