"""A folder with tiny runs made by the command line, and a way to call it: for test_cli*.py."""

import csv
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qvae
from qvae.cli.main import main

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


@contextmanager
def runs_in(folder, *options):
    """Go to a new folder with images, three recipes, and the runs and tokens made from them."""
    make_images(folder / "images")
    for name, text in {"ae": AUTOENCODER, "vae": VAE, "prior": PRIOR}.items():
        (folder / f"{name}.yaml").write_text(text)
    before = os.getcwd()
    os.chdir(folder)
    try:
        images, tokens = ["--data", "images", *options], ["--data", "tokens", *options]
        assert main(["train", "ae.yaml", *images, "--run", "runs/ae"]) == 0
        assert main(["encode", "runs/ae", *options, "-o", "tokens"]) == 0
        assert main(["train", "prior.yaml", *tokens, "--run", "runs/prior"]) == 0
        assert main(["train", "vae.yaml", *images, "--run", "runs/vae"]) == 0
        yield folder
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The folder of ``runs_in``, for every test of a module."""
    with runs_in(tmp_path_factory.mktemp("work")) as folder:
        yield folder


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
