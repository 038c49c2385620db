"""Likelihoods against torch.distributions, sums to one, and float64 brute force."""

import math

import numpy as np
import pytest
import torch
from torch import distributions as D

from qvae import registry
from qvae.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    Laplace,
)

ALL = {
    "gaussian": lambda: Gaussian(sigma=0.3),
    "gaussian-learned": lambda: Gaussian(sigma="learned"),
    "gaussian-optimal": lambda: Gaussian(sigma="optimal"),
    "laplace": lambda: Laplace(scale=0.2),
    "laplace-learned": lambda: Laplace(scale="learned"),
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "categorical": lambda: Categorical(levels=7),
    "discretized_logistic": lambda: DiscretizedLogistic(num_mixtures=3),
}


def test_every_registered_likelihood_has_a_case():
    assert set(registry.names("likelihood")) == {name.partition("-")[0] for name in ALL}


SIZES = [(6,), (4, 5), (2, 3, 4)]


def data(likelihood, shape):
    if likelihood.levels is None:
        return torch.rand(shape)
    top = likelihood.levels - 1
    return torch.randint(0, top + 1, shape).float() / top


def params_for(likelihood, x):
    return torch.randn(len(x), likelihood.num_params(x.shape[1]), *x.shape[2:])


def nll64(likelihood, params, x):
    return likelihood.double().nll(params.double(), x.double())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ALL)
def test_shapes_ranges_and_independence_of_the_batch(name, size):
    likelihood = ALL[name]()
    x = data(likelihood, (4, 3, *size))
    params = params_for(likelihood, x).requires_grad_()
    nll = likelihood.nll(params, x)
    assert nll.shape == (4,) and nll.isfinite().all()
    torch.testing.assert_close(likelihood.nll(params[2:3], x[2:3]), nll[2:3])
    nll.sum().backward()
    assert params.grad.isfinite().all() and params.grad.abs().sum() > 0
    mean = likelihood.mean(params)
    drawn = likelihood.sample(params, torch.Generator().manual_seed(3))
    assert mean.shape == drawn.shape == x.shape
    again = likelihood.sample(params, torch.Generator().manual_seed(3))
    assert drawn.equal(again)
    if likelihood.is_discrete:
        assert mean.min() >= 0 and mean.max() <= 1
        likelihood.nll(params, drawn)  # a drawing is valid data
    else:
        assert likelihood.levels is None


@pytest.mark.parametrize("name", [name for name in ALL if name != "gaussian-optimal"])
def test_nll_is_the_sum_over_channels_and_places(name):
    likelihood = ALL[name]()
    x = data(likelihood, (2, 2, 3))
    params = params_for(likelihood, x)
    per = likelihood.num_params(1)
    parts = sum(
        likelihood.nll(params[:, c * per : (c + 1) * per, [s]], x[:, [c]][..., [s]])
        for c in range(2)
        for s in range(3)
    )
    torch.testing.assert_close(likelihood.nll(params, x), parts)


@pytest.mark.parametrize("name", ALL)
def test_bfloat16_parameters_are_summed_in_float32(name):
    likelihood = ALL[name]()
    x = data(likelihood, (2, 1, 16, 16))
    params = params_for(likelihood, x).bfloat16()
    expected = likelihood.nll(params.float(), x)
    with torch.autocast("cpu", torch.bfloat16):
        nll, mean = likelihood.nll(params, x), likelihood.mean(params)
    assert nll.dtype == mean.dtype == torch.float32
    assert nll.equal(expected) and mean.equal(likelihood.mean(params.float()))


@pytest.mark.parametrize("name", ALL)
def test_mean_and_sample_agree(name):
    likelihood = ALL[name]()
    params = params_for(likelihood, torch.zeros(1, 2, 3))
    mean = likelihood.mean(params)
    many = params.expand(4000, -1, -1)
    drawn = likelihood.sample(many, torch.Generator().manual_seed(0))
    error = drawn.std(dim=0) / 4000**0.5
    assert ((drawn.mean(dim=0) - mean[0]).abs() <= 4.5 * error + 0.5 / 255).all()


