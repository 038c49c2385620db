"""log p(x): a linear-Gaussian VAE, whose log p(x) is known, is the oracle of every estimator."""

import math

import numpy as np
import pytest
import torch

from qvae.autoencoder import build_autoencoder
from qvae.data.base import ArraySplit
from qvae.errors import UsageError
from qvae.metrics.hmc import hmc_draws, hmc_log_likelihood
from qvae.metrics.likelihood import Estimate, ImportanceStream
from qvae.metrics.posterior import PosteriorStatistics
from qvae.runs import likelihood
from qvae.runs.likelihood import estimate_likelihood, score_hmc, score_likelihood
from qvae.types import DataSpec

SIGMA = 0.4


def linear_vae(**bottleneck):
    """Probabilistic PCA with an encoder that is near the posterior, and not on it."""
    torch.manual_seed(0)
    model = build_autoencoder(
        {
            "encoder": {"name": "mlp", "hidden": [], "latent_dim": 4},
            "bottleneck": {"name": "gaussian", "dim": 2, **bottleneck},
            "decoder": {"name": "mlp", "hidden": [], "latent_dim": 2},
            "likelihood": {"name": "gaussian", "sigma": SIGMA},
        },
        DataSpec(shape=(1, 5)),
    ).eval()
    with torch.no_grad():
        loading, shift = decoder_of(model)
        cov = torch.linalg.inv(torch.eye(2) + loading.T @ loading / SIGMA**2)
        layer = model.encoder.layers[0]
        layer.weight[:2] = cov @ loading.T / SIGMA**2 + 0.05
        layer.bias[:2] = -(cov @ loading.T / SIGMA**2) @ shift
        layer.weight[2:] = 0
        layer.bias[2:] = cov.diagonal().log() + 0.3
    return model


def decoder_of(model):
    with torch.no_grad():
        shift = model.decode(torch.zeros(1, 2)).flatten()
        return (model.decode(torch.eye(2)).flatten(1) - shift).T, shift


def data_and_truth(model, num=40):
    loading, shift = decoder_of(model)
    x = torch.randn(num, 2) @ loading.T + shift + SIGMA * torch.randn(num, 5)
    marginal = torch.distributions.MultivariateNormal(
        shift, loading @ loading.T + SIGMA**2 * torch.eye(5)
    )
    return x.view(num, 1, 5), marginal.log_prob(x)


def test_every_estimator_agrees_with_the_closed_form():
    model = linear_vae()
    x, truth = data_and_truth(model)
    split = ArraySplit(x.numpy())
    rows = score_likelihood(model, split, num_draws=2000)
    rows |= score_hmc(model, split, num_draws=60, burn_in=60)
    expected = -truth.mean().item()
    for name in ("nll_importance", "nll_hmc"):
        row = rows[name]
        assert abs(row["value"] - expected) < 4 * row["draws_error"], name
        assert row["draws_error"] < 0.01
        assert row["error"] == pytest.approx(truth.std().item() / 40**0.5, rel=0.02)
        assert row["n"] == 40
    elbo, bound = rows["nll_elbo"], rows["nll_iwae_50"]
    assert elbo["value"] > bound["value"] + 4 * elbo["draws_error"]
    assert bound["value"] > expected


def test_the_elbo_is_log_p_less_the_kl_to_the_posterior():
    model = linear_vae()
    x, truth = data_and_truth(model)
    loading, shift = decoder_of(model)
    cov = torch.linalg.inv(torch.eye(2) + loading.T @ loading / SIGMA**2)
    exact = torch.distributions.MultivariateNormal(
        (x[:, 0] - shift) @ loading @ cov / SIGMA**2, cov
    )
    with torch.no_grad():
        mean, log_var = model.bottleneck.posterior(model.embed(x))
        stream = estimate_likelihood(model, x, num_draws=4000)
    ours = torch.distributions.MultivariateNormal(mean, log_var.exp().diag_embed())
    gap = torch.distributions.kl_divergence(ours, exact)
    elbo = stream.elbo()
    assert ((elbo.value - (truth - gap)).abs() < 5 * elbo.error).all()
    log_p = stream.log_p()
    assert ((log_p.value - truth).abs() < 5 * log_p.error).all()


def narrow_vae(shrink):
    """The same model with an encoder too sure of itself: its sd is so many times too small."""
    model = linear_vae()
    with torch.no_grad():
        model.encoder.layers[0].bias[2:] -= 2 * math.log(shrink)
    return model


