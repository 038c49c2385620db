"""Pictures of runs: what they show is right, and a kind that a model has not is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.distributions import Categorical, MixtureSameFamily, Normal

from qvae.autoencoder import build_autoencoder
from qvae.cli.main import main
from qvae.pretrained import save_model
from qvae.reports.latent_walks import manifold, slerp, traverse
from qvae.reports.pictures import KINDS, USES
from qvae.reports.sheets import code_maps, colours, scatter, sheet
from qvae.runs.loading import open_run
from qvae.store import write_json
from qvae.types import Batch, Condition, DataSpec

RECIPE = """\
data: {{name: images, path: {path}}}
model:
  encoder: {{name: {network}}}
  bottleneck: {bottleneck}
  decoder: {{name: {network}}}
  likelihood: bernoulli
train: {{steps: 1}}
"""
MODELS = {
    "ae": ("mlp", {"name": "identity", "dim": 4}),
    "vae": ("mlp", {"name": "gaussian", "dim": 4}),
    "plane": ("mlp", {"name": "gaussian", "dim": 2}),
    "fsq": ("conv", {"name": "fsq", "levels": [4, 4]}),
    "one_code": ("mlp", {"name": "fsq", "levels": [4, 4]}),
}


def build(name, conditions=()):
    network, bottleneck = MODELS[name]
    parts = {
        "encoder": {"name": network},
        "bottleneck": bottleneck,
        "decoder": {"name": network},
        "likelihood": {"name": "bernoulli"},
    }
    torch.manual_seed(0)
    spec = DataSpec(shape=(1, 16, 16), conditions=conditions)
    model = build_autoencoder(parts, spec).eval()
    with torch.no_grad():  # so that a film of first weights moves by more than rounding
        for parameter in model.parameters():
            parameter *= 2
    return model


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders of models with their first weights: their pictures are as well defined."""
    folder = tmp_path_factory.mktemp("runs")
    x = np.random.default_rng(0).integers(0, 255, (900, 16, 16), dtype=np.uint8)
    np.savez(folder / "x.npz", x=x, label=np.arange(900) % 3)
    for name, (network, bottleneck) in MODELS.items():
        save_model(build(name), folder / name / "model")
        text = RECIPE.format(path=folder / "x.npz", network=network, bottleneck=bottleneck)
        (folder / name / "recipe.yaml").write_text(text)
    return folder


@pytest.fixture
def call(capsys):
    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# -- the parts ---------------------------------------------------------------------------------


def test_slerp_keeps_the_radius_and_both_ends():
    torch.manual_seed(1)
    a, b = torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    path = slerp(a, b, torch.linspace(0, 1, 7))
    torch.testing.assert_close(path[:, 0], a)
    torch.testing.assert_close(path[:, -1], b)
    lengths = path.flatten(2).norm(dim=-1)
    first, last = lengths[:, :1], lengths[:, -1:]
    torch.testing.assert_close(lengths, first + (last - first) * torch.linspace(0, 1, 7))
    # Steps of equal angle
    units = path.flatten(2) / lengths[..., None]
    cosines = (units[:, 1:] * units[:, :-1]).sum(-1)
    torch.testing.assert_close(cosines, cosines[:, :1].expand_as(cosines))


def test_slerp_of_no_angle_is_the_line():
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    b = torch.tensor([[3.0, 0.0], [2.0, 2.0], [-1.0, 0.0]])
    middle = slerp(a, b, torch.tensor([0.5]))[:, 0]
    torch.testing.assert_close(middle, (a + b) / 2, atol=1e-3, rtol=0)


