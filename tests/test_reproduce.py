"""Papers' tables as commands: run whole in small, go on where they stopped, refuse what differs."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qvae.cli.main import main
from qvae.errors import QvaeError, UsageError
from qvae.reports import reproduce
from qvae.reports.bench_figure import fingerprint
from qvae.reports.beta_vae import _one_protocol
from qvae.reports.disentanglement import PROTOCOLS, PUBLISHED
from qvae.reports.reproduce import Findings, Published, Row, Study, reproduce_paper, table
from qvae.runs import likelihood


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    x = np.random.default_rng(0).integers(0, 256, (300, 4, 4), dtype=np.uint8)
    np.save(folder / "x.npy", x)
    return str(folder / "x.npy")


@pytest.mark.parametrize(
    ("paper", "rows"),
    [
        ("aevb", ["Nz=3", "Nz=20", "Nz=3, 100 units: log p(x)"]),
        ("iwae", ["VAE, dynamic", "IWAE k=5, dynamic"]),
    ],
)
def test_a_paper_in_small_prints_its_table_and_is_not_done_twice(
    paper, rows, pictures, tmp_path, capsys, monkeypatch
):
    words = ["reproduce", paper, "--data", pictures, "--run", str(tmp_path / "r"), "--quick"]
    assert main([*words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in report["rows"]] == rows
    assert report["protocol"]["quick"] is True and report["protocol"]["seed"] == 0
    text = (tmp_path / "r" / "table.md").read_text()
    assert "from memory, not verified" in text and "MNIST 60k" in text
    assert text.strip() == report["table"].strip()
    picture = tmp_path / "r" / "curves.png"
    assert picture.is_file() == (paper == "aevb")
    if picture.is_file():
        with Image.open(picture) as image:
            assert image.text["Description"] == fingerprint(report["curves"])
    again = json.loads((tmp_path / "r" / "results.json").read_text())
    assert again["rows"] == report["rows"]

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(reproduce, "train_recipe", never)
    assert main(words) == 0
    assert text.strip() == capsys.readouterr().out.strip()
    env = json.loads(next((tmp_path / "r").glob("runs/*/env.json")).read_text())
    told = report["protocol"]["trained on"]
    assert env["precision"] == "float32" and ", float32, torch 2." in told  # pinned, and told
    assert env["processor"] in told and f"qvae {env['qvae']}" in told


def test_a_run_of_another_precision_is_scored_anew_and_told_and_another_recipe_refused(
    pictures, tmp_path, monkeypatch
):
    """As before float32 was pinned: the runs stay, only what is missing is measured."""
    study = Study(folder=tmp_path, data=pictures, is_quick=True, progress=False)
    changes = {"data.path": pictures, "encoder.hidden": [3], "train.precision": "bf16"}
    old = study.recipe("aevb", changes)
    assert study.score("a", old, lambda run, data: {"first": 1}) == {"first": 1}
    bits = (tmp_path / "runs" / "a" / "env.json").read_bytes()
    (tmp_path / "runs" / "a" / "scores.json").unlink()
    monkeypatch.setattr(reproduce, "train_recipe", None)  # would fail if it were called
    del changes["train.precision"]
    now = study.recipe("aevb", changes)
    assert now.train["precision"] == "float32"
    assert study.score("a", now, lambda run, data: {"anew": 2}) == {"anew": 2}
    assert study.score("a", now, lambda run, data: {}) == {"anew": 2}
    assert (tmp_path / "runs" / "a" / "env.json").read_bytes() == bits
    assert ", bf16, torch 2." in study.trained_on() and "float32" not in study.trained_on()
    (tmp_path / "runs" / "a" / "scores.json").unlink()
    other = study.recipe("aevb", {**changes, "encoder.hidden": [4]})
    with pytest.raises(UsageError, match=r"trained with model.encoder.hidden=\[3\], .* \[4\]"):
        study.score("a", other, lambda run, data: {})


def test_a_run_is_scored_where_the_study_computes_and_the_table_says_where(
    pictures, tmp_path, monkeypatch
):
    study = Study(folder=tmp_path, data=pictures, is_quick=True, progress=False, device="cpu")
    recipe = study.recipe("aevb", {"data.path": pictures, "encoder.hidden": [3]})
    asked = []
    real = reproduce.open_run
    monkeypatch.setattr(
        reproduce, "open_run", lambda path, device: asked.append(device) or real(path)
    )
    study.score("a", recipe, lambda run, data: {})
    assert [device.type for device in asked] == ["cpu"]
    assert study.scored_on() == "float32, on the processor"
    scored = tmp_path / "runs" / "a" / "scored.json"
    scored.write_text('{"device": "Card 9"}')
    assert study.scored_on() == "float32, on Card 9"
    scored.unlink()  # as before there was a choice
    assert study.scored_on() == "float32, on the processor"


def test_steps_given_are_those_of_every_run_and_of_the_folder(pictures, tmp_path, capsys):
    words = ["reproduce", "aevb", "--data", pictures, "--run", str(tmp_path / "r"), "--quick"]
    assert main([*words, "--steps", "7", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["protocol"]["training"].startswith("7 steps of ")
    runs = [file.read_text() for file in tmp_path.glob("r/runs/*/recipe.yaml")]
    assert len(runs) == 3 and all("steps: 7\n" in text for text in runs)
    assert main([*words, "--steps", "8"]) == 2
    assert "holds a study with steps=7" in capsys.readouterr().err


@pytest.mark.slow
def test_the_disentanglement_table_has_a_column_for_each_protocol(tmp_path, capsys):
    pytest.importorskip("sklearn")
    assert main(["reproduce", "beta-vae", "--run", str(tmp_path / "r"), "--quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    names = ["ground truth", "raw pixels", "PCA", "ICA", "untrained", "VAE", "beta-VAE"]
    assert [row["name"] for row in report["rows"]] == [*names, "beta-VAE, constant price"]
    assert "from 300 to 4 by equal factors" in report["table"]
    assert all(set(PROTOCOLS) <= set(row["ours"]) for row in report["rows"])
    assert all(row["published"]["source"] != "paper" for row in report["rows"])
    assert "read in a text that quotes the paper" in report["table"]


def test_scores_of_another_recipe_are_not_taken_over(pictures, tmp_path):
    study = Study(folder=tmp_path, data=pictures, is_quick=True, progress=False)
    old = study.recipe("aevb", {"data.path": pictures, "encoder.hidden": [3]})
    assert study.score("a", old, lambda run, data: {"first": 1}) == {"first": 1}
    now = study.recipe("aevb", {"data.path": pictures, "encoder.hidden": [4]})
    with pytest.raises(UsageError, match=r"hidden=\[3\], and this study asks for \[4\]"):
        study.score("a", now, lambda run, data: {})


def test_a_slip_in_the_first_words_leaves_the_folder_free(pictures, tmp_path):
    for wrong in (None, str(tmp_path / "none.npz")):
        with pytest.raises(QvaeError):
            reproduce_paper("aevb", tmp_path / "r", data=wrong, is_quick=True, progress=False)
        assert not (tmp_path / "r").exists()


def test_data_may_be_named_in_another_way_and_a_paper_that_has_its_own_takes_none(
    pictures, tmp_path, capsys, monkeypatch
):
    words = ["reproduce", "aevb", "--run", str(tmp_path / "r"), "--quick", "--steps", "3"]
    assert main([*words, "--data", pictures]) == 0
    first = capsys.readouterr().out
    monkeypatch.chdir(Path(pictures).parent)
    monkeypatch.setattr(reproduce, "train_recipe", None)  # would fail if it were called
    assert main([*words, "--data", f"./{Path(pictures).name}"]) == 0
    assert capsys.readouterr().out == first
    code = main(["reproduce", "beta-vae", "--data", pictures, "--run", str(tmp_path / "b")])
    assert code == 2 and "this paper makes its own data" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_other_words_in_the_same_folder_are_refused(pictures, tmp_path):
    with pytest.raises(UsageError, match="'aevd': no such paper, did you mean aevb"):
        reproduce_paper("aevd", tmp_path / "a")
    with pytest.raises(UsageError, match="--data: this paper needs pictures"):
        reproduce_paper("iwae", tmp_path / "b", is_quick=True)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "study.json").write_text('{"paper": "iwae", "seed": 0}')
    with pytest.raises(UsageError, match="holds a study with paper='iwae'"):
        reproduce_paper("aevb", tmp_path / "c", data=pictures)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds files that are no study"):
        reproduce_paper("aevb", tmp_path / "d", data=pictures)


def test_a_published_value_says_how_it_is_known():
    rows = [
        Row(name="a", ours={"x": 1.0}, published=Published(value=2.5, source="paper")),
        Row(name="b", ours={"y": 3.0}, published=Published(value=4.0, source="second-hand")),
        Row(name="c", ours={"x": 5.0}),
    ]
    text = table(Findings(title="T", protocol={}, rows=rows, checks={"so it is": False}))
    assert "| a | 1.00 |  | 2.5 |" in text
    assert "| b |  | 3.00 | 4 (read in a text that quotes the paper) |" in text
    assert "| c | 5.00 |  | none known |" in text
    assert "- NO: so it is" in text


def test_eval_prints_log_p_with_both_errors_and_what_the_latents_carry(
    pictures, tmp_path, capsys, monkeypatch
):
    short = partial(likelihood.score_hmc, num_draws=4, burn_in=4)
    monkeypatch.setattr(likelihood, "score_hmc", short)
    run = str(tmp_path / "run")
    few = ["--train.steps", "20", "--train.eval_every", "20"]
    sizes = ["--bottleneck.dim", "3", "--encoder.latent_dim", "6", "--decoder.latent_dim", "3"]
    assert main(["train", "aevb", "--data", pictures, "--run", run, *few, *sizes]) == 0
    capsys.readouterr()
    assert main(["eval", run, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert len(scores["kl_by_dim"]["value"]) == 3
    assert sum(scores["kl_by_dim"]["value"]) == pytest.approx(scores["rate"]["value"], rel=1e-4)
    parts = scores["mutual_information"]["value"] + scores["marginal_kl"]["value"]
    assert parts == pytest.approx(scores["rate"]["value"], rel=1e-6)
    assert 0 <= scores["active_units"]["value"] <= 3
    assert main(["eval", run, "--likelihood", "100", "--hmc", "--most", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert names == ["nll_elbo", "nll_iwae_50", "nll_importance", "nll_hmc"]
    assert all(re.search(r"\+- \S+ \(data\)", line) for line in lines)
    one_bound = names.index("nll_iwae_50")  # of 50 draws: there is no second to tell its error
    for place, line in enumerate(lines):
        assert bool(re.search(r"\+- \S+ \(draws\)", line)) == (place != one_bound)
    assert "nan" not in "".join(lines)
    assert re.search(r"ESS \d+ \(\S+% below 10\)", lines[2]) and "5 x its sd" in lines[2]
    few = ["--likelihood", "4", "--widen", "1", "--most", "2"]
    assert main(["eval", run, *few]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "4 draws of q(z|x)  (" in lines[2] and lines[3].startswith("note: many samples")
    assert main(["eval", run, "--most", "2"]) == 2
    assert main(["eval", run, "--widen", "2"]) == 2


@pytest.mark.parametrize(
    ("words", "code", "rule"),
    [
        (["--bottleneck.dim", "0"], 2, "dim=0"),
        (["--encoder.latent_dim", "0"], 2, "latent_dim=0"),
        (["--cond", "colour", "--model.conditional", "true"], 3, "colour"),
        (["--model.num_samples", "0"], 2, "num_samples=0"),
        (["--likelihood", "poisson"], 2, "poisson"),
    ],
)
def test_a_bad_argument_is_named_before_training_starts(
    words, code, rule, pictures, tmp_path, capsys
):
    run = tmp_path / "run"
    assert main(["train", "aevb", "--data", pictures, "--run", str(run), *words]) == code
    assert rule in capsys.readouterr().err
    assert not run.exists()


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda x: np.full_like(x, 0.5), "every value is 0.5"),
        (lambda x: np.where(x > 0.99, np.nan, x), "NaN"),
        (lambda x: 255 * x, r"floats need \[0, 1\]"),
    ],
)
def test_bad_data_is_named_before_training_starts(make, rule, tmp_path, capsys):
    x = np.random.default_rng(0).random((40, 4, 4)).astype(np.float32)
    np.save(tmp_path / "bad.npy", make(x))
    run = tmp_path / "run"
    words = ["train", "aevb", "--data", str(tmp_path / "bad.npy"), "--run", str(run)]
    assert main(words) == 3
    error = capsys.readouterr().err
    assert "bad.npy" in error and re.search(rule, error)
    assert not run.exists()


def test_a_folder_of_equal_black_pictures_is_refused(tmp_path, capsys):
    for i in range(4):
        Image.new("L", (4, 4)).save(tmp_path / f"{i}.png")
    words = ["train", "aevb", "--data", str(tmp_path), "--run", str(tmp_path / "run")]
    assert main(words) == 3
    error = capsys.readouterr().err
    assert str(tmp_path) in error and "every value is 0" in error
    assert not (tmp_path / "run").exists()


def test_a_value_that_training_never_saw_is_refused_at_sampling(tmp_path, capsys):
    x = np.random.default_rng(0).integers(0, 256, (60, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=x, label=np.arange(60) % 3)
    run = str(tmp_path / "run")
    few = ["--train.steps", "3", "--train.eval_every", "3", "--bottleneck.prior_hidden", "8"]
    words = ["train", "cvae", "--data", str(tmp_path / "x.npz"), "--cond", "label", "--run", run]
    assert main([*words, *few]) == 0
    assert main(["sample", run, "--cond", "label=2", "-n", "2", "-o", str(tmp_path / "o")]) == 0
    assert len(list((tmp_path / "o").iterdir())) == 2
    capsys.readouterr()
    assert main(["sample", run, "--cond", "label=7", "-o", str(tmp_path / "p")]) == 2
    error = capsys.readouterr().err
    assert "label" in error and "7" in error and "0, 1, 2" in error
    assert not (tmp_path / "p").exists()


def test_baselines_and_beta_vae_are_asked_of_one_protocol():
    """Near baselines under one protocol and a high beta-VAE under another are no reproduction."""
    names = ("raw pixels", "PCA", "ICA", "untrained")
    first, second, *others = PROTOCOLS
    published = {name: value for name, (value, _) in PUBLISHED.items()}
    scores = {name: dict.fromkeys(PROTOCOLS, published[name] + 30) for name in names}
    scores["beta-VAE"] = dict.fromkeys(PROTOCOLS, 50.0)
    for name in names:  # the first has the baselines, the second the beta-VAE
        scores[name][first] = published[name] - 4.9
        scores[name][second] = published[name] + 5.1
    scores["beta-VAE"][second] = 99.9
    claim, is_met = _one_protocol(scores, published)
    assert not is_met
    assert f"none; the nearest is {second!r}, raw pixels +5.10, PCA +5.10" in claim
    scores["beta-VAE"][first] = 99.2
    claim, is_met = _one_protocol(scores, published)
    assert is_met and f"it is {first!r}, raw pixels -4.90" in claim and "beta-VAE 99.20" in claim
    assert not set(others) & set(claim.split("'"))
