"""The maths of the quantizers against NumPy, brute force and the papers' formulas."""

import itertools
import math

import numpy as np
import pytest
import torch

from qvae.bottlenecks import soft
from qvae.bottlenecks.bsq import BSQ
from qvae.bottlenecks.estimators import error_vector, require_estimator, rotation
from qvae.bottlenecks.fsq import FSQ
from qvae.bottlenecks.gaussian import Gaussian, gaussian_kl
from qvae.bottlenecks.lfq import LFQ
from qvae.bottlenecks.signs import require_whitening
from qvae.bottlenecks.soft import soft_choice
from qvae.bottlenecks.terms import (
    bit_entropy,
    orthogonality,
    require_evenness,
    uncovered,
    unused_entropy,
    unused_pairs,
)
from qvae.kernels import nearest
from test_bottleneck_laws import started


@pytest.mark.parametrize("name", ["vq", "vq_ema", "simvq", "ibq", "diveq", "gumbel"])
def test_codes_are_those_of_brute_force(name):
    quantizer = started(name).eval()
    z, table = torch.randn(300, 3), quantizer.table.detach()
    brute = ((z.numpy()[:, None].astype(np.float64) - table.numpy()[None]) ** 2).sum(-1).argmin(1)
    assert np.array_equal(quantizer.encode(z)[:, 0].numpy(), brute)
    assert np.array_equal(quantizer(z).z.detach().numpy(), table.numpy()[brute])


def test_nearest_equals_brute_force():
    z, codebook = torch.randn(700, 5), torch.randn(300, 5)
    brute = ((z.numpy()[:, None].astype(np.float64) - codebook.numpy()[None]) ** 2).sum(-1)
    assert np.array_equal(nearest(z, codebook).numpy(), brute.argmin(1))
    assert torch.equal(nearest(z.double(), codebook.double()), nearest(z, codebook))
    assert torch.equal(nearest(z + 1000, codebook + 1000), nearest(z + 1000 - 1000, codebook))


# -- estimators ------------------------------------------------------------------------------


def gradients(function, *inputs):
    inputs = [item.clone().requires_grad_() for item in inputs]
    z = function(*inputs)
    z.backward(torch.linspace(-1, 2, z.numel()).view_as(z))
    return z.detach(), [item.grad for item in inputs]


def paper_rotation(z_e, z_q):
    e = (z_e / z_e.norm(dim=-1, keepdim=True)).detach()
    q = (z_q / z_q.norm(dim=-1, keepdim=True)).detach()
    r = (e + q) / (e + q).norm(dim=-1, keepdim=True)
    turn = torch.eye(z_e.shape[-1]) - 2 * r[..., :, None] * r[..., None, :]
    turn = turn + 2 * q[..., :, None] * e[..., None, :]
    scale = (z_q.norm(dim=-1) / z_e.norm(dim=-1)).detach()
    return scale[..., None] * (turn @ z_e[..., None])[..., 0]


def test_rotation_equals_the_explicit_matrix():
    z_e, z_q = torch.randn(20, 5), torch.randn(20, 5)
    ours, (ours_e,) = gradients(lambda z: rotation(z, z_q), z_e)
    paper, (paper_e,) = gradients(lambda z: paper_rotation(z, z_q), z_e)
    assert torch.equal(ours, z_q) and torch.allclose(paper, z_q, atol=1e-5)
    assert torch.allclose(ours_e, paper_e, atol=1e-5)


@pytest.mark.parametrize(
    ("z_e", "z_q"), [([0.0, 0.0], [1.0, 0.0]), ([1.0, 2.0], [0.0, 0.0]), ([1.0, 2.0], [-1.0, -2.0])]
)
def test_rotation_without_an_angle_is_straight_through(z_e, z_q):
    _, (gradient,) = gradients(lambda z: rotation(z, torch.tensor([z_q])), torch.tensor([z_e]))
    assert gradient.tolist() == [[-1.0, 2.0]]