def test_a_narrow_posterior_needs_the_wide_draws():
    """Draws from q alone are far off and do not know it; with half of them wide they are right."""
    model = narrow_vae(5)
    x, truth = data_and_truth(model)
    split, expected = ArraySplit(x.numpy()), -truth.mean().item()
    rows = score_likelihood(model, split, num_draws=2000)
    row = rows["nll_importance"]
    assert abs(row["value"] - expected) < 4 * row["draws_error"] < 0.02
    assert row["ess"] > 300 and row["ess_low"] < 0.05
    assert "half of them with 5 x its sd" in row["unit"]
    alone = score_likelihood(model, split, num_draws=2000, widen=1.0)
    row = alone["nll_importance"]
    assert row["value"] - expected > max(0.5, 4 * row["draws_error"])
    assert row["ess"] < 100 and row["ess_low"] > 0.05
    assert row["unit"].endswith("2000 draws of q(z|x)")
    for name in ("nll_elbo", "nll_iwae_50"):  # the bounds stay bounds by draws from q
        one, other = rows[name], alone[name]
        apart = one["value"] - other["value"]
        assert abs(apart) < 4 * math.hypot(one["draws_error"], other["draws_error"]), name


def test_wide_draws_cost_little_where_the_posterior_is_right():
    model = linear_vae()
    x, truth = data_and_truth(model, 10)
    with torch.no_grad():
        safe = estimate_likelihood(model, x, num_draws=4000)
        alone = estimate_likelihood(model, x, num_draws=4000, widen=1.0)
    assert safe.num_draws == 2000 and alone.num_draws == 4000  # pairs, and draws
    for stream in (safe, alone):
        log_p = stream.log_p()
        assert ((log_p.value - truth).abs() < 5 * log_p.error).all()
    assert (safe.effective_draws() > 0.3 * alone.effective_draws()).all()


def test_effective_draws_are_those_of_the_weights():
    weights = torch.tensor([[0.0, 0.0], [0.0, -60.0], [-600.0, -60.0]])
    stream = ImportanceStream(2)
    for part in weights:
        stream.update(part[None])
    torch.testing.assert_close(stream.effective_draws(), torch.tensor([2.0, 1.0]).double())


def test_many_latents_are_drawn_from_q_alone():
    model = linear_vae()
    sizes = {
        "encoder": {"name": "mlp", "hidden": [], "latent_dim": 18},
        "bottleneck": {"name": "gaussian", "dim": 9},
        "decoder": {"name": "mlp", "hidden": [], "latent_dim": 9},
    }
    wide = build_autoencoder({**model.config, **sizes}, model.spec).eval()
    x = ArraySplit(np.zeros((2, 1, 5), dtype=np.float32))
    found = [
        score_likelihood(wide, x, num_draws=8, widen=widen)["nll_importance"]["unit"]
        for widen in (None, 1.0, 2.0)
    ]
    assert found[0] == found[1] and "half" not in found[0] and "half" in found[2]
    for widen in (0.5, 1e30, math.inf, math.nan):
        with pytest.raises(UsageError, match="widen=.*: must be from 1 to 1000"):
            score_likelihood(wide, x, num_draws=8, widen=widen)


def test_a_learned_prior_is_what_the_weights_ask():
    """At its start the learned prior is a known mixture in each coordinate, so p(x) changes."""
    model = linear_vae(prior="autoregressive", prior_hidden=8)
    x, _ = data_and_truth(model, 10)
    rows = score_likelihood(model, ArraySplit(x.numpy()), num_draws=3000)
    bells = torch.linspace(-1, 1, 8).double()
    grid = torch.linspace(-6, 6, 241).double()
    density = torch.exp(-0.5 * (grid[:, None] - bells).square()).mean(1) / math.sqrt(2 * math.pi)
    z = torch.cartesian_prod(grid, grid)
    weight = (density[:, None] * density).flatten() * (grid[1] - grid[0]) ** 2
    assert weight.sum().item() == pytest.approx(1, abs=1e-4)
    with torch.no_grad():
        params = model.decode(z.float())
        log_p = [
            (weight.log() - model.likelihood.nll(params, row.expand(len(z), 1, 5)).double())
            .logsumexp(0)
            .item()
            for row in x
        ]
    row = rows["nll_importance"]
    assert abs(row["value"] + np.mean(log_p)) < 4 * row["draws_error"] + 1e-3