@pytest.mark.parametrize("name", ALL)
def test_wrong_shapes_name_both(name):
    likelihood = ALL[name]()
    x = data(likelihood, (2, 3, 4))
    params = params_for(likelihood, x)
    for wrong in (params[:, :-1], params[..., :-1], params[:1]):
        with pytest.raises(ValueError) as caught:
            likelihood.nll(wrong, x)
        assert str(tuple(wrong.shape)) in str(caught.value) and "(2, 3, 4)" in str(caught.value)


def test_gaussian_is_torch_normal():
    x, mean = torch.rand(3, 2, 4, 5), torch.randn(3, 2, 4, 5)
    expected = -D.Normal(mean.double(), 0.3).log_prob(x.double()).flatten(1).sum(1)
    torch.testing.assert_close(nll64(Gaussian(sigma=0.3), mean, x), expected)


def test_gaussian_learned_width_finds_the_error():
    torch.manual_seed(0)
    likelihood = Gaussian(sigma="learned")
    x = 0.05 * torch.randn(8, 1, 500)
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        likelihood.nll(torch.zeros_like(x), x).mean().backward()
        optimizer.step()
    assert abs(likelihood.log_sigma.exp().item() / 0.05 - 1) < 0.05
    assert list(likelihood.state_dict()) == ["log_sigma"]


def test_gaussian_optimal_width_is_the_best_fixed_one():
    x, mean = torch.rand(1, 1, 50).double(), torch.rand(1, 1, 50).double()
    best = (x - mean).square().mean().sqrt().item()
    optimal = Gaussian(sigma="optimal").nll(mean, x)
    torch.testing.assert_close(optimal, Gaussian(sigma=best).nll(mean, x))
    for sigma in (0.9 * best, 1.1 * best):
        assert Gaussian(sigma=sigma).nll(mean, x) > optimal
    # the gradient is that of (num_dims / 2) log MSE, and goes on below the floor
    mean.requires_grad_()
    (grad,) = torch.autograd.grad(Gaussian(sigma="optimal").nll(mean, x).sum(), mean)
    (expected,) = torch.autograd.grad(25 * (x - mean).square().mean().log(), mean)
    torch.testing.assert_close(grad, expected)
    near = (x + 1e-5).requires_grad_()
    Gaussian(sigma="optimal").nll(near, x).sum().backward()
    assert near.grad.abs().min() > 0 and near.grad.isfinite().all()
    assert Gaussian(sigma="optimal").nll(x, x).isfinite().all()


def test_bernoulli_is_torch_bernoulli():
    x, logits = torch.randint(0, 2, (3, 1, 8)).float(), 3 * torch.randn(3, 1, 8)
    expected = -D.Bernoulli(logits=logits.double()).log_prob(x.double()).flatten(1).sum(1)
    torch.testing.assert_close(nll64(Bernoulli(), logits, x), expected)


def test_bernoulli_takes_grey_as_a_chance():
    x, logits = torch.full((1, 1, 1), 0.3), torch.randn(1, 1, 1)
    one, zero = (Bernoulli().nll(logits, torch.full((1, 1, 1), v)) for v in (1.0, 0.0))
    torch.testing.assert_close(Bernoulli().nll(logits, x), 0.3 * one + 0.7 * zero)


def test_laplace_is_torch_laplace():
    x, centre = torch.rand(3, 2, 4, 5), torch.randn(3, 2, 4, 5)
    expected = -D.Laplace(centre.double(), 0.2).log_prob(x.double()).flatten(1).sum(1)
    torch.testing.assert_close(nll64(Laplace(scale=0.2), centre, x), expected)


