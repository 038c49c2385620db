"""Laws of the conditioner, and its features by hand."""

import math

import pytest
import torch

from qvae.networks import Conditioner, ConditionFeatures
from qvae.types import Condition

ONE_CATEGORY = (Condition(name="label", kind="category", categories=("cat", "dog")),)
CONDITIONS = (
    *ONE_CATEGORY,
    Condition(name="age", kind="number", mean=40.0, std=10.0),
    Condition(name="time", kind="cyclic", period=12.0, unit="h"),
    Condition(name="angle", kind="cyclic", period=360.0),
)


def test_conditioner_features_by_hand():
    conditioner = Conditioner(CONDITIONS, dim=8)
    assert conditioner.feature_dim == (2 + 1) + (7 + 1) + (32 + 1) + (16 + 1)
    features = conditioner.features(torch.tensor([[1.0, 0.5, 4.25, 90.0]]))[0]
    assert features[:3].tolist() == [0, 1, 0]
    angles = torch.tensor([math.pi / 8, math.pi / 4, math.pi / 2])
    number = torch.cat([torch.tensor([0.5]), angles.sin(), angles.cos(), torch.zeros(1)])
    torch.testing.assert_close(features[3:11], number)
    k = torch.arange(1, 9)
    hour, minute = 2 * math.pi * 4.25 / 12 * k, 2 * math.pi * 0.25 * k
    hands = torch.cat([hour.sin(), hour.cos(), minute.sin(), minute.cos()])
    hands = torch.cat([hands, torch.zeros(1)])
    torch.testing.assert_close(features[11:44], hands, rtol=0, atol=1e-5)
    angle = math.pi / 2 * k
    torch.testing.assert_close(
        features[44:],
        torch.cat([angle.sin(), angle.cos(), torch.zeros(1)]),
        rtol=0,
        atol=1e-5,
    )


def test_conditioner_is_periodic_and_tells_every_minute_apart():
    clock = Conditioner((CONDITIONS[2],), dim=8)
    times = torch.arange(720)[:, None] / 60
    torch.testing.assert_close(clock.features(times), clock.features(times + 12), rtol=0, atol=2e-4)
    distances = torch.cdist(clock.features(times), clock.features(times))
    assert (distances + 100 * torch.eye(720)).min() > 0.5


def test_one_harmonic_leaves_a_turn_and_nothing_else():
    features = ConditionFeatures((CONDITIONS[2],), harmonics=1)(torch.tensor([[3.25]]))
    hour, minute = 2 * math.pi * 3.25 / 12, 2 * math.pi * 0.25
    turn = [math.sin(hour), math.cos(hour), math.sin(minute), math.cos(minute), 0.0]
    torch.testing.assert_close(features, torch.tensor([turn]), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="harmonics=0"):
        ConditionFeatures((CONDITIONS[2],), harmonics=0)


@pytest.mark.parametrize(
    ("period", "unit", "num"), [(12.0, "h", 32), (2.5, "h", 16), (1.0, "h", 16), (12.0, "", 16)]
)
def test_unit_harmonics_only_where_they_close(period, unit, num):
    condition = Condition(name="t", kind="cyclic", period=period, unit=unit)
    conditioner = Conditioner((condition,), dim=4)
    assert conditioner.feature_dim == num + 1
    ends = conditioner.features(torch.tensor([[0.0], [period]]))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-5)


def test_untold_conditions_are_zeros_with_a_flag_and_do_not_touch_the_others():
    conditioner = Conditioner(CONDITIONS, dim=8)
    row = torch.tensor([[0.0, 1.0, 3.0, 10.0]])
    full = conditioner.features(row)
    untold = row.clone()
    untold[0, 2] = torch.nan
    features = conditioner.features(untold)
    assert features[0, 11:43].abs().max() == 0 and features[0, 43] == 1
    assert features[0, :11].equal(full[0, :11]) and features[0, 44:].equal(full[0, 44:])
    nothing = conditioner(torch.full((1, 4), torch.nan, requires_grad=True))
    assert nothing.isfinite().all() and not torch.allclose(nothing, conditioner(row))


def test_features_stay_exact_under_autocast():
    conditioner = Conditioner(CONDITIONS, dim=8)
    row = torch.tensor([[0.0, 1.0, 11 + 59 / 60, 10.0]])
    with torch.autocast("cpu", torch.bfloat16):
        assert conditioner.features(row).equal(conditioner.features(row.clone()))
        assert conditioner.features(row).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Conditioner((), dim=4), ["at least one condition"]),
        (lambda: Conditioner(ONE_CATEGORY, dim=0), ["dim=0"]),
        (lambda: Conditioner((Condition(name="a", kind="category"),), dim=4), ["'a'"]),
        (
            lambda: Conditioner((Condition(name="a", kind="cyclic", period=0.0),), dim=4),
            ["period=0.0"],
        ),
        (lambda: Conditioner(ONE_CATEGORY, dim=4)(torch.zeros(1, 2)), ["2 columns", "1 (label)"]),
        (lambda: Conditioner(ONE_CATEGORY, dim=4)(torch.tensor([[2.0]])), ["'label'", "2", "0..1"]),
        (lambda: Conditioner(ONE_CATEGORY, dim=4)(torch.tensor([[0.5]])), ["'label'", "0.5"]),
    ],
)
def test_bad_arguments_are_named(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert all(word in str(caught.value) for word in words), str(caught.value)
