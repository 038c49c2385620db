"""The graph: one loss for every rung, per sample and in nats."""

import math

import pytest
import torch

import cases
from qvae.autoencoder import build_autoencoder
from qvae.types import Batch, Condition, DataSpec

SPEC = DataSpec(shape=(2, 8, 8), levels=256)
LABEL = Condition(name="label", kind="category", categories=("a", "b"))
TIME = Condition(name="time", kind="cyclic", period=12.0, unit="h")
# All but the one that is fitted and not trained; it has a test file of its own.
BOTTLENECKS = {
    name: {"name": name, **arguments}
    for name, arguments in cases.BOTTLENECKS.items()
    if name != "posthoc"
} | {"vq": {"name": "vq", "codebook_size": 8, "dim": 4}, "fsq": {"name": "fsq", "levels": [4, 4]}}


def make(bottleneck="fsq", *, spec=SPEC, network="conv", **more):
    torch.manual_seed(0)
    config = {
        "encoder": {"name": network},
        "bottleneck": BOTTLENECKS[bottleneck],
        "decoder": {"name": network},
        "likelihood": {"name": "gaussian", "sigma": 0.5},
        **more,
    }
    return build_autoencoder(config, spec)


def batch(num=6, spec=SPEC):
    torch.manual_seed(1)
    cond = torch.rand(num, len(spec.conditions)).round() if spec.conditions else None
    return Batch(x=torch.rand(num, *spec.shape), cond=cond)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_the_loss_is_nll_plus_beta_rate_plus_penalty(name):
    model = make(name, beta=3.0)
    loss = model(batch())
    expected = (loss.nll + 3.0 * loss.rate + loss.penalty).mean()
    torch.testing.assert_close(loss.total, expected)
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_a_rate_is_fixed_where_no_weight_has_a_gradient_by_it(name):
    model = make(name)
    rate = model.bottleneck(model.embed(batch().x).requires_grad_()).rate
    assert model.bottleneck.has_fixed_rate != rate.requires_grad


@pytest.mark.parametrize("name", ["identity", "fsq", "vq"])
def test_the_loss_of_a_sample_does_not_depend_on_the_batch(name):
    model = make(name).eval()
    whole, x = model(batch()), batch().x
    for i in range(len(x)):
        alone = model(Batch(x=x[i : i + 1]))
        torch.testing.assert_close(alone.nll[0], whole.nll[i], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(alone.penalty[0], whole.penalty[i], rtol=1e-4, atol=1e-4)


def test_training_aids_are_penalties_and_only_in_training():
    plain, aided = make(), make(edge_weight=2.0, swap_prob=0.5)
    torch.testing.assert_close(plain.eval()(batch()).total, aided.eval()(batch()).total)
    only_edges = make(edge_weight=2.0).train()
    loss = only_edges(batch())
    torch.testing.assert_close(loss.nll, plain.train()(batch()).nll)
    assert (loss.penalty > plain(batch()).penalty).all()
    # Per sample: cutting the batch changes nothing, so accumulation keeps the objective.
    halves = [only_edges(Batch(x=part)).penalty for part in batch().x.split(3)]
    torch.testing.assert_close(torch.cat(halves), loss.penalty, rtol=1e-4, atol=1e-4)


def test_flat_pictures_have_no_edges():
    model = make(edge_weight=2.0).train()
    flat = Batch(x=torch.full((3, 2, 8, 8), 0.25))
    torch.testing.assert_close(model(flat).penalty, make().train()(flat).penalty)


def test_swapped_cells_come_from_the_next_sample():
    model = make("identity", network="mlp", swap_prob=0.999999).train()
    x = batch().x
    with torch.no_grad():
        nll = model(Batch(x=x)).nll
        z = model.encode(x).z.roll(1, dims=0)
        expected = model.likelihood.nll(model.decode(z), x)
    torch.testing.assert_close(nll, expected)


@pytest.mark.parametrize("network", ["conv", "mlp", "patch"])
@pytest.mark.parametrize("shape", [(2, 16), (2, 8, 8), (1, 8, 8, 8)])
def test_one_to_three_axes_by_the_same_code(network, shape):
    spec = DataSpec(shape=shape)
    model = make(spec=spec, network=network)
    loss = model(batch(2, spec))
    assert loss.nll.shape == (2,)
    assert model.reconstruct(batch(2, spec).x).shape == (2, *shape)


def test_conditions_reach_encoder_and_decoder_and_nan_is_not_told():
    spec = DataSpec(shape=(2, 16, 16), conditions=(LABEL, TIME))
    model = make("identity", spec=spec, conditional=True).eval()
    x = batch(4, spec).x
    told = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 7.5], [0.0, math.nan]])
    same = torch.tensor([[0.0, 1.0]]).expand(4, 2)
    assert not torch.allclose(model.embed(x, told)[1:], model.embed(x, same)[1:])
    z = model.encode(x, same).z
    assert not torch.allclose(model.decode(z, told)[1:], model.decode(z, same)[1:])
    nothing = torch.full((4, 2), math.nan)
    torch.testing.assert_close(model.decode(z, None), model.decode(z, nothing))
    unconditional = make("identity", spec=spec).eval()
    torch.testing.assert_close(unconditional.embed(x, told), unconditional.embed(x, None))


def test_a_coordinate_decoder_turns_with_the_angle():
    """Its ramps at one time are those of another, rotated: exact in the turned frames."""
    spec = DataSpec(shape=(3, 32, 32), conditions=(TIME,))
    model = make("fsq", spec=spec, network="coord", conditional=True, harmonics=1)
    slopes = model.decoder.slopes
    features = model.conditioner(torch.tensor([[1.0], [4.0]]))  # a quarter turn of the hour hand
    own = torch.zeros(2, slopes.bias.numel())
    early, late = slopes(features, own).unflatten(1, slopes.bias.shape[:2])
    still, hour, hour_back, minute, _ = range(5)
    torch.testing.assert_close(early[still], late[still])
    torch.testing.assert_close(early[minute], late[minute])  # both on the hour
    quarter = torch.stack([-early[hour][:, 1], early[hour][:, 0], early[hour][:, 2]], dim=-1)
    torch.testing.assert_close(late[hour], quarter)
    back = torch.stack([early[hour_back][:, 1], -early[hour_back][:, 0], early[hour_back][:, 2]], 1)
    torch.testing.assert_close(late[hour_back], back)


def test_bad_arguments_are_named():
    for more, rule in [
        ({"beta": -1.0}, "beta=-1.0"),
        ({"swap_prob": 1.0}, "swap_prob=1.0"),
        ({"edge_weight": -0.5}, "edge_weight=-0.5"),
        ({"conditional": True}, "no condition"),
    ]:
        with pytest.raises(ValueError, match=rule):
            make(**more)
    with pytest.raises(ValueError, match=r"x: shape \(2, 3, 8, 8\), must be"):
        make()(Batch(x=torch.rand(2, 3, 8, 8)))
