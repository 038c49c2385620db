"""The laws of a bottleneck: each runs over every one that it speaks of."""

import copy
import functools
import io
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cases import (
    BOTTLENECKS,
    ESTIMATING,
    OFFSET,
    QUANTIZERS,
    STOCHASTIC,
    STRAIGHT_THROUGH,
    WRAPPERS,
)
from qvae import registry
from qvae.bottlenecks import soft
from qvae.bottlenecks.base import Quantizer
from qvae.bottlenecks.fsq import FSQ

GRIDS = [(), (5,), (4, 3), (2, 3, 2)]
DTYPES = [torch.float32, torch.bfloat16]


def everywhere(function):
    """Run a law on every rank of grid and dtype of input; the law names its bottlenecks."""
    for name, values in (("dtype", DTYPES), ("grid", GRIDS)):
        function = pytest.mark.parametrize(name, values)(function)
    return function


def in_both_modes(function):
    """Run a law in training and in evaluation."""
    return pytest.mark.parametrize("training", [True, False])(function)


def make(name, **changes):
    torch.manual_seed(1)
    bottleneck = registry.resolve("bottleneck", name)(**{**BOTTLENECKS[name], **changes})
    if name == "vq":  # codes apart enough that each can be chosen
        torch.nn.init.normal_(bottleneck.codebook)
    if name == "posthoc":  # fitted, see tests/test_posthoc.py
        bottleneck.values.copy_(torch.randn(3, 4).sort(1).values)
        bottleneck.is_fitted.fill_(True)
    return bottleneck


def started(name, **changes):
    """A bottleneck after its data-dependent start, if it has one; a copy that is the caller's."""
    bottleneck = copy.deepcopy(_started(name, **changes))
    torch.manual_seed(2)
    return bottleneck


@functools.cache
def _started(name, **changes):
    bottleneck = make(name, **changes).train()
    for _ in range(3):
        bottleneck(torch.randn(64, 4, bottleneck.in_dim))
        bottleneck.after_step()
    return bottleneck


def as_input(quantizer, z):
    """What a quantizer returned, as what it takes: `posthoc` takes a variance as well."""
    return F.pad(z, (0, quantizer.in_dim - quantizer.out_dim))


def state(bottleneck):
    return {name: tensor.clone() for name, tensor in bottleneck.state_dict().items()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def test_every_registered_bottleneck_has_a_case():
    assert set(registry.names("bottleneck")) == set(BOTTLENECKS)
    kinds = {n: isinstance(make(n), Quantizer) for n in BOTTLENECKS}
    assert sorted(n for n, is_quantizer in kinds.items() if is_quantizer) == sorted(QUANTIZERS)


@in_both_modes
@everywhere
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
        uniform = torch.tensor(math.prod(grid) * bottleneck.nats_per_cell)
        if training and name in STOCHASTIC:
            assert (latent.rate <= uniform).all()
        else:
            assert torch.allclose(latent.rate, uniform)
    else:
        assert latent.codes is None


@in_both_modes
@everywhere
@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_decode_to_z_and_encode_gives_the_same_codes(name, grid, dtype, training):
    quantizer = started(name).train(training)
    z_e = torch.randn(6, *grid, quantizer.in_dim).to(dtype)
    latent = quantizer(z_e)
    assert torch.equal(quantizer.decode(latent.codes).to(dtype), latent.z)
    if training and name in STOCHASTIC:
        return
    assert torch.equal(quantizer.encode(z_e), latent.codes)
    assert torch.equal(quantizer.encode(z_e.float()), latent.codes)
    flat = quantizer.encode(z_e.reshape(-1, quantizer.in_dim))
    assert torch.equal(flat, latent.codes.reshape(flat.shape))  # the grid's rank is no matter


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name not in WRAPPERS])
def test_every_code_survives_decode_then_encode(name):
    quantizer = started(name).eval()
    largest = max(quantizer.codebook_sizes)
    codes = torch.stack([torch.arange(largest) % size for size in quantizer.codebook_sizes], -1)
    assert torch.equal(quantizer.encode(as_input(quantizer, quantizer.decode(codes))), codes)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_eval_changes_no_buffer(name):
    bottleneck = started(name).eval()
    before = {**state(bottleneck), **{n: b.clone() for n, b in bottleneck.named_buffers()}}
    bottleneck(torch.randn(8, 4, bottleneck.in_dim))
    after = {**state(bottleneck), **dict(bottleneck.named_buffers())}
    assert same(before, after)


