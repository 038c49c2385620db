"""The comparison of quantizers: equal bits, intervals, going on, and one bad apple."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from qvae import registry
from qvae.cli.main import main
from qvae.errors import QvaeError, TrainingStopped, UsageError
from qvae.reports import compare as module
from qvae.reports.compare import QUANTIZERS, arguments_for, compare
from qvae.reports.compare_table import draw, interval, summarise, table
from qvae.runs.loading import open_run

SMALL = [
    ("encoder.hidden", 8),
    ("encoder.residual", 4),
    ("encoder.num_blocks", 1),
    ("decoder.hidden", 8),
    ("decoder.residual", 4),
    ("decoder.num_blocks", 1),
    ("train.batch_size", 8),
    ("train.steps", 2),
]


@pytest.mark.parametrize("name", [*QUANTIZERS, "gumbel", "residual", "grouped"])
@pytest.mark.parametrize("bits", [2, 8, 10])
def test_every_quantizer_gets_the_same_bits(name, bits):
    arguments = arguments_for(name, bits=bits, dim=8)
    quantizer = registry.resolve("bottleneck", arguments.pop("name"))(**arguments)
    assert quantizer.nats_per_cell / math.log(2) == pytest.approx(bits)


@pytest.mark.parametrize(
    ("name", "bits", "words"),
    [
        ("vq", 0, "bits=0: must be 1 to 20 for vq"),
        ("ibq", 19, "must be 1 to 18 for ibq"),
        ("residual", 9, "two halves"),
        ("posthoc", 9, "cannot be given a number of bits"),
    ],
)
def test_what_cannot_be_compared_is_refused(name, bits, words):
    with pytest.raises(UsageError, match=words):
        arguments_for(name, bits=bits, dim=8)


@pytest.mark.parametrize("num", [2, 3, 10, 31])
def test_intervals_are_those_of_student(num):
    values = np.random.default_rng(num).normal(size=num)
    mean, half = interval(values.tolist())
    low, high = stats.t.interval(0.95, num - 1, values.mean(), stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-3)


def test_the_summary_ranks_by_psnr_and_counts_failures():
    rows = [
        {"quantizer": "a", "seed": 0, "psnr": 20.0, "usage": 1.0},
        {"quantizer": "b", "seed": 0, "psnr": 21.0, "usage": 0.5},
        {"quantizer": "c", "seed": 0, "error": "not finite"},
        {"quantizer": "b", "seed": 1, "psnr": 23.0, "usage": 0.5},
    ]
    summary = summarise(rows)
    assert [line["quantizer"] for line in summary] == ["b", "a", "c"]
    assert summary[0]["psnr"]["mean"] == 22.0 and summary[1]["psnr"]["half_width"] is None
    text = table(summary)
    assert "c: 1 failed" in text and "22.00 ±12.71" in text


@pytest.fixture
def here(monkeypatch):
    """Train in this process: starting others takes seconds each."""
    monkeypatch.setattr(module, "_in_a_process", lambda job: module._train_and_score(dict(job)))


@pytest.fixture
def pictures(tmp_path):
    path = tmp_path / "pictures.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (60, 16, 16), np.uint8))
    return path


def test_a_comparison_trains_scores_and_goes_on(here, pictures, tmp_path, monkeypatch):
    def run(seeds):
        return compare(
            tmp_path / "out",
            quantizers=("fsq", "vq_ema"),
            bits=4,
            dim=4,
            seeds=seeds,
            overrides=[("data.path", str(pictures)), *SMALL],
            device="cpu",
        )

    first = run(1)
    assert [row["quantizer"] for row in first["runs"]] == ["fsq", "vq_ema"]
    for row in first["runs"]:
        assert row["bits"] == 4 * 4 * 4  # 16 cells
        assert row["unigram_bits"] > 0 and 0 < row["usage"] <= 1 and row["peak_mb"] > 10
    trained = []
    original = module._train_and_score
    monkeypatch.setattr(
        module, "_train_and_score", lambda job: (trained.append(job["seed"]), original(job))[1]
    )
    second = run(2)
    assert trained == [1, 1] and second["runs"][:2] == first["runs"]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == second
    assert all(line["n"] == 2 and line["psnr"]["half_width"] >= 0 for line in second["summary"])
    with pytest.raises(UsageError, match="a comparison with other settings"):
        compare(tmp_path / "out", bits=5, seeds=1, overrides=[("data.path", str(pictures))])


def test_one_that_stops_does_not_take_the_others_with_it(here, pictures, tmp_path, monkeypatch):
    original = module.train_recipe

    def diverge(recipe, **options):
        if recipe.model["bottleneck"]["name"] == "fsq":
            raise TrainingStopped("loss is nan")
        return original(recipe, **options)

    monkeypatch.setattr(module, "train_recipe", diverge)
    report = compare(
        tmp_path / "out",
        quantizers=("fsq", "lfq"),
        bits=4,
        seeds=1,
        overrides=[("data.path", str(pictures)), *SMALL],
        device="cpu",
    )
    assert report["runs"][0]["error"] == "loss is nan"
    assert {line["quantizer"]: line["failed"] for line in report["summary"]} == {"lfq": 0, "fsq": 1}


def test_one_quantizers_argument_is_set_behind_its_name(here, pictures, tmp_path):
    def run(folder, *own):
        return compare(
            tmp_path / folder,
            quantizers=("fsq", "bsq"),
            bits=4,
            seeds=1,
            overrides=[("data.path", str(pictures)), *SMALL, *own],
            device="cpu",
        )

    report = run("out", ("bsq.gamma", 7.5), ("fsq.evenness", "coverage"), ("lfq.gamma", 1.0))
    assert all("error" not in row for row in report["runs"])
    assert report["settings"]["overrides"]["bsq.gamma"] == "7.5"
    parts = {name: open_run(tmp_path / "out" / f"{name}-0").recipe.model for name in ("fsq", "bsq")}
    assert parts["bsq"]["bottleneck"]["gamma"] == 7.5
    assert parts["fsq"]["bottleneck"]["evenness"] == "coverage"
    for own, word in (
        (("bsq.levels", [2]), "levels"),
        (("bqs.gamma", 1.0), "bqs"),
        (("lfq.gama", 1), "gama"),
    ):
        with pytest.raises(QvaeError, match=word):
            run("refused", own)
    assert not (tmp_path / "refused").exists()


def test_a_folder_with_other_files_is_refused(pictures, tmp_path):
    with pytest.raises(UsageError, match="holds files that are no comparison"):
        compare(tmp_path, overrides=[("data.path", str(pictures))])
    with pytest.raises(UsageError, match="each once"):
        compare(tmp_path / "out", quantizers=("fsq", "fsq"))


def test_the_picture_is_drawn_where_matplotlib_is(tmp_path):
    pytest.importorskip("matplotlib")
    score = {"mean": 0.5, "half_width": None}
    line = {"quantizer": "fsq", "n": 1, "psnr": score, "unigram_bits": score, "usage": score}
    assert draw([line, {"quantizer": "vq", "n": 0, "failed": 1}], tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_command_trains_in_processes_of_its_own(pictures, tmp_path, capsys):
    words = [str(pictures), "-o", str(tmp_path / "out"), "--quantizers", "fsq,lfq", "--bits", "4"]
    words += ["--seeds", "1", "--device", "cpu", "--threads", "1"]
    words += [word for key, value in SMALL for word in (f"--{key}", str(value))]
    assert main(["compare", *words]) == 0
    assert "fsq" in capsys.readouterr().out
