"""Probes and disentanglement of runs: the commands, their protocols, and what they refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

from qvae.autoencoder import build_autoencoder
from qvae.bottlenecks.gaussian import Gaussian
from qvae.cli.main import main
from qvae.errors import UsageError
from qvae.reports import probe
from qvae.reports.disentanglement import (
    PROTOCOLS,
    PUBLISHED,
    beta_vae_scores,
    beta_vae_table,
    evaluate_disentanglement,
    score_representation,
)
from qvae.reports.probe import probe_features
from qvae.runs.loading import open_run, open_run_data
from qvae.runs.representations import (
    flat_codes,
    ica,
    model_codes,
    pca,
    pixels,
    posteriors,
    tabulated,
    true_factors,
)
from qvae.types import Condition, DataSpec

RECIPE = """\
data: {name: DATA}
model:
  encoder: {name: mlp, hidden: [8]}
  bottleneck: BOTTLENECK
  decoder: {name: mlp, hidden: [8]}
  likelihood: bernoulli
train: {steps: 3, batch_size: 16, precision: float32, eval_samples: 16}
"""
BOTTLENECKS = {
    "ae": "{name: identity, dim: 3}",
    "vae": "{name: gaussian, dim: 3}",
    "fsq": "{name: fsq, levels: [4, 4]}",
}


class Small:
    """Bars at 4 places of 3 lengths: pictures with two known factors."""

    factor_names = ("length", "place")
    factor_sizes = (3, 4)

    def classes(self, rows):
        return np.stack(np.unravel_index(rows, self.factor_sizes), axis=1)

    def pictures(self, rows):
        x = torch.zeros(len(rows), 1, 4, 4)
        for i, (length, place) in enumerate(self.classes(rows)):
            x[i, 0, place, : length + 1] = 1
        return x


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Runs on labelled pictures (the label is the brighter half) and on shapes."""
    folder = tmp_path_factory.mktemp("probe")
    rng = np.random.default_rng(0)
    with open(folder / "metadata.csv", "w") as table:
        table.write("file_name,side,split\n")
        for i in range(90):
            pixels = rng.integers(0, 120, (8, 8), dtype=np.uint8)
            side = i % 2
            pixels[:, 4 * side : 4 * side + 4] += 100
            Image.fromarray(pixels).save(folder / f"{i}.png")
            split = ["train", "valid", "test"][max(0, i % 10 - 7)]
            table.write(f"{i}.png,{['left', 'right'][side]},{split}\n")
    for name, bottleneck in BOTTLENECKS.items():
        for kind in ("images", "shapes2d"):
            text = RECIPE.replace("BOTTLENECK", bottleneck).replace("DATA", kind)
            (folder / f"{kind}_{name}.yaml").write_text(text)
            words = ["train", f"{folder}/{kind}_{name}.yaml", "--run", f"{folder}/{kind}_{name}"]
            where = ["--data", str(folder)] if kind == "images" else []
            assert main([*words, *where]) == 0
    return folder


@pytest.fixture
def call(capsys):
    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


# -- probe -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_a_probe_reports_codes_beside_what_they_should_beat(work, call, name):
    code, out, errors = call("eval", work / f"images_{name}", "--probe", "side", "--json")
    assert code == 0, errors
    found = json.loads(out)["probe"]
    assert found["classes"] == 2 and found["column"] == "side"
    dim = {"fsq": 1}.get(name, 3)
    assert found["code_dim"] == dim
    names = [
        f"{kind}, {how}"
        for how in ("logistic", "k-NN")
        for kind in ("codes", f"PCA-{dim}", "pixels")
    ]
    assert list(found["rows"]) == names
    assert found["rows"]["pixels, logistic"]["accuracy"] == 1.0
    assert found["rows"][f"PCA-{dim}, k-NN"]["accuracy"] == 1.0