@pytest.mark.parametrize("name", ["vq", "vq_ema", "vq_cosine", "simvq"])
def test_a_table_s_estimator_can_be_chosen(name):
    z_e = torch.randn(20, 3, requires_grad=True)
    quantizer = started(name, estimator="rotation")
    z = quantizer(z_e).z
    z.sum().backward()
    explicit = z_e.detach().requires_grad_()
    rotation(quantizer.place(explicit), z.detach()).sum().backward()
    assert torch.allclose(z_e.grad, explicit.grad, atol=1e-5)
    assert not torch.allclose(z_e.grad, torch.ones_like(z_e))


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="estimator='magic': must be one of straight_through, rot"):
        require_estimator("magic")


def test_error_vector_equals_the_paper_s_sum():
    def paper(z_e, z_q):
        error = z_q - z_e
        return z_e + error.norm(dim=1, keepdim=True) * (error / error.norm(dim=1)[:, None]).detach()

    z_e, z_q = torch.randn(20, 4), torch.randn(20, 4)
    ours, ours_grads = gradients(error_vector, z_e, z_q)
    theirs, their_grads = gradients(paper, z_e, z_q)
    assert torch.equal(ours, z_q) and torch.allclose(theirs, z_q, atol=1e-5)
    for left, right in zip(ours_grads, their_grads, strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def dense_choice(z, table, precision, mask):
    distance = (z[:, None] - table).square().sum(-1)
    q = (-precision * distance / 2).softmax(1)
    return q @ table.detach(), -(q * q.log()).sum(1), (q * mask[:, None]).sum(0) / mask.sum()


def test_soft_choice_in_tiles_equals_the_dense_formula(monkeypatch):
    monkeypatch.setattr(soft, "_TILE", 24)  # two rows of the twelve
    mask = torch.arange(7) != 3

    def ours(z, table, precision):
        choice = soft_choice(z, table, precision=precision, mask=mask)
        return torch.cat([choice.mean.flatten(), choice.entropy, choice.use])

    def dense(z, table, precision):
        return torch.cat([item.flatten() for item in dense_choice(z, table, precision, mask)])

    inputs = torch.randn(7, 3), torch.randn(12, 3), torch.tensor(0.7)
    found, found_grads = gradients(ours, *inputs)
    expected, expected_grads = gradients(dense, *inputs)
    assert torch.allclose(found, expected, atol=1e-5)
    for left, right in zip(found_grads, expected_grads, strict=True):
        assert torch.allclose(left, right, atol=1e-5)


# -- terms -----------------------------------------------------------------------------------


def corner_choice(signs, temperature):
    """The soft choice among all corners, with none of the factors that make it cheap."""
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=signs.shape[1])))
    return (-(signs[:, None] - corners).square().sum(-1) / temperature).softmax(1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_bit_entropy_equals_enumerating_the_corners(temperature):
    signs = torch.randn(30, 4)
    q = corner_choice(signs, temperature)
    entropy, prob = bit_entropy(signs, temperature=temperature)
    assert torch.allclose(entropy, -torch.xlogy(q, q).sum(1), atol=1e-4)
    mean = q.mean(0)
    unused = math.log(16) + torch.xlogy(mean, mean).sum()
    assert torch.allclose(unused_entropy(prob, group_bits=4), unused, atol=1e-4)
    assert unused_entropy(prob, group_bits=2) <= unused + 1e-5  # a bound, tighter in large groups
    assert unused_entropy(prob, group_bits=1) <= unused_entropy(prob, group_bits=2) + 1e-5


@pytest.mark.parametrize("evenness", ["entropy", "coverage"])
def test_bit_entropy_is_finite_where_the_choice_is_certain(evenness):
    signs = torch.tensor([[1e4, -1e4]], requires_grad=True)
    entropy, prob = bit_entropy(signs)
    (entropy.sum() + unused_entropy(prob, evenness=evenness)).backward()
    assert entropy.item() == 0 and torch.isfinite(signs.grad).all()


def test_coverage_is_the_divergence_of_even_use_from_a_batch_s():
    prob = torch.rand(50, 4)
    corners = torch.tensor(list(itertools.product([False, True], repeat=4)))
    joint = torch.where(corners, prob[:, None], 1 - prob[:, None]).prod(-1).mean(0)
    expected = torch.nn.functional.kl_div(joint.log(), torch.full((16,), 1 / 16), reduction="sum")
    assert torch.allclose(unused_entropy(prob, group_bits=4, evenness="coverage"), expected)
    choices = [torch.stack([1 - bit, bit], 1) for bit in prob.unbind(1)]
    pairs = [
        uncovered((a[:, :, None] * b[:, None]).mean(0).flatten())
        for a, b in itertools.combinations(choices, 2)
    ]
    assert torch.allclose(unused_pairs(choices, evenness="coverage"), sum(pairs) / 3)


@pytest.mark.parametrize(
    ("evenness", "gamma", "is_certain"),
    [("entropy", 20.0, False), ("entropy", 1.0, True), ("coverage", 2.0, True)],
)
def test_a_heap_of_equal_vectors_has_a_certain_code(evenness, gamma, is_certain):
    # On a border half of a heap counts for each of two codes: H(mean q) grows by as much as H(q),
    # so with a gamma above 1 that is where the entropies send it.
    torch.manual_seed(0)
    z = torch.cat([torch.full((200, 3), 1.5), torch.randn(300, 3)]).requires_grad_()
    optimizer = torch.optim.Adam([z], lr=0.02)
    weights = {"entropy_weight": 1.0, "gamma": gamma}
    bsq = BSQ(dim=3, whitening="none", evenness=evenness, **weights).train()
    for _ in range(300):
        optimizer.zero_grad()
        bsq(z).penalty.mean().backward()
        optimizer.step()
    u = torch.nn.functional.normalize(z[:1].detach(), dim=1) * 3**0.5
    assert (bit_entropy(u)[0].item() < 0.4) == is_certain
    if is_certain:
        assert bsq.encode(z).unique().numel() == 8


def test_an_unknown_evenness_or_whitening_is_refused():
    with pytest.raises(ValueError, match="evenness='even': must be one of entropy, coverage"):
        require_evenness("even")
    with pytest.raises(ValueError, match="whitening='always': must be one of running, start, none"):
        require_whitening("always")


def test_unused_entropy_of_nothing_is_zero():
    assert unused_entropy(torch.rand(2, 3), torch.zeros(2, dtype=torch.bool)) == 0


@pytest.mark.parametrize("sizes", [(5,), (3, 4), (2, 3, 4)])
def test_unused_pairs_equals_counting_each_pair(sizes):
    choices = [torch.randn(6, 7, size).softmax(-1) for size in sizes]
    mask = torch.rand(6, 7) > 0.3
    rows = [choice[mask] for choice in choices]

    def unused(*parts):
        joint = parts[0]
        for part in parts[1:]:
            joint = (joint[:, :, None] * part[:, None]).flatten(1)
        mean = joint.mean(0)
        return math.log(len(mean)) + torch.xlogy(mean, mean).sum()

    if len(sizes) == 1:
        expected = unused(*rows)
    else:
        pairs = [unused(a, b) for a, b in itertools.combinations(rows, 2)]
        expected = sum(pairs) / (len(sizes) - 1)
    assert torch.allclose(unused_pairs(choices, mask), expected, atol=1e-5)
    assert unused_pairs(choices, torch.zeros_like(mask)) == 0


def test_fsq_asked_to_use_its_digits_spreads_vectors_that_go_together():
    def train(weight):
        torch.manual_seed(0)
        line, shift = torch.randn(512, 1) * 0.3, torch.nn.Parameter(torch.zeros(512, 3))
        fsq = FSQ(levels=[4, 4, 4], unused_weight=weight).train()
        optimizer = torch.optim.Adam([shift], lr=0.05)
        for _ in range(60):
            optimizer.zero_grad()
            fsq(line + shift).penalty.sum().backward()
            optimizer.step()
        return fsq.encode(line + shift).unique().numel()

    assert train(0.0) <= 4 and train(1.0) >= 48  # of 64


def test_orthogonality_equals_all_pairs_of_cosines():
    table = torch.randn(9, 4)
    unit = table / table.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T)[~torch.eye(9, dtype=torch.bool)]
    assert torch.allclose(orthogonality(table), cosines.square().mean(), atol=1e-5)


