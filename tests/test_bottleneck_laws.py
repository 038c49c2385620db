"""The laws of DESIGN: each runs over every bottleneck that it speaks of."""

import math

import numpy as np
import pytest
import torch

from cases import BOTTLENECKS, ESTIMATING, QUANTIZERS, REVIVING
from qvae import registry
from qvae.bottlenecks.base import Quantizer
from qvae.bottlenecks.gaussian import gaussian_kl

GRIDS = [(), (5,), (4, 3), (2, 3, 2)]


def make(name, **changes):
    torch.manual_seed(1)
    bottleneck = registry.resolve("bottleneck", name)(**{**BOTTLENECKS[name], **changes})
    if name == "vq":  # codes apart enough that each can be chosen
        torch.nn.init.normal_(bottleneck.codebook)
    return bottleneck


def started(name, **changes):
    """A bottleneck after its data-dependent start, if it has one."""
    bottleneck = make(name, **changes).train()
    for _ in range(3):
        bottleneck(torch.randn(64, 4, bottleneck.in_dim))
        bottleneck.after_step()
    return bottleneck


def state(bottleneck):
    return {name: tensor.clone() for name, tensor in bottleneck.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_every_registered_bottleneck_has_a_case():
    assert set(registry.names("bottleneck")) == set(BOTTLENECKS)
    kinds = {n: isinstance(make(n), Quantizer) for n in BOTTLENECKS}
    assert sorted(n for n, is_quantizer in kinds.items() if is_quantizer) == sorted(QUANTIZERS)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_latent_has_the_contract_s_shapes(name, grid, dtype, training):
    bottleneck = started(name).train(training)
    z_e = torch.randn(6, *grid, bottleneck.in_dim).to(dtype)
    latent = bottleneck(z_e)
    assert latent.z.shape == (6, *grid, bottleneck.out_dim)
    assert latent.z.dtype == dtype
    assert latent.rate.shape == latent.penalty.shape == (6,)
    assert torch.isfinite(latent.rate).all() and (latent.rate >= 0).all()
    assert torch.isfinite(latent.penalty).all()
    assert name in ESTIMATING or (latent.penalty >= 0).all()
    if latent.kl is not None:
        assert torch.allclose(latent.kl.sum(1), latent.rate, atol=1e-4)
    assert all(not value.requires_grad for value in latent.metrics.values())
    if name in QUANTIZERS:
        assert latent.codes.shape == (6, *grid, len(bottleneck.codebook_sizes))
        assert latent.codes.dtype == torch.int64
        bottleneck.check_codes(latent.codes)
        cells = math.prod(grid)
        assert torch.allclose(latent.rate, torch.tensor(cells * bottleneck.nats_per_cell))
    else:
        assert latent.codes is None


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_decode_to_z_and_encode_gives_the_same_codes(name, grid):
    quantizer = started(name).eval()
    z_e = torch.randn(6, *grid, quantizer.in_dim)
    latent = quantizer(z_e)
    assert torch.equal(quantizer.decode(latent.codes), latent.z)
    assert torch.equal(quantizer.encode(z_e), latent.codes)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_train_mode_gives_the_values_of_eval_mode(name):
    quantizer = started(name)
    z_e = torch.randn(6, 4, quantizer.in_dim)
    trained = quantizer.train()(z_e)
    quantizer.discard_step()
    evaluated = quantizer.eval()(z_e)
    assert torch.equal(trained.z, evaluated.z) and torch.equal(trained.codes, evaluated.codes)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_every_code_survives_decode_then_encode(name):
    quantizer = started(name).eval()
    codes = torch.arange(quantizer.codebook_sizes[0])[:, None]
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_eval_changes_no_buffer(name):
    bottleneck = started(name).eval()
    before = {**state(bottleneck), **{n: b.clone() for n, b in bottleneck.named_buffers()}}
    bottleneck(torch.randn(8, 4, bottleneck.in_dim))
    after = {**state(bottleneck), **dict(bottleneck.named_buffers())}
    assert same(before, after)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_sample_does_not_depend_on_its_batch(name):
    quantizer = started(name).eval()
    z_e = torch.randn(8, 4, quantizer.in_dim)
    alone = torch.cat([quantizer(row[None]).codes for row in z_e])
    assert torch.equal(alone, quantizer(z_e).codes)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_loss_of_a_sample_does_not_depend_on_the_batch_size(name):
    quantizer = started(name).eval()
    z_e = torch.randn(8, 4, quantizer.in_dim)
    whole, alone = quantizer(z_e), quantizer(z_e[:1])
    assert torch.allclose(whole.penalty[:1], alone.penalty)
    assert torch.allclose(whole.rate[:1], alone.rate)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_straight_through_gradient_is_exactly_one(name):
    """FSQ declares it for the range of its values; what it does beyond is tested below."""
    quantizer = started(name)
    z_e = torch.empty(6, 4, quantizer.in_dim).uniform_(-0.5, 0.5).requires_grad_()
    quantizer(z_e).z.sum().backward()
    assert torch.equal(z_e.grad, torch.ones_like(z_e))


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_masked_positions_touch_nothing(name):
    bottleneck = started(name)
    z_e = torch.randn(6, 4, bottleneck.in_dim)
    mask = torch.rand(6, 4) < 0.5
    changed = torch.where(mask[..., None], z_e, z_e + 100)
    torch.manual_seed(3)
    first = bottleneck(z_e, mask)
    bottleneck.after_step()
    state_first = state(bottleneck)
    bottleneck = started(name)
    torch.manual_seed(3)
    second = bottleneck(changed, mask)
    bottleneck.after_step()
    assert torch.equal(first.rate, second.rate) and torch.equal(first.penalty, second.penalty)
    assert all(torch.equal(first.metrics[n], second.metrics[n]) for n in first.metrics)
    assert same(state_first, state(bottleneck))


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_state_round_trips_and_a_missing_or_renamed_buffer_is_refused(name):
    source, target = started(name), make(name)
    target.load_state_dict(source.state_dict())
    assert same(state(source), state(target))
    for key in source.state_dict():
        broken = source.state_dict()
        broken[key + "_renamed"] = broken.pop(key)
        with pytest.raises(RuntimeError, match=key):
            make(name).load_state_dict(broken)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_distances_are_float32_under_autocast_and_for_bfloat16_input(name):
    quantizer = started(name).eval()
    offset = 8.0 if name != "fsq" else 0.0
    with torch.no_grad():
        for tensor in quantizer.state_dict().values():
            if tensor.shape == (16, 3):
                tensor.add_(offset)
    z_e = (torch.randn(500, quantizer.in_dim) + offset).bfloat16()
    expected = quantizer.encode(z_e.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(z_e), expected)
        assert torch.equal(quantizer(z_e).codes, expected)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_one_bad_latent_changes_no_codebook_entry_and_is_named_in_eval(name, value):
    quantizer = started(name)
    clean = torch.randn(6, 4, quantizer.in_dim)
    bad = clean.clone()
    bad[2, 1, 0] = value
    quantizer(bad)
    quantizer.after_step()
    assert all(torch.isfinite(tensor.float()).all() for tensor in state(quantizer).values())
    before = state(quantizer)
    quantizer(bad)
    quantizer.discard_step()
    assert same(before, state(quantizer))
    with pytest.raises(ValueError, match=r"z\[\[2, 1, 0\]\]"):
        quantizer.eval()(bad)


@pytest.mark.parametrize("name", REVIVING)
def test_dead_codes_are_used_again(name):
    quantizer = started(name, codebook_size=64)
    with torch.no_grad():
        quantizer.codebook[2:] += 1000.0
        quantizer.ema_sums.copy_(quantizer.codebook * quantizer.ema_counts[:, None])
    used = set()
    for step in range(400):
        latent = quantizer(torch.randn(64, 4, quantizer.in_dim))
        quantizer.after_step()
        if step >= 380:
            used |= set(latent.codes.flatten().tolist())
    assert len(used) >= 62


@pytest.mark.parametrize("name", REVIVING)
def test_without_revival_dead_codes_stay_dead(name):
    """The test above could not fail if codes came back by themselves."""
    quantizer = started(name, codebook_size=64, revival=False)
    with torch.no_grad():
        quantizer.codebook[2:] += 1000.0
        quantizer.ema_sums.copy_(quantizer.codebook * quantizer.ema_counts[:, None])
    for _ in range(50):
        latent = quantizer(torch.randn(64, 4, quantizer.in_dim))
        quantizer.after_step()
    assert latent.codes.max() < 2


@pytest.mark.parametrize("name", QUANTIZERS)
def test_four_micro_batches_equal_one_batch(name):
    whole, parts = started(name), started(name)
    for _ in range(12):  # far enough to pass a revival
        z_e = torch.randn(64, 4, whole.in_dim)
        whole(z_e)
        whole.after_step()
        for part in z_e.split(16):
            parts(part)
        parts.after_step()
    for name_, tensor in state(whole).items():
        assert torch.allclose(tensor.float(), state(parts)[name_].float(), atol=1e-5), name_


@pytest.mark.parametrize("name", QUANTIZERS)
def test_recomputation_does_not_count_twice(name):
    """Activation checkpointing runs forward again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    once, twice = started(name), started(name)
    z_e = torch.randn(16, 4, once.in_dim, requires_grad=True)
    once(z_e).z.sum().backward()
    checkpoint(lambda z: twice(z).z, z_e, use_reentrant=False).sum().backward()
    once.after_step()
    twice.after_step()
    for key, tensor in state(once).items():
        assert torch.equal(tensor, state(twice)[key]), key


@pytest.mark.parametrize(
    ("name", "changes", "rule"),
    [
        ("identity", {"dim": 0}, "dim=0"),
        ("gaussian", {"dim": 0}, "dim=0"),
        ("vq", {"codebook_size": 0}, "codebook_size=0"),
        ("vq", {"dim": 0}, "dim=0"),
        ("vq", {"commitment_weight": -1.0}, "commitment_weight=-1.0"),
        ("vq_ema", {"codebook_size": 0}, "codebook_size=0"),
        ("vq_ema", {"ema_decay": 1.0}, "ema_decay=1.0"),
        ("fsq", {"levels": [8, 1]}, r"levels=\[8, 1\]"),
        ("fsq", {"levels": []}, r"levels=\[\]"),
    ],
)
def test_bad_arguments_are_refused_with_name_and_value(name, changes, rule):
    with pytest.raises(ValueError, match=rule):
        make(name, **changes)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_bad_codes_are_refused(name):
    quantizer = make(name).eval()
    size = quantizer.codebook_sizes[0]
    for codes, rule in [
        (torch.tensor([[size]]), f"{size} in codebook 0"),
        (torch.tensor([[-1]]), "-1 in codebook 0"),
        (torch.zeros(1, 2, dtype=torch.int64), "last axis is 2"),
    ]:
        with pytest.raises(ValueError, match=rule):
            quantizer.decode(codes)


def test_nearest_equals_brute_force():
    from qvae.kernels import nearest

    z, codebook = torch.randn(700, 5), torch.randn(300, 5)
    brute = ((z.numpy()[:, None].astype(np.float64) - codebook.numpy()[None]) ** 2).sum(-1)
    assert np.array_equal(nearest(z, codebook).numpy(), brute.argmin(1))
    assert torch.equal(nearest(z.double(), codebook.double()), nearest(z, codebook))
    assert torch.equal(nearest(z + 1000, codebook + 1000), nearest(z + 1000 - 1000, codebook))


def test_gaussian_kl_equals_torch_distributions():
    from torch.distributions import Normal, kl_divergence

    mean, log_var = torch.randn(50, 3), torch.randn(50, 3)
    posterior = Normal(mean, (0.5 * log_var).exp())
    assert torch.allclose(
        gaussian_kl(mean, log_var), kl_divergence(posterior, Normal(0.0, 1.0)), atol=1e-5
    )


def test_gaussian_samples_have_the_posterior_s_moments():
    gaussian = make("gaussian")
    z_e = torch.tensor([[1.0, -2.0, 0.0, 0.0, -2.0, 1.0]]).expand(20000, 6)
    z = gaussian(z_e).z
    assert torch.allclose(z.mean(0), z_e[0, :3], atol=0.05)
    assert torch.allclose(z.var(0), z_e[0, 3:].exp(), rtol=0.05)
    assert torch.equal(gaussian.mode(z_e), z_e[:, :3])


def test_fsq_codes_count_the_grid_of_digits():
    fsq = make("fsq", levels=[8, 5, 5, 5])
    codes = torch.arange(1000)[:, None]
    values = fsq.decode(codes)
    assert len(torch.unique(values, dim=0)) == 1000
    assert torch.allclose(
        values.tanh()[1] - values.tanh()[0], torch.tensor([2 / 8, 0, 0, 0]), atol=1e-6
    )


def test_fsq_stops_gradients_that_lead_out_of_its_range_and_no_others():
    fsq = make("fsq", levels=[4])
    edge = fsq.outermost.item()
    z_e = torch.tensor([[-2 * edge], [-0.5 * edge], [0.5 * edge], [2 * edge]], requires_grad=True)
    fsq(z_e).z.sum().backward()  # descent lowers every coordinate
    assert z_e.grad.flatten().tolist() == [0.0, 1.0, 1.0, 1.0]
    z_e.grad = None
    (-fsq(z_e).z).sum().backward()
    assert z_e.grad.flatten().tolist() == [-1.0, -1.0, -1.0, 0.0]


def test_vq_ema_first_update_keeps_the_kmeans_centres():
    """A known bug of peers: sums that were not multiplied by the counts shrink every code."""
    torch.manual_seed(0)
    quantizer = make("vq_ema").train()
    vectors = torch.randn(512, 1, 3) + 5
    quantizer(vectors)
    quantizer.after_step()
    centres = quantizer.codebook.clone()
    quantizer(vectors)
    quantizer.after_step()
    assert (quantizer.codebook - centres).norm() < 0.05 * centres.norm()