def test_the_probe_equals_scikit_learn_at_the_strength_that_valid_chose():
    rng = np.random.default_rng(0)
    labels = {part: rng.integers(0, 3, 120) for part in ("train", "valid", "test")}
    codes = {p: y[:, None] + rng.standard_normal((120, 5)) for p, y in labels.items()}
    rows = probe_features(codes, codes, labels, dim=2)
    row = rows["codes, logistic"]
    scaled = {p: (x - codes["train"].mean(0)) / codes["train"].std(0) for p, x in codes.items()}
    scores = {}
    for strength in (0.01, 0.1, 1.0, 10.0):
        model = LogisticRegression(C=strength, max_iter=1000, tol=1e-3)
        model.fit(scaled["train"], labels["train"])
        scores[strength] = [model.score(scaled[p], labels[p]) for p in ("valid", "test")]
    assert scores[row["strength"]][0] == max(valid for valid, _ in scores.values())
    assert row["accuracy"] == scores[row["strength"]][1]
    assert rows["pixels, logistic"] == row


def test_a_probe_names_what_is_wrong_with_a_column(work, call, tmp_path):
    code, _, errors = call("eval", work / "images_ae", "--probe", "sid")
    assert (
        code == 3
        and "column='sid': no such column in " in errors
        and "did you mean 'side'" in errors
    )
    table = (work / "metadata.csv").read_text()
    for word, sentence in (("", "a sample of test has no label"), ("up", "test has 'up', which")):
        changed = tmp_path / (word or "empty")
        changed.mkdir()
        for picture in work.glob("*.png"):
            (changed / picture.name).write_bytes(picture.read_bytes())
        (changed / "metadata.csv").write_text(table.replace("9.png,right", f"9.png,{word}"))
        code, _, errors = call("eval", work / "images_ae", "--data", changed, "--probe", "side")
        assert code == 3 and sentence in errors, errors


def test_a_column_that_the_encoder_is_told_is_no_probe(work, call, tmp_path):
    recipe = (work / "images_vae.yaml").read_text()
    recipe = recipe.replace("{name: images}", "{name: images, cond: side}")
    (tmp_path / "told.yaml").write_text(recipe + "\n")
    words = ["--data", str(work), "--conditional", "true", "--run", tmp_path / "told"]
    code, _, errors = call("train", tmp_path / "told.yaml", *words)
    assert code == 0, errors
    code, _, errors = call("eval", tmp_path / "told", "--probe", "side")
    assert code == 2 and f"column='side': the encoder of {tmp_path / 'told'} is told side" in errors
    picture = tmp_path / "s.png"
    words = ["plot", tmp_path / "told", "--kind", "scatter", "-o", picture]
    code, _, errors = call(*words, "--column", "side")
    assert code == 2 and "is told side" in errors and not picture.exists()
    code, _, errors = call(*words)
    assert code == 0, errors
    with Image.open(picture) as page:
        assert page.width == page.height, "no legend: no label colours it"


def test_a_probe_of_more_than_fits_reads_some_of_each_part(work, call, monkeypatch):
    monkeypatch.setattr(probe, "_MOST_NUMBERS", 4096 * 1200)
    words = ["eval", work / "shapes2d_ae", "--probe", "shape", "--json"]
    code, out, errors = call(*words)
    assert code == 0, errors
    found = json.loads(out)["probe"]
    assert found["classes"] == 3 and {row["n"] for row in found["rows"].values()} == {1200}


# -- disentanglement ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_every_metric_of_a_run_on_shapes(work, call, name):
    words = ["eval", work / f"shapes2d_{name}", "--disentanglement", "--points", "60", "--json"]
    code, out, errors = call(*words)
    assert code == 0, errors
    scores = json.loads(out)["disentanglement"]
    assert ("mig_posterior" in scores) == (name == "vae")
    assert ("irs" in scores) == (name != "fsq")
    assert {"beta_vae_logistic", "beta_vae_adagrad", "factor_vae", "mig", "sap_accuracy"} <= set(
        scores
    )
    for row in scores.values():
        assert -0.2 <= row["value"] <= 1 and row["protocol"] and row["n"] > 0