# -- quantizers without a table --------------------------------------------------------------


def test_fsq_codes_count_the_grid_of_digits():
    fsq = FSQ(levels=[8, 5, 5, 5])
    codes = torch.arange(1000)[:, None]
    values = fsq.decode(codes)
    assert len(torch.unique(values, dim=0)) == 1000
    steps = values.tanh()[1] - values.tanh()[0]
    assert torch.allclose(steps, torch.tensor([2 / 8, 0, 0, 0]), atol=1e-6)
    z = torch.randn(200, 4)
    digits = np.floor((np.tanh(z.double().numpy()) + 1) / 2 * [8, 5, 5, 5]).astype(int)
    assert np.array_equal(fsq.encode(z)[:, 0].numpy(), digits @ [1, 8, 40, 200])


def test_fsq_stops_gradients_that_lead_out_of_its_range_and_no_others():
    fsq = FSQ(levels=[4])
    edge = fsq.outermost.item()
    z_e = torch.tensor([[-2 * edge], [-0.5 * edge], [0.5 * edge], [2 * edge]], requires_grad=True)
    fsq(z_e).z.sum().backward()  # descent lowers every coordinate
    assert z_e.grad.flatten().tolist() == [0.0, 1.0, 1.0, 1.0]
    z_e.grad = None
    (-fsq(z_e).z).sum().backward()
    assert z_e.grad.flatten().tolist() == [-1.0, -1.0, -1.0, 0.0]


