"""Each rung does what its paper says: trained for a few steps, on something that can fail."""

import math
import shutil
from functools import cache

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from qvae.autoencoder import build_autoencoder
from qvae.bottlenecks.autoregressive import AutoregressiveDensity
from qvae.bottlenecks.gaussian import Gaussian
from qvae.bottlenecks.gaussian_factor import GaussianFactor, permute_dims
from qvae.bottlenecks.gaussian_tc import total_correlation
from qvae.data.images import Images
from qvae.objectives import RatePrice, importance_bound
from qvae.train import fit
from qvae.types import Batch, Condition, DataSpec, Latent

SPEC = DataSpec(shape=(1, 4, 4))
SHARP = {"name": "gaussian", "sigma": 0.1}
OPTIMAL = {"name": "gaussian", "sigma": "optimal"}
LABEL = Condition(name="label", kind="category", categories=("a", "b"))


def make(*, spec=SPEC, dim=4, hidden=(32,), **model):
    torch.manual_seed(0)
    bottleneck = {"name": "gaussian", "dim": dim, **model.pop("bottleneck", {})}
    network = {"name": "mlp", "hidden": list(hidden)}
    return build_autoencoder(
        {
            "encoder": {**network, "latent_dim": 2 * dim},
            "bottleneck": bottleneck,
            "decoder": {**network, "latent_dim": dim},
            "likelihood": {"name": "bernoulli"},
            **model,
        },
        spec,
    )


