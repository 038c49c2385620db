"""Settings, order, schedule, groups, clipping and the two optimizers."""

import math

import jaxtyping
import numpy as np
import pytest
import torch
from torch import nn

from qvae.errors import FormatError, UsageError
from qvae.train import TrainSettings
from qvae.train.adamw import step_fused
from qvae.train.average import WeightAverage
from qvae.train.muon import Muon, orthogonalize
from qvae.train.optim import build_optimizers, group_parameters
from qvae.train.order import epoch_permutation, noise_seed, step_indices
from qvae.train.step import ClipState, total_norm
from train_toy import Toy

CPU = torch.device("cpu")


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps=0: must be a whole number >= 1"),
        ({"batch_size": 0}, "batch_size=0: must be a whole number >= 1"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"steps": True}, "steps=True"),
        ({"batch_size": 6, "accumulate": 4}, "accumulate=4: must divide batch_size=6"),
        ({"lr": 0.0}, "lr=0.0: must be > 0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"weight_decay": -1}, "weight_decay=-1: must be >= 0"),
        ({"weight_ema": 1.0}, r"weight_ema=1.0: must be in \[0, 1\)"),
        ({"hold": 1.5}, "hold=1.5"),
        ({"final_lr": -0.1}, "final_lr=-0.1"),
        ({"clip_norm": 0}, "clip_norm=0: must be > 0, or null"),
        ({"clip_factor": 1.0}, "clip_factor=1.0: must be > 1, or null"),
        ({"betas": (0.9, 1.0)}, "betas=1.0"),
        ({"betas": [0.9]}, "betas"),
        ({"optimizer": "sgd"}, "optimizer='sgd': must be one of adamw, muon"),
        ({"decay": "step"}, "decay='step'"),
        ({"precision": "fp16"}, "precision='fp16': must be one of auto, float32, bf16"),
        ({"warmup_steps": 11, "steps": 10}, "warmup_steps=11: must be at most steps=10"),
        ({"seed": -1}, "seed=-1"),
        ({"batchsize": 4}, "'batchsize' is not a training setting; did you mean 'batch_size'?"),
        ({"qqq": 4}, "'qqq' is not a training setting; known: steps, "),
    ],
)
def test_wrong_settings(options, said, monkeypatch):
    # Without the type checker that pytest runs under: a user has none.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UsageError, match=said):
        TrainSettings.from_options(**options)


def test_schedule():
    cosine = TrainSettings(steps=110, warmup_steps=10, lr=2.0, final_lr=0.1)
    assert [cosine.lr_at(step) for step in (0, 4, 9, 10)] == [0.2, 1.0, 2.0, 2.0]
    assert cosine.lr_at(60) == pytest.approx(2.0 * (0.1 + 0.9 * 0.5))
    assert cosine.lr_at(110) == pytest.approx(0.2) == cosine.lr_at(1000)
    linear = TrainSettings(steps=100, warmup_steps=0, lr=1.0, decay="linear", hold=0.6)
    assert [linear.lr_at(step) for step in (0, 30, 60)] == [1.0, 1.0, 1.0]
    assert linear.lr_at(80) == pytest.approx(0.5) and linear.lr_at(100) == pytest.approx(0.0)
    constant = TrainSettings(steps=10, warmup_steps=0, lr=1.0, decay="none")
    assert {constant.lr_at(step) for step in range(10)} == {1.0}
    assert TrainSettings(hold=1.0, lr=1.0).lr_at(9_999) == 1.0
    rates = [cosine.lr_at(step) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)
    assert TrainSettings().effective_warmup == 200 and TrainSettings(steps=9).effective_warmup == 0


# --- order -------------------------------------------------------------------------------------


def test_every_epoch_is_a_permutation_and_steps_run_over_its_end():
    stream = np.concatenate(
        [step_indices(seed=3, step=s, batch_size=8, num_samples=10) for s in range(5)]
    )
    for epoch in range(4):
        part = stream[epoch * 10 : epoch * 10 + 10]
        assert sorted(part) == list(range(10))
        assert (part == epoch_permutation(3, epoch, 10)).all()
    assert not (stream[:10] == stream[10:20]).all()
    large = step_indices(seed=3, step=1, batch_size=20, num_samples=10)
    assert (large == stream[20:40]).all()
    other = step_indices(seed=4, step=0, batch_size=8, num_samples=10)
    assert not (other == stream[:8]).all()


