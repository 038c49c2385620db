"""Frozen parts: what is frozen keeps every bit, the rest learns, and a resume is exact."""

import numpy as np
import pytest
import torch
from torch import nn

import qvae
from cases import BOTTLENECKS, QUANTIZERS, WRAPPERS
from qvae.autoencoder import build_autoencoder
from qvae.bottlenecks.kept_table import KeptTable
from qvae.errors import UsageError
from qvae.train.frozen import find_parts, frozen
from qvae.types import DataSpec

FROZEN = ["encoder", "proj_in", "bottleneck"]
SETTINGS = {"batch_size": 8, "device": "cpu", "precision": "float32", "progress": False}


def make(bottleneck):
    network = {"name": "patch", "patch": 4, "hidden": 8}
    config = {
        "encoder": network,
        "bottleneck": {"name": bottleneck, **BOTTLENECKS[bottleneck]},
        "decoder": network,
        "likelihood": {"name": "gaussian", "sigma": 0.5},
    }
    torch.manual_seed(0)
    return build_autoencoder(config, DataSpec(shape=(1, 8, 8)))


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def pictures():
    return np.random.default_rng(0).random((48, 1, 8, 8), dtype=np.float32)


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name != "posthoc"])
def test_a_frozen_quantizer_keeps_every_bit_while_the_decoder_learns(tmp_path, name):
    x, model = pictures(), make(name)
    qvae.fit(model, x, run=tmp_path / "a", steps=4, **SETTINGS)
    before, codes = state(model), model.encode(torch.tensor(x)).codes
    more = {"steps": 4, "weight_ema": 0.9, "frozen": FROZEN, **SETTINGS}
    qvae.fit(model, x, run=tmp_path / "b", **more)
    for key, value in state(model).items():
        is_frozen = key.split(".")[0] in FROZEN
        assert torch.equal(value, before[key]) or not is_frozen, key
    assert not torch.equal(
        model.state_dict()["decoder.paint.weight"], before["decoder.paint.weight"]
    )
    assert torch.equal(model.encode(torch.tensor(x)).codes, codes)
    assert all(p.requires_grad for p in model.proj_in.parameters()), "it may learn again"


def test_a_resume_with_frozen_parts_is_exact_and_needs_the_same(tmp_path):
    x, more = pictures(), {"weight_ema": 0.9, "frozen": FROZEN, **SETTINGS}
    whole, parted = make("vq_ema"), make("vq_ema")
    qvae.fit(whole, x, run=tmp_path / "whole", steps=6, decay="none", **more)
    qvae.fit(parted, x, run=tmp_path / "run", steps=3, decay="none", **more)
    other = {**more, "frozen": ["encoder"]}
    with pytest.raises(UsageError, match="frozen was .* and is now"):
        qvae.fit(make("vq_ema"), x, run=tmp_path / "run", steps=6, resume=True, **other)
    again = make("vq_ema")
    qvae.fit(again, x, run=tmp_path / "run", steps=6, decay="none", resume=True, **more)
    for key, value in state(whole).items():
        assert torch.equal(value, again.state_dict()[key]), key


@pytest.mark.parametrize("name", [*WRAPPERS, "vq_ema"])
def test_a_codebook_inside_can_be_frozen_alone(tmp_path, name):
    x, model = pictures(), make(name)
    qvae.fit(model, x, run=tmp_path / "a", steps=4, **SETTINGS)
    tables = [part for part, module in model.named_modules() if isinstance(module, KeptTable)]
    before = state(model)
    qvae.fit(model, x, run=tmp_path / "b", steps=4, frozen=tables, **SETTINGS)
    for key, value in state(model).items():
        assert torch.equal(value, before[key]) or not key.startswith(tuple(tables)), key
    assert not torch.equal(
        model.state_dict()["encoder.embed.weight"], before["encoder.embed.weight"]
    )


@pytest.mark.parametrize("name", ["decodr", "", "encoder.no"])
def test_an_unknown_part_is_refused_and_nothing_stays_frozen(tmp_path, name):
    model = make("fsq")
    with pytest.raises(UsageError, match="no such part; the model has .*encoder"):
        qvae.fit(model, pictures(), run=tmp_path, steps=1, frozen=["encoder", name], **SETTINGS)
    assert all(p.requires_grad for p in model.parameters())


def test_what_is_no_list_of_names_is_refused(tmp_path):
    with pytest.raises(UsageError, match="must be a list of names"):
        qvae.fit(make("fsq"), pictures(), run=tmp_path, steps=1, frozen="encoder", **SETTINGS)


def test_a_model_that_is_all_frozen_is_refused(tmp_path):
    parts = [name for name, _ in make("fsq").named_children()]
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        qvae.fit(make("fsq"), pictures(), run=tmp_path, steps=1, frozen=parts, **SETTINGS)


def test_parts_that_were_frozen_before_stay_so():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].weight.requires_grad_(False)
    with frozen(find_parts(model, ["0"])):
        assert not model[0].training and model[1].training
    assert [p.requires_grad for p in model[0].parameters()] == [False, True]