def factors(num, seed=0):
    """Two bars, a row and a column, each bright or dark by itself."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.rand(2, num, 4, generator=generator)
    x = 0.5 * (rows[:, :, None].round() + columns[:, None, :].round())
    return x.view(num, 1, 4, 4)


def train(model, steps, *, x=None, cond=None, lr=3e-3):
    x = factors(512) if x is None else x
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        rows = torch.arange(64 * step, 64 * (step + 1)) % len(x)
        told = None if cond is None else cond[rows]
        loss = model.train()(Batch(x=x[rows], cond=told, step=torch.tensor(step)))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    return model.eval()


def latent(*kl):
    kl = torch.tensor(kl, requires_grad=True)
    return kl, Latent(z=kl, rate=kl.sum(1), penalty=0 * kl.sum(1), kl=kl)


# -- prices ------------------------------------------------------------------------------------


def test_a_warm_up_is_a_function_of_the_step_and_ends_outside_training():
    price, (_, paid) = RatePrice(beta=4.0, beta_warmup=8), latent([1.0, 1.0])
    found = [price(paid, torch.tensor(step)).item() for step in (0, 2, 8, 100)]
    assert found == [0.0, 2.0, 8.0, 8.0]
    assert price(paid, None).item() == 8.0


def test_a_price_may_fall_and_ends_where_it_is_said_to():
    price, (_, paid) = RatePrice(beta_start=32.0, beta=2.0, beta_warmup=4), latent([1.0, 2.0])
    found = [price(paid, torch.tensor(step)).item() for step in (0, 2, 4, 100)]
    assert found == pytest.approx([96.0, 24.0, 6.0, 6.0])  # by equal factors
    assert price(paid, None).item() == 6.0


def test_free_bits_cost_the_same_below_and_have_no_gradient_there():
    kl, paid = latent([0.1, 2.0], [0.3, 4.0])
    charged = RatePrice(beta=3.0, free_bits=0.5)(paid, None)
    assert charged.mean().item() == pytest.approx(3 * (0.5 + 3.0))  # sum of max(.5, mean KL)
    charged.mean().backward()
    torch.testing.assert_close(kl.grad, torch.tensor([[0.0, 1.5], [0.0, 1.5]]))


def test_capacity_pulls_the_mean_rate_from_both_sides():
    price = RatePrice(beta=10.0, capacity=6.0, capacity_steps=4)
    for step, side in [(0, 1.0), (4, -1.0)]:  # the target is 0, then 6; the rate is 3
        kl, paid = latent([1.0, 1.0], [2.0, 2.0])
        charged = price(paid, torch.tensor(step)).mean()
        assert charged.item() == pytest.approx(30.0)
        charged.backward()
        torch.testing.assert_close(kl.grad, torch.full((2, 2), 5.0 * side))


FSQ = {"name": "fsq", "levels": [8]}
RESIDUAL = {"name": "residual", "num_quantizers": 2, "quantizer": FSQ}


@pytest.mark.parametrize(
    ("bottleneck", "price", "rule"),
    [
        ({"name": "identity", "dim": 4}, {"beta": 0.0}, "beta=0.0: the rate of Identity is fixed"),
        (
            {"name": "identity", "dim": 4},
            {"beta": 4.0, "capacity": 9.0},
            "beta=4.0, capacity=9.0: the rate of Identity",
        ),
        (FSQ, {"beta_warmup": 9}, "beta_warmup=9: the rate of FSQ is fixed"),
        (RESIDUAL, {"beta": 2.0}, "the rate of Residual is fixed"),
        ({"name": "gumbel", "codebook_size": 8, "dim": 4}, {"beta": 2.0}, None),
    ],
)
def test_a_price_is_refused_for_training_where_no_weight_changes_the_rate(bottleneck, price, rule):
    model = build_autoencoder({**make().config, "bottleneck": bottleneck, **price}, SPEC)
    if rule is None:
        model.check_price()
        return
    with pytest.raises(ValueError, match=rule):
        model.check_price()


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"beta_warmup": -1}, "beta_warmup=-1"),
        ({"beta_start": -1.0, "beta_warmup": 5}, "beta_start=-1.0"),
        ({"beta_start": 4.0}, "beta_warmup=0: needs the other two above 0"),
        ({"beta_start": 4.0, "beta": 0.0, "beta_warmup": 9}, "beta=0.0, beta_warmup=9: needs"),
        ({"free_bits": -0.1}, "free_bits=-0.1"),
        ({"capacity": -2.0}, "capacity=-2.0"),
        ({"capacity_steps": 5}, "capacity_steps=5: needs a capacity"),
        ({"capacity": 2.0, "free_bits": 1.0}, "one of them"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"num_samples": 2, "free_bits": 1.0}, "takes no free_bits"),
        ({"num_samples": 2, "edge_weight": 1.0}, "takes no swap_prob"),
        ({"num_samples": 5, "likelihood": OPTIMAL}, "num_samples=5: takes no sigma=optimal"),
        ({"num_samples": 2, "bottleneck": {"name": "fsq", "levels": [8]}}, "needs a gaussian"),
        ({"free_bits": 1.0, "bottleneck": {"name": "identity", "dim": 4}}, "needs a gaussian"),
        ({"bottleneck": {"dim": 0}}, "dim=0"),
        ({"bottleneck": {"prior_hidden": 0}}, "prior_hidden=0"),
        ({"bottleneck": {"name": "gaussian_tc", "dim": 4, "tc_weight": -1.0}}, "tc_weight=-1.0"),
        (
            {"bottleneck": {"name": "gaussian_tc", "dim": 4, "estimator": "stratified"}},
            "needs dataset_size",
        ),
        ({"bottleneck": {"name": "gaussian_factor", "dim": 4, "num_layers": 0}}, "num_layers=0"),
    ],
)
def test_what_has_no_meaning_is_refused(changes, rule):
    changes = dict(changes)
    bottleneck = changes.get("bottleneck", {})
    if bottleneck.get("name") == "fsq":
        with pytest.raises(ValueError, match=rule):
            build_autoencoder({**make().config, **changes}, SPEC)
        return
    with pytest.raises(ValueError, match=rule):
        make(**changes)


def test_free_bits_keep_a_latent_that_a_dear_rate_would_close():
    """With beta 30 every coordinate collapses; with a free half nat each keeps its half."""
    closed = train(make(beta=30.0), 80)
    kept = train(make(beta=30.0, free_bits=0.5), 80)
    x = factors(256, seed=1)
    closed_kl, kept_kl = (model.encode(x).kl.mean(0) for model in (closed, kept))
    assert closed_kl.max() < 0.1
    assert kept_kl.min() > 0.15


def test_capacity_sets_the_rate():
    model = train(make(beta=30.0, capacity=3.0, capacity_steps=100), 250)
    assert model.encode(factors(256, seed=1)).rate.mean().item() == pytest.approx(3.0, abs=0.4)


# -- the bound of many samples -----------------------------------------------------------------


def test_more_samples_bound_tighter_on_the_same_model():
    model = train(make(), 100)
    x = factors(64, seed=1)
    with torch.no_grad():
        bounds = []
        for num in (1, 5, 50):
            nll, ratio = model.draws(x, num=num * (200 // num))
            by_chunk = -(nll + ratio).view(-1, num, 64)
            bounds.append(torch.stack([importance_bound(part) for part in by_chunk]).mean())
    assert bounds[0] < bounds[1] < bounds[2]


def test_iwae_s_loss_is_its_bound_and_its_parts_add_up():
    model = make(num_samples=8)
    batch = Batch(x=factors(16))
    torch.manual_seed(5)
    loss = model(batch)
    torch.testing.assert_close(loss.total, (loss.nll + loss.rate + loss.penalty).mean())
    assert (loss.penalty <= 1e-5).all()  # Jensen
    torch.manual_seed(5)
    model.encode(batch.x)
    nll, ratio = model.draws(batch.x, num=8)
    expected = -((-(nll + ratio)).exp().double().mean(0).log()).mean()
    torch.testing.assert_close(loss.total.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_gradient_weighs_each_draw_by_its_importance():
    """Equation 14 of the paper, against autograd through the bound."""
    log_w = torch.randn(6, 3, requires_grad=True)
    importance_bound(log_w).sum().backward()
    torch.testing.assert_close(log_w.grad, log_w.detach().softmax(0))


def test_one_sample_is_the_elbo_in_the_mean():
    model = train(make(), 50)
    x = factors(32, seed=1)
    with torch.no_grad():
        nll, ratio = model.draws(x, num=3000)
    torch.testing.assert_close(ratio.mean(0), model.encode(x).rate, rtol=0.05, atol=0.05)


# -- total correlation -------------------------------------------------------------------------


def correlated(num, rho):
    cov = torch.tensor([[1.0, rho], [rho, 1.0]])
    return MultivariateNormal(torch.zeros(2), cov).sample((num,))


def test_total_correlation_of_a_known_posterior():
    """Narrow posteriors around correlated means: TC is that of the sum of both normals."""
    torch.manual_seed(0)
    rho, variance = 0.9, 0.3
    mean = correlated(1500, rho)
    log_var = torch.full_like(mean, math.log(variance))
    z = mean + math.sqrt(variance) * torch.randn_like(mean)
    total = rho / (1 + variance)
    exact = -0.5 * math.log(1 - total**2)
    for size in (None, 1500):
        found = total_correlation(z, mean, log_var, dataset_size=size).mean().item()
        assert found == pytest.approx(exact, abs=0.06)
    free = total_correlation(z, mean[torch.randperm(1500)], log_var, dataset_size=None)
    assert free.mean().item() == pytest.approx(exact, abs=0.1)  # the batch's q, whoever drew z


def test_stratified_weights_are_unbiased_for_q_of_z():
    """The batch's own member by 1/N, the others for all the rest: the mean over batches is q(z)."""
    rng = np.random.default_rng(0)
    everyone = rng.normal(size=12)
    density = np.exp(-0.5 * (everyone[0] - everyone) ** 2)  # of z = mean 0 under each posterior
    found = []
    for _ in range(20_000):
        others = rng.choice(np.arange(1, 12), size=3, replace=False)
        found.append(density[0] / 12 + 11 / 12 * density[others].mean())
    assert np.mean(found) == pytest.approx(density.mean(), rel=0.01)
    # and those are the weights that the code gives: 1-D, so joint and marginal agree
    z = torch.tensor(everyone[:4], dtype=torch.float32)[:, None]
    assert total_correlation(z, z, 0 * z, dataset_size=12).abs().max() < 1e-5