@in_both_modes
@everywhere
@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_sample_does_not_depend_on_its_batch(name, grid, dtype, training):
    """In training a loss may speak of the batch, and a draw follows the generator; codes do not."""
    quantizer = started(name).train(training)
    z_e = torch.randn(2, *grid, quantizer.in_dim).to(dtype)
    if training and name in STOCHASTIC:
        pytest.skip("what it draws follows the generator, and so the batch")
    whole = quantizer(z_e)
    alone = [quantizer(row[None]) for row in z_e]
    assert torch.equal(torch.cat([latent.codes for latent in alone]), whole.codes)
    assert torch.equal(torch.cat([latent.z for latent in alone]), whole.z)
    assert torch.allclose(torch.cat([latent.rate for latent in alone]), whole.rate)
    if not training:
        penalty = torch.cat([latent.penalty for latent in alone])
        assert torch.allclose(penalty, whole.penalty, atol=1e-5)


@pytest.mark.parametrize("name", STRAIGHT_THROUGH)
def test_straight_through_gradient_is_exactly_one(name):
    """FSQ declares it for the range of its values; what it does beyond has a test of its own."""
    quantizer = started(name)
    z_e = torch.empty(6, 4, quantizer.in_dim).uniform_(-0.5, 0.5).requires_grad_()
    z = quantizer(z_e).z
    z.sum().backward()
    assert torch.equal(z_e.grad, as_input(quantizer, torch.ones_like(z)))


@in_both_modes
@everywhere
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_masked_positions_touch_nothing(name, grid, dtype, training):
    """Whatever is there, a NaN or an infinity too: nothing that counts depends on it."""
    z_e = torch.randn(6, *grid, started(name).in_dim).to(dtype)
    mask = torch.rand(6, *grid) < 0.5
    mask[0] = True

    def run(there):
        bottleneck = started(name).train(training)
        torch.manual_seed(3)
        given = torch.where(mask[..., None], z_e, there).requires_grad_()
        latent = bottleneck(given, mask)
        (latent.z.float().square().sum() + latent.penalty.sum() + latent.rate.sum()).backward()
        weights = {n: w.grad for n, w in bottleneck.named_parameters() if w.grad is not None}
        if training:
            bottleneck.after_step()
        return latent, given.grad, weights, state(bottleneck)

    first, gradient, weights, after = run(z_e)
    assert (gradient[~mask] == 0).all() and torch.isfinite(gradient).all()
    assert all(torch.isfinite(grad).all() for grad in weights.values())
    for there in (z_e + 100, math.nan, math.inf, -math.inf):
        second, gradient_then, weights_then, after_then = run(there)
        assert torch.equal(first.rate, second.rate) and torch.equal(first.penalty, second.penalty)
        assert torch.equal(first.z[mask], second.z[mask])
        assert first.codes is None or torch.equal(first.codes[mask], second.codes[mask])
        assert all(torch.equal(first.metrics[n], second.metrics[n]) for n in first.metrics)
        assert torch.equal(gradient, gradient_then) and same(weights, weights_then)
        assert same(after, after_then)


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_a_mask_of_another_shape_or_type_is_refused(as_users_call, name):
    bottleneck = started(name)
    z_e = torch.randn(2, 3, bottleneck.in_dim)
    for mask in (torch.ones(1, 3) > 0, torch.ones(2, 1) > 0, torch.ones(2, 3), torch.ones(2) > 0):
        with pytest.raises(ValueError, match=r"mask: torch.\w+ of shape .*\[2, 3\]"):
            bottleneck(z_e, mask)


def test_a_quantizer_derived_by_a_user_takes_the_state_of_its_base():
    class Mine(FSQ):
        pass

    Mine(levels=[8, 5]).load_state_dict(FSQ(levels=[8, 5]).state_dict())
    FSQ(levels=[8, 5]).load_state_dict(Mine(levels=[8, 5]).state_dict())
    with pytest.raises(RuntimeError, match="levels was"):
        Mine(levels=[5, 8]).load_state_dict(FSQ(levels=[8, 5]).state_dict())


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_nan_where_the_mask_counts_is_still_named(name):
    quantizer = started(name).eval()
    z_e = torch.randn(2, 3, quantizer.in_dim)
    z_e[0, 1, 0] = z_e[1, 2, 1] = math.nan
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[0, 1] = False
    with pytest.raises(ValueError, match=re.escape("z[1, 2, 1] is nan")):
        quantizer(z_e, mask)


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