def test_a_traversal_moves_one_coordinate_the_most_telling_first():
    model = build("vae")
    with torch.no_grad():  # coordinate 2 tells most, then 0
        last = (
            model.encoder.layers[-1]
            if model.proj_in.__class__.__name__ == "Identity"
            else model.proj_in
        )
        last.weight[[0, 1, 2, 3]] *= torch.tensor([4.0, 0.0, 20.0, 1.0])[:, None]
    batch = Batch(x=torch.rand(50, 1, 16, 16))
    values = torch.tensor([-1.0, 2.0])
    found = traverse(model, batch, index=3, values=values, most=3)
    assert found.dims[0] == 2 and found.x.shape == (3, 2, 1, 16, 16)
    assert torch.all(found.kl.diff() <= 0)
    mean = model.bottleneck.mode(model.embed(batch.x))[3]
    for row, dim in enumerate(found.dims):
        for column, value in enumerate(values):
            z = mean.clone()
            z[dim] = value
            expected = model.likelihood.mean(model.decode(z[None]))[0]
            torch.testing.assert_close(found.x[row, column], expected)


def test_a_manifold_is_at_the_quantiles_of_the_normal():
    model = build("plane")
    found = manifold(model, side=3)
    edge = torch.special.ndtri(torch.tensor(1 / 6))
    for (row, column), z in {(0, 0): (edge, -edge), (1, 1): (0, 0), (2, 0): (edge, edge)}.items():
        expected = model.likelihood.mean(model.decode(torch.tensor([z], dtype=torch.float32)))[0]
        torch.testing.assert_close(found[row, column], expected)


LEARNED = {"name": "gaussian", "dim": 2, "prior": "autoregressive", "prior_hidden": 16}


def learned(conditions=(), **more):
    """A model whose learned prior is far from N(0, 1): around 5 with width .5, and on a slope."""
    parts = {
        "encoder": {"name": "mlp"},
        "bottleneck": LEARNED,
        "decoder": {"name": "mlp"},
        "likelihood": {"name": "bernoulli"},
    }
    torch.manual_seed(0)
    spec = DataSpec(shape=(1, 16, 16), conditions=conditions)
    model = build_autoencoder({**parts, **more}, spec).eval()
    prior = model.bottleneck.prior
    with torch.no_grad():
        prior.layers[-1].weight.normal_(std=0.3)
        logits, means, log_scales = prior.layers[-1].bias.view(3, -1, 2).unbind()
        means[:, 0] += 5.0
        log_scales[:, 0] = -2.0
    return model


def test_quantiles_of_a_learned_prior_invert_its_distribution():
    """Uniform shares are its draws; and the share below, by torch.distributions, is what was asked.

    So a plane of even shares is as likely in each of its cells.
    """
    bottleneck = learned().bottleneck
    share = torch.rand(4000, 2, generator=torch.Generator().manual_seed(1))
    z = bottleneck.quantile(share)
    logits, means, log_scales = bottleneck.prior._bells(z)
    mixture = MixtureSameFamily(
        Categorical(logits=logits.movedim(-2, -1)),
        Normal(means.movedim(-2, -1), log_scales.exp().movedim(-2, -1)),
    )
    torch.testing.assert_close(mixture.cdf(z), share, atol=1e-4, rtol=0)
    noise = torch.randn(4000, 2, 2, generator=torch.Generator().manual_seed(2))
    drawn = bottleneck.from_noise(noise)
    torch.testing.assert_close(z.mean(0), drawn.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(0), drawn.std(0), atol=0.05, rtol=0)
    assert abs(z[:, 0].mean().item() - 5) < 0.2, "a normal's quantiles would lie around 0"


def test_walks_of_a_learned_prior_go_where_it_is_and_sort_by_its_own_rate():
    model = learned()
    bottleneck, batch = model.bottleneck, Batch(x=torch.rand(300, 1, 16, 16))
    found = traverse(model, batch, index=0, values=torch.tensor([-2.0, 0.0, 2.0]), most=2, seed=3)
    torch.manual_seed(0)
    z_e = model.embed(batch.x)
    many = torch.stack([bottleneck(z_e).kl.mean(0) for _ in range(40)]).mean(0)
    torch.testing.assert_close(found.kl, many[found.dims], rtol=0.05, atol=0.05)
    assert found.kl[0] > found.kl[1] and found.kl.sum() > 10, "codes near 0, the prior near 5"
    drawn = bottleneck.from_noise(torch.randn(4096, 2, 2))
    for row, dim in enumerate(found.dims):
        for column, value in enumerate([-2.0, 0.0, 2.0]):
            z = bottleneck.mode(z_e)[0].clone()
            z[dim] = drawn[:, dim].mean() + value * drawn[:, dim].std()
            expected = model.likelihood.mean(model.decode(z[None]))[0]
            torch.testing.assert_close(found.x[row, column], expected, atol=0.02, rtol=0)


