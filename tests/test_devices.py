"""Everything computes where its input is: each part on a device that is only pretended.

``tests/test_gpu.py`` asks the same of a real one. This needs none, and names the culprit.
"""

import contextlib

import pytest
import torch

from cases import BOTTLENECKS, QUANTIZERS
from pretend_cuda import DEVICE, PretendCUDA
from prior_work import COND, PRIORS, case_name, random_tokens
from prior_work import make as make_prior
from qvae.autoencoder import build_autoencoder
from qvae.codes import _sorted_sums, code_counts, code_sums
from qvae.tokenizer import Tokenizer
from qvae.train import engine, sources
from qvae.train.average import WeightAverage
from qvae.train.engine import own_random_numbers
from qvae.train.evaluate import evaluate
from qvae.train.optim import build_optimizers
from qvae.train.settings import TrainSettings
from qvae.train.sources import as_pair, open_feed
from qvae.train.step import Stepper
from qvae.types import Batch, DataSpec
from test_bottleneck_laws import make as make_bottleneck
from test_likelihoods import ALL as LIKELIHOODS
from test_likelihoods import data, params_for
from test_networks import PAIRS
from test_networks import build as build_networks


class _NoInference(torch.inference_mode):
    """What is left of inference mode without its kind of tensor: no gradients."""

    def __enter__(self):
        self.grad = torch.set_grad_enabled(not self.mode)
        self.grad.__enter__()

    def __exit__(self, *error):
        self.grad.__exit__(*error)


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """Pretend; the search is the one in plain torch, since Triton's kernels need a real device."""
    monkeypatch.setenv("QVAE_KERNEL", "torch")
    for name in ("autocast", "is_autocast_enabled", "get_autocast_dtype"):
        real = getattr(torch, name)

        def known(kind, *args, real=real, **kwargs):
            return real("cpu" if kind == DEVICE.type else kind, *args, **kwargs)

        monkeypatch.setattr(torch, name, known)
    # A subclass of tensor cannot be made in inference mode. Functions that were decorated with it
    # hold the class, so the class has to change.
    for name in ("__enter__", "__exit__"):
        monkeypatch.setattr(torch.inference_mode, name, getattr(_NoInference, name))
    with PretendCUDA() as pretended:
        yield pretended


def test_an_operand_an_index_or_a_generator_of_the_processor_is_refused():
    x = torch.zeros(3, 4, device=DEVICE)
    assert (x + torch.tensor(1.0)).sum().item() == 12.0  # a plain number may be anywhere
    for wrong in (
        lambda: x + torch.zeros(4),
        lambda: torch.cat([x[0, :1], torch.zeros(1)]),
        lambda: x[torch.tensor([0])],
        lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError):
            wrong()
    with pytest.raises((RuntimeError, TypeError)):
        x.numpy()


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("name", BOTTLENECKS)
def test_bottlenecks(name, has_mask):
    bottleneck = make_bottleneck(name).to(DEVICE).train()
    for _ in range(12):  # past the start, and a revival
        z_e = torch.randn(64, 4, bottleneck.in_dim, device=DEVICE, requires_grad=True)
        mask = torch.rand(64, 4, device=DEVICE) < 0.9 if has_mask else None
        latent = bottleneck(z_e, mask)
        (latent.z.sum() + latent.penalty.sum() + latent.rate.sum()).backward()
        assert z_e.grad.device == DEVICE and z_e.grad.isfinite().all()
        bottleneck.after_step()
    bottleneck.eval()
    latent = bottleneck(z_e)
    assert {t.device for t in (latent.z, latent.rate, latent.penalty)} == {DEVICE}
    assert {t.device for t in latent.metrics.values()} <= {DEVICE}
    assert bottleneck.mode(z_e).device == DEVICE
    if name in QUANTIZERS:
        assert torch.equal(bottleneck.decode(bottleneck.encode(z_e)), latent.z)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods(name):
    likelihood = LIKELIHOODS[name]().to(DEVICE)
    x = data(likelihood, (4, 3, 5))
    params = params_for(likelihood, x).to(DEVICE).requires_grad_()
    likelihood.nll(params, x.to(DEVICE)).sum().backward()
    assert params.grad.device == DEVICE
    assert likelihood.mean(params).device == likelihood.sample(params).device == DEVICE


@pytest.mark.parametrize("cond_dim", [0, 5])
@pytest.mark.parametrize("name", PAIRS)
def test_networks(name, cond_dim):
    encoder, decoder, shape = build_networks(name, cond_dim)
    encoder, decoder = encoder.to(DEVICE), decoder.to(DEVICE)
    x = torch.rand(2, *shape, device=DEVICE)
    cond = torch.rand(2, cond_dim, device=DEVICE) if cond_dim else None
    h = encoder(x, cond)
    z = torch.randn(2, decoder.in_dim, *h.shape[2:], device=DEVICE)
    decoder(z, cond).sum().backward()
    assert h.device == DEVICE