MEANS_SOMETHING_ELSE = [
    (
        ("fsq", {"levels": [8, 5]}),
        ("fsq", {"levels": [5, 8]}),
        "levels was [8, 5] and is now [5, 8]",
    ),
    (("fsq", {"levels": [6]}), ("fsq", {"levels": [7]}), "levels was [6] and is now [7]"),
    (
        ("posthoc", {"levels": [4, 1, 3]}),
        ("posthoc", {"levels": [3, 1, 4]}),
        "levels was [4, 1, 3] and is now [3, 1, 4]",
    ),
    (("residual", {"growth": 1.0}), ("residual", {"growth": 2.0}), "growth was 1.0 and is now 2.0"),
    (("lfq", {}), ("bsq", {}), "quantizer was 'LFQ' and is now 'BSQ'"),
    (("ibq", {}), ("diveq", {}), "quantizer was 'IBQ' and is now 'DiVeQ'"),
]
"""Quantizers whose tensors have the same names and shapes, and what differs."""


@pytest.mark.parametrize(("source", "target", "rule"), MEANS_SOMETHING_ELSE)
def test_a_state_of_other_codes_is_refused(source, target, rule):
    (source, told), (target, own) = source, target
    saved, file = torch.nn.Sequential(make(source, **told)), io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    torch.nn.Sequential(make(source, **told)).load_state_dict(loaded)
    other = torch.nn.Sequential(make(target, **own))
    for state_dict in (saved.state_dict(), loaded):
        with pytest.raises(RuntimeError, match=re.escape(f"0.{rule}: must be the same")):
            other.load_state_dict(state_dict)
    other.load_state_dict(
        dict(loaded)
    )  # tensors alone: what older releases and files of weights hold


@pytest.mark.parametrize("name", QUANTIZERS)
def test_distances_are_float32_under_autocast_and_for_bfloat16_input(name):
    quantizer = started(name).eval()
    offset = 8.0 if name in OFFSET else 0.0
    if offset:
        quantizer.codebook.data.add_(offset)
    z_e = (torch.randn(500, quantizer.in_dim) + offset).bfloat16()
    expected = quantizer.encode(z_e.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.encode(z_e), expected)
        assert torch.equal(quantizer(z_e).codes, expected)


@everywhere
@pytest.mark.parametrize("name", QUANTIZERS)
def test_one_bad_latent_changes_no_codebook_entry_and_is_named_in_eval(name, grid, dtype):
    quantizer = started(name)
    bad = torch.randn(6, *grid, quantizer.in_dim).to(dtype)
    position = [2, *[size - 1 for size in grid], 0]
    value = (math.nan, math.inf, -math.inf, math.nan)[len(grid)]
    bad[tuple(position)] = value
    quantizer(bad)
    quantizer.after_step()
    assert all(torch.isfinite(tensor.float()).all() for tensor in state(quantizer).values())
    before = state(quantizer)
    quantizer(bad)
    quantizer.discard_step()
    assert same(before, state(quantizer))
    with pytest.raises(ValueError, match=re.escape(f"z{position} is {value}")):
        quantizer.eval()(bad)


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name not in STOCHASTIC])
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
    torch.manual_seed(5)
    once(z_e).z.sum().backward()
    torch.manual_seed(5)
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
        ("vq", {"commitment_weight": -1.0}, "commitment_weight=-1.0"),
        ("vq", {"orthogonal_weight": -1.0}, "orthogonal_weight=-1.0"),
        ("vq_ema", {"ema_decay": 1.0}, "ema_decay=1.0"),
        ("simvq", {"commitment_weight": math.nan}, "commitment_weight=nan"),
        ("ibq", {"precision": 0.0}, "precision=0.0"),
        ("ibq", {"entropy_weight": -1.0}, "entropy_weight=-1.0"),
        ("gumbel", {"temperature": 0.0}, "temperature=0.0"),
        ("fsq", {"levels": [8, 1]}, r"levels=\[8, 1\]"),
        ("fsq", {"levels": []}, r"levels=\[\]"),
        ("fsq", {"levels": [10**7]}, "each a whole number from 2 to 65536"),
        ("fsq", {"overshoot_weight": -1.0}, "overshoot_weight=-1.0"),
        ("lfq", {"dim": 0}, "dim=0"),
        ("lfq", {"dim": 63}, "dim=63: must be at most 62"),
        ("lfq", {"temperature": 0.0}, "temperature=0.0"),
        ("bsq", {"dim": 0}, "dim=0"),
        ("bsq", {"group_bits": 13}, "group_bits=13"),
        ("posthoc", {"levels": [4, 3]}, r"levels=\[4, 3\]: needs dim=3"),
        ("posthoc", {"levels": [1, 1, 1]}, "one at least 2"),
        ("posthoc", {"dim": 0}, "dim=0"),
        ("residual", {"num_quantizers": 0}, "num_quantizers=0"),
        ("residual", {"dropout_prob": 2.0}, "dropout_prob=2.0"),
        ("residual", {"growth": 0.0}, "growth=0.0"),
        ("residual", {"quantizer": {"name": "gaussian", "dim": 2}}, "'gaussian': has no codes"),
        ("residual", {"quantizer": {"dim": 2}}, "needs a name"),
        ("residual", {"quantizer": {"name": "vq", "dim": 0}}, "dim=0"),
        ("grouped", {"num_groups": 0}, "num_groups=0"),
        ("projected", {"dim": 0}, "dim=0"),
    ],
)
def test_bad_arguments_are_refused_with_name_and_value(name, changes, rule):
    with pytest.raises(ValueError, match=rule):
        registry.resolve("bottleneck", name)(**{**BOTTLENECKS[name], **changes})