def test_a_manifold_of_a_learned_prior_is_at_its_quantiles():
    model = learned()
    found = manifold(model, side=3)
    for row, column in np.ndindex(3, 3):
        share = torch.tensor([[(column + 0.5) / 3, (2.5 - row) / 3]])
        z = model.bottleneck.quantile(share)
        expected = model.likelihood.mean(model.decode(z))[0]
        torch.testing.assert_close(found[row, column], expected)


def test_a_sheet_shows_each_sample_where_it_belongs():
    x = torch.rand(2, 3, 3, 28, 28)
    page = sheet(x)
    assert page.shape == (2 * 58 - 2, 3 * 58 - 2, 3)
    tile = page[58:114:2, 116:172:2]
    assert np.array_equal(tile, (x[1, 2] * 255).round().byte().permute(1, 2, 0).numpy())
    assert np.all(page[56:58] == 255)


def test_colours_differ_and_a_code_keeps_its_own():
    assert len(set(colours(64))) == 64
    maps = code_maps(np.array([[[5, 900], [5, 7]], [[7, 7], [900, 5]]]), size=8)
    assert maps.shape == (2, 3, 8, 8)
    assert np.array_equal(maps[0, :, 0, 0], maps[1, :, 7, 7])
    assert not np.array_equal(maps[0, :, 0, 0], maps[0, :, 0, 7])


def test_a_scatter_puts_points_of_a_label_in_its_colour():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((200, 2)) * 0.1 + np.repeat([[-3, 0], [3, 0]], 100, axis=0)
    page = scatter(points, ["a"] * 100 + ["b"] * 100)
    assert page.shape == (640, 790, 3)
    first, second = colours(2)
    ys, xs = np.nonzero((page[:, :640] == first).all(-1))
    assert xs.max() < 320 and abs(ys.mean() - 320) < 20
    assert np.nonzero((page[:, :640] == second).all(-1))[1].min() > 320


# -- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "kind", "size"),
    [
        ("ae", "reconstructions", (10 * 66 - 2, 4 * 66 - 2)),
        ("fsq", "reconstructions", (10 * 66 - 2, 4 * 66 - 2)),
        ("vae", "traversal", (11 * 66 - 2, 2 * 66 - 2)),
        ("ae", "interpolation", (11 * 66 - 2, 2 * 66 - 2)),
        ("vae", "samples", (10 * 66 - 2, 2 * 66 - 2)),
        ("fsq", "samples", (10 * 66 - 2, 2 * 66 - 2)),
        ("plane", "manifold", (20 * 66 - 2, 20 * 66 - 2)),
        ("fsq", "codes", None),
        ("vae", "scatter", (640, 640)),
        ("fsq", "scatter", (640, 640)),
    ],
)
def test_every_kind_is_drawn(runs, call, tmp_path, run, kind, size):
    path = tmp_path / "p.png"
    rows = ["-n", "2"] if "num" in USES[kind] else []
    code, out, errors = call("plot", runs / run, "--kind", kind, "-o", path, *rows, "--json")
    assert code == 0, errors
    with Image.open(path) as picture:
        assert json.loads(out)["width"] == picture.width and picture.mode == "RGB"
        assert size is None or picture.size == size


def test_a_traversal_says_which_coordinates_its_rows_are(runs, call, tmp_path):
    words = ["plot", runs / "vae", "--kind", "traversal", "-o", tmp_path / "p.png"]
    code, out, errors = call(*words, "-n", "3", "--json")
    assert code == 0 and errors == ""
    dims = json.loads(out)["dims"]
    assert [row["kl"] for row in dims] == sorted((row["kl"] for row in dims), reverse=True)
    assert len({row["dim"] for row in dims}) == 3
    code, out, errors = call(*words, "-n", "99")
    assert code == 0 and "num=99: there are 4 rows to draw" in errors
    assert f"by KL in nats: {dims[0]['dim']} ({dims[0]['kl']:.2f})" in out


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
@pytest.mark.parametrize("kind", ["traversal", "interpolation"])
def test_films_move(runs, call, tmp_path, suffix, kind):
    path = tmp_path / f"p{suffix}"
    code, _, errors = call("plot", runs / "vae", "--kind", kind, "-o", path, "-n", "3")
    assert code == 0, errors
    with Image.open(path) as picture:
        assert picture.n_frames >= 12
        first = np.asarray(picture.convert("RGB")).astype(int)
        picture.seek(picture.n_frames // 4)
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - first).max() > 0