@pytest.mark.parametrize("config", PRIORS, ids=case_name)
def test_priors(config):
    prior = make_prior(config)
    tokens = random_tokens(prior, 3)
    if config["name"] == "unigram":
        prior.count(tokens)
    expected, drawn = prior.nll(tokens, COND), prior.sample(3, COND, seed=1)
    prior, there, told = prior.to(DEVICE), tokens.to(DEVICE), COND.to(DEVICE)
    torch.testing.assert_close(prior.nll(there, told).cpu(), expected)
    lengths = torch.tensor([3, 12, 7])
    for row in (lengths, lengths.to(DEVICE)):
        assert prior.nll(there, told, lengths=row).device == DEVICE
    assert torch.equal(prior.sample(3, COND, seed=1).cpu(), drawn)
    keep = torch.rand(3, 12) < 0.5
    for known in (tokens, there):
        again = prior.sample(3, told, known=known, keep=keep, lengths=lengths, guidance=2.0)
        assert again.device == DEVICE
    prior.train()
    loss = prior(Batch(x=there, cond=told, lengths=lengths.to(DEVICE)))
    assert loss.total.device == DEVICE
    if loss.total.requires_grad:
        loss.total.backward()


@pytest.mark.parametrize("name", ["vq_ema", "diveq"])
def test_a_step_of_a_kept_table_makes_the_processor_wait_twice(name, device):
    """Once to stage and once to commit: each wait drains what a card was given to do."""
    bottleneck = make_bottleneck(name).to(DEVICE).train()
    for step in range(19):
        del device.waits[:]
        z_e = torch.randn(64, 4, bottleneck.in_dim, device=DEVICE)
        bottleneck(z_e)
        bottleneck.after_step()
        if step not in (0, 9):  # k-means at first, and a revival, ask for more
            assert len(device.waits) == 2, (step, device.waits)


def test_counts_and_sums_of_codes_are_those_of_the_processor():
    codes, vectors = torch.randint(0, 9, (500,)), torch.randn(500, 3)
    assert torch.equal(code_counts(codes.to(DEVICE), 12).cpu(), code_counts(codes, 12))
    found = _sorted_sums(vectors.to(DEVICE), codes.to(DEVICE), 12).cpu()
    torch.testing.assert_close(found, code_sums(vectors, codes, 12))


def test_the_generator_of_the_device_in_use_is_given_back(monkeypatch):
    """``torch.manual_seed`` seeds every device, so its state has to be kept beside torch's own."""
    kept = []

    def fork(devices):
        kept.extend(devices)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.random, "fork_rng", fork)
    with own_random_numbers(torch.device("cuda", 1)):
        pass
    with own_random_numbers(torch.device("cpu")):
        pass
    assert kept == [torch.device("cuda", 1)]


def test_training_on_a_card_has_cudnn_repeat_itself_in_float32(monkeypatch):
    monkeypatch.setattr(engine, "resolve_device", lambda name, local_rank: torch.device("cuda", 0))
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32
    with engine.running_engine(device="cuda", precision="float32"):
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.allow_tf32
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("name", ["gaussian", "vq_ema"])
def test_training_steps_and_an_evaluation(name, optimizer):
    parts = {"encoder": {"name": "mlp"}, "decoder": {"name": "mlp"}}
    parts |= {"bottleneck": {"name": name, **BOTTLENECKS[name]}, "likelihood": {"name": "gaussian"}}
    model = build_autoencoder(parts, DataSpec(shape=(1, 4, 4))).train()
    settings = TrainSettings(
        steps=3, batch_size=8, accumulate=2, weight_ema=0.9, optimizer=optimizer, clip_norm=1.0
    )
    place = engine.Engine(rank=0, world=1, device=DEVICE, precision="float32")
    place.place(model)
    stepper = Stepper(
        model,
        engine=place,
        settings=settings,
        optimizers=build_optimizers(model, settings, device=DEVICE, precision="float32"),
        average=WeightAverage(model, decay=0.9),
    )
    train, valid = as_pair(torch.rand(40, 1, 4, 4))
    feed = open_feed(train, settings=settings, engine=place, start=0)
    for step in range(settings.steps):
        batch = feed.batch(step)
        micro = [sources.place(sources.select(batch, slice(a, a + 4)), place) for a in (0, 4)]
        assert not stepper.run(step, micro).is_refused
    feed.close()
    assert evaluate(model, valid, engine=place, settings=settings, should_stop=lambda: False)
    codes = Tokenizer(model).encode(torch.rand(3, 1, 4, 4)) if name == "vq_ema" else None
    assert codes is None or codes.device.type == "cpu"