def test_lfq_is_the_sign_and_its_code_the_bits():
    lfq, z = LFQ(dim=5), torch.randn(100, 5)
    codes = lfq.eval().encode(z)[:, 0].numpy()
    assert np.array_equal(codes, (z.numpy() > 0) @ 2 ** np.arange(5))
    assert np.array_equal(lfq(z).z.numpy(), np.where(z.numpy() > 0, 1.0, -1.0))


def test_lfq_s_penalty_is_the_paper_s_loss_but_for_a_constant():
    weights = {"commitment_weight": 0.5, "entropy_weight": 0.2, "gamma": 0.7}
    lfq, z = LFQ(dim=3, evenness="entropy", **weights), torch.randn(40, 3)
    q = corner_choice(z, 1.0)
    mean = q.mean(0)
    paper = -torch.xlogy(q, q).sum(1).mean() + 0.7 * torch.xlogy(mean, mean).sum()
    committed = (z - z.sign()).square().sum(1).mean()
    expected = 0.2 * (paper + 0.7 * 3 * math.log(2)) + 0.5 * committed
    assert torch.allclose(lfq.train()(z).penalty.mean(), expected, atol=1e-4)


def test_bsq_is_the_nearest_corner_on_the_sphere():
    bsq, z = BSQ(dim=4).eval(), torch.randn(100, 4)
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)))
    unit = 2 * z / z.norm(dim=1, keepdim=True)
    nearest_corner = corners[torch.cdist(unit, corners).argmin(1)]
    assert torch.allclose(bsq(z).z, nearest_corner)


def test_bsq_s_gradient_is_that_of_the_normalisation():
    z = torch.randn(10, 4, requires_grad=True)
    BSQ(dim=4)(z).z.backward(torch.ones(10, 4))
    assert torch.allclose((z.grad * z.detach()).sum(1), torch.zeros(10), atol=1e-5)
    explicit = z.detach().requires_grad_()
    (2 * explicit / explicit.norm(dim=1, keepdim=True)).sum().backward()
    assert torch.allclose(z.grad, explicit.grad, atol=1e-6)


def test_fsq_with_as_many_levels_as_it_takes_finds_every_code_again():
    fsq, codes = FSQ(levels=[2**16]).eval(), torch.arange(2**16)[:, None]
    assert torch.equal(fsq.encode(fsq.decode(codes)), codes)