@pytest.mark.parametrize("name", ["vq", "vq_ema", "vq_cosine", "simvq", "ibq", "diveq", "gumbel"])
@pytest.mark.parametrize("argument", ["codebook_size", "dim"])
def test_a_table_has_a_row_and_a_column(name, argument):
    with pytest.raises(ValueError, match=f"{argument}=0: must be at least 1"):
        make(name, **{argument: 0})


@in_both_modes
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_vectors_of_another_width_are_refused(name, training):
    """A width of 1 would broadcast, a wider one be cut in silence."""
    bottleneck = started(name).train(training)
    before = {n: b.clone() for n, b in bottleneck.named_buffers()}  # what is staged, too
    width = bottleneck.in_dim
    entries = [bottleneck, bottleneck.mode]
    entries += [bottleneck.encode] if name in QUANTIZERS else []
    for wrong in {0, 1, width - 1, width + 1, 2 * width} - {width}:
        for entry in entries:
            with pytest.raises(ValueError, match=rf"z of shape \[2, 5, {wrong}\].*be {width}"):
                entry(torch.zeros(2, 5, wrong))
    assert same(before, dict(bottleneck.named_buffers()))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_bad_codes_are_refused(name):
    quantizer = started(name).eval()
    size, num = quantizer.codebook_sizes[0], len(quantizer.codebook_sizes)
    fine = torch.zeros(1, num, dtype=torch.int64)
    first = torch.eye(num, dtype=torch.int64)[:1]
    for codes, rule in [
        (fine + first * size, f"{size} in codebook 0"),
        (fine - first, "-1 in codebook 0"),
        (torch.zeros(1, num + 1, dtype=torch.int64), f"last axis is {num + 1}"),
    ]:
        with pytest.raises(ValueError, match=rule):
            quantizer.decode(codes)


class Largest(TorchDispatchMode):
    """Note the size of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for item in result if isinstance(result, list | tuple) else [result]:
            if isinstance(item, torch.Tensor):
                self.numbers = max(self.numbers, item.numel())
        return result


@pytest.mark.parametrize(
    "name", ["vq", "vq_ema", "vq_cosine", "simvq", "ibq", "diveq", "gumbel", "lfq", "bsq"]
)
def test_no_table_of_every_vector_by_every_code_is_made(name, monkeypatch):
    """Peers make several, and one of them of int64: one-hots in training and in evaluation."""
    monkeypatch.setattr(soft, "_TILE", 2**16)
    num, size, dim = 1024, 4096, 2
    changes = {"dim": 12, "group_bits": 6} if name in ("lfq", "bsq") else {}
    quantizer = make(name, **(changes or {"codebook_size": size, "dim": dim})).train()
    z_e = torch.randn(num, quantizer.in_dim, requires_grad=True)
    with Largest() as largest:
        for _ in range(2):
            latent = quantizer(z_e)
            (latent.z.sum() + latent.penalty.sum()).backward()
            quantizer.after_step()
        quantizer.eval()(z_e)
    assert largest.numbers <= num * size // 4
