"""Quantizers made of quantizers: levels, groups, projections, and nests of them."""

import pytest
import torch

from qvae.bottlenecks.grouped import Grouped
from qvae.bottlenecks.projected import Projected
from qvae.bottlenecks.residual import Residual
from qvae.errors import UsageError

TABLE = {"name": "vq_ema", "codebook_size": 16, "dim": 3}


def trained(quantizer, steps=12):
    quantizer.train()
    for _ in range(steps):
        quantizer(torch.randn(64, 4, quantizer.in_dim))
        quantizer.after_step()
    return quantizer


def test_each_level_takes_off_error():
    quantizer = trained(Residual(num_quantizers=4, quantizer=TABLE)).eval()
    z_e = torch.randn(500, 3)
    codes = quantizer.encode(z_e)
    errors, z = [], torch.zeros_like(z_e)
    for level, inner in enumerate(quantizer.quantizers):
        z = z + inner.decode(codes[:, level : level + 1])
        errors.append((z_e - z).square().mean().item())
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.2 * errors[0]
    assert torch.equal(z, quantizer.decode(codes))


PAIR = {"name": "grouped", "num_groups": 2, "quantizer": {"name": "fsq", "levels": [4]}}
INNER = [TABLE, {"name": "fsq", "levels": [4, 4]}, {"name": "lfq", "dim": 3}, PAIR]


@pytest.mark.parametrize("growth", [1.0, 4.0])
@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner["name"])
def test_the_first_levels_decode_to_their_own_sum(inner, growth):
    quantizer = Residual(num_quantizers=3, quantizer=inner, growth=growth)
    quantizer = trained(quantizer, steps=4).eval()
    latent = quantizer(torch.randn(2, 5, quantizer.in_dim))
    each = len(quantizer.codebook_sizes) // 3
    total = torch.zeros_like(latent.z)
    for level, part in enumerate(latent.codes.split(each, dim=-1)):
        total = total + quantizer.quantizers[level].decode(part) / growth**level
        prefix = latent.codes[..., : (level + 1) * each]
        assert torch.equal(quantizer.decode(prefix), total)
    assert torch.equal(total, latent.z)
    for num in {0, 3 * each + 1} | ({1} if each > 1 else set()):
        codes = torch.zeros(2, num, dtype=torch.int64)
        with pytest.raises(ValueError, match=f"last axis is {num}, must be {each} for each level"):
            quantizer.decode(codes)


@pytest.mark.parametrize("inner", ["vq", "simvq", "ibq", "diveq"])
def test_every_level_gets_gradient(inner):
    """Peers detach too much, and only the first level learns or commits the encoder."""
    quantizer = Residual(num_quantizers=3, quantizer={"name": inner, "codebook_size": 16, "dim": 3})
    trained(quantizer, steps=4)
    z_e = torch.randn(64, 4, 3, requires_grad=True)
    latent = quantizer(z_e)
    (latent.z.square().sum() + latent.penalty.sum()).backward()
    for level in quantizer.quantizers:
        gradients = [p.grad for p in level.parameters() if p.requires_grad]
        assert gradients and all(g is not None and g.any() for g in gradients)


def test_every_level_s_commitment_reaches_the_encoder():
    quantizer = trained(Residual(num_quantizers=3, quantizer=TABLE), steps=4).eval()
    z_e = torch.randn(5, 3, requires_grad=True)
    quantizer(z_e).penalty.sum().backward()
    rest, expected = z_e.detach(), torch.zeros(5, 3)
    for level in quantizer.quantizers:
        z_q = level(rest).z
        expected += 0.25 * 2 * (rest - z_q)
        rest = rest - z_q
    assert torch.allclose(z_e.grad, expected, atol=1e-5)


def test_levels_start_one_after_the_other():
    quantizer = Residual(num_quantizers=3, quantizer=TABLE).train()
    for step in range(3):
        latent = quantizer(torch.randn(64, 4, 3))
        quantizer.after_step()
        begun = [bool(level.is_initialized) for level in quantizer.quantizers]
        assert begun == [True] * (step + 1) + [False] * (2 - step)
    assert quantizer.is_started
    assert (latent.z != 0).any()


def test_dropped_levels_count_nowhere_and_samples_keep_their_first_levels():
    quantizer = trained(Residual(num_quantizers=3, quantizer=TABLE, dropout_prob=1.0))
    z_e = torch.randn(300, 4, 3)
    latent = quantizer(z_e)
    level_nats = quantizer.quantizers[0].nats_per_cell
    used = (latent.rate / (4 * level_nats)).round().long()
    assert sorted(set(used.tolist())) == [1, 2, 3]
    partial = torch.zeros_like(z_e)
    for level, inner in enumerate(quantizer.quantizers):
        keep = (used > level)[:, None, None]
        partial = partial + torch.where(
            keep, inner.decode(latent.codes[..., level : level + 1]), 0.0
        )
    assert torch.allclose(latent.z, partial, atol=1e-6)
    quantizer.eval()
    assert torch.allclose(quantizer(z_e).rate, torch.tensor(3 * 4 * level_nats))


def test_growth_lets_later_levels_of_fsq_see_the_rest_at_their_own_scale():
    inner = {"name": "fsq", "levels": [4, 4]}
    z_e = torch.empty(2000, 2).uniform_(-0.8, 0.8)

    def error(growth):
        quantizer = Residual(num_quantizers=3, quantizer=inner, growth=growth).eval()
        return (quantizer(z_e).z - z_e).square().mean()

    assert error(4.0) < 0.1 * error(1.0)


def test_groups_are_apart():
    quantizer = trained(Grouped(num_groups=2, quantizer=TABLE)).eval()
    z_e = torch.randn(50, 6)
    codes = quantizer.encode(z_e)
    changed = z_e.clone()
    changed[:, 3:] += 1.0
    assert torch.equal(quantizer.encode(changed)[:, 0], codes[:, 0])
    left, right = quantizer.quantizers
    assert torch.equal(left.encode(z_e[:, :3]), codes[:, :1])
    assert torch.equal(right.encode(z_e[:, 3:]), codes[:, 1:])


def test_a_projection_starts_without_stretching():
    quantizer = Projected(dim=6, quantizer=TABLE)
    low = torch.randn(20, 3)
    z = low @ quantizer.down.weight  # vectors in the space that it keeps
    assert torch.allclose(quantizer.up(quantizer.down(z)), z, atol=1e-5)


def test_wrappers_hold_wrappers():
    inner = {"name": "projected", "dim": 4, "quantizer": {"name": "lfq", "dim": 3}}
    group = {"name": "grouped", "num_groups": 2, "quantizer": inner}
    quantizer = Residual(num_quantizers=2, quantizer=group)
    assert quantizer.in_dim == 8 and quantizer.codebook_sizes == (8,) * 4
    trained(quantizer, steps=2).eval()
    z_e = torch.randn(5, 2, 8)
    latent = quantizer(z_e)
    assert torch.equal(quantizer.decode(latent.codes), latent.z)
    assert torch.equal(quantizer.encode(z_e), latent.codes)


def test_what_cannot_be_wrapped_is_refused():
    with pytest.raises(UsageError, match="'vqq': no such component, did you mean vq"):
        Grouped(quantizer={"name": "vqq"})
    posthoc = {"name": "posthoc", "dim": 2, "levels": [2, 2]}
    with pytest.raises(ValueError, match="takes 4 numbers and returns 2"):
        Residual(quantizer=posthoc)