@pytest.mark.parametrize("cls", [LFQ, BSQ])
def test_signs_stay_balanced_wherever_the_encoder_drifts(cls):
    quantizer = cls(dim=6, whitening="running").train()
    mix = torch.randn(6, 6)
    for step in range(20):
        z = (torch.randn(256, 6) @ mix) * (1 + 0.01 * step) + 100
        latent = quantizer(z)
        quantizer.after_step()
    bits = latent.codes // quantizer.bits % 2
    assert (bits.double().mean(0) - 0.5).abs().max() < 0.15
    assert latent.metrics["usage"] > 0.8
    assert torch.allclose(quantizer.decode(latent.codes).mean(0), z.mean(0), atol=1.0)


@pytest.mark.parametrize("cls", [LFQ, BSQ])
def test_bits_of_different_groups_meet_in_time(cls):
    z = torch.randn(512, 4)
    z[:, 3] = z[:, 0]  # with groups of two in their order, this would never be seen
    terms = {}
    for group_bits in (2, 4):
        quantizer = cls(dim=4, group_bits=group_bits, whitening="none").train()
        found = [quantizer(z).metrics["unused_entropy"].item() for _ in range(30)]
        terms[group_bits] = (min(found), max(found))
    assert terms[2][1] > 2 * terms[2][0]  # together in one step, in different groups in another
    low, high = terms[4]  # one group needs no draw
    assert low == high > 0


@pytest.mark.parametrize("cls", [LFQ, BSQ])
def test_moments_of_the_start_stay_and_none_are_none(cls):
    start, none = cls(dim=6, whitening="start").train(), cls(dim=6, whitening="none").train()
    codes = torch.arange(64)[:, None]
    for shift in (100, -100):
        z = torch.randn(256, 6) + shift
        for quantizer in (start, none):
            quantizer(z)
            quantizer.after_step()
        assert torch.allclose(start.decode(codes).mean(0), torch.full((6,), 100.0), atol=1)
    assert none.is_started
    assert torch.equal(none.decode(codes).abs(), torch.ones(64, 6))
    for quantizer in (start, none):
        assert torch.equal(quantizer.eval().encode(quantizer.decode(codes)), codes)


def test_lfq_s_gradient_is_one_within_its_range():
    lfq = started("lfq")
    z_e = lfq.moments.colour(torch.empty(20, 4).uniform_(-0.9, 0.9)).requires_grad_()
    lfq(z_e).z.sum().backward()
    assert torch.allclose(z_e.grad, torch.ones_like(z_e), atol=1e-4)
    far = lfq.moments.colour(torch.full((1, 4), 3.0)).requires_grad_()
    outward = torch.ones(1, 4) @ lfq.moments.inverse
    lfq(far).z.backward(-outward)  # descent would move every sign farther out
    assert torch.allclose(far.grad, torch.zeros(1, 4))


def test_codes_of_62_bits_are_exact():
    lfq = LFQ(dim=62, group_bits=1).eval()
    codes = torch.tensor([[2**62 - 1], [2**61 + 1], [0]])
    assert torch.equal(lfq.encode(lfq.decode(codes)), codes)
    assert "usage" not in lfq(torch.randn(3, 62)).metrics


# -- the Gaussian ----------------------------------------------------------------------------


def test_gaussian_kl_equals_torch_distributions():
    from torch.distributions import Normal, kl_divergence

    mean, log_var = torch.randn(50, 3), torch.randn(50, 3)
    posterior = Normal(mean, (0.5 * log_var).exp())
    expected = kl_divergence(posterior, Normal(0.0, 1.0))
    assert torch.allclose(gaussian_kl(mean, log_var), expected, atol=1e-5)


def test_gaussian_samples_have_the_posterior_s_moments():
    gaussian = Gaussian(dim=3)
    z_e = torch.tensor([[1.0, -2.0, 0.0, 0.0, -2.0, 1.0]]).expand(20000, 6)
    z = gaussian(z_e).z
    assert torch.allclose(z.mean(0), z_e[0, :3], atol=0.05)
    assert torch.allclose(z.var(0), z_e[0, 3:].exp(), rtol=0.05)
    assert torch.equal(gaussian.mode(z_e), z_e[:, :3])