def test_a_scatter_is_coloured_by_a_column(runs, call, tmp_path):
    words = ["plot", runs / "plane", "--kind", "scatter", "-o", tmp_path / "s.png"]
    code, _, errors = call(*words, "--column", "label")
    assert code == 0, errors
    page = np.asarray(Image.open(tmp_path / "s.png"))
    assert all((page == colour).all(-1).any() for colour in colours(3))
    code, _, errors = call(*words, "--column", "kind")
    assert code == 3 and "column='kind': no such column in " in errors


def test_a_scatter_takes_the_first_category_unless_told(runs, call, tmp_path):
    told = tmp_path / "told"
    label = Condition(name="label", kind="category", categories=("0", "1", "2"))
    save_model(build("plane", (label,)), told / "model")
    recipe = yaml.safe_load((runs / "plane" / "recipe.yaml").read_text())
    recipe["data"]["cond"] = "label:category"
    (told / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, _, errors = call("plot", told, "--kind", "scatter", "-o", tmp_path / "s.png")
    assert code == 0, errors
    page = np.asarray(Image.open(tmp_path / "s.png"))
    assert all((page == colour).all(-1).any() for colour in colours(3))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["ae", "--kind", "traversal"], "Identity has no normal to walk in"),
        (["fsq", "--kind", "traversal"], "FSQ has no normal to walk in"),
        (["fsq", "--kind", "interpolation"], "codes are integers, and have nothing between"),
        (["vae", "--kind", "manifold"], "the latent has 4 coordinates, a plane needs 2"),
        (["vae", "--kind", "codes"], "has no map of indices"),
        (["one_code", "--kind", "codes"], "on a grid of 0 axes has no map"),
        (["ae", "--kind", "samples"], "has no distribution to draw from"),
        (["ae", "--kind", "grid"], "kind='grid': must be one of reconstructions"),
        (["ae", "--kind", "traversal", "--column", "label"], "it goes with kind=scatter"),
        (["vae", "--kind", "scatter", "-n", "5"], "num=5: kind=scatter has no use for it"),
        (["plane", "--kind", "manifold", "--seed", "0"], "seed=0: kind=manifold has no use"),
        (["vae", "--kind", "samples", "--data", "x.npz"], "data='x.npz': kind=samples has no"),
        (["vae", "--kind", "traversal", "--cond", "label=1"], "goes with kind=samples, manifold"),
        (["vae", "--kind", "samples", "--cond", "label=1"], "this model hears no conditions"),
    ],
)
def test_what_a_model_has_not_is_refused(runs, call, tmp_path, words, sentence):
    path = tmp_path / "p.png"
    code, _, errors = call("plot", runs / words[0], *words[1:], "-o", path)
    assert code == 2 and sentence in errors and not path.exists(), errors


def test_a_suffix_is_checked_before_any_work(call, tmp_path):
    words = ["plot", "nowhere", "--kind", "samples", "-o"]
    code, _, errors = call(*words, tmp_path / "p.gif")
    assert code == 2 and "kind=samples does not move; traversal, interpolation do" in errors
    code, _, errors = call(*words, tmp_path / "p.jpg")
    assert code == 2 and "must end in .png, .gif" in errors
    write_json(tmp_path / "file", {})
    code, _, errors = call(*words, tmp_path / "file" / "p.png")
    assert code == 2 and "is a file, must be a folder" in errors