def test_laplace_learned_width_finds_the_error():
    likelihood = Laplace(scale="learned")
    x = D.Laplace(0.0, 0.05).sample((8, 1, 500))
    optimizer = torch.optim.Adam(likelihood.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        likelihood.nll(torch.zeros_like(x), x).mean().backward()
        optimizer.step()
    assert abs(likelihood.log_scale.exp().item() / 0.05 - 1) < 0.05


def test_continuous_bernoulli_is_torch_s_away_from_a_half():
    """torch cuts out .499 to .501 and puts a Taylor series there; ours needs no such window."""
    x, logits = torch.rand(3, 1, 40), 6 * torch.randn(3, 1, 40)
    dist = D.ContinuousBernoulli(logits=logits.double())
    expected = -dist.log_prob(x.double()).flatten(1).sum(1)
    torch.testing.assert_close(
        nll64(ContinuousBernoulli(), logits, x), expected, rtol=1e-6, atol=1e-6
    )
    mean = ContinuousBernoulli().mean(logits.double())
    torch.testing.assert_close(mean, dist.mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logit", [-300.0, -20.0, -1.0, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.5, 300.0])
def test_continuous_bernoulli_integrates_to_one_and_has_its_mean(logit):
    """Against numerical integration in float64, also where lambda is a half."""
    # Fine at both ends, where a large logit piles the density up.
    ends = np.logspace(-12, np.log10(0.5), 40_001)
    grid = np.concatenate([[0.0], ends, 1 - ends[-2::-1], [1.0]])
    x = torch.from_numpy(grid)[:, None, None]
    params = torch.full((1, 1, 1), logit, dtype=torch.float64)
    likelihood = ContinuousBernoulli()
    density = (-likelihood.nll(params.expand(len(x), 1, 1), x)).exp().numpy()
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-5)
    mean = likelihood.mean(params).item()
    assert np.trapezoid(density * grid, grid) == pytest.approx(mean, abs=1e-5)
    half = likelihood.nll(params.float(), torch.full((1, 1, 1), 0.3)).item()
    assert half == pytest.approx(likelihood.nll(params, x[:1] * 0 + 0.3).item(), rel=1e-5, abs=1e-5)


def test_continuous_bernoulli_has_a_gradient_at_a_half():
    params = torch.zeros(1, 1, 3, requires_grad=True)
    x = torch.tensor([[[0.0, 0.5, 1.0]]])
    ContinuousBernoulli().nll(params, x).sum().backward()
    torch.testing.assert_close(params.grad, torch.tensor([[[0.5, 0.0, -0.5]]]))


def test_categorical_is_torch_categorical():
    x, params = torch.randint(0, 7, (2, 3, 4)), torch.randn(2, 21, 4)
    logits = params.view(2, 3, 7, 4).movedim(2, -1).double()
    dist = D.Categorical(logits=logits)
    likelihood = Categorical(levels=7)
    expected = -dist.log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(nll64(likelihood, params, x / 6), expected)
    expected_mean = (dist.probs * torch.linspace(0, 1, 7)).sum(-1).float()
    torch.testing.assert_close(likelihood.mean(params), expected_mean)


def every_level(levels, params):
    """Log probabilities of all levels, [levels, B], for parameters [B, 3 M, 1] of one number."""
    likelihood = DiscretizedLogistic(num_mixtures=params.shape[1] // 3, levels=levels)
    x = (torch.arange(levels) / (levels - 1)).to(params.dtype)
    rows = params.repeat_interleave(levels, dim=0)
    return -likelihood.nll(rows, x.repeat(len(params))[:, None, None]).view(-1, levels).T


@pytest.mark.parametrize("levels", [2, 4, 256])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0, 20.0])
def test_logistic_probabilities_of_the_levels_sum_to_one(levels, scale):
    params = scale * torch.randn(6, 9, 1)
    total = every_level(levels, params).logsumexp(dim=0)
    assert total.abs().max() < 1e-4


