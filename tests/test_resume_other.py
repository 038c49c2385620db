"""A run goes on with what it began with: no other model, no other codes, no other tokens."""

import shutil

import numpy as np
import pytest

from qvae.config import load_recipe
from qvae.errors import DataError, FormatError, UsageError
from qvae.runs import training
from qvae.runs.loading import open_run, open_run_data
from qvae.runs.tokens import encode_data
from qvae.runs.training import train_recipe

SMALL = [
    *(
        (f"model.{side}.{key}", 4)
        for side in ("encoder", "decoder")
        for key in ("hidden", "residual")
    ),
    ("train.batch_size", 8),
]
PRIOR = [("prior.dim", 16), ("prior.num_layers", 1), ("prior.num_heads", 2)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8))
    return str(path)


def tokenizer(pictures, run, *changes, steps=2, **options):
    told = [("data.path", pictures), *SMALL, ("train.steps", steps), *changes]
    return train_recipe(load_recipe("fsq", told), run=run, device="cpu", progress=False, **options)


def fsq(*levels):
    return ("model.bottleneck", {"name": "fsq", "levels": list(levels)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (fsq(5, 8), r"model.bottleneck.levels was \[8, 5\] and is now \[5, 8\]"),
        (("model.bottleneck", {"name": "lfq", "dim": 2}), "bottleneck.name was 'fsq' and is now"),
        (("model.beta", 2.0), "model.beta was 1.0 and is now 2.0"),
    ],
)
def test_a_run_does_not_go_on_as_another_model(change, words, pictures, tmp_path):
    tokenizer(pictures, tmp_path / "run", fsq(8, 5))
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    with pytest.raises(UsageError, match=words):
        tokenizer(pictures, tmp_path / "run", fsq(8, 5), change, steps=4, resume=True)
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before
    assert tokenizer(pictures, tmp_path / "run", fsq(8, 5), steps=4, resume=True).step == 4


def test_what_makes_no_sense_is_refused_for_a_new_run_and_an_old_one_goes_on(
    pictures, tmp_path, monkeypatch
):
    price = ("model.beta", 4.0)
    with pytest.raises(UsageError, match="model: beta=4.0: the rate of FSQ is fixed"):
        tokenizer(pictures, tmp_path / "run", price)
    assert not (tmp_path / "run").exists()
    with monkeypatch.context() as before:  # as a run of older releases
        before.setattr(training, "_check_sense", lambda model, data: None)
        tokenizer(pictures, tmp_path / "run", price)
    assert open_run(tmp_path / "run").tokenizer is not None
    assert tokenizer(pictures, tmp_path / "run", price, steps=4, resume=True).step == 4


def test_a_label_needs_a_training_sample_to_train_and_none_to_be_scored(pictures, tmp_path):
    x = np.load(pictures)
    split = np.array(["train"] * 40 + ["valid"] * 10 + ["test"] * 10)
    label = np.array(["a", "b", "c"] * 20)
    np.savez(tmp_path / "all.npz", x=x, split=split, label=label)
    np.savez(tmp_path / "two.npz", x=x, split=split, label=np.where(split == "test", label, "a"))
    np.savez(tmp_path / "new.npz", x=x, split=split, label=np.where(split == "test", "z", label))
    told = [("data.cond", "label"), ("model.conditional", True)]
    for name, value in (("two", "c"), ("new", "z")):
        with pytest.raises(DataError, match=f"label='{value}' in row 5. of .*{name}.npz: no train"):
            tokenizer(str(tmp_path / f"{name}.npz"), tmp_path / "none", *told)
    assert not (tmp_path / "none").exists()
    tokenizer(str(tmp_path / "all.npz"), tmp_path / "run", *told)
    run = open_run(tmp_path / "run")
    open_run_data(run, tmp_path / "two.npz")
    with pytest.raises(DataError, match=r"label='z' in row 51 of .*new.npz: is not a category"):
        open_run_data(run, tmp_path / "new.npz")


