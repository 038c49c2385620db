"""On a CUDA device: what the other tests ask of the processor, in small, and that both agree.

Run by ``make test-gpu``. ``QVAE_TEST_DEVICE=cpu`` tries the tests themselves without a device.
"""

import copy
import json
import math
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from cases import BOTTLENECKS, QUANTIZERS, STOCHASTIC
from cli_work import ENVIRONMENT, call, runs_in
from prior_work import COND, PRIORS, TIME, case_name, random_tokens
from prior_work import make as make_prior
from qvae import Tokenizer
from qvae.autoencoder import build_autoencoder
from qvae.pretrained import load_model
from qvae.runs.likelihood import score_likelihood
from qvae.runs.loading import open_run, open_run_data
from qvae.runs.scores import evaluate_run
from qvae.train import fit
from qvae.types import Batch, DataSpec
from test_bottleneck_laws import as_input, same, started, state
from test_likelihoods import ALL as LIKELIHOODS
from test_likelihoods import data, params_for
from test_llm_clock import a_trained_run, tokens_of_clocks
from test_networks import PAIRS
from test_networks import build as build_networks
from train_toy import files_of, rows_of

__all__ = ["a_trained_run", "call", "tokens_of_clocks"]

DEVICE = torch.device(os.environ.get("QVAE_TEST_DEVICE", "cuda"))
IS_MISSING = DEVICE.type == "cuda" and not torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(IS_MISSING, reason="this machine or this torch has no CUDA device"),
    pytest.mark.filterwarnings("default"),
]
ROUNDED = ["vq_cosine", "simvq", "fsq", "projected", "posthoc"]
"""Those that compute before they choose: a norm, a product, a tanh or an exp, whose last digit is
each device's own. The others search or compare what they are given, exactly."""


@pytest.fixture(autouse=True)
def float32_is_float32():
    """Torch lets convolutions round what they take to TF32; a run of ours does not."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def there(name):
    """A bottleneck after its start, on the device."""
    return started(name).to(DEVICE)


def latents(bottleneck, num=64):
    return torch.randn(num, 4, bottleneck.in_dim)


# -- bottlenecks -------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_forward_and_gradient(name, training):
    bottleneck = there(name).train(training)
    z_e = latents(bottleneck).to(DEVICE).requires_grad_()
    latent = bottleneck(z_e)
    (latent.z.square().sum() + latent.penalty.sum() + latent.rate.sum()).backward()
    assert {t.device.type for t in (latent.z, latent.rate, latent.penalty)} == {DEVICE.type}
    assert z_e.grad.isfinite().all()
    for parameter in bottleneck.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    low = bottleneck(z_e.detach().bfloat16())
    assert low.z.dtype == torch.bfloat16 and low.rate.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_decode_to_z_and_are_those_of_the_processor(name, training):
    here, quantizer = started(name).train(training), there(name).train(training)
    z_e = latents(here, 500)
    latent = quantizer(z_e.to(DEVICE))
    assert torch.equal(quantizer.decode(latent.codes), latent.z)
    if training and name in STOCHASTIC:
        return
    assert torch.equal(quantizer.encode(z_e.to(DEVICE)), latent.codes)
    is_equal = latent.codes.cpu() == here(z_e).codes
    assert is_equal.float().mean() >= 0.99 if name in ROUNDED else is_equal.all()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert torch.equal(quantizer.encode(z_e.to(DEVICE)), latent.codes)
    every = quantizer.encode(as_input(quantizer, latent.z.float()))
    assert every.shape == latent.codes.shape


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_two_equal_runs_are_equal_to_the_bit(name):
    """Past a revival: k-means, moving averages and draws have one order."""

    num = 500 if name in QUANTIZERS else 50  # an estimate may compare all with all

    def run():
        bottleneck = copy.deepcopy(fresh)
        torch.manual_seed(5)
        for _ in range(25):
            z_e = latents(bottleneck, num).to(DEVICE).requires_grad_()
            latent = bottleneck(z_e)
            (latent.z.square().sum() + latent.penalty.sum()).backward()
            bottleneck.after_step()
        return {**state(bottleneck), "gradient": z_e.grad, "z": latent.z.detach()}

    torch.manual_seed(4)
    fresh = type(started(name))(**BOTTLENECKS[name]).to(DEVICE).train()
    if name == "posthoc":
        fresh.load_state_dict(started(name).state_dict())
    first = run()
    assert same(first, run())
    assert all(tensor.isfinite().all() for tensor in first.values())


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_masked_positions_touch_nothing(name):
    z_e = latents(started(name)).to(DEVICE)
    mask = torch.rand(64, 4).to(DEVICE) < 0.5
    changed = torch.where(mask[..., None], z_e, z_e + 100)

    def run(z_e):
        bottleneck = there(name)
        torch.manual_seed(3)
        latent = bottleneck(z_e, mask)
        bottleneck.after_step()
        return {"rate": latent.rate, "penalty": latent.penalty, "z": latent.z[mask]} | state(
            bottleneck
        )

    assert same(run(z_e), run(changed))


@pytest.mark.parametrize("name", QUANTIZERS)
def test_one_bad_latent_changes_no_codebook_entry(name):
    quantizer = there(name)
    bad = latents(quantizer).to(DEVICE)
    bad[2, 3, 0] = math.nan
    quantizer(bad)
    quantizer.after_step()
    assert all(tensor.float().isfinite().all() for tensor in state(quantizer).values())
    with pytest.raises(ValueError, match=r"z\[2, 3, 0\] is nan"):
        quantizer.eval()(bad)


COMPILED = """
import torch
from qvae.bottlenecks.fsq import FSQ