def test_permuted_columns_keep_their_marginals_and_lose_their_tie():
    z = correlated(4000, 0.9)
    shuffled = permute_dims(z)
    assert shuffled.sort(0).values.equal(z.sort(0).values)
    assert shuffled.T.corrcoef()[0, 1].abs() < 0.06


def test_the_discriminator_learns_tc_and_gives_no_gradient_to_z_through_its_own_loss():
    bottleneck = GaussianFactor(dim=2, tc_weight=0.0, hidden=32, num_layers=2)
    optimizer = torch.optim.Adam(bottleneck.parameters(), lr=3e-3)
    narrow = torch.full((512, 2), -20.0)
    for _ in range(300):
        optimizer.zero_grad()
        out = bottleneck(torch.cat([correlated(512, 0.9), narrow], dim=1))
        out.penalty.mean().backward()
        optimizer.step()
    found = bottleneck(torch.cat([correlated(512, 0.9), narrow], dim=1)).metrics["tc"].item()
    assert found == pytest.approx(-0.5 * math.log(1 - 0.81), abs=0.3)
    z_e = torch.cat([correlated(64, 0.9), narrow[:64]], dim=1).requires_grad_()
    bottleneck(z_e).penalty.sum().backward()
    assert z_e.grad.abs().max() == 0  # weight 0: only the discriminator learned
    bottleneck.tc_weight = 1.0
    bottleneck.zero_grad()
    plain = z_e.detach().clone().requires_grad_()
    bottleneck(plain).penalty.sum().backward()
    assert plain.grad[:, :2].abs().max() > 0