def test_order_is_the_same_for_ever():
    """These numbers must not change: a run of an older release is resumed by this one."""
    assert step_indices(seed=0, step=0, batch_size=10, num_samples=10).tolist() == ORDER
    assert noise_seed(0, "step", 1, 2, 3) == NOISE


ORDER = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
NOISE = 5009449620865930016


def test_noise_seeds_differ():
    seeds = {
        noise_seed(seed, purpose, step, micro, rank)
        for seed in range(3)
        for purpose in ("step", "evaluate")
        for step in range(20)
        for micro in range(3)
        for rank in range(3)
    }
    assert len(seeds) == 3 * 2 * 20 * 3 * 3 and all(0 <= seed < 2**63 for seed in seeds)


# --- groups ------------------------------------------------------------------------------------


def test_groups():
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(5, 4),
            "conv": nn.Conv2d(3, 8, 3),
            "depthwise": nn.Conv2d(8, 8, 3, groups=8),
            "up": nn.ConvTranspose1d(8, 4, 2),
            "norm": nn.LayerNorm(4),
            "head": nn.Linear(4, 9),
            "thin": nn.Linear(1, 9),
            "lookup": nn.Embedding(3, 2),
            "frozen": nn.Linear(4, 4).requires_grad_(False),
            "attention": nn.MultiheadAttention(4, 1, bias=False),
        }
    )
    model.codebook = nn.Parameter(torch.zeros(4, 4))
    model.free = nn.Linear(4, 4, bias=False)
    model.free.weight.use_muon = False
    model.free.weight.use_weight_decay = False
    model["attention"].in_proj_weight.use_muon = True
    groups = group_parameters(model)
    assert sorted(groups.muon) == [
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "conv.weight",
        "up.weight",
    ]
    assert sorted(groups.decayed) == ["depthwise.weight", "head.weight", "thin.weight"]
    plain = {"codebook", "embedding.weight", "lookup.weight", "norm.weight", "free.weight"}
    assert plain <= set(groups.plain)
    assert all(n.endswith("bias") for n in set(groups.plain) - plain)
    named = {n for n, p in model.named_parameters() if p.requires_grad}
    assert named == {*groups.muon, *groups.decayed, *groups.plain}


def test_weight_decay_reaches_matrices_only():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    nn.init.ones_(model[0].bias)
    for name in ("adamw", "muon"):
        settings = TrainSettings(optimizer=name, weight_decay=0.5)
        optimizers = build_optimizers(model, settings, device=CPU, precision="float32")
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        optimizers.step(0.1)
        for n, p in model.named_parameters():
            expected = before[n] * (0.95 if n == "0.weight" else 1.0)
            torch.testing.assert_close(p.detach(), expected)


def test_nothing_to_train():
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        build_optimizers(nn.ReLU(), TrainSettings(), device=CPU, precision="float32")


# --- the optimizers ----------------------------------------------------------------------------


def muon_oracle(weight, gradients, lr, decay, momentum=0.95):
    """Muon from its description, in float64 and one matrix at a time."""
    shape = weight.shape
    weight = weight.reshape(shape[0], -1).astype(np.float64)
    buffer = np.zeros_like(weight)
    for gradient in gradients:
        g = gradient.reshape(weight.shape).astype(np.float64)
        buffer = momentum * buffer + (1 - momentum) * g
        x = momentum * buffer + (1 - momentum) * g
        is_tall = x.shape[0] > x.shape[1]
        x = x.T if is_tall else x
        x = x / (np.sqrt((x**2).sum()) + 1e-7)
        for _ in range(5):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        x = x.T if is_tall else x
        weight = weight * (1 - lr * decay) - lr * 0.2 * math.sqrt(max(weight.shape)) * x
    return weight.reshape(shape)


def test_muon_against_numpy():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 7), (7, 4), (6, 3, 2, 2), (4, 7), (5, 2, 3)]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    parameters = [nn.Parameter(weight.clone()) for weight in weights]
    parameters[2].data = parameters[2].data.contiguous(memory_format=torch.channels_last)
    gradients = [[torch.randn(s, generator=generator) for s in shapes] for _ in range(4)]
    optimizer = Muon(parameters, lr=0.05, weight_decay=0.1)
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient
        optimizer.step()
    for i, parameter in enumerate(parameters):
        expected = muon_oracle(weights[i].numpy(), [g[i].numpy() for g in gradients], 0.05, 0.1)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_orthogonalize_keeps_the_singular_vectors():
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    core = u.T @ orthogonalize(matrix) @ v.T
    diagonal = torch.diagonal(core)
    assert (diagonal > 0.6).all() and (diagonal < 1.3).all()
    torch.testing.assert_close(core - torch.diag(diagonal), torch.zeros(4, 4), atol=1e-4, rtol=0)
    rough = orthogonalize(matrix, dtype=torch.bfloat16)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, orthogonalize(matrix), atol=0.1, rtol=0)
    assert torch.isfinite(orthogonalize(torch.zeros(3, 3))).all()


