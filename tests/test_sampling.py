"""From logits to tokens: streams of random numbers, inversion, temperature and filters."""

import inspect
import math

import numpy as np
import pytest
import torch

from qvae.priors.sampling import check_sampler, filter_logits, invert, pick, uniforms


def test_streams_have_prefixes_and_are_uniform():
    numbers = uniforms(200, 50, seed=0)
    assert (numbers[:7, :20] == uniforms(7, 20, seed=0)).all()
    assert numbers.min() >= 0 and numbers.max() < 1 and abs(numbers.mean() - 0.5) < 0.01
    assert len({row.tobytes() for row in numbers}) == 200
    assert abs((numbers[:-1] * numbers[1:]).mean() - 0.25) < 0.01


def test_invert_draws_the_first_digit_above_the_number():
    logits = torch.tensor([0.1, 0.0, 0.6, 0.3, 0.0]).log()
    numbers = torch.tensor([0.0, 0.0999, 0.1001, 0.69, 0.701, 1 - 2**-32], dtype=torch.float64)
    assert invert(logits.expand(6, -1), numbers).tolist() == [0, 0, 2, 2, 3, 3]
    assert invert(torch.tensor([[-math.inf, 0.0]]), torch.zeros(1).double()).tolist() == [1]


def test_filters_keep_what_they_should():
    logits = torch.tensor([[0.1, 0.4, 0.3, 0.2]]).log()

    def kept(**filters):
        filters = {"top_k": None, "top_p": None, **filters}
        return torch.isfinite(filter_logits(logits, **filters))[0].nonzero().flatten().tolist()

    assert kept(top_k=2) == [1, 2] and kept(top_k=9) == kept(top_p=1.0) == [0, 1, 2, 3]
    assert kept(top_p=0.39) == [1] and kept(top_p=0.5) == [1, 2] and kept(top_p=1e-9) == [1]
    assert kept(top_k=2, top_p=0.6) == [1, 2]
    assert kept(min_p=0.49) == [1, 2, 3] and kept(min_p=1.0) == [1]
    ties = torch.zeros(1, 4)
    assert torch.isfinite(filter_logits(ties, top_k=2, top_p=None))[0].tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_temperature_divides_the_logits():
    logits = torch.tensor([[0.0, 1.0]]).expand(4000, -1)
    numbers = torch.rand(4000, dtype=torch.float64)
    share = pick(logits, numbers, temperature=0.5).float().mean()
    assert abs(share - 1 / (1 + math.exp(-2))) < 0.02


@pytest.mark.parametrize("temperature", [0.0, 1e-3, 1e-29, 1e-31, 1e-39, 1e-300])
def test_however_cold_the_best_is_taken(temperature):
    logits = torch.tensor([[1.0, 2.0, -torch.inf], [9e4, -9e4, 0.0]])
    numbers = torch.tensor([0.0, 0.999], dtype=torch.float64)
    assert pick(logits, numbers, temperature=temperature).tolist() == [1, 0]


@pytest.mark.parametrize("value", [2.5, 2.0, "3", 0])
def test_top_k_is_a_whole_number(value):
    check = inspect.unwrap(check_sampler)  # as users call it: the tests' type checker is not there
    with pytest.raises(ValueError, match=rf"^top_k={value!r}: must be a whole number >= 1$"):
        check(top_k=value)
    check(top_k=np.int64(3), temperature=np.float32(0.5))


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "guidance"])
def test_a_setting_that_is_no_number_is_refused_by_name(name):
    check = inspect.unwrap(check_sampler)
    with pytest.raises(ValueError, match=rf"^{name}='0.5': must be a number$"):
        check(**{name: "0.5"})
