"""The tokenizer and model folders: round trips, strictness, and what a stranger may not do."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from qvae.autoencoder import build_autoencoder
from qvae.bottlenecks.base import Quantizer
from qvae.bottlenecks.fsq import FSQ as FSQBottleneck
from qvae.errors import FormatError, UsageError
from qvae.pretrained import (
    load_model,
    model_hash,
    round_weights,
    save_model,
    spec_from_json,
    spec_to_json,
)
from qvae.priors.base import build_prior
from qvae.store import sha256_file
from qvae.tokenizer import Tokenizer
from qvae.types import Condition, DataSpec, Latent

TIME = Condition(name="time", kind="cyclic", period=12.0, unit="h")
LABEL = Condition(name="label", kind="category", categories=("é", "b"))
FSQ = {"name": "fsq", "levels": [5, 4, 3]}
VQ = {"name": "vq_ema", "codebook_size": 16, "dim": 4}


def make(bottleneck=FSQ, network="conv", shape=(1, 16, 16), **arguments):
    spec = DataSpec(shape=shape, conditions=(TIME, LABEL), levels=256)
    config = {
        "encoder": {"name": network},
        "bottleneck": bottleneck,
        "decoder": {"name": network},
        "likelihood": {"name": "gaussian"},
        **arguments,
    }
    return build_autoencoder(config, spec)


class Pair(Quantizer):
    """Two FSQs side by side: the smallest quantizer with two codebooks."""

    def __init__(self):
        super().__init__()
        self.parts = torch.nn.ModuleList([FSQBottleneck(levels=[5]), FSQBottleneck(levels=[4])])
        self.in_dim = self.out_dim = 2
        self.codebook_sizes = (5, 4)

    def forward(self, z_e, mask=None):
        codes = self.encode(z_e)
        zero = z_e.new_zeros(len(z_e))
        return Latent(z=self.decode(codes), rate=zero, penalty=zero, codes=codes)

    def encode(self, z_e):
        return torch.cat(
            [part.encode(z_e[..., i : i + 1]) for i, part in enumerate(self.parts)], -1
        )

    def decode(self, codes):
        return torch.cat(
            [part.decode(codes[..., i : i + 1]) for i, part in enumerate(self.parts)], -1
        )


def make_pair():
    model = make({"name": "fsq", "levels": [5, 4]})
    model.bottleneck = Pair()
    return model


CASES = {
    "grid": (FSQ, "conv", (1, 16, 16)),
    "vq": (VQ, "conv", (3, 16, 16)),
    "line": (FSQ, "conv", (1, 32)),
    "one cell": (FSQ, "mlp", (1, 16, 16)),
}


@pytest.fixture(params=list(CASES), ids=str)
def tokenizer(request):
    return Tokenizer(make(*CASES[request.param]))


@pytest.fixture(params=[*CASES, "two codebooks"], ids=str)
def any_tokenizer(request):
    is_pair = request.param not in CASES
    return Tokenizer(make_pair() if is_pair else make(*CASES[request.param]))


def data(tokenizer, num=5):
    return torch.rand(num, *tokenizer.spec.shape)


def test_facts(any_tokenizer):
    tokenizer = any_tokenizer
    num_codebooks = len(tokenizer.codebook_sizes)
    assert tokenizer.vocab_size == sum(tokenizer.codebook_sizes)
    assert tokenizer.num_tokens == math.prod(tokenizer.grid) * num_codebooks
    assert tokenizer.facts["grid"] == list(tokenizer.grid)


def test_tokens_are_codes_in_raster_order_with_offsets(any_tokenizer):
    tokenizer = any_tokenizer
    x = data(tokenizer)
    tokens = tokenizer.encode(x)
    assert tokens.shape == (5, tokenizer.num_tokens) and tokens.dtype == torch.int64
    assert not tokens.is_inference()
    codes = tokenizer.model.eval().encode(x).codes
    sizes = tokenizer.codebook_sizes
    for k in range(len(sizes)):
        mine = tokens[:, k :: len(sizes)]
        assert torch.equal(mine - sum(sizes[:k]), codes[..., k].reshape(5, -1))


def test_decode_is_the_reconstruction(any_tokenizer):
    tokenizer = any_tokenizer
    x = data(tokenizer)
    recon = tokenizer.decode(tokenizer.encode(x))
    assert recon.shape == x.shape and not recon.is_inference()
    with torch.no_grad():
        torch.testing.assert_close(recon, tokenizer.model.eval().reconstruct(x))


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_first_levels_of_a_residual_decode(wrapped):
    residual = {"name": "residual", "num_quantizers": 3, "quantizer": FSQ, "growth": 4.0}
    wrapper = {"name": "projected", "dim": 5, "quantizer": residual}
    tokenizer = Tokenizer(make(wrapper if wrapped else residual))
    model, x = tokenizer.model.eval(), data(tokenizer)
    tokens = tokenizer.encode(x)
    with torch.no_grad():
        codes = model.encode(x).codes
        for num in (1, 2, 3):
            z = tokenizer.quantizer.decode(codes[..., :num])
            expected = model.likelihood.mean(model.decode(z))
            torch.testing.assert_close(tokenizer.decode(tokens, num_levels=num), expected)
    assert torch.equal(tokenizer.decode(tokens, num_levels=3), tokenizer.decode(tokens))
    assert not torch.equal(tokenizer.decode(tokens, num_levels=1), tokenizer.decode(tokens))
    for num in (-1, 0, 4):
        with pytest.raises(ValueError, match=rf"num_levels={num}: must be in 1\.\.3"):
            tokenizer.decode(tokens, num_levels=num)


def test_levels_of_a_quantizer_that_has_none(any_tokenizer):
    tokens = any_tokenizer.encode(data(any_tokenizer))
    with pytest.raises(ValueError, match="num_levels=1: .* has none, only residual"):
        any_tokenizer.decode(tokens, num_levels=1)


def test_any_integer_type_decodes(tokenizer):
    tokens = tokenizer.encode(data(tokenizer))
    expected = tokenizer.decode(tokens)
    assert torch.equal(expected, tokenizer.decode(tokens.to(torch.uint16)))


def test_the_model_is_left_as_it_was(tokenizer):
    model = tokenizer.model.train()
    model.decoder.eval()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    tokenizer.decode(tokenizer.encode(data(tokenizer)))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(buffers[name], value) for name, value in model.named_buffers())
    with pytest.raises(ValueError, match="must be finite"):
        tokenizer.encode(data(tokenizer) * math.nan)
    assert [module.training for module in model.modules()] == modes


def test_chunks_agree_with_the_whole(monkeypatch):
    tokenizer = Tokenizer(make(conditional=True))
    x = data(tokenizer, 7)
    cond = torch.rand(7, 2).round()
    tokens = tokenizer.encode(x, cond)
    recon = tokenizer.decode(tokens, cond)
    monkeypatch.setattr("qvae.tokenizer._CHUNK_NUMBERS", 3 * 256)
    assert torch.equal(tokenizer.encode(x, cond), tokens)
    torch.testing.assert_close(tokenizer.decode(tokens, cond), recon)
    assert tokenizer.encode(x[:0]).shape == (0, tokenizer.num_tokens)
    assert tokenizer.decode(tokens[:0]).shape == (0, 1, 16, 16)


def test_bad_input_is_named():
    tokenizer = Tokenizer(make_pair())
    tokens = tokenizer.encode(data(tokenizer))
    wrong = tokens.clone()
    wrong[2, 5] = 4
    for value, text in [
        (wrong, r"token 4 at position 5 of row 2: must be in 5\.\.8"),
        (tokens[:, 1:], "needs "),
        (tokens.float(), "must be integers"),
    ]:
        with pytest.raises(ValueError, match=text):
            tokenizer.decode(value)
    for x in (torch.rand(2, 1, 8, 8), torch.zeros(2, 1, 16, 16, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="x: torch"):
            tokenizer.encode(x)
    with pytest.raises(ValueError, match="cond: shape"):
        tokenizer.encode(data(tokenizer), torch.zeros(5, 3))


def test_only_a_quantizer_makes_a_tokenizer(tmp_path):
    model = make({"name": "gaussian", "dim": 3})
    with pytest.raises(ValueError, match="Gaussian has no codes"):
        Tokenizer(model)
    save_model(model, tmp_path / "m")
    with pytest.raises(FormatError, match="has no codes"):
        Tokenizer.from_pretrained(tmp_path / "m")


# -- folders --


def test_round_trip(tokenizer, tmp_path):
    path = tmp_path / "tokenizer"
    tokenizer.save_pretrained(path, extra={"scores": {"psnr": 20.5}})
    again = Tokenizer.from_pretrained(path)
    assert again.hash == tokenizer.hash and len(again.hash) == 64
    assert again.spec == tokenizer.spec and not again.model.training
    x = data(tokenizer)
    tokens = tokenizer.encode(x)
    assert torch.equal(tokens, again.encode(x))
    assert torch.equal(tokenizer.decode(tokens), again.decode(tokens))
    config = json.loads((path / "config.json").read_text())
    assert config["kind"] == "autoencoder" and config["hash"] == tokenizer.hash
    assert config["tokenizer"] == tokenizer.facts and config["scores"] == {"psnr": 20.5}
    assert sorted(file.name for file in path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again.save_pretrained(path)  # over itself
    assert Tokenizer.from_pretrained(path).hash == tokenizer.hash


def test_the_hash_knows_weights_and_config():
    torch.manual_seed(0)
    first = Tokenizer(make())
    torch.manual_seed(0)
    second = Tokenizer(make())
    assert first.hash == second.hash
    next(second.model.parameters()).data.view(-1)[0] += 1e-3
    assert first.hash != second.hash
    torch.manual_seed(0)
    assert first.hash != Tokenizer(make(beta=0.5)).hash


@pytest.mark.parametrize("name", ["uniform", "unigram", "transformer"])
def test_priors_are_saved_too(name, tmp_path):
    arguments = {"num_layers": 1, "dim": 16, "num_heads": 2} if name == "transformer" else {}
    prior = build_prior(
        {"name": name, **arguments},
        vocab_size=8,
        num_tokens=6,
        conditions=(TIME, LABEL),
        codebook_sizes=(5, 3),
    )
    if name == "unigram":
        prior.count(torch.tensor([[1, 5, 1, 6, 0, 7]]))
    save_model(prior, tmp_path / "m", card="# mine\n")
    again = load_model(tmp_path / "m")
    assert model_hash(again) == model_hash(prior) and not again.training
    assert again.conditions == prior.conditions and again.config == prior.config
    assert torch.equal(again.sample(4, seed=1), prior.eval().sample(4, seed=1))
    assert (tmp_path / "m" / "README.md").read_text() == "# mine\n"


@pytest.fixture
def folder(tmp_path):
    save_model(make(VQ), tmp_path / "m")
    return tmp_path / "m"


def edit_tensors(folder, change):
    """Change the weights as somebody would who also mends the file's hash."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    edit_config(folder, {"weights_sha256": sha256_file(folder / "model.safetensors")})


