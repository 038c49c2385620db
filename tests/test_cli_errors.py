"""Where the command line ends early: one sentence and an exit code, before any work."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from cli_work import ENVIRONMENT, make_images, one_sentence
from qvae.cli.train import split_overrides
from qvae.errors import TrainingStopped
from qvae.train.lock import run_lock

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
        (["clock", "4:20", "--scale", "1"], "--scale 1: needs -o PATH"),
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


def test_the_run_folder_is_named_once_it_is_ours(work, call, tmp_path):
    words = ["train", "ae.yaml", "--data", "images", "--run", tmp_path / "run", "--resume"]
    (tmp_path / "run").mkdir()
    with run_lock(tmp_path / "run"):
        code, _, errors = call(*words)
    assert code == 2 and "is in use by process" in errors and one_sentence(errors)
    assert "run folder" not in errors and "starts at the beginning" not in errors
    code, _, errors = call(*words)
    assert code == 0 and f"run folder {tmp_path / 'run'}" in errors


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