def test_adamw_against_numpy():
    model = nn.Linear(3, 2, bias=False)
    settings = TrainSettings(optimizer="adamw", weight_decay=0.1, betas=(0.9, 0.99))
    optimizers = build_optimizers(model, settings, device=CPU, precision="float32")
    weight = model.weight.detach().numpy().astype(np.float64)
    m, v = np.zeros_like(weight), np.zeros_like(weight)
    for t in range(1, 5):
        model.weight.grad = torch.randn(2, 3)
        g = model.weight.grad.numpy().astype(np.float64)
        optimizers.step(0.01 * t)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        weight = weight * (1 - 0.01 * t * 0.1)
        weight -= 0.01 * t * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
    np.testing.assert_allclose(model.weight.detach().numpy(), weight, rtol=1e-5, atol=1e-6)


def test_a_step_is_torchs_own_to_the_bit():
    def trained(step):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10), nn.Linear(10, 10)).double()
        model[:2].float()  # parameters of two kinds, until the last one is left out
        groups = [
            {"params": [model[0].weight, model[1].weight], "weight_decay": 0.1},
            {"params": [model[0].bias, model[1].bias, *model[2].parameters()]},
        ]
        optimizer = torch.optim.AdamW(groups, lr=0.01, weight_decay=0.0, fused=True)
        for i in range(8):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            if i > 2:
                model[2].weight.grad = model[2].bias.grad = None
            if i == 5:
                model[0].weight.grad = model[1].weight.grad = None
            step(optimizer)
        return [*model.parameters(), *(t for s in optimizer.state.values() for t in s.values())]

    pairs = zip(trained(step_fused), trained(lambda o: o.step()), strict=True)
    assert all(one.equal(other) for one, other in pairs)


def test_the_norm_is_torchs_own_to_the_bit():
    gradients = [torch.randn(70, 50), torch.randn(3), torch.randn(4, 3, 5, 5)]
    assert total_norm(gradients) == float(torch.nn.utils.get_total_norm(gradients))
    assert total_norm([]) == 0.0


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_goes_round_bit_for_bit(name):
    def stepped(optimizers, model, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizers.step(0.01)

    settings = TrainSettings(optimizer=name)
    models = [nn.ModuleList([Toy(), nn.Conv2d(3, 4, 3)]) for _ in range(2)]
    for model in models:
        model.to(memory_format=torch.channels_last)
    first, second = (
        build_optimizers(model, settings, device=CPU, precision="float32") for model in models
    )
    for seed in range(3):
        stepped(first, models[0], seed)
    models[1].load_state_dict(models[0].state_dict())
    second.load_state({key: value.clone() for key, value in first.state().items()})
    for seed in range(3, 6):
        stepped(first, models[0], seed)
        stepped(second, models[1], seed)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(FormatError, match="no such parameter"):
        second.load_state({"gone.weight/exp_avg": torch.zeros(2)})


# --- clipping and averaging --------------------------------------------------------------------


def test_clipping_follows_the_gradients_seen():
    clip = ClipState()
    assert clip.limit(clip_norm=None, clip_factor=4.0) == math.inf
    assert clip.limit(clip_norm=3.0, clip_factor=4.0) == 3.0
    for _ in range(19):
        clip.update(100.0)
    assert clip.limit(clip_norm=None, clip_factor=4.0) == math.inf
    clip.update(100.0)
    assert clip.limit(clip_norm=None, clip_factor=4.0) == pytest.approx(400.0)
    assert clip.limit(clip_norm=None, clip_factor=None) == math.inf
    clip.update(200.0)
    assert 400 < clip.limit(clip_norm=None, clip_factor=4.0) < 430


def test_average_against_the_formula():
    model = nn.Linear(2, 2)
    average = WeightAverage(model, decay=0.5)
    expected = model.weight.detach().clone()
    for n in range(1, 30):
        model.weight.data += 1.0
        average.update(n)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.state()["weight"], expected)
    live = model.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(model.weight.detach(), expected)
    assert torch.equal(model.weight, live)
    assert WeightAverage(model, decay=0.0).state() == {}
