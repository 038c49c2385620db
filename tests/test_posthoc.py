"""Codes for a trained VAE: values against brute force, bits against the budget, and a run."""

import json
import math
import time

import numpy as np
import pytest
import torch

from qvae.bottlenecks.posthoc import PostHoc, _deal, fit_posthoc
from qvae.cli.main import main
from qvae.config import load_recipe
from qvae.errors import UsageError
from qvae.runs.loading import open_run, open_run_data
from qvae.runs.posthoc import quantize_model, quantize_run
from qvae.runs.training import train_recipe
from qvae.tokenizer import Tokenizer


def test_a_code_is_the_nearest_value_of_each_coordinate():
    mean = torch.randn(500, 3) * torch.tensor([3.0, 1.0, 0.5])
    fitted = fit_posthoc(mean, torch.zeros(500, 3), bits=6.0)
    codes = fitted.encode(torch.cat([mean, torch.zeros(500, 3)], dim=1)).numpy()
    for column, d in enumerate(fitted.active.tolist()):
        values = fitted.values[d, : fitted.levels[d]].numpy()
        nearest = np.abs(mean[:, d].numpy()[:, None] - values).argmin(1)
        assert np.array_equal(codes[:, column], nearest)


@pytest.mark.parametrize("bits", [1.0, 2.5, 7.0, 20.0])
def test_bits_stay_in_the_budget_and_go_where_the_signal_is(bits):
    mean = torch.randn(2000, 4) * torch.tensor([8.0, 4.0, 1.0, 0.01])
    fitted = fit_posthoc(mean, torch.zeros(2000, 4), bits=bits)
    spent = sum(math.log2(size) for size in fitted.codebook_sizes)
    assert bits - 1 <= spent <= bits + 1e-6
    assert list(fitted.levels) == sorted(fitted.levels, reverse=True)
    z = fitted.decode(fitted.encode(torch.cat([mean, mean], dim=1)))
    constant = [d for d, level in enumerate(fitted.levels) if level == 1]
    assert torch.allclose(z[:, constant], mean.mean(0)[constant].expand(2000, -1), atol=1e-4)


def test_bits_without_end_stop_at_the_most_values_a_coordinate_takes():
    """Soon, too: 512 coordinates of 256 values each took half a minute to deal out."""
    start = time.monotonic()
    assert _deal([2.0 + d for d in range(512)], 1e5) == [256] * 512
    assert time.monotonic() - start < 8
    few = torch.randn(500, 2).round()
    fitted = fit_posthoc(few, torch.zeros(500, 2), bits=1e5)
    assert list(fitted.levels) == [len(few[:, d].unique()) for d in range(2)]


def test_what_is_dealt_out_is_best_step_by_step():
    """The next value goes where it takes off most a bit, among what can still be paid."""
    rng = np.random.default_rng(0)
    for bits in (1.0, 5.5, 17.0):
        signal = [0.0, *rng.exponential(4, 6).tolist()]
        levels, left = [1] * 7, bits + 1e-9
        while True:
            prices = [math.log2(1 + 1 / level) for level in levels]
            gains = [
                (s / v**2 - s / (v + 1) ** 2) / price if price <= left else 0
                for s, v, price in zip(signal, levels, prices, strict=True)
            ]
            if max(gains) <= 0:
                break
            best = int(np.argmax(gains))
            left -= prices[best]
            levels[best] += 1
        assert _deal(signal, bits) == levels


def test_more_bits_mean_less_error_and_near_that_of_theory():
    mean = torch.randn(20000, 1)
    errors = {}
    for level in (2, 4, 8):
        fitted = fit_posthoc(mean, torch.zeros(20000, 1), bits=math.log2(level))
        z = fitted.decode(fitted.encode(torch.cat([mean, mean], dim=1)))
        errors[level] = (z - mean).square().mean().item()
    # Max 1960, Quantizing for minimum distortion, table I: of a normal with variance 1.
    assert errors == pytest.approx({2: 0.3634, 4: 0.1175, 8: 0.03454}, rel=0.06)


@pytest.mark.parametrize(
    ("mean", "bits", "rule"),
    [
        (torch.randn(9, 2), 0.5, "bits=0.5: must be at least 1 and finite"),
        (torch.randn(9, 2), math.inf, "bits=inf: must be at least 1 and finite"),
        (torch.randn(9, 2), math.nan, "bits=nan: must be at least 1 and finite"),
        (torch.randn(1, 2), 3.0, "1 cells are too few"),
        (torch.ones(9, 2), 3.0, "all cells are alike"),
        (torch.full((9, 2), math.nan), 3.0, r"z\[0, 0\] is nan"),
    ],
)
def test_what_cannot_be_fitted_is_refused(mean, bits, rule):
    with pytest.raises(ValueError, match=rule):
        fit_posthoc(mean, torch.zeros_like(mean), bits=bits)


