"""The command line: exit codes, one sentence an error, no torch for help, the whole way once."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qvae
from qvae.cli.main import COMMANDS, main
from qvae.cli.train import split_overrides
from qvae.errors import TrainingStopped, UsageError
from qvae.registry import COMPONENTS

AUTOENCODER = """\
# A tiny quantized autoencoder.
data: {name: images, cond: "time:cyclic(12h)"}
model:
  encoder: {name: conv, hidden: 8, residual: 4, num_blocks: 1}
  bottleneck: {name: fsq, levels: [4, 4]}
  decoder: {name: conv, hidden: 8, residual: 4, num_blocks: 1}
  likelihood: gaussian
train: {steps: 4, batch_size: 8, lr: 1e-3, precision: float32}
"""
VAE = """\
extends: ae.yaml
model:
  bottleneck: {name: gaussian, dim: 4}
  likelihood: discretized_logistic
"""
PRIOR = """\
prior: {name: transformer, num_layers: 1, dim: 16, num_heads: 2}
train: {steps: 4, batch_size: 8, precision: float32}
"""


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(qvae.__file__).parents[1])}


def make_images(folder, num=40):
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    with open(folder / "metadata.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "time", "split"])
        for i in range(num):
            pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
            split = ["train", "valid", "test"][max(0, i % 10 - 7)]
            rows.writerow([f"{i}.png", f"{i % 12}:{i % 60:02d}", split])


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with images, three recipes, and the runs and tokens made from them."""
    folder = tmp_path_factory.mktemp("work")
    make_images(folder / "images")
    for name, text in {"ae": AUTOENCODER, "vae": VAE, "prior": PRIOR}.items():
        (folder / f"{name}.yaml").write_text(text)
    before = os.getcwd()
    os.chdir(folder)
    try:
        assert main(["train", "ae.yaml", "--data", "images", "--run", "runs/ae"]) == 0
        assert main(["encode", "runs/ae", "-o", "tokens"]) == 0
        assert main(["train", "prior.yaml", "--data", "tokens", "--run", "runs/prior"]) == 0
        assert main(["train", "vae.yaml", "--data", "images", "--run", "runs/vae"]) == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture
def call(capsys):
    """Run a command in this process; return its exit code, output and errors."""

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def one_sentence(text):
    lines = [line for line in text.splitlines() if line.startswith("qvae: ")]
    return len(lines) == 1 and "Traceback" not in text


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