quantizer = FSQ(levels=[8, 5]).to("{device}").eval()
z_e = torch.randn(64, 2, device="{device}")
compiled = torch.compile(lambda z: quantizer.decode(quantizer.encode(z)), fullgraph=True)
torch.testing.assert_close(compiled(z_e), quantizer(z_e).z)
"""
"""In a process of its own, because the tests' check of shapes cannot be traced."""


def test_a_compiled_quantizer_is_one_graph():
    command = [sys.executable, "-c", COMPILED.format(device=DEVICE.type)]
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


# -- likelihoods, networks ---------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_agree_with_the_processor(name):
    here = LIKELIHOODS[name]()
    likelihood = copy.deepcopy(here).to(DEVICE)
    x = data(here, (4, 3, 5))
    params = params_for(here, x)
    moved = params.to(DEVICE)
    options = {"rtol": 1e-4, "atol": 1e-4}
    nll = likelihood.nll(moved, x.to(DEVICE))
    torch.testing.assert_close(nll.cpu(), here.nll(params, x), **options)
    torch.testing.assert_close(likelihood.mean(moved).cpu(), here.mean(params), **options)
    drawn = [
        likelihood.sample(moved, torch.Generator(DEVICE).manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert drawn[0].shape == x.shape and torch.equal(drawn[0], drawn[1])
    is_mean = name == "gaussian-optimal"  # it has no width of its own
    assert torch.equal(drawn[0], drawn[2]) == is_mean


@pytest.mark.parametrize("name", PAIRS)
def test_networks_agree_with_the_processor(name):
    encoder, decoder, shape = build_networks(name, cond_dim=5)
    x, cond = torch.rand(2, *shape), torch.rand(2, 5)
    h = encoder(x, cond)
    z = torch.randn(2, decoder.in_dim, *h.shape[2:])
    expected = h, decoder(z, cond)
    encoder, decoder = encoder.to(DEVICE), decoder.to(DEVICE)
    found = encoder(x.to(DEVICE), cond.to(DEVICE)), decoder(z.to(DEVICE), cond.to(DEVICE))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3)
    sum(part.sum() for part in found).backward()


# -- priors ------------------------------------------------------------------------------------


@pytest.fixture(params=PRIORS, ids=case_name)
def priors(request):
    """The same prior here and there, and tokens."""
    here = make_prior(request.param)
    tokens = random_tokens(here, 3)
    if request.param["name"] == "unigram":
        here.count(random_tokens(here, 50))
    return here, copy.deepcopy(here).to(DEVICE), tokens


def test_priors_score_as_on_the_processor(priors):
    here, prior, tokens = priors
    lengths = torch.tensor([3, 12, 7])
    found = prior.nll(tokens.to(DEVICE), COND.to(DEVICE))
    torch.testing.assert_close(found.cpu(), here.nll(tokens, COND), rtol=1e-4, atol=1e-3)
    for row in (lengths, lengths.to(DEVICE)):
        found = prior.nll(tokens.to(DEVICE), COND, lengths=row)
        expected = here.nll(tokens, COND, lengths=lengths)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-3)
    loss = prior.train()(Batch(x=tokens.to(DEVICE), cond=COND.to(DEVICE)))
    assert loss.total.isfinite()
    if loss.total.requires_grad:
        loss.total.backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in prior.parameters())