# -- told -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(runs, tmp_path_factory):
    """The run of a conditional VAE whose prior over z is learned, as in the recipe cvae."""
    folder = tmp_path_factory.mktemp("told")
    label = Condition(name="label", kind="category", categories=("0", "1", "2"))
    save_model(learned((label,), conditional=True), folder / "model")
    recipe = yaml.safe_load((runs / "plane" / "recipe.yaml").read_text())
    recipe["data"]["cond"] = "label:category"
    recipe["model"] |= {"bottleneck": LEARNED, "conditional": True}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.mark.parametrize("kind", ["samples", "manifold"])
def test_new_pictures_are_told_what_the_user_says(told, call, tmp_path, kind):
    pages = {}
    for words in ([], ["--cond", "label=1"], ["--cond", "label=2"]):
        path = tmp_path / "p.png"
        code, _, errors = call("plot", told, "--kind", kind, "-o", path, *words)
        assert code == 0, errors
        remark = "not told: label; training an autoencoder hides no condition, so unless its data"
        assert (remark in errors) == (not words)
        pages[str(words)] = np.asarray(Image.open(path)).tobytes()
    assert len(set(pages.values())) == 3
    code, _, errors = call("plot", told, "--kind", kind, "-o", path, "--cond", "label=7")
    assert code == 2 and "label='7'" in errors


def test_a_told_manifold_is_decoded_with_its_label(told):
    run = open_run(told)
    cond = torch.tensor([[2.0]])
    z = run.model.bottleneck.quantile(torch.tensor([[0.5, 0.5]]))
    expected = run.model.likelihood.mean(run.model.decode(z, cond))[0]
    torch.testing.assert_close(manifold(run.model, side=1, cond=cond)[0, 0], expected)


# -- every kind -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "has_not"),
    [
        ("ae", {"traversal": "Identity has no normal", "samples": "has no distribution"}),
        ("vae", {"codes": "Gaussian on a grid of 0", "manifold": "has 4 coordinates"}),
        ("plane", {"codes": "Gaussian on a grid of 0"}),
        ("fsq", {"interpolation": "nothing between", "manifold": "FSQ has no normal"}),
    ],
)
def test_without_a_kind_all_that_the_model_has_is_drawn(runs, call, tmp_path, name, has_not):
    run = tmp_path / name
    shutil.copytree(runs / name, run)
    code, out, errors = call("plot", run, "-n", "2", "--json")
    assert code == 0, errors
    found = json.loads(out)
    files = {path.name for path in (run / "plots").iterdir()}
    assert files == {f"{kind}.png" for kind in found["plots"]}
    assert set(found["plots"]) | set(found["missing"]) == set(KINDS)
    for kind, reason in has_not.items():
        assert reason in found["missing"][kind]
    code, out, _ = call("plot", run, "-n", "1")
    assert code == 0 and f"{run}/plots/scatter.png: 640x640" in out
    for kind in has_not:
        assert f"no {kind}: " in out


def test_a_kind_without_a_file_is_written_to_the_run(runs, call, tmp_path):
    shutil.copytree(runs / "plane", tmp_path / "run")
    code, out, errors = call("plot", tmp_path / "run", "--kind", "manifold")
    assert code == 0, errors
    assert out.startswith(f"{tmp_path}/run/plots/manifold.png: ")
    assert [path.name for path in (tmp_path / "run" / "plots").iterdir()] == ["manifold.png"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["-o", "p.png"], 2, "-o: goes with --kind"),
        (["--column", "kind"], 3, "column='kind': no such column in "),
        (["--cond", "label=1"], 2, "this model hears no conditions"),
        (["--data", "nowhere.npz"], 3, "nowhere.npz: no such file or folder"),
    ],
)
def test_an_option_that_no_picture_shows_is_an_error(runs, call, tmp_path, words, code, sentence):
    shutil.copytree(runs / "plane", tmp_path / "run")
    found, _, errors = call("plot", tmp_path / "run", *words)
    assert found == code and sentence in errors, errors


def test_options_are_said_for_each_kind_that_there_is():
    assert set(USES) == set(KINDS)
    assert {name for names in USES.values() for name in names} == {
        "num",
        "data",
        "column",
        "cond",
        "seed",
    }