# -- usage errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train"], "a RECIPE is required"),
        (["train", "no_such"], "recipe 'no_such': no such recipe or file"),
        (["train", "ae.yaml", "extra"], "extra: unknown option or one word too many"),
        (["train", "ae.yaml", "--rn", "x"], "--rn: unknown option"),
        (["train", "ae.yaml", "--threads", "0"], "--threads: '0' must be a whole number >= 1"),
        (["train", "ae.yaml", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["train", "ae.yaml", "--train.steps"], "--train.steps: needs a value"),
        (["train", "ae.yaml", "--train.steps", "--json"], "--train.steps: needs a value"),
        (["train", "ae.yaml", "--train.steps", "["], "--train.steps line 1: not valid YAML"),
        (["train", "ae.yaml", "--trn.steps", "3"], "no recipe has a section 'trn'"),
        (
            ["train", "ae.yaml", "--data", "x", "--train.stepss", "3"],
            "unknown key, did you mean steps?",
        ),
        (["train", "ae.yaml", "--bottleneck", "os.system"], "a component is named, not imported"),
        (["train", "ae.yaml", "--data", "images", "--train.steps", "0"], "train: steps=0: must be"),
        (["train", "ae.yaml", "--data", "x", "--resume"], "--resume: needs --run DIR"),
        (["train", "ae.yaml"], "data.path (--data PATH): is required"),
        (
            ["train", "ae.yaml", "--data", "images", "--data.path", "x"],
            "--data.path: told twice, images and x",
        ),
        (["train", "ae.yaml", "--data", "images", "--init", "no"], "init='no': no such folder"),
        (["sample", "runs/ae", "-o", "x", "--cond", "time"], "must be NAME=VALUE"),
        (["sample", "runs/ae", "-o", "x", "--cond", "a=1", "a=2"], "told twice"),
        (["sample", "runs/ae", "-o", "x", "--top-k", "x"], "must be a whole number"),
        (["sample", "runs/ae", "-o", "x", "--temperature", "nan"], "must be a finite number"),
        (["sample", "runs/ae"], "the following arguments are required: -o"),
        (["clock", "25:00", "-o", "x.png"], "time must be H:MM"),
        (["clock", "4:20", "-o", "x.jpg"], "a file must end in .png"),
        (["clock", "4:20", "--json"], "--json: needs -o PATH"),
        (["eval", "runs/ae", "--clocks", "--data", "x"], "--clocks: takes no --data"),
        (["sample", "runs/ae", "-o", "x", "-n", "-3"], "-n: '-3' must be a whole number >= 1"),
        (["sample", "runs/ae", "-o", "x", "--guidance", "3"], "runs/ae has no prior to guide"),
        (["encode", "runs/prior", "images", "-o", "x"], "runs/prior: is the run of a prior"),
        (["train", "ae.yaml", "--data", "images", "--run", ""], "--run: is empty"),
        (["encode", "", "-o", "x"], "RUN: is empty"),
        (["list", "ae"], "a recipe's keys are listed by qvae train ae --help"),
        (["list", "recipe", "vqvea"], "no such recipe or file, did you mean vqvae?"),
        (["--json"], "a command comes first"),
    ],
)
def test_usage_errors_are_one_sentence_and_exit_2(work, call, words, sentence):
    code, _, errors = call(*words)
    assert code == 2 and sentence in errors and one_sentence(errors), errors
    assert not any(path.name.startswith("x") for path in work.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "no_run", "-o"],
        ["decode", "no_run", "tokens", "-o"],
        ["clock", "4:20", "-o"],
        ["train", "ae.yaml", "--data", "images", "--run"],
        ["demo", "--run"],
    ],
)
def test_a_file_in_the_way_of_a_folder_is_found_before_any_work(work, call, words):
    for path in ("images/0.png/below", "images/metadata.csv/a/b"):
        code, _, errors = call(*words, path)
        assert code == 2 and "is a file, must be a folder" in errors and one_sentence(errors)
    code, _, errors = call("encode", "runs/ae", "-o", "images/0.png/tokens")
    assert code == 2 and "is a file, must be a folder" in errors


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do all")
def test_a_folder_that_is_not_ours_is_refused_before_any_work(work, call, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    code, _, errors = call("sample", "no_run", "-o", tmp_path / "closed/out")
    assert code == 2 and "cannot be written to" in errors and one_sentence(errors)


def test_a_size_of_zero_is_refused_before_the_data_is_read(work, call):
    words = ["--bottleneck", "vq", "--bottleneck.codebook_size", "0", "--bottleneck.dim", "4"]
    code, _, errors = call("train", "ae.yaml", "--data", "nowhere", "--run", "runs/zero", *words)
    assert code == 2
    assert "model.bottleneck: codebook_size=0: must be at least 1" in errors
    assert not (work / "runs/zero").exists()


def test_resume_without_a_checkpoint_says_so_and_never_replaces_a_model(work, call, tmp_path):
    words = ["--data", "images", "--train.steps", "1", "--run", tmp_path / "run", "--resume"]
    code, _, errors = call("train", "ae.yaml", *words)
    assert code == 0 and "no checkpoint to go on from" in errors
    shutil.rmtree(tmp_path / "run/state")
    before = (tmp_path / "run/model/model.safetensors").read_bytes()
    code, _, errors = call("train", "ae.yaml", *words)
    assert code == 2 and "holds a model and no checkpoint" in errors and one_sentence(errors)
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == before


def test_a_run_folder_in_use_is_refused(work, call):
    before = sorted(path.name for path in (work / "runs/ae").rglob("*"))
    code, _, errors = call("train", "ae.yaml", "--data", "images", "--run", "runs/ae")
    assert code == 2 and "already holds" in errors and one_sentence(errors)
    assert sorted(path.name for path in (work / "runs/ae").rglob("*")) == before


# -- data errors -----------------------------------------------------------------------------


def test_data_errors_exit_3_and_make_no_run_folder(work, call):
    (work / "empty").mkdir(exist_ok=True)
    make_images(work / "broken", num=12)
    (work / "broken" / "3.png").write_bytes(b"no image")
    cases = [
        (["--data", "empty"], "empty"),
        (["--data", "nowhere"], "nowhere"),
        (["--data", "images", "--cond", "hour:number"], "hour"),
        (["--data", "broken"], "3.png"),
    ]
    for words, name in cases:
        code, _, errors = call("train", "ae.yaml", "--run", "runs/bad", *words)
        assert code == 3 and name in errors and one_sentence(errors), (words, errors)
        assert not (work / "runs/bad").exists()


def test_an_impossible_time_is_named_by_its_picture(work, call, tmp_path):
    make_images(tmp_path / "late", num=12)
    table = tmp_path / "late/metadata.csv"
    table.write_text(table.read_text().replace("10.png,10:10", "10.png,25:61"))
    words = ["train", "ae.yaml", "--data", tmp_path / "late", "--run", tmp_path / "run"]
    code, _, errors = call(*words)
    assert code == 3 and "time='25:61' in 10.png: hours go" in errors and one_sentence(errors)
    table.write_text(table.read_text().replace("25:61,train", "10:10,exam"))
    code, _, errors = call(*words)
    assert code == 3 and "split='exam' in 10.png, needs train" in errors and one_sentence(errors)
    assert not (tmp_path / "run").exists()


def test_the_data_of_a_run_is_sought_from_here(work, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, errors = call("eval", work / "runs/ae")
    assert code == 3 and "images: no such file or folder here" in errors and one_sentence(errors)
    assert call("eval", work / "runs/ae", "--data", work / "images")[0] == 0


def test_max_bad_tolerates_a_broken_image_and_names_it(work, call):
    folder = work / "one_broken"
    make_images(folder, num=40)
    (folder / "3.png").write_bytes(b"no image")
    words = ["train", "ae.yaml", "--data", folder, "--run", "runs/tolerant", "--max-bad", "1"]
    code, _, errors = call(*words)
    assert code == 0, errors
    assert "1 of 40 images cannot be read and are left out: 3.png (" in errors


@pytest.mark.parametrize("name", ["nowhere.png", "metadata.csv", "empty_folder"])
def test_read_of_what_is_no_picture_exits_3(work, call, name):
    (work / "images" / "empty_folder").mkdir(exist_ok=True)
    code, _, errors = call("read", work / "images" / name)
    assert code == 3 and name in errors and one_sentence(errors)
    (work / "images" / "empty_folder").rmdir()


# -- model and format errors -----------------------------------------------------------------


def test_model_errors_exit_4(work, call):
    (work / "runs/nothing").mkdir(exist_ok=True)
    code, _, errors = call("sample", "runs/nothing", "-o", "x")
    assert code == 4 and "runs/nothing: holds no model" in errors and one_sentence(errors)
    code, _, errors = call("decode", "runs/ae", "runs/ae", "-o", "x")
    assert code == 4 and "tokens.json" in errors and one_sentence(errors)


def test_tokens_of_another_tokenizer_are_refused(work, call):
    words = ["--data", "images", "--run", "runs/other", "--seed", "5"]
    assert call("train", "ae.yaml", *words)[0] == 0
    code, _, errors = call("decode", "runs/other", "tokens", "-o", "x")
    assert code == 4 and "tokenizer" in errors and one_sentence(errors)
    assert not (work / "x").exists()


def test_a_tokenizer_that_did_not_make_the_tokens_stops_a_prior(work, call, tmp_path):
    shutil.copytree(work / "tokens", tmp_path / "tokens")
    shutil.rmtree(tmp_path / "tokens/tokenizer")
    words = ["train", "prior.yaml", "--data", tmp_path / "tokens", "--run", "runs/mixed"]
    code, _, errors = call(*words)
    assert code == 4 and "tokenizer: no such folder" in errors
    shutil.copytree(work / "runs/vae/model", tmp_path / "tokens/tokenizer")
    code, _, errors = call(*words)
    assert code == 4 and one_sentence(errors)
    assert not (work / "runs/mixed").exists()


def test_init_of_another_model_is_refused(work, call):
    words = ["--data", "images", "--run", "runs/init", "--init", "runs/vae"]
    code, _, errors = call("train", "ae.yaml", *words)
    assert code == 4 and "weights of another model" in errors and one_sentence(errors), errors
    assert not (work / "runs/init").exists()


# -- other endings ---------------------------------------------------------------------------


def test_a_bug_shows_its_traceback_and_asks_for_a_report(call, monkeypatch):
    import qvae.cli.info

    def broken(parser, words):
        raise RuntimeError("oops\nin two lines")

    monkeypatch.setattr(qvae.cli.info, "run_info", broken)
    code, out, errors = call("info", "--json")
    assert code == 1 and "Traceback" in errors and "please report it" in errors
    assert json.loads(out)["exit_code"] == 1


def test_a_value_error_of_other_code_is_a_bug_and_ours_is_usage(call, monkeypatch):
    import qvae.cli.info

    monkeypatch.setattr(qvae.cli.info, "run_info", lambda parser, words: int("x"))
    assert call("info")[0] == 1
    monkeypatch.setattr(qvae.cli.info, "run_info", lambda p, w: split_overrides(["--a.b"]))
    assert call("info")[0] == 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [(TrainingStopped("stopped"), 5), (KeyboardInterrupt(), 130), (BrokenPipeError(), 0)],
)
def test_exit_codes(call, monkeypatch, error, expected):
    import qvae.cli.info
    import qvae.cli.main

    def ending(parser, words):
        raise error

    monkeypatch.setattr(qvae.cli.info, "run_info", ending)
    monkeypatch.setattr(qvae.cli.main, "_drop_output", lambda: None)
    assert call("info")[0] == expected


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_unwinds_any_command(call, monkeypatch):
    import qvae.cli.info

    undone = []

    def waiting(parser, words):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            undone.append(True)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(qvae.cli.info, "run_info", waiting)
    assert call("info")[0] == 143 and undone == [True]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_saves_a_checkpoint_and_resume_goes_on(work, call):
    words = ["train", "ae.yaml", "--data", "images", "--run", "runs/long", "--threads", "1"]
    many = [*words, "--train.steps", "100000", "--train.save_every", "20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "qvae", *many], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    while not any((work / "runs/long/state").glob("step_*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 143, errors
    assert "the checkpoint is saved" in errors and one_sentence(errors)
    done = max(int(path.name[5:]) for path in (work / "runs/long/state").glob("step_*"))
    code, out, errors = call("train", "runs/long", "--resume", "--train.steps", done + 3, "--json")
    assert code == 0, errors
    assert json.loads(out)["step"] == done + 3


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
    ],
)
def test_sample_refuses_what_it_does_not_know(work, call, words, sentence):
    code, _, errors = call("sample", "runs/prior", "-o", "x", *words)
    assert code == 2 and sentence in errors and not (work / "x").exists(), errors


def test_sample_without_a_prior_draws_from_the_unigram_and_says_so(work, call):
    code, _, errors = call("sample", "runs/ae", "-n", "2", "-o", "out/unigram")
    assert code == 0 and "unigram" in errors
    assert len(list((work / "out/unigram").iterdir())) == 2


def test_sample_a_vae(work, call):
    assert call("sample", "runs/vae", "-n", "2", "-o", "out/vae")[0] == 0
    assert call("sample", "runs/vae", "-n", "4", "-o", "out/more")[0] == 0
    first = (work / "out/vae/000001.png").read_bytes()
    assert first == (work / "out/more/000001.png").read_bytes()
    code, _, errors = call("sample", "runs/vae", "-o", "out/x", "--cond", "time=4:20")
    assert code == 2 and "hears no conditions" in errors


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