def quantizer(name, **arguments):
    return ("model.bottleneck", {"name": name, **arguments})


INNER = {"name": "fsq", "levels": [8, 5]}


@pytest.mark.parametrize(
    ("was", "now", "words"),
    [
        (fsq(8, 5), fsq(5, 8), r"bottleneck.levels was \[8, 5\] and is now \[5, 8\]"),
        (
            quantizer("lfq", dim=4),
            quantizer("bsq", dim=4),
            "bottleneck.quantizer was 'LFQ' and is now 'BSQ'",
        ),
        (
            quantizer("vq", codebook_size=8, dim=4),
            quantizer("vq", codebook_size=9, dim=4),
            r"bottleneck.codebook_sizes was \[8\] and is now \[9\]",
        ),
        (quantizer("identity", dim=2), fsq(8, 5), "bottleneck.quantizer was None and is now 'FSQ'"),
        (
            quantizer("residual", num_quantizers=2, quantizer=INNER),
            quantizer("residual", num_quantizers=2, quantizer={**INNER, "levels": [5, 8]}),
            r"bottleneck.quantizers.0.levels was \[8, 5\] and is now \[5, 8\]",
        ),
    ],
)
def test_a_run_does_not_start_from_weights_of_other_codes(was, now, words, pictures, tmp_path):
    tokenizer(pictures, tmp_path / "run", was)
    with pytest.raises(FormatError, match=f"weights of another model; .*{words}"):
        tokenizer(pictures, tmp_path / "next", now, init=tmp_path / "run")
    assert not (tmp_path / "next").exists()


def test_a_run_starts_from_weights_that_another_loss_has_made(pictures, tmp_path):
    """What a code means is the same, how it is learned is not."""
    frozen = ("train.frozen", ["encoder", "proj_in", "bottleneck"])
    changes = [("model.edge_weight", 4.0), ("model.bottleneck.overshoot_weight", 0.5), frozen]
    tokenizer(pictures, tmp_path / "run", fsq(8, 5))
    tokenizer(pictures, tmp_path / "next", fsq(8, 5), *changes, init=tmp_path / "run")
    more = [("model.bottleneck.name", "gaussian_tc"), ("model.bottleneck.dim", 4)]
    tokenizer(pictures, tmp_path / "vae", quantizer("gaussian", dim=4))
    tokenizer(pictures, tmp_path / "tcvae", *more, init=tmp_path / "vae")


def test_a_prior_does_not_go_on_with_tokens_of_another_tokenizer(pictures, tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        tokenizer(pictures, tmp_path / name, fsq(8, 5), ("seed", seed))
        run = open_run(tmp_path / name)
        encode_data(run.require_tokenizer(), open_run_data(run), tmp_path / f"{name}_tokens")

    def prior(tokens, steps, *changes, resume=True):
        told = [("data.path", str(tmp_path / tokens)), *PRIOR, ("train.steps", steps), *changes]
        recipe = load_recipe("token_prior", told)
        options = {"device": "cpu", "progress": False, "resume": resume}
        return train_recipe(recipe, run=tmp_path / "prior", **options)

    prior("a_tokens", 2, resume=False)
    kept = (tmp_path / "prior" / "tokenizer" / "config.json").read_bytes()
    with pytest.raises(UsageError, match="tokenizer was '[0-9a-f]+' and is now '[0-9a-f]+'"):
        prior("b_tokens", 4)
    with pytest.raises(UsageError, match="prior.order was 'raster' and is now 'spiral'"):
        prior("a_tokens", 4, ("prior.order", "spiral"))
    assert (tmp_path / "prior" / "tokenizer" / "config.json").read_bytes() == kept
    shutil.move(tmp_path / "a_tokens", tmp_path / "moved")  # the same tokens elsewhere
    assert prior("moved", 4).step == 4
