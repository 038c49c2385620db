"""The command line: no torch for help, the whole way once."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli_work import make_images, one_sentence, size_of
from qvae.cli.main import COMMANDS, main
from qvae.cli.train import split_overrides
from qvae.errors import UsageError
from qvae.registry import COMPONENTS

# -- help and start --------------------------------------------------------------------------

NO_TORCH = [["--help"], ["--version"], ["list"], ["list", "encoder"], ["list", "recipe"], []]


def test_help_version_and_list_import_no_torch():
    calls = [*NO_TORCH, *([name, "--help"] for name in COMMANDS)]
    code = f"""
import sys
from qvae.cli.main import main
for words in {calls!r}:
    assert main(words) == 0, words
    assert "torch" not in sys.modules, words
    assert "jsonargparse" not in sys.modules, words
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: qvae {name}" in done.stdout for name in COMMANDS)


def test_the_module_runs_and_its_exit_code_is_the_command_s():
    def run(*words):
        return subprocess.run(
            [sys.executable, "-m", "qvae", *words], capture_output=True, text=True, check=False
        )

    assert run("--version").stdout.startswith("qvae ")
    done = run("trian", "--json")
    assert done.returncode == 2
    assert done.stderr == "qvae: 'trian': no such command, did you mean train?\n"
    assert json.loads(done.stdout) == {
        "error": "'trian': no such command, did you mean train?",
        "exit_code": 2,
    }


def test_list_names_everything(call):
    out = call("list")[1]
    for kind, table in COMPONENTS.items():
        assert f"{kind:<11}{' '.join(table)}\n" in out
        assert call("list", f"{kind}s")[1] == f"{kind:<11}{' '.join(table)}\n"
    assert json.loads(call("list", "--json")[1])["prior"] == list(COMPONENTS["prior"])


def test_list_of_a_name_shows_its_arguments(call):
    out = call("list", "vq")[1]
    assert "bottleneck vq: Replace each vector" in out
    assert "  codebook_size: int = 512\n      number of codes V, >= 1.\n" in out
    both = json.loads(call("list", "gaussian", "--json")[1])["components"]
    assert [item["kind"] for item in both] == ["bottleneck", "likelihood"]
    one = json.loads(call("list", "likelihood", "gaussian", "--json")[1])["components"]
    assert len(one) == 1
    assert call("list", "vqq")[0] == 2


def test_info(call):
    facts = json.loads(call("info", "--json")[1])
    assert {"qvae", "torch", "cpu_features", "threads", "kernels", "device"} <= set(facts)


# -- the whole way ---------------------------------------------------------------------------


def test_a_run_folder_is_complete(work):
    names = {path.name for path in (work / "runs/ae").iterdir()}
    assert {"recipe.yaml", "env.json", "metrics.jsonl", "model", "state"} <= names
    assert (work / "runs/prior/tokenizer/config.json").is_file()
    assert (work / "tokens/tokenizer/config.json").is_file()
    assert "path: images" in (work / "runs/ae/recipe.yaml").read_text()


def test_train_without_run_makes_numbered_folders(work, call):
    assert call("train", "ae.yaml", "--data", "images", "--train.steps", "1")[0] == 0
    code, out, errors = call("train", "ae.yaml", "--data", "images", "--train.steps", "1", "--json")
    assert code == 0 and json.loads(out)["run"] == os.path.join("runs", "ae-2")
    assert "run folder runs/ae-2" in errors


def test_init_starts_from_saved_weights(work, call):
    words = ["--data", "images", "--train.steps", "1", "--run", "runs/from_ae", "--json"]
    code, out, errors = call("train", "ae.yaml", "--init", "runs/ae", *words)
    assert code == 0, errors
    assert json.loads(out)["step"] == 1


def test_a_stranger_s_folder_needs_no_more_than_two_commands(call, tmp_path):
    folder = tmp_path / "images"
    make_images(folder)
    for i, size in enumerate([(19, 30), (100, 41), (64, 64)]):  # no two of one size
        Image.new("L", size, 40 * i).save(folder / f"{i}.png")
    first = ["train", "conditional_images", "--data", folder, "--cond", "time:cyclic(12h)"]
    small = ["--train.steps", 2, "--train.batch_size", 4, "--decoder.hidden", 16]
    code, _, err = call(*first, "--run", tmp_path / "run", *small)
    assert code == 0, err
    code, _, err = call(
        "sample", tmp_path / "run", "--cond", "time=4:20", "-n", 2, "-o", tmp_path / "out"
    )
    assert code == 0, err
    assert [size_of(file) for file in sorted((tmp_path / "out").iterdir())] == [(64, 64)] * 2