def test_priors_draw_by_seed_keep_what_is_known_and_cache_exactly(priors):
    _, prior, tokens = priors
    drawn = prior.sample(3, COND, seed=7)
    assert torch.equal(prior.sample(3, COND, seed=7), drawn)
    assert ((drawn >= prior.low) & (drawn < prior.high)).all()
    alone = [prior.sample(1, COND[:1], seed=seed) for seed in (3, 9)]
    both = prior.sample(2, COND[:1], seed=[3, 9])
    assert torch.equal(both, torch.cat(alone))
    keep = torch.arange(prior.num_tokens) % 2 == 0
    kept = prior.sample(3, COND, known=tokens, keep=keep.expand(3, -1), seed=1, guidance=2.0)
    assert torch.equal(kept.cpu()[:, keep], tokens[:, keep])
    if prior.config["name"] == "masked":
        return  # its rounds see tokens that log_probs, in its own order, does not
    best = prior.sample(3, COND, temperature=0.0)  # drawn with the cache
    log_probs = prior.log_probs(best, COND.to(DEVICE))  # one pass over all
    digits = (best - prior.low)[..., None]
    worse = log_probs.amax(-1) - log_probs.gather(-1, digits)[..., 0]
    assert worse.max() < 1e-3


# -- training ----------------------------------------------------------------------------------

SPEC = DataSpec(shape=(1, 16, 16), conditions=(TIME,))
SMALL = {"name": "conv", "hidden": 16, "residual": 8}


def make_model(name="vq_ema", **changes):
    torch.manual_seed(0)
    parts = {"encoder": SMALL, "decoder": SMALL, "likelihood": {"name": "gaussian"}}
    parts |= {"bottleneck": {"name": name, **BOTTLENECKS[name]}, **changes}
    return build_autoencoder(parts, SPEC)


def train(run, model=None, **changes):
    settings = {
        "steps": 24,
        "batch_size": 16,
        "accumulate": 2,
        "weight_ema": 0.9,
        "save_every": 12,
        "eval_every": 12,
        "log_every": 5,
        "keep": 2,
        "device": DEVICE.type,
        "progress": False,
    }
    images = torch.rand(64, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    return fit(model or make_model(), images, run=run, **settings | changes)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(precision, optimizer, tmp_path):
    options = {"precision": precision, "optimizer": optimizer}
    train(tmp_path / "a", **options)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "state" / "step_00000024")
    shutil.rmtree(tmp_path / "b" / "model")
    train(tmp_path / "b", resume=True, **options)
    assert files_of(tmp_path / "b", 24) == files_of(tmp_path / "a", 24)
    assert rows_of(tmp_path / "b") == rows_of(tmp_path / "a")
    losses = [row["loss"] for row in rows_of(tmp_path / "a")]
    assert losses[-1] < losses[0]
    env = json.loads((tmp_path / "a" / "env.json").read_text())
    assert env["precision"] == precision and (DEVICE.type == "cpu" or env["device"] != "cpu")


@pytest.mark.parametrize("name", [name for name in BOTTLENECKS if name != "posthoc"])
def test_every_rung_trains(name, tmp_path):
    train(tmp_path, make_model(name), steps=4, precision="bf16")
    assert all(math.isfinite(row["loss"]) for row in rows_of(tmp_path))