def test_codes_that_were_told_and_too_few_points_are_refused(work, call):
    code, _, errors = call("eval", work / "shapes2d_vae", "--disentanglement", "--points", "1")
    assert code == 2 and "points=1: must be at least 50" in errors
    run = open_run(work / "shapes2d_vae")
    conditions = (Condition(name="shape", kind="category", categories=("a", "b")),)
    spec = DataSpec(shape=run.model.spec.shape, levels=2, conditions=conditions)
    told = build_autoencoder({**run.model.config, "conditional": True}, spec)
    with pytest.raises(UsageError, match="its encoder is told shape, so its codes may hold a fac"):
        evaluate_disentanglement(replace(run, model=told), open_run_data(run))


def test_the_factors_score_one_and_baselines_are_what_they_are_called():
    data = Small()
    scores = score_representation(true_factors(data), data, points=200)
    for name in ("beta_vae_logistic", "factor_vae", "dci_disentanglement", "irs"):
        if name != "beta_vae_logistic":
            assert scores[name]["value"] == pytest.approx(1, abs=1e-6), name
    rows = np.arange(12)
    assert np.array_equal(pixels(data)(rows), data.pictures(rows).flatten(1).numpy())
    axes = pca(data, dim=3)(rows)
    centred = pixels(data)(rows) - pixels(data)(rows).mean(0)
    assert axes.shape == (12, 3) and np.linalg.matrix_rank(np.hstack([axes, centred])) <= 12
    parts = ica(data, dim=3)(rows)
    assert parts.shape == (12, 3)
    table = tabulated(true_factors(data), 12, label="rows")
    assert np.array_equal(table(rows[::-1]), true_factors(data)(rows[::-1]))


def small_model(bottleneck):
    parts = {
        "encoder": {"name": "mlp", "hidden": [8]},
        "bottleneck": bottleneck,
        "decoder": {"name": "mlp", "hidden": [8]},
        "likelihood": {"name": "bernoulli"},
    }
    from qvae.types import DataSpec

    return build_autoencoder(parts, DataSpec(shape=(1, 4, 4), levels=2)).eval()


def test_codes_of_a_model_are_means_or_integers():
    data, rows = Small(), np.arange(12)
    vae = small_model({"name": "gaussian", "dim": 2})
    codes = model_codes(vae, data)(rows)
    mean, log_var = posteriors(vae, data, rows)
    assert isinstance(vae.bottleneck, Gaussian)
    np.testing.assert_array_equal(codes, mean)
    assert log_var.shape == mean.shape == (12, 2)
    fsq = small_model({"name": "fsq", "levels": [4, 4]})
    assert flat_codes(fsq, data.pictures(rows)).dtype.kind == "i"
    with pytest.raises(ValueError, match="FSQ: has no posterior"):
        posteriors(fsq, data, rows)


# Every protocol of the paper's table holds factors 1 to 4, so this needs five of them.
class Five(Small):
    """Two values each, the factors themselves among the pixels."""

    factor_names = ("shape", "scale", "orientation", "pos_x", "pos_y")
    factor_sizes = (2, 2, 2, 2, 2)

    def pictures(self, rows):
        x = torch.zeros(len(rows), 16)
        x[:, :5] = torch.from_numpy(self.classes(rows)).float()
        return x.view(-1, 1, 4, 4)


def test_the_papers_table_has_a_row_for_each_and_its_sources(work):
    untrained = small_model({"name": "gaussian", "dim": 2})
    rows = beta_vae_table({}, untrained=untrained, data=Five(), points=60)
    assert [row["name"] for row in rows] == [
        "ground truth",
        "raw pixels",
        "PCA",
        "ICA",
        "untrained",
    ]
    for row in rows:
        assert set(row["scores"]) == set(PROTOCOLS)
        assert (row["published"], row["source"]) == PUBLISHED[row["name"]]
    assert min(beta_vae_scores(true_factors(Five()), Five(), points=400).values()) > 95


def test_disentanglement_is_refused_without_factors(work, call):
    code, _, errors = call("eval", work / "images_ae", "--disentanglement")
    assert code == 2 and "on data with known factors, such as shapes2d" in errors
    code, _, errors = call("eval", work / "images_ae", "--points", "5")
    assert code == 2 and "--points: goes with --disentanglement" in errors
    code, _, errors = call("eval", work / "images_ae", "--clocks", "--probe", "side")
    assert code == 2 and "--clocks, --probe: one at a time" in errors
    assert open_run(work / "images_ae").recipe is not None
