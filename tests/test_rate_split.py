"""The split of the rate, against integrals and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from qvae.bottlenecks.gaussian import gaussian_kl
from qvae.metrics.rate_split import active_units, split_rate


def test_the_parts_add_up_to_the_mean_kl():
    torch.manual_seed(0)
    mean, log_var = torch.randn(200, 5), torch.randn(200, 5) - 1
    found = split_rate(mean, log_var)
    assert found.rate == pytest.approx(gaussian_kl(mean, log_var).sum(1).mean().item(), rel=1e-6)
    assert found.mutual_information + found.marginal_kl == pytest.approx(found.rate, abs=1e-12)
    assert 0 < found.mutual_information <= math.log(200) + 1e-9


def test_equal_posteriors_tell_nothing():
    found = split_rate(torch.full((50, 2), 0.7), torch.full((50, 2), -1.0))
    assert found.mutual_information == pytest.approx(0, abs=1e-9)
    assert found.marginal_kl == pytest.approx(found.rate, abs=1e-9)


def test_against_quadrature_in_one_dimension():
    mean, std = np.array([-1.0, 0.5, 1.0, 2.5]), np.array([0.5, 0.8, 0.3, 1.0])
    z = np.linspace(-12, 14, 100_001)
    each = scipy.stats.norm.pdf(z[:, None], mean, std)
    average = each.mean(axis=1)
    ratio = np.log(average / scipy.stats.norm.pdf(z))
    marginal = np.trapezoid(average * ratio, z)
    found = split_rate(
        torch.tensor(mean)[:, None],
        2 * torch.tensor(std).log()[:, None],
        num_samples=1000,
        seed=1,
    )
    assert found.marginal_kl == pytest.approx(marginal, abs=5 * found.standard_error)
    assert found.standard_error < 0.02


def test_a_gaussian_channel_has_its_closed_form():
    """Means from N(0, a^2), noise s^2: the information is half the log of 1 + a^2 / s^2."""
    generator = torch.Generator().manual_seed(0)
    a, s = 1.5, 1.0
    mean = a * torch.randn(2000, 1, generator=generator)
    found = split_rate(mean, torch.full((2000, 1), 2 * math.log(s)), num_samples=2)
    assert found.mutual_information == pytest.approx(0.5 * math.log(1 + a * a / s / s), abs=0.04)


def test_active_units_are_those_that_move():
    mean = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    assert active_units(mean * torch.tensor([1.0, 0.2, 0.05])) == 2


def test_tables_that_differ_are_refused():
    with pytest.raises(ValueError, match="needs equal shapes and at least one draw"):
        split_rate(torch.zeros(3, 2), torch.zeros(3, 2), num_samples=0)