@pytest.mark.parametrize("is_grey", [False, True])
def test_only_pixels_that_are_0_or_1_have_a_log_p_under_coins(is_grey):
    parts = {**linear_vae().config, "likelihood": {"name": "bernoulli"}}
    model = build_autoencoder(parts, DataSpec(shape=(1, 5), levels=None)).eval()
    x = np.ones((2, 1, 5), dtype=np.float32)
    x[1, 0, 3] = 0.5 if is_grey else 0.0
    rows = score_likelihood(model, ArraySplit(x), num_draws=4)
    rows |= score_hmc(model, ArraySplit(x), num_draws=2, burn_in=2)
    for row in rows.values():
        assert ("log p(x)" not in row["unit"] and "no p(x)" in row["unit"]) == is_grey, row


def test_chunks_do_not_change_what_a_stream_says():
    weights = 30 * torch.randn(60, 7)
    whole, parts = ImportanceStream(7), ImportanceStream(7)
    whole.update(weights)
    for part in weights.split(20):
        parts.update(part)
    for name in ("elbo", "log_p"):
        one, many = getattr(whole, name)(), getattr(parts, name)()
        torch.testing.assert_close(one.value, many.value)
        torch.testing.assert_close(one.error, many.error)
    brute = torch.logsumexp(weights.double(), 0) - math.log(60)
    torch.testing.assert_close(parts.log_p().value, brute)
    by_chunk = weights.double().view(3, 20, 7).logsumexp(1) - math.log(20)
    torch.testing.assert_close(parts.bound().value, by_chunk.mean(0))


def test_hmc_draws_from_a_correlated_normal():
    cov = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    target = torch.distributions.MultivariateNormal(torch.tensor([1.0, -2.0]), cov)
    generator = torch.Generator().manual_seed(0)
    start = torch.zeros(100, 2)
    drawn = hmc_draws(target.log_prob, start, num_draws=100, burn_in=60, generator=generator)
    flat = drawn.flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), target.mean, atol=0.1, rtol=0)
    torch.testing.assert_close(flat.T.cov(), cov, atol=0.15, rtol=0)


def test_hmc_does_not_go_round_in_circles():
    """Ten equal steps can be one whole turn of a narrow round normal: every draw at the start."""
    generator = torch.Generator().manual_seed(0)
    start = 0.05 * torch.randn(60, 3, generator=generator)
    drawn = hmc_draws(
        lambda z: -0.5 * (z / 0.05).square().sum(1),
        start,
        num_draws=100,
        burn_in=100,
        generator=generator,
    )
    assert drawn.std(0).mean().item() == pytest.approx(0.05, rel=0.1)
    assert drawn.std(0).min() > 0.03


@pytest.mark.parametrize(
    ("means", "stds", "shares"),
    [
        ([[-4.0], [4.0]], [[0.3], [0.3]], [0.5, 0.5]),
        ([[-4.0], [4.0]], [[0.3], [0.05]], [0.7, 0.3]),
        ([[-4.0, 0.0], [4.0, 1.0]], [[0.3, 0.1], [0.1, 0.3]], [0.5, 0.5]),
        ([[1.0, 2.0, 3.0]], [[1.0, 0.1, 0.02]], [1.0]),
    ],
)
def test_hmc_is_right_where_the_posterior_has_several_places(means, stds, shares):
    """A normalised mixture is its own oracle: log p(x) is 0."""
    means, stds, shares = map(torch.tensor, (means, stds, shares))
    parts = torch.distributions.Independent(torch.distributions.Normal(means, stds), 1)
    target = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(shares), parts)
    torch.manual_seed(0)
    chains, num = 16, 24
    found = hmc_log_likelihood(target.log_prob, target.sample((chains, num)))
    assert found.value.abs().max() < 0.5
    mean_error = found.value.square().mean().sqrt().item() / num**0.5
    bias = (len(means) - 1) / chains  # of shares that are those of the chains
    assert abs(found.value.mean().item() + bias) < 4 * mean_error
    assert found.value.std().item() < 2 * found.error.square().mean().sqrt().item()