def test_print_config_and_recipe_help(work, call):
    code, out, _ = call("train", "ae.yaml", "--bottleneck.levels=[8,5]", "--print_config")
    assert code == 0 and "levels: [8, 5]" in out and "steps: 4" in out
    code, out, _ = call("train", "ae.yaml", "--help")
    assert code == 0 and "--model.bottleneck.levels VALUE" in out and "required:" in out


def test_overrides_are_split_from_options():
    words = ["r", "--a.b=1e-4", "--json", "--beta", "-2", "--c.d", "[1, 2]", "--run", "x.y"]
    rest, found = split_overrides(words)
    assert rest == ["r", "--json", "--run", "x.y"]
    assert found == [("a.b", 1e-4), ("beta", -2), ("c.d", [1, 2])]
    with pytest.raises(UsageError, match="--a.b: needs a value"):
        split_overrides(["--a.b"])


def test_another_prior_by_its_name(call):
    code, out, _ = call(
        "train", "token_prior", "--prior", "masked", "--data", "t", "--print_config"
    )
    assert code == 0 and "name: masked" in out and "num_steps: 8" in out


def test_a_prior_that_only_counts_is_not_trained(call, tmp_path):
    words = ["--prior", "unigram", "--data", "tokens", "--run", str(tmp_path / "run")]
    code, _, errors = call("train", "token_prior", *words)
    assert code == 2 and "counts its codes" in errors and not (tmp_path / "run").exists()


def test_a_sampler_out_of_range_is_refused_before_training(call, tmp_path):
    words = ["--data", "tokens", "--run", str(tmp_path / "run"), "--sample.top_p", "2"]
    code, _, errors = call("train", "token_prior", *words)
    assert code == 2 and "sample: top_p=2.0: must be in (0, 1]" in errors
    assert not (tmp_path / "run").exists()


def test_a_prior_beside_another_tokenizer_is_refused(work, call):
    import torch

    from qvae.pretrained import load_model
    from qvae.tokenizer import Tokenizer

    shutil.copytree("runs/prior", "runs/swapped", ignore=shutil.ignore_patterns("state"))
    model = load_model("runs/swapped/tokenizer")
    with torch.no_grad():
        next(model.parameters()).add_(1)
    Tokenizer(model).save_pretrained("runs/swapped/tokenizer")
    code, _, errors = call("sample", "runs/swapped", "-o", "out/swapped")
    assert code == 4 and "the prior beside it learned tokens of" in errors
    shutil.copytree("tokens", "tokens-swapped")
    facts = json.loads(Path("tokens-swapped/tokens.json").read_text())
    Path("tokens-swapped/tokens.json").write_text(
        json.dumps({**facts, "tokenizer_hash": "ab" * 32})
    )
    code, _, errors = call("eval", "runs/prior", "--data", "tokens-swapped")
    own = facts["tokenizer_hash"][:12]
    assert code == 4 and f"tokens of tokenizer {'ab' * 6}, this run's is {own}" in errors


def test_sample_a_prior(work, call):
    words = ["sample", "runs/prior", "--cond", "time=4:20", "-n", "3"]
    code, out, errors = call(*words, "-o", "out/p", "--json")
    assert code == 0, errors
    assert json.loads(out)["cond"] == {"time": "4:20"}
    files = sorted((work / "out/p").iterdir())
    assert [file.name for file in files] == ["000000.png", "000001.png", "000002.png"]
    assert size_of(files[0]) == (16, 16)
    assert call(*words, "-o", "out/q", "--temperature", "1.0")[0] == 0
    for file in files:
        assert file.read_bytes() == (work / "out/q" / file.name).read_bytes()
    code, _, errors = call(
        *words, "-o", "out/x", "--guidance", "2", "--top-k", "2", "--top-p", "0.9"
    )
    assert code == 0, errors


