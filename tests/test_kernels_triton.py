"""Triton's path of the nearest-code search: in its interpreter on any machine, and on a GPU."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from kernel_cases import IS_INTERPRETED
from qvae import kernels
from qvae.kernels import reference
from qvae.kernels.band import place_codes
from qvae.reports.hard_data import HARD, normal, tied

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(IS_INTERPRETED, reason="this is the interpreted run")
def test_triton_in_its_interpreter():
    """Triton reads TRITON_INTERPRET when it is imported, so its tests get their own process."""
    if find_spec("triton") is None:
        pytest.skip("triton's path is NOT tested here: triton has no build for this machine")
    # NumPy warns of an overflow where a GPU makes an infinity and goes on.
    ignored = ["-W", "ignore:overflow encountered:RuntimeWarning"]
    files = [str(Path(__file__).with_name("test_kernels.py")), __file__]
    command = [sys.executable, "-m", "pytest", *files, "-k", "[triton", *ignored]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout.splitlines()[-1]
    assert "skipped" not in run.stdout.splitlines()[-1]


def copies(n, k, d):
    """Three of each code, tiles apart: neither two tiles nor two columns hold them."""
    z, codebook = normal(n, d), normal(k // 3, d, seed=1)
    return z, torch.cat([codebook, codebook, codebook])


def close_pairs(n, k, d):
    """Each code has a neighbour far away in the codebook that only float64 tells from it."""
    z, codebook = normal(n, d), normal(k, d, seed=1)
    codebook[k // 2 :] = codebook[: k - k // 2] * (1 + 2.0**-20)
    return z, codebook


def out_of_range(n, k, d):
    z, codebook = normal(n, d), normal(k, d, seed=1)
    return z * 2.0 ** torch.linspace(0, 40, n)[:, None], codebook


TILES = {
    "copies": lambda: copies(40, 300, 24),
    "close pairs": lambda: close_pairs(40, 200, 24),
    "a pair in one tile": lambda: (normal(9, 8), normal(40, 8, seed=1).repeat_interleave(2, 0)),
    "rows out of range": lambda: out_of_range(70, 130, 24),
    "no tail": lambda: (normal(9, 12), normal(130, 12, seed=1)),
    "coordinates in the tail": lambda: (normal(9, 130), normal(70, 130, seed=1)),
    "norms in the tail": lambda: (normal(9, 64), normal(65, 64, seed=1)),
    "wide": lambda: (normal(9, 300), normal(70, 300, seed=1)),
    "too wide": lambda: (normal(9, 513), normal(70, 513, seed=1)),
    "one code": lambda: (normal(130, 8), normal(1, 8, seed=1)),
    "full tiles": lambda: (normal(128, 16), normal(128, 16, seed=1)),
    "equal bars across tiles": lambda: tied(64, 3000, 1),
}


@pytest.mark.skipif(not IS_INTERPRETED, reason="part of the interpreted run")
@pytest.mark.parametrize("name", [pytest.param(name, id=f"triton-{name}") for name in TILES])
def test_tiles_columns_and_operands(name, monkeypatch):
    monkeypatch.setenv("QVAE_KERNEL", "triton")
    z, codebook = TILES[name]()
    assert torch.equal(kernels.nearest(z, codebook), reference.nearest(z, codebook))


FOUR = {"gaussian": 0.1, "small": 0.1, "one huge code": 0.1, "offset": 0.1, "correlated": 0.3}


@pytest.mark.skipif(not IS_INTERPRETED, reason="part of the interpreted run")
@pytest.mark.parametrize("name", [pytest.param(name, id=f"triton-{name}") for name in FOUR])
def test_tensor_cores_leave_little_to_float64(name):
    """Doubt is rare, and certainty is right: a broken prefilter would hide behind float64."""
    from qvae.kernels import triton_search

    z, codebook = HARD[name](128, 700, 24)
    launch = triton_search.choose(24)
    codes = place_codes(codebook)
    winner, rival, doubt = triton_search.prefilter(z, codes, launch)
    expected = reference.nearest(z, codebook)
    assert (doubt > 0).float().mean() <= FOUR[name]
    assert (doubt == 2).float().mean() <= 0.02
    assert torch.equal(winner[doubt == 0], expected[doubt == 0])
    few = doubt == 1
    places = [
        tile // launch.codes * launch.codes + column % launch.codes
        for tile in (winner, rival)
        for column in (winner, rival)
    ]
    assert (torch.stack(places) == expected).any(0)[few].all()


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("name", HARD)
def test_triton_on_a_gpu(name):
    z, codebook = HARD[name](96, 333, 24)
    found = kernels.nearest(z.cuda(), codebook.cuda())
    assert torch.equal(found.cpu(), reference.nearest(z, codebook))


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dim", [1, 8, 13, 64, 128, 130, 256, 512, 600])
@pytest.mark.parametrize("name", ["gaussian", "tied", "small", "one huge code", "collapsed"])
def test_triton_on_a_gpu_at_length(name, dim):
    z, codebook = (rows.cuda() for rows in HARD[name](5000, 3000, dim))
    assert torch.equal(kernels.nearest(z, codebook), reference.nearest(z, codebook))


@pytest.mark.gpu
@needs_cuda
def test_triton_on_a_gpu_in_every_launch():
    from qvae.kernels import triton_search

    z, codebook = (rows.cuda() for rows in HARD["gaussian"](5000, 3000, 64))
    expected = reference.nearest(z, codebook)
    for launch in triton_search.CONFIGS:
        assert torch.equal(triton_search.nearest(z, codebook, launch), expected), launch


@pytest.mark.gpu
@needs_cuda
def test_tensor_cores_add_as_the_proof_assumes():
    """Sums of float16 products are within half of what docs/nearest.md allows, 8 u a column."""
    unit = 2.0**-24
    for width in (16, 80, 272, 528):
        spread = 2.0 ** (12 * torch.rand(width, generator=torch.Generator().manual_seed(4)) - 6)
        a = (normal(2048, width) * spread).half().cuda()
        b = (normal(2048, width, seed=1) / spread).half().cuda()
        a[:, -1] = 1
        b[:, -1] = -(b[:, :-1].float() @ a[0, :-1].float()).half()  # sums of the first row cancel
        found = torch.mm(a, b.T, out_dtype=torch.float32).double()
        a, b = a.double(), b.double()
        limit = (4 * width + 16) * unit * (a.abs() @ b.abs().T)
        assert ((found - a @ b.T).abs() <= limit).all(), width


@pytest.mark.skipif(IS_INTERPRETED, reason="this process has imported it")
def test_importing_the_kernels_does_not_import_triton():
    code = "import sys, qvae.kernels; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