def test_logistic_equals_brute_force_in_float64():
    rng = np.random.default_rng(0)
    params = rng.normal(size=(5, 3, 4)) * np.array([1, 1, 1.5])[None, :, None]
    params[0, 2] = -2  # narrow
    got = every_level(256, torch.from_numpy(params.reshape(5, 12, 1))).numpy()
    weights = np.exp(params[:, 0])
    weights /= weights.sum(1, keepdims=True)
    for k in (0, 1, 100, 254, 255):
        x = 2 * k / 255 - 1
        upper = 1.0 if k == 255 else cdf((x + 1 / 255 - params[:, 1]) / np.exp(params[:, 2]))
        lower = 0.0 if k == 0 else cdf((x - 1 / 255 - params[:, 1]) / np.exp(params[:, 2]))
        prob = (weights * (upper - lower)).sum(1)
        np.testing.assert_allclose(np.exp(got[k]), prob, rtol=1e-8, atol=1e-14)


def cdf(v):
    return 1 / (1 + np.exp(-v))


def test_logistic_mean_is_the_mean_over_the_levels():
    params = torch.randn(20, 9, 1, dtype=torch.float64)
    prob = every_level(256, params).exp()
    expected = (prob * torch.linspace(0, 1, 256, dtype=torch.float64)[:, None]).sum(0)
    mean = DiscretizedLogistic(num_mixtures=3).mean(params).flatten()
    assert (mean - expected).abs().max() < 0.25 / 255


@pytest.mark.parametrize("value", [-1e4, -60.0, 60.0, 1e4])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_logistic_is_finite_for_absurd_parameters(part, value):
    likelihood = DiscretizedLogistic(num_mixtures=2)
    params = torch.zeros(1, 3, 2, 4)
    params[:, part] = value
    params = params.view(1, 6, 4).requires_grad_()
    x = torch.tensor([[[0.0, 1 / 255, 0.6, 1.0]]])
    nll = likelihood.nll(params, x)
    nll.sum().backward()
    assert nll.isfinite().all() and params.grad.isfinite().all()
    assert likelihood.mean(params).isfinite().all()
    assert likelihood.sample(params).isfinite().all()


def test_logistic_learns_to_name_one_level():
    likelihood = DiscretizedLogistic(num_mixtures=1)
    x = torch.full((1, 1, 1), 200 / 255)
    params = torch.tensor([0.0, 2 * 200 / 255 - 1, -7.0]).view(1, 3, 1)
    assert likelihood.nll(params, x) < 0.03
    assert likelihood.mean(params).item() == pytest.approx(200 / 255, abs=1e-4)


@pytest.mark.parametrize(
    "name", ["bernoulli", "continuous_bernoulli", "categorical", "discretized_logistic"]
)
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_data_outside_the_range_is_refused(name, value):
    likelihood = ALL[name]()
    x = data(likelihood, (1, 1, 3))
    params = params_for(likelihood, x)
    x[0, 0, 1] = value
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        likelihood.nll(params, x)


def test_data_off_the_levels_is_refused():
    likelihood = DiscretizedLogistic(num_mixtures=1)
    with pytest.raises(ValueError, match="on the levels"):
        likelihood.nll(torch.zeros(1, 3, 1), torch.full((1, 1, 1), 0.5))


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Gaussian(sigma=0.0), "sigma=0.0"),
        (lambda: Gaussian(sigma=math.inf), "sigma=inf"),
        (lambda: Gaussian(min_sigma=0.0), "min_sigma=0.0"),
        (lambda: Laplace(scale=0.0), "scale=0.0"),
        (lambda: Laplace(min_scale=-1.0), "min_scale=-1.0"),
        (lambda: Categorical(levels=1), "levels=1"),
        (lambda: DiscretizedLogistic(num_mixtures=0), "num_mixtures=0"),
        (lambda: DiscretizedLogistic(levels=1), "levels=1"),
        (lambda: Categorical(levels=4).mean(torch.zeros(1, 6, 1)), "levels=4"),
        (lambda: DiscretizedLogistic().mean(torch.zeros(1, 31, 1)), "num_mixtures=30"),
    ],
)
def test_bad_arguments_are_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()