def test_the_sampler_s_settings_come_from_the_recipe(work, call, tmp_path):
    shutil.copytree(work / "runs/prior", tmp_path / "run")
    recipe = tmp_path / "run/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("temperature: 1.0", "temperature: 0.0"))
    for seed in (1, 2):  # the likeliest sample is the same for every seed
        words = ["sample", tmp_path / "run", "--seed", seed, "--cond", "time=4:20"]
        assert call(*words, "-o", tmp_path / f"cold{seed}")[0] == 0
        assert call(*words, "-o", tmp_path / f"hot{seed}", "--temperature", "9")[0] == 0
    cold, other = ((tmp_path / f"cold{seed}/000000.png").read_bytes() for seed in (1, 2))
    hot, another = ((tmp_path / f"hot{seed}/000000.png").read_bytes() for seed in (1, 2))
    assert cold == other and hot != another


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cond", "tme=4:20"], "did you mean 'time'"),
        (["--cond", "time=25:70"], "time='25:70'"),
        (["--top-p", "7"], "top_p"),
        (["--length", "3"], "length=3: a grid of 2 axes is always full, needs one"),
    ],
)
def test_sample_refuses_what_it_does_not_know(work, call, words, sentence):
    code, _, errors = call("sample", "runs/prior", "-o", "x", *words)
    assert code == 2 and sentence in errors and not (work / "x").exists(), errors


def test_sample_without_a_prior_draws_from_the_unigram_and_says_so(work, call):
    code, _, errors = call("sample", "runs/ae", "-n", "2", "-o", "out/unigram")
    assert code == 0 and "unigram" in errors
    assert len(list((work / "out/unigram").iterdir())) == 2


def test_a_vae_is_not_sampled_below_zero(work, call):
    code, _, errors = call("sample", "runs/vae", "-o", "out/cold", "--temperature", "-1")
    assert code == 2 and "temperature=-1.0: must be >= 0 and finite" in errors
    assert not (work / "out/cold").exists()


def test_sample_a_vae(work, call):
    assert call("sample", "runs/vae", "-n", "2", "-o", "out/vae")[0] == 0
    assert call("sample", "runs/vae", "-n", "4", "-o", "out/more")[0] == 0
    first = (work / "out/vae/000001.png").read_bytes()
    assert first == (work / "out/more/000001.png").read_bytes()
    code, _, errors = call("sample", "runs/vae", "-o", "out/x", "--cond", "time=4:20")
    assert code == 2 and "hears no conditions" in errors
    code, _, errors = call("sample", "runs/vae", "-o", "out/x", "--length", "1")
    assert code == 2 and "length=1: the prior of z has no such setting" in errors


def test_older_files_in_the_folder_are_told_of(work, call, tmp_path):
    for num, is_told in ((3, False), (2, True)):
        words = ["sample", "runs/vae", "-n", num, "-o", tmp_path / "out"]
        code, _, errors = call(*words)
        assert code == 0 and ("out: is not empty" in errors) == is_told
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_encode_and_decode(work, call):
    code, _, errors = call("encode", "runs/ae", "-o", "tokens")
    assert code == 2 and "tokens" in errors and one_sentence(errors)
    assert call("encode", "runs/vae", "-o", "out/no")[0] == 2
    code, out, errors = call("decode", "runs/prior", "tokens", "-o", "out/d", "-n", "2", "--json")
    assert code == 0, errors
    assert json.loads(out)["splits"] == {"train": 2, "valid": 2, "test": 2}
    assert (work / "out/d/test/000001.png").is_file()
    code, _, errors = call("decode", "runs/ae", "tokens", "-o", "out/l", "--levels", "1")
    assert code == 2 and "FSQ has none, only residual has levels" in errors and one_sentence(errors)
    assert not (work / "out/l").exists()


def test_decode_the_first_levels_of_a_residual(work, call):
    inner = ["quantizer", "fsq", "--bottleneck.quantizer.levels", "[4, 4]"]
    words = ["--bottleneck", "residual", f"--bottleneck.{inner[0]}", *inner[1:]]
    call("train", "ae.yaml", "--data", "images", "--run", "runs/residual", *words)
    call("encode", "runs/residual", "-o", "out/residual_tokens")
    for num in ("1", "4", "5"):
        words = ["decode", "runs/residual", "out/residual_tokens", "-n", "1", "--levels", num]
        code, _, errors = call(*words, "-o", f"out/levels_{num}")
        assert code == (2 if num == "5" else 0), errors
    assert "num_levels=5: must be in 1..4" in errors and one_sentence(errors)
    first, every = ((work / f"out/levels_{n}/test/000000.png").read_bytes() for n in (1, 4))
    assert first != every