def edit_config(folder, values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def rename(tensors):
    tensors["bottleneck.book"] = tensors.pop("bottleneck.codebook")


def reshape(tensors):
    tensors["bottleneck.codebook"] = tensors["bottleneck.codebook"][:15].clone()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.pop("bottleneck.ema_counts"), "bottleneck.ema_counts is missing"),
        (lambda t: t.update(more=torch.zeros(1)), "more is not of this model"),
        (rename, "bottleneck.codebook is missing; bottleneck.book is not of this model"),
        (reshape, r"bottleneck.codebook is torch.float32 \(15, 4\), must be .* \(16, 4\)"),
        (
            lambda t: t.update({"proj_in.bias": t["proj_in.bias"].double()}),
            "proj_in.bias is torch.float64",
        ),
        (lambda t: t["bottleneck.codebook"].add_(1), "hash is not that of this model"),
    ],
)
def test_other_tensors_are_refused_by_name(folder, change, text):
    edit_tensors(folder, change)
    with pytest.raises(FormatError, match=text):
        load_model(folder)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"kind": "os.system"}, "kind='os.system'"),
        ({"kind": ["prior"]}, "kind="),
        ({"kind": "prior"}, "cannot be built"),
        ({"model": {"encoder": {"name": "os.system"}}}, "cannot be built"),
        ({"model": 3}, "cannot be built"),
        ({"model": {"encoder": {"name": "os:system"}, "likelihood": {"name": "x:y"}}}, "named"),
        ({"spec": {}}, "spec cannot be read"),
        ({"spec": {"shape": [0, 16], "levels": 2, "conditions": []}}, "spec cannot be read"),
        ({"spec": {"shape": [1, 16, 16], "levels": 2, "conditions": []}}, "hash is not that"),
        ({"format_version": 99}, "upgrade"),
        ({"weights_sha256": "0"}, "damaged or swapped"),
    ],
    ids=str,
)
def test_another_config_is_refused(folder, values, text):
    edit_config(folder, values)
    with pytest.raises(FormatError, match=text):
        load_model(folder)