@pytest.mark.parametrize(
    "bottleneck",
    [
        {"name": "gaussian_tc", "dim": 4, "tc_weight": 20.0},
        {"name": "gaussian_factor", "dim": 4, "tc_weight": 100.0, "hidden": 64, "num_layers": 2},
    ],
    ids=["beta_tcvae", "factor_vae"],
)
def test_total_correlation_falls_under_its_price(bottleneck):
    """Measured by the same estimator on both, and not by the game's own discriminator."""
    free = sharp_vae()
    priced = train(make(likelihood=SHARP, bottleneck=bottleneck), 250)
    x, found = factors(512, seed=1), []
    for model in (free, priced):
        torch.manual_seed(0)
        mean, log_var = model.bottleneck.posterior(model.embed(x))
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        found.append(total_correlation(z, mean, log_var).mean().item())
        assert model.encode(x).rate.mean() > 3  # nobody got there by saying nothing
    assert found[1] < 0.6 * found[0]


# -- a learned prior ---------------------------------------------------------------------------


def test_a_coordinate_knows_only_those_before_it_and_the_density_sums_to_one():
    torch.manual_seed(0)
    density = AutoregressiveDensity(2, hidden=16)
    for parameter in density.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z = torch.randn(5, 2)
    before = density.log_prob(z)
    changed = density.log_prob(z + torch.tensor([0.0, 1.0]))
    assert before[:, 0].equal(changed[:, 0]) and not before[:, 1].equal(changed[:, 1])
    moved = density.log_prob(z + torch.tensor([1.0, 0.0]))
    assert not torch.isclose(before[:, 1], moved[:, 1]).any()
    grid = torch.linspace(-30, 30, 601)
    pairs = torch.cartesian_prod(grid, grid)
    total = density.log_prob(pairs).sum(-1).exp().sum() * (grid[1] - grid[0]) ** 2
    assert total.item() == pytest.approx(1, abs=2e-3)


def test_a_learned_density_fits_a_ring_and_draws_what_it_learned():
    torch.manual_seed(0)
    density = AutoregressiveDensity(2, hidden=64)
    optimizer = torch.optim.Adam(density.parameters(), lr=5e-3)

    def ring(num):
        angle = 2 * math.pi * torch.rand(num)
        return 2 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(num, 2)

    for _ in range(300):
        optimizer.zero_grad()
        (-density.log_prob(ring(256)).sum(1).mean()).backward()
        optimizer.step()
    with torch.no_grad():
        drawn = density.from_noise(torch.randn(2000, 2), torch.randn(2000, 2))
    radius = drawn.norm(dim=1)
    assert ((radius > 1.5) & (radius < 2.5)).float().mean() > 0.85
    # sampling inverts scoring: the mean score of draws is minus the entropy of real ones
    ours = density.log_prob(drawn).sum(1).mean()
    assert abs(ours - density.log_prob(ring(2000)).sum(1).mean()) < 0.25


