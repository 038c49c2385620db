"""Tables that start at their data and stay in use, and the bugs that peers have there."""

import pytest
import torch

from cases import BOTTLENECKS, REVIVING
from qvae import registry
from qvae.bottlenecks.kmeans import kmeans, poorly_served
from qvae.bottlenecks.vq import VQ
from qvae.bottlenecks.vq_ema import VQEMA
from qvae.codes import code_counts, code_sums
from test_bottleneck_laws import make, started, state


def kill(quantizer, *, share=0.0):
    """Leave two codes on the data's side; all others sit together on the other, far away.

    ``share`` is what is left of their running counts.
    """
    size, dim = quantizer.codebook.shape
    rows = torch.cat([-torch.eye(dim)[:2], torch.full((size - 2, dim), 1000.0)])
    counts = torch.where(torch.arange(size) < 2, 1.0, share) * quantizer.ema_counts.mean()
    quantizer._set_rows(torch.arange(size), rows, counts)


def one_sided(quantizer):
    """Vectors whose coordinates are all negative."""
    return -torch.randn(64, 4, quantizer.in_dim).abs() - 0.1


def used_in(quantizer, steps):
    """The codes that occur in the last half of some steps."""
    used = set()
    with torch.no_grad():
        for step in range(steps):
            latent = quantizer(one_sided(quantizer))
            quantizer.after_step()
            if step >= steps // 2:
                used |= set(latent.codes.flatten().tolist())
    return used


@pytest.mark.parametrize("name", REVIVING)
def test_dead_codes_are_used_again(name):
    quantizer = started(name, codebook_size=64)
    kill(quantizer)
    assert len(used_in(quantizer, 26)) >= 62


def test_a_code_dies_of_disuse():
    quantizer = started("vq_ema", codebook_size=64)
    kill(quantizer, share=1.0)
    assert len(used_in(quantizer, 30)) <= 3  # the running counts still speak of better days
    used_in(quantizer, 210)
    assert len(used_in(quantizer, 20)) >= 62


@pytest.mark.parametrize("name", REVIVING)
def test_without_revival_dead_codes_stay_dead(name):
    """The test above could not fail if codes came back by themselves."""
    quantizer = started(name, codebook_size=64, revival=False)
    with torch.no_grad():
        kill(quantizer)
        for _ in range(12):
            latent = quantizer(one_sided(quantizer))
            quantizer.after_step()
    assert latent.codes.max() <= 2


def test_a_revived_code_is_not_undone_by_stale_sums():
    """A peer sets the code and then overwrites it from the sums of before."""
    quantizer = started("vq_ema")
    quantizer.ema_counts[3] = 0.0
    while int(quantizer.num_steps) % 10:
        quantizer(torch.randn(64, 4, 3))
        quantizer.after_step()
    pool = torch.randn(32, 4, 3)
    for _ in range(10):
        quantizer.ema_counts[3] = 0.0
        quantizer(pool)
        quantizer.after_step()
    moved = quantizer.codebook[3].clone()
    assert (pool.reshape(-1, 3) == moved).all(1).any()
    quantizer(torch.full((64, 4, 3), 50.0))  # which nobody near chooses
    quantizer.after_step()
    assert torch.allclose(quantizer.codebook[3], moved, atol=1e-5)


def test_the_first_update_keeps_the_kmeans_centres():
    """Peers do not multiply the sums by the counts, and every code shrinks."""
    quantizer = make("vq_ema").train()
    vectors = torch.randn(512, 1, 3) + 5
    quantizer(vectors)
    quantizer.after_step()
    centres = quantizer.codebook.clone()
    quantizer(vectors)
    quantizer.after_step()
    assert (quantizer.codebook - centres).norm() < 0.05 * centres.norm()


def test_the_commitment_weight_is_on_the_encoder_s_term():
    """Peers have it on the codebook's by default."""
    quantizer = VQ(codebook_size=4, dim=2, commitment_weight=0.0)
    z_e = torch.randn(8, 2, requires_grad=True)
    quantizer(z_e).penalty.sum().backward()
    assert not z_e.grad.any() and quantizer.codebook.grad.any()
    quantizer = VQ(codebook_size=4, dim=2, commitment_weight=3.0)
    z_q = quantizer(z_e).z.detach()
    z_e.grad = None
    quantizer(z_e).penalty.sum().backward()
    assert torch.allclose(z_e.grad, 3.0 * 2 * (z_e.detach() - z_q), atol=1e-5)


def test_a_refused_step_leaves_no_vector_behind():
    quantizer = started("vq_ema")
    fill = int(quantizer.pool_fill)
    before = state(quantizer)
    pool = quantizer.pool[:fill].clone()
    quantizer(torch.randn(64, 4, 3))
    quantizer.discard_step()
    assert int(quantizer.pool_fill) == fill and not quantizer.staged_fill
    assert torch.equal(quantizer.pool[:fill], pool)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(quantizer).items())


def test_a_table_waits_for_two_vectors_a_code():
    quantizer = make("vq_ema").train()
    before = quantizer.codebook.clone()
    latent = quantizer(torch.randn(31, 3))
    quantizer.after_step()
    assert not quantizer.is_initialized and torch.equal(quantizer.codebook, before)
    assert not latent.penalty.any()  # nothing pulls to a table that knows no data
    quantizer(torch.randn(1, 3))
    quantizer.after_step()
    assert quantizer.is_initialized and not torch.equal(quantizer.codebook, before)