def test_encode_other_data(work, call):
    make_images(work / "more", num=20)
    code, out, errors = call("encode", "runs/ae", "more", "-o", "out/more_tokens", "--json")
    assert code == 0, errors
    assert sum(json.loads(out)["splits"].values()) == 20


def test_eval(work, call):
    scores = json.loads(call("eval", "runs/ae", "--json")[1])["scores"]
    assert {"psnr", "ssim", "usage", "perplexity", "bits", "frechet"} <= set(scores)
    assert scores["psnr"]["n"] == 4 and scores["psnr"]["split"] == "test"
    assert "random-conv-64" in scores["frechet"]["unit"]
    assert scores["bits"]["value"] == pytest.approx(16 * 4)
    scores = json.loads(call("eval", "runs/vae", "--json")[1])["scores"]
    assert "bits_per_dim" in scores and "usage" not in scores
    scores = json.loads(call("eval", "runs/prior", "--json")[1])["scores"]
    assert scores["bits_per_token_uniform"]["value"] == pytest.approx(4.0)
    text = call("eval", "runs/ae")[1]
    assert "psnr" in text and "(test, N=4)" in text and "FID" not in text


def test_eval_clocks_hands_the_run_to_the_protocol(call, monkeypatch):
    import qvae.reports.clocks

    def evaluate(run, *, seed, device):
        return {"run": run, "seed": seed, "device": device}

    monkeypatch.setattr(qvae.reports.clocks, "evaluate", evaluate)
    monkeypatch.setattr(qvae.reports.clocks, "table", lambda found: "the table")
    words = ["eval", "runs/prior", "--clocks", "--device", "cpu", "--seed", "3"]
    code, out, _ = call(*words, "--json")
    assert code == 0
    assert json.loads(out)["clocks"] == {"run": "runs/prior", "seed": 3, "device": "cpu"}
    assert call(*words)[1] == "the table\n"


def test_eval_clocks_of_other_runs_is_refused(work, call):
    code, _, errors = call("eval", "runs/ae", "--clocks")
    assert code == 2 and "tokens of clocks" in errors and one_sentence(errors)


# -- clocks ----------------------------------------------------------------------------------


@pytest.fixture
def drawn(monkeypatch):
    """Put real rendered clocks where the shipped model draws."""
    from qvae.data.clock_renderer import render_clocks
    from qvae.data.clock_style import sample_styles

    def draw_clocks(minutes, *, num, seed):
        times = np.repeat(np.asarray(minutes), num)
        return render_clocks(times, sample_styles(len(times), seed=seed)).reshape(
            len(minutes), num, 64, 64, 3
        )

    monkeypatch.setitem(sys.modules, "qvae.clock", types.SimpleNamespace(draw_clocks=draw_clocks))


def test_clock_to_a_file_reads_back(drawn, call, tmp_path):
    assert call("clock", "4:20", "-o", tmp_path / "clock.png")[0] == 0
    assert size_of(tmp_path / "clock.png") == (64, 64)
    code, out, _ = call("read", tmp_path / "clock.png", "--json")
    reading = json.loads(out)["readings"][0]
    assert code == 0 and abs(reading["minutes"] - 260) < 1 and reading["is_clear"]
    assert "4:2" in call("read", tmp_path / "clock.png")[1] or reading["minutes"] < 260


def test_a_sheet_is_not_read_as_one_clock(drawn, call, tmp_path):
    call("clock", "4:20", "16:05", "-n", "2", "-o", tmp_path / "sheet.png")
    code, out, _ = call("read", tmp_path / "sheet.png")
    assert code == 0 and "\tnot one clock: " in out
    assert not json.loads(call("read", tmp_path / "sheet.png", "--json")[1])["readings"][0][
        "is_clear"
    ]