@cache
def sharp_vae():
    return train(make(likelihood=SHARP), 250)


def test_a_learned_prior_fits_the_codes_better_than_the_normal_and_the_bound_gains_as_much():
    """The codes of 256 patterns are no N(0, I): fit a density to them and put it in its place."""
    model = sharp_vae()
    codes = model.encode(factors(2048)).z.detach()
    density = AutoregressiveDensity(4, hidden=64)
    optimizer = torch.optim.Adam(density.parameters(), lr=5e-3)
    for step in range(150):
        optimizer.zero_grad()
        rows = torch.arange(256 * step, 256 * (step + 1)) % len(codes)
        density.log_prob(codes[rows]).sum(1).neg().mean().backward()
        optimizer.step()
    x, loss = factors(512, seed=1), {}
    for prior in (None, density):
        model.bottleneck.prior = prior
        with torch.no_grad():
            torch.manual_seed(0)
            nll, ratio = model.draws(x, num=4)
        loss[prior] = (nll + ratio).mean().item()
    model.bottleneck.prior = None
    assert loss[density] < loss[None] - 0.3


def test_a_conditional_vae_with_a_learned_prior_trains_both_and_listens():
    spec = DataSpec(shape=(1, 4, 4), conditions=(LABEL,))
    x = factors(512)
    cond = x[:, 0, 0, 0].gt(0.4).float()[:, None]
    bottleneck = {"prior": "autoregressive", "prior_hidden": 32}
    model = make(spec=spec, conditional=True, bottleneck=bottleneck, likelihood=SHARP)
    first = model(Batch(x=x, cond=cond)).total.item()
    before = [p.clone() for p in model.bottleneck.prior.parameters()]
    train(model, 150, x=x, cond=cond)
    told, other = (model(Batch(x=x, cond=c)) for c in (cond, 1 - cond))
    assert told.total.item() < 0.5 * first and other.nll.mean() > told.nll.mean() + 1
    assert all(
        not p.equal(q) for p, q in zip(before, model.bottleneck.prior.parameters(), strict=True)
    )


def test_the_learned_density_is_float32_under_autocast():
    density = AutoregressiveDensity(3, hidden=16)
    for parameter in density.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    z = torch.randn(9, 3)
    expected = density.log_prob(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert density.log_prob(z).equal(expected)


def test_noise_of_the_normal_prior_is_its_first_block():
    noise = torch.randn(3, 2, 5)
    assert Gaussian(dim=5).from_noise(noise).equal(noise[:, 0])


# -- in the loop -------------------------------------------------------------------------------


def test_a_schedule_and_redrawn_pixels_resume_to_the_same_bits(tmp_path):
    """Both are functions of (seed, step): a run cut back to its middle ends as it ended."""
    grey = np.random.default_rng(0).integers(0, 256, (64, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "x.npy", grey)
    data = Images(str(tmp_path / "x.npy"), binarise="dynamic")
    settings = {"steps": 8, "batch_size": 16, "save_every": 4, "eval_every": 4, "device": "cpu"}

    def run(folder, *, warmup=6, resume=False):
        model = make(beta_warmup=warmup, num_samples=2, spec=data.spec)
        options = {**settings, "precision": "float32", "progress": False, "resume": resume}
        fit(model, data, run=folder, **options)
        return model.state_dict()

    whole = run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "state" / "step_00000008")
    shutil.rmtree(tmp_path / "run" / "model")
    resumed = run(tmp_path / "run", resume=True)
    assert all(value.equal(resumed[name]) for name, value in whole.items())
    without = run(tmp_path / "other", warmup=0)
    assert not all(value.equal(without[name]) for name, value in whole.items())