def test_ema_follows_the_paper_s_equations():
    quantizer = started("vq_ema", revival=False)
    counts, sums = quantizer.ema_counts.double(), quantizer.ema_sums.double()
    z_e = torch.randn(20, 4, 3)
    codes = quantizer.encode(z_e).flatten()
    onehot = torch.nn.functional.one_hot(codes, 16).double()
    quantizer(z_e)
    quantizer.after_step()
    counts = 0.99 * counts + 0.01 * onehot.sum(0)
    sums = 0.99 * sums + 0.01 * onehot.T @ z_e.reshape(-1, 3).double()
    assert torch.allclose(quantizer.codebook.double(), sums / counts[:, None], atol=1e-5)


def test_cosine_codes_stay_on_the_sphere_and_ignore_length():
    quantizer = started("vq_cosine")
    assert torch.allclose(quantizer.codebook.norm(dim=1), torch.ones(16))
    z_e = torch.randn(50, 3)
    assert torch.equal(quantizer.encode(z_e), quantizer.encode(7 * z_e))
    cosines = torch.nn.functional.normalize(z_e, dim=1) @ quantizer.codebook.T
    assert torch.equal(quantizer.encode(z_e)[:, 0], cosines.argmax(1))


def test_simvq_s_codes_grow_with_the_encoder_and_its_table_gets_no_gradient():
    quantizer = started("simvq", codebook_size=64, revival=False)
    vectors = torch.randn(64, 4, 3)
    frozen, before = quantizer.codebook.clone(), quantizer.table.detach().T.cov()
    for _ in range(300):
        quantizer(10 * vectors + 5)
        quantizer.after_step()
    table = quantizer.table.detach()
    assert torch.allclose(table.T.cov(), 100 * before, rtol=0.5, atol=30)
    assert torch.allclose(table.mean(0), torch.full((3,), 5.0), atol=3)
    assert torch.equal(quantizer.codebook, frozen)
    quantizer(vectors).penalty.sum().backward()
    assert quantizer.codebook_map.grad.any() and not quantizer.codebook.requires_grad


def test_simvq_s_map_may_shrink_a_direction_and_its_new_codes_stay_with_the_vectors():
    quantizer = started("simvq", codebook_size=64)
    vectors = torch.randn(64, 3) * torch.tensor([1.0, 1.0, 1e-3])
    with torch.no_grad():
        quantizer.codebook_map.copy_(torch.diag(torch.tensor([1.0, 1.0, 1e-5])))
        quantizer._set_rows(torch.arange(64), vectors, torch.ones(64))
        assert (quantizer.table - vectors).norm(dim=1).max() < 0.3
        quantizer.codebook_map += 0.003 * torch.randn(3, 3)  # a step of the optimizer
        assert (quantizer.table - vectors).norm(dim=1).max() < 0.3


@pytest.mark.parametrize("name", ["ibq", "gumbel"])
def test_every_code_gets_a_gradient_from_one_vector(name):
    quantizer = make(name).train()
    quantizer(torch.randn(1, 1, 3)).z.sum().backward()
    assert (quantizer.codebook.grad.abs().sum(1) > 0).all()


def test_gumbel_draws_codes_as_often_as_its_softmax_says():
    quantizer = make("gumbel").train()
    with torch.no_grad():
        logits = -(torch.zeros(3) - quantizer.codebook).square().sum(1) / 2
        latent = quantizer(torch.zeros(40000, 3))
    share = code_counts(latent.codes.flatten(), 16) / 40000
    assert torch.allclose(share, logits.softmax(0), atol=0.01)
    entropy = -(logits.softmax(0) * logits.log_softmax(0)).sum()
    assert torch.allclose(latent.rate, torch.tensor(16.0).log() - entropy, atol=1e-4)


def test_kmeans_wastes_no_centre_on_equal_vectors():
    """The background of pictures: most vectors are one vector."""
    vectors = torch.cat([torch.zeros(1000, 2), torch.randn(20, 2) + 5])
    for seed in range(5):
        centres, counts = kmeans(vectors, 4, seed=seed)
        assert torch.pdist(centres).min() > 0.01
        assert counts.sum() == 1020 and (centres[counts >= 1000] == 0).all()
    with pytest.raises(ValueError, match="1020 are too few for size=2000"):
        kmeans(vectors, 2000, seed=0)


def test_vectors_that_are_served_well_are_not_drawn_and_equal_ones_once():
    vectors = torch.tensor([[0.0], [1.0], [1.0], [2.0]])
    errors = torch.tensor([0.0, 5.0, 5.0, 0.1])
    assert sorted(poorly_served(vectors, errors, 3, seed=0).flatten().tolist()) == [1.0, 2.0]
    first = [poorly_served(vectors, errors, 1, seed=s).item() for s in range(200)]
    assert first.count(1.0) > 180


@pytest.mark.parametrize("num", [0, 1, 500])
def test_sums_of_sorted_runs_equal_index_add(num):
    """The path of CUDA, which is deterministic there; it runs on any device."""
    from qvae.codes import _sorted_sums

    vectors, codes = torch.randn(num, 3), torch.randint(0, 7, (num,))
    if num:
        assert torch.allclose(
            _sorted_sums(vectors, codes, 9), code_sums(vectors, codes, 9), atol=1e-4
        )
    assert code_sums(vectors, codes, 9).shape == (9, 3)


def test_the_optimizer_moves_what_it_should():
    for name in ("vq", "simvq", "ibq", "diveq", "gumbel"):
        quantizer = registry.resolve("bottleneck", name)(**BOTTLENECKS[name])
        assert list(quantizer.parameters()), name
    assert not list(VQEMA(codebook_size=4, dim=2).parameters())