def test_without_values_it_refuses_to_work():
    quantizer = PostHoc(dim=2, levels=[2, 2])
    for use in (quantizer, quantizer.encode):
        with pytest.raises(ValueError, match="posthoc: has no values yet.*qvae quantize RUN"):
            use(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="has no values yet"):
        quantizer.decode(torch.zeros(1, 2, dtype=torch.int64))


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """A VAE after a few steps on tiny clocks."""
    folder = tmp_path_factory.mktemp("vae")
    (folder / "vae.yaml").write_text(
        "data: {name: clocks, size: 64, valid_size: 8}\n"
        "model:\n  encoder: {name: mlp, hidden: [16]}\n  bottleneck: {name: gaussian, dim: 6}\n"
        "  decoder: {name: mlp, hidden: [16]}\n  likelihood: {name: gaussian}\n"
        "train: {steps: 3, batch_size: 16}\n"
    )
    recipe = load_recipe(folder / "vae.yaml")
    train_recipe(recipe, run=folder / "run", device="cpu", progress=False)
    return folder / "run"


def test_a_run_becomes_a_run_with_codes(vae, tmp_path, capsys):
    words = [str(vae), "-o", str(tmp_path / "codes"), "--bits", "9", "--json", "--device", "cpu"]
    assert main(["quantize", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bits"] <= 9 and told["num_tokens"] == len(told["codebook_sizes"])
    run = open_run(tmp_path / "codes")
    data = open_run_data(run)
    x = data.train().batch(np.arange(8)).x
    tokens = run.require_tokenizer().encode(x)
    again = Tokenizer.from_pretrained(tmp_path / "codes" / "model")
    assert torch.equal(again.encode(x), tokens)
    # The more bits, the nearer to what the VAE makes of its own mean.
    model = open_run(vae).model
    fine = quantize_model(model, data, bits=40.0)
    with torch.no_grad():
        exact = model.reconstruct(x)
        coarse = (again.decode(tokens) - exact).square().mean()
        assert (fine.decode(fine.encode(x)) - exact).square().mean() < 0.5 * coarse


@pytest.mark.parametrize(
    ("bottleneck", "model"),
    [
        ("{name: gaussian, dim: 6}", "beta_start: 9.0, beta: 2.0, beta_warmup: 5"),
        ("{name: gaussian, dim: 6}", "beta: 9.0, capacity: 3.0, capacity_steps: 2"),
        ("{name: gaussian, dim: 6}", "num_samples: 3"),
        ("{name: gaussian, dim: 6, prior: autoregressive}", "free_bits: 0.1"),
        ("{name: gaussian_factor, dim: 6}", "beta: 1.0"),
    ],
)
def test_every_vae_can_be_quantized_and_its_price_stays_behind(tmp_path, call, bottleneck, model):
    (tmp_path / "vae.yaml").write_text(
        "data: {name: clocks, size: 64, valid_size: 8}\n"
        f"model:\n  encoder: {{name: mlp, hidden: [16]}}\n  bottleneck: {bottleneck}\n"
        "  decoder: {name: mlp, hidden: [16]}\n  likelihood: {name: gaussian}\n"
        + "".join(f"  {item}\n" for item in model.split(", "))
        + "train: {steps: 3, batch_size: 16}\n"
    )
    train_recipe(load_recipe(tmp_path / "vae.yaml"), run=tmp_path / "run", device="cpu")
    words = ["-o", tmp_path / "codes", "--bits", "9", "--device", "cpu"]
    code, _, err = call("quantize", tmp_path / "run", *words)
    assert code == 0, err
    run = open_run(tmp_path / "codes")
    run.model.check_price()
    assert load_recipe(tmp_path / "codes").model["num_samples"] == 1
    assert (
        run.require_tokenizer().encode(open_run_data(run).train().batch(np.arange(2)).x).ndim == 2
    )


@pytest.mark.parametrize(("bits", "is_more"), [("9", False), ("18", False), ("100000", True)])
def test_bits_that_no_code_can_use_are_spoken_of(vae, tmp_path, call, bits, is_more):
    """64 clocks have at most 64 values in each of 6 coordinates: 36 bits, and no more are told."""
    words = ["quantize", vae, "-o", tmp_path / "codes", "--bits", bits, "--json", "--device", "cpu"]
    code, out, err = call(*words)
    spent = json.loads(out)["bits"]
    assert code == 0 and spent <= 36
    assert (f"--bits {bits}: more than the codes use; a cell takes {spent:.1f}" in err) == is_more


def test_a_folder_in_use_and_a_model_with_codes_are_refused(vae, tmp_path):
    run = open_run(vae)
    data = open_run_data(run)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UsageError, match="is not empty"):
        quantize_run(run, data, tmp_path / "full", bits=4.0)
    quantize_run(run, data, tmp_path / "codes", bits=4.0)
    with pytest.raises(UsageError, match="bottleneck PostHoc: must be gaussian"):
        quantize_run(open_run(tmp_path / "codes"), data, tmp_path / "twice", bits=4.0)