def test_bad_pictures_do_not_keep_the_others_from_being_read(drawn, call, tmp_path):
    call("clock", "4:20", "16:05", "-n", 1, "-o", tmp_path / "clocks")
    flat, none = tmp_path / "clocks/05.png", tmp_path / "none.png"
    Image.new("RGB", (80, 64)).save(flat)
    words = ["read", none, tmp_path / "clocks", "--json"]
    code, out, errors = call(*words)
    found = json.loads(out)
    assert code == 3 and [Path(row["file"]).name for row in found["readings"]] == [
        "04-20_0.png",
        "16-05_0.png",
    ]
    sentences = [
        f"{none}: No such file or directory",
        f"{flat}: is 80x64 pixels, must be a square of at least 64x64",
    ]
    assert [row["error"] for row in found["bad"]] == sentences
    assert [row["file"] for row in found["bad"]] == [str(none), str(flat)]
    assert errors.splitlines() == [f"qvae: {sentence}" for sentence in sentences]
    code, out, _ = call(*words[:-1])
    assert code == 3 and len(out.splitlines()) == 2
    code, out, errors = call("read", flat, none)
    assert code == 3 and not out and len(errors.splitlines()) == 2
    code, out, errors = call("read", flat, "--json")
    assert code == 3 and json.loads(out) == {"error": sentences[1], "exit_code": 3}
    assert one_sentence(errors)


@pytest.mark.parametrize("words", [["clock", "4:20"], ["encode", "runs/ae"], ["sample", "runs/ae"]])
def test_a_dash_is_no_place_to_write(work, call, words):
    code, _, errors = call(*words, "-o", "-")
    assert code == 2 and "-o -: results are files" in errors and one_sentence(errors)
    assert not (work / "-").exists()


def test_clock_to_a_sheet_and_to_a_folder(drawn, call, tmp_path):
    words = ["clock", "4:20", "16:05", "-n", "3", "--scale", "2"]
    assert call(*words, "-o", tmp_path / "sheet.png")[0] == 0
    assert size_of(tmp_path / "sheet.png") == (3 * 128, 2 * 128)
    code, out, _ = call(*words, "-o", tmp_path / "folder", "--json")
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert code == 0 and names == [f"{t}_{i}.png" for t in ("04-20", "16-05") for i in range(3)]
    assert len(json.loads(out)["files"]) == 6
    assert len(json.loads(call("read", tmp_path / "folder", "--json")[1])["readings"]) == 6


def test_clock_in_the_terminal(drawn, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call("clock", "4:20")
    assert code == 0 and len(out.splitlines()) == 32
    assert out.count("\N{UPPER HALF BLOCK}") == 32 * 64
    monkeypatch.setenv("COLUMNS", "40")
    assert call("clock", "4:20")[1].count("\N{UPPER HALF BLOCK}") == 16 * 32


def test_clock_in_a_terminal_without_half_blocks(drawn, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with open(1, "w", encoding="ascii", closefd=False) as ascii_only:
        monkeypatch.setattr(sys, "stdout", ascii_only)
        code = main(["clock", "4:20"])
    out, errors = capfd.readouterr()
    lines = out.splitlines()
    assert code == 0 and not errors and len(lines) == 32
    pattern = r"\033\[48;2;(\d+);(\d+);(\d+)m "
    cells = [[[int(n) for n in cell] for cell in re.findall(pattern, line)] for line in lines]
    picture = np.asarray(sys.modules["qvae.clock"].draw_clocks([260], num=1, seed=0))[0, 0]
    assert cells == ((picture[::2].astype(int) + picture[1::2]) // 2).tolist()


def test_demo_hands_its_options_on(call, monkeypatch):
    import qvae.reports.clocks
    import qvae.reports.demo

    asked = {}

    def run_demo(path, *, tell, **options):
        tell("a stage")
        asked.update(options, path=path)
        return {"score": 1.0}

    monkeypatch.setattr(qvae.reports.demo, "run_demo", run_demo)
    monkeypatch.setattr(qvae.reports.clocks, "table", lambda found: "the table")
    picture = "picture                here/clocks.png"
    assert call("demo", "--quick", "--run", "here") == (0, f"the table\n{picture}\n", "a stage\n")
    assert asked == {"path": "here", "is_quick": True, "device": "auto", "seed": 0}
    assert json.loads(call("demo", "--json")[1]) == {"score": 1.0}