def two_sided_vae(scale):
    """A decoder that sees z and -z alike, and an encoder that knows of one side only."""
    model = build_autoencoder(
        {
            "encoder": {"name": "mlp", "hidden": [], "latent_dim": 2},
            "bottleneck": {"name": "gaussian", "dim": 1},
            "decoder": {"name": "mlp", "hidden": [2], "activation": "tanh", "latent_dim": 1},
            "likelihood": {"name": "gaussian", "sigma": SIGMA},
        },
        DataSpec(shape=(1, 5)),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.encoder.layers[0].bias.copy_(torch.tensor([1.0, 2 * math.log(scale)]))
        inner, outer = (layer for layer in model.decoder.layers if hasattr(layer, "weight"))
        inner.weight.copy_(torch.tensor([[3.0], [-3.0]]))
        inner.bias.fill_(-3.0)
        outer.weight.fill_(1.0)
    return model


def test_both_sides_are_found_from_an_encoder_that_knows_one():
    torch.manual_seed(0)
    model = two_sided_vae(0.3)
    x = -1 + SIGMA * torch.randn(16, 1, 5)
    z = torch.linspace(-8, 8, 4001)[:, None]
    with torch.no_grad():
        mean = model.decode(z).flatten(1)
    log_x = torch.distributions.Normal(mean, SIGMA).log_prob(x).sum(2)  # [16, 4001]
    log_z = torch.distributions.Normal(0.0, 1.0).log_prob(z[:, 0])
    truth = ((log_x + log_z).logsumexp(1) + math.log(16 / 4000)).mean().item()
    split = ArraySplit(x.numpy())
    rows = score_likelihood(model, split, num_draws=4000) | score_hmc(model, split)
    assert -rows["nll_importance"]["value"] == pytest.approx(truth, abs=0.02)
    assert -rows["nll_hmc"]["value"] == pytest.approx(truth - 1 / 16, abs=0.1)
    alone = score_likelihood(model, split, num_draws=4000, widen=1.0)["nll_importance"]
    assert truth + alone["value"] > 0.5  # one of two sides: ln 2 is missing
    assert rows["nll_hmc"]["left_out"] == 0 and rows["nll_hmc"]["n"] == 16


def test_samples_of_which_the_chains_tell_nothing_are_counted(monkeypatch):
    """One draw a chain and half: some second draw of all chains lies outside the cut bells."""
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.manual_seed(0)
    start = torch.randn(2, 200, 1)
    found = hmc_log_likelihood(lambda z: normal.log_prob(z[:, 0]), start, num_draws=1, burn_in=5)
    is_known = ~found.value.isnan()
    assert 0 < is_known.sum() < 200 and found.value[is_known].isfinite().all()
    model = linear_vae()
    x = ArraySplit(np.zeros((200, 1, 5), dtype=np.float32))
    monkeypatch.setattr(
        likelihood,
        "hmc_log_likelihood",
        lambda _, start, **__: Estimate(
            value=found.value[: start.shape[1]], error=found.error[: start.shape[1]]
        ),
    )
    row = score_hmc(model, x)["nll_hmc"]
    assert row["left_out"] > 0 and row["left_out"] + row["n"] == 200
    assert math.isfinite(row["value"]) and math.isfinite(row["draws_error"])


def test_what_has_no_density_is_refused():
    model = linear_vae()
    x = ArraySplit(np.zeros((2, 1, 5), dtype=np.float32))
    with pytest.raises(UsageError, match="likelihood=3: needs at least 2 draws from each"):
        score_likelihood(model, x, num_draws=3)
    with pytest.raises(UsageError, match="likelihood=1: needs at least 2"):
        score_likelihood(model, x, num_draws=1, widen=1.0)
    config = dict(model.config)
    for change, rule in [
        ({"bottleneck": {"name": "identity", "dim": 2}}, "Identity has no density"),
        ({"likelihood": {"name": "gaussian", "sigma": "optimal"}}, "sigma=optimal has seen x"),
    ]:
        other = build_autoencoder({**config, **change}, model.spec)
        with pytest.raises(UsageError, match=rule):
            score_likelihood(other, x, num_draws=10)
    wide = {"bottleneck": {"name": "gaussian", "dim": 9}}
    with pytest.raises(UsageError, match="9 latents"):
        score_hmc(build_autoencoder({**config, **wide}, model.spec), x)


def test_active_units_and_the_two_parts_of_the_rate():
    """q(z) of many narrow posteriors around N(0, 1) - v is N(0, 1): all the rate is information."""
    torch.manual_seed(0)
    num, variance = 3000, 0.1
    mean = torch.randn(num, 2) * torch.tensor([math.sqrt(1 - variance), 0.0])
    log_var = torch.tensor([math.log(variance), 0.0]).expand(num, 2)
    z = mean + (0.5 * log_var).exp() * torch.randn(num, 2)
    kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var)
    statistics = PosteriorStatistics()
    for part in range(0, num, 1000):
        rows = slice(part, part + 1000)
        statistics.update(z[rows], mean[rows], log_var[rows], kl=kl[rows])
    found = statistics.result()
    assert found.active_units == 1 and found.num_units == 2 and found.num == num
    np.testing.assert_allclose(found.kl, kl.mean(0), rtol=1e-4)
    exact = -0.5 * math.log(variance)
    assert found.mutual_information == pytest.approx(exact, abs=0.05)
    assert sum(found.kl) - found.mutual_information == pytest.approx(0, abs=0.06)