def test_files_that_are_not_there_or_no_json(folder, tmp_path):
    with pytest.raises(FormatError, match="no such file"):
        load_model(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="model.safetensors"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FormatError, match="JSON"):
        load_model(folder)


def test_a_model_built_by_hand_is_not_saved(tmp_path):
    model = make()
    model.config = None
    with pytest.raises(UsageError, match="built by hand|only a model of"):
        save_model(model, tmp_path / "m")
    with pytest.raises(UsageError, match="Linear"):
        save_model(torch.nn.Linear(1, 1), tmp_path / "m")
    with pytest.raises(UsageError, match="'kind' is taken"):
        save_model(make(), tmp_path / "m", extra={"kind": "x"})
    assert not (tmp_path / "m").exists()


def test_specs_survive_json():
    spec = DataSpec(shape=(3, 8, 8), conditions=(TIME, LABEL), levels=None)
    text = json.loads(json.dumps(spec_to_json(spec)))
    assert spec_from_json(text, "config.json") == spec
    with pytest.raises(FormatError, match="config.json: spec"):
        spec_from_json({"shape": [True]}, "config.json")


def test_rounded_weights_are_stored_in_half_the_bytes_and_load_the_same(tmp_path):
    tokenizer = Tokenizer(make())
    tokenizer.save_pretrained(tmp_path / "exact")
    round_weights(tokenizer.model)
    tokenizer.save_pretrained(tmp_path / "rounded")
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("exact", "rounded")]
    assert sizes[1] < 0.75 * sizes[0]
    again = Tokenizer.from_pretrained(tmp_path / "rounded")
    assert again.hash == tokenizer.hash
    assert all(
        torch.equal(tensor, again.model.state_dict()[name])
        for name, tensor in tokenizer.model.state_dict().items()
    )