def test_a_step_that_is_not_finite_is_refused(tmp_path):
    class Bad(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.steps = make_model(), 0

        def forward(self, batch):
            self.steps += self.training
            x = batch.x * math.nan if self.steps == 3 else batch.x
            return self.inner(Batch(x=x, step=batch.step))

    train(tmp_path, Bad(), steps=6, accumulate=1, log_every=1, eval_every=6, save_every=6)
    rows = [row for row in rows_of(tmp_path) if row["split"] == "train"]
    assert [row["step"] for row in rows if row.get("is_refused")] == [3]
    assert all(math.isfinite(row["loss"]) for row in rows if row["step"] > 3)


def test_the_caller_s_random_numbers_are_given_back(tmp_path):
    model = make_model()
    torch.manual_seed(9)
    expected = torch.rand(3, device=DEVICE)
    torch.manual_seed(9)
    train(tmp_path, model, steps=2)
    assert torch.equal(torch.rand(3, device=DEVICE), expected)


def test_scoring_gives_the_caller_s_random_numbers_back(work):
    run = open_run("runs/vae", device=DEVICE)
    source = open_run_data(run)
    torch.manual_seed(9)
    expected = torch.rand(3, device=DEVICE)
    torch.manual_seed(9)
    first = evaluate_run(run, source), score_likelihood(run.model, source.test(), num_draws=4)
    assert torch.equal(torch.rand(3, device=DEVICE), expected)
    again = evaluate_run(run, source), score_likelihood(run.model, source.test(), num_draws=4)
    for one, other in zip(first, again, strict=True):
        for name, row in one.items():  # other noise would move the first digits, atomics the last
            expected = pytest.approx(row["value"], rel=1e-5, nan_ok=True)
            assert other[name]["value"] == expected, name


def test_a_model_trained_there_is_a_tokenizer_on_both(tmp_path):
    model = make_model()
    train(tmp_path / "run", model, steps=24, precision="float32")
    images = torch.rand(16, 1, 16, 16)
    tokenizer = Tokenizer(model)
    assert tokenizer.device.type == DEVICE.type
    tokens = tokenizer.encode(images)
    assert tokens.device.type == "cpu"
    assert torch.equal(tokenizer.encode(images.to(DEVICE)).cpu(), tokens)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    here = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    again = Tokenizer.from_pretrained(tmp_path / "tokenizer", device=DEVICE)
    assert here.hash == again.hash == tokenizer.hash
    assert torch.equal(again.encode(images), tokens)
    assert (here.encode(images) == tokens).float().mean() > 0.95  # a convolution comes first
    recon = again.decode(tokens)
    torch.testing.assert_close(recon, here.decode(tokens), rtol=1e-3, atol=1e-3)
    assert next(load_model(tmp_path / "tokenizer").parameters()).device.type == "cpu"


# -- the command line --------------------------------------------------------------------------

ON = ["--device", DEVICE.type]


@pytest.fixture(scope="module", name="work")
def a_folder_of_runs(tmp_path_factory):
    """Runs trained on the device by the command line."""
    with runs_in(tmp_path_factory.mktemp("work"), *ON) as folder:
        yield folder


@pytest.mark.parametrize(
    "words",
    [
        "info --json",
        "eval runs/ae",
        "eval runs/prior",
        "eval runs/vae",
        "sample runs/prior --cond time=4:20 -n 3 -o drawn",
        "sample runs/ae -n 3 -o by-unigram",
        "sample runs/vae -n 3 -o by-vae",
        "decode runs/ae tokens -o decoded",
        "plot runs/ae --kind codes -o codes.png",
        "plot runs/ae --kind reconstructions -o recon.png",
        "plot runs/vae --kind traversal -o walk.png",
        "plot runs/vae --kind interpolation -o between.png",
        "plot runs/vae --kind samples -o samples.png",
        "quantize runs/vae --bits 4 -o runs/posthoc",
    ],
    ids=lambda words: words.split(" -")[0],
)
def test_commands(words, work, call):
    code, out, err = call(*words.split(), *ON)
    assert code == 0, err
    if "--json" in words:
        assert json.loads(out)["device"].startswith(DEVICE.type)


@pytest.mark.parametrize("paper", ["aevb", "iwae"])
def test_a_paper_in_small(paper, tmp_path, call):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (300, 4, 4), np.uint8))
    words = ["reproduce", paper, "--data", tmp_path / "x.npy", "--run", tmp_path / "r", "--quick"]
    code, out, err = call(*words, *ON, "--json")
    assert code == 0, err
    protocol = json.loads(out)["protocol"]
    assert "float32" in protocol["scored"] and ("processor" in protocol["scored"]) == (
        DEVICE.type == "cpu"
    )


def test_a_comparison(work, call):
    small = ["--encoder.hidden", 8, "--decoder.hidden", 8, "--train.batch_size", 8]
    words = ["compare", "images", "-o", "compared", "--quantizers", "fsq", "--bits", 8]
    code, _, err = call(*words, "--seeds", 1, "--steps", 4, *small, *ON)
    assert code == 0, err


def test_a_language_model_of_clocks_trains_there_and_draws(tokens, tmp_path):
    from qvae.config import load_recipe
    from qvae.llm.clock_llm import open_clock_llm
    from qvae.runs.training import train_recipe
    from test_llm_clock import _TINY

    recipe = load_recipe("llm_clock", [("data.path", str(tokens)), *_TINY])
    train_recipe(recipe, run=tmp_path / "llm", progress=False, device=DEVICE.type)
    pictures, told = open_clock_llm(tmp_path / "llm").draw(["ten past ten"])
    assert pictures.shape == (1, 3, 64, 64) and len(told) == 1
