"""Every path of the nearest-code search gives the answer of float64, on data made to be hard."""

import ctypes
import inspect
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kernel_cases import IS_INTERPRETED
from qvae import kernels
from qvae.errors import UsageError
from qvae.kernels import dispatch, native, reference, tiled
from qvae.reports.hard_data import HARD, normal

ROOT = Path(__file__).resolve().parents[1]
FAST = [path for path in dispatch.PATHS if path not in ("reference", "triton")]
if "amx" not in native.engines():  # its engine runs on emulated tiles below
    FAST.remove("amx")


@pytest.fixture(params=["triton"] if IS_INTERPRETED else FAST)
def path(request, monkeypatch):
    """Force one path after the other; those that this machine lacks say why they are skipped."""
    reason = dispatch.available(request.param)
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    monkeypatch.setenv("QVAE_KERNEL", request.param)
    if IS_INTERPRETED:  # its time goes by the number of blocks, not by their size
        from qvae.kernels import triton_search

        monkeypatch.setattr(triton_search, "_FEW", 128)
        monkeypatch.setattr(triton_search, "_MANY", 1024)
    return request.param


@pytest.mark.parametrize("name", HARD)
def test_hard_data(path, name):
    z, codebook = HARD[name](96, 333, 24)
    assert torch.equal(kernels.nearest(z, codebook), reference.nearest(z, codebook))


@pytest.fixture
def flush():
    """Let torch flush denormals; the test says when."""
    yield lambda: torch.set_flush_denormal(True)
    torch.set_flush_denormal(False)


SMALL = ["gaussian", "barely normal", "denormal", "down to denormal", "tiny", "small"]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("is_finite", [True, False])
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("engine", FAST)  # Triton's interpreter flushes what it computes, a GPU not
def test_flushing_denormals_changes_no_code(engine, name, is_finite, threads, monkeypatch, flush):
    if dispatch.available(engine):
        pytest.skip(f"{engine}: {dispatch.available(engine)}")
    monkeypatch.setenv("QVAE_KERNEL", engine)
    z, codebook = HARD[name](600, 333, 24)
    codebook[5] = codebook[5] if is_finite else torch.inf
    expected = reference.nearest(z, codebook)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        flush()
        assert torch.equal(kernels.nearest(z, codebook), expected)
        assert torch.equal(reference.nearest(z, codebook), expected)
    finally:
        torch.set_num_threads(before)


BORN_FLUSHING = """
import os, torch
from qvae import kernels
from qvae.reports.hard_data import HARD
torch.set_num_threads(3)
torch.set_flush_denormal(True)
torch.ones(1 << 20).mul(2)  # the pool's threads start here
torch.set_flush_denormal(False)
for name in ("down to denormal", "denormal"):
    z, codebook = HARD[name](1600, 700, 24)
    found = {}
    for path in ("reference", "torch"):
        os.environ["QVAE_KERNEL"] = path
        found[path] = kernels.nearest(z, codebook)
    torch.set_num_threads(1)
    os.environ["QVAE_KERNEL"] = "reference"
    expected = kernels.nearest(z, codebook)
    torch.set_num_threads(3)
    assert all(torch.equal(codes, expected) for codes in found.values()), name
"""


def test_threads_that_were_born_flushing_change_no_code():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", BORN_FLUSHING]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


SHAPES = [(0, 3, 2), (1, 1, 1), (1, 700, 3), (13, 2, 300), (40, 31, 1), (33, 97, 2), (25, 2300, 31)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(path, shape):
    n, k, d = shape
    z, codebook = normal(n, d), normal(k, d, seed=1)
    assert torch.equal(kernels.nearest(z, codebook), reference.nearest(z, codebook))


@pytest.mark.parametrize("dim", [1, 2, 7, 8, 15, 16, 17, 33, 64, 65, 127])
def test_every_width(path, dim):
    z, codebook = normal(30, dim), normal(70, dim, seed=1)
    assert torch.equal(kernels.nearest(z, codebook), reference.nearest(z, codebook))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_hypothesis_finds(path, data):
    n, k, d = (data.draw(st.integers(1, most)) for most in (14, 40, 9))
    special = st.sampled_from(
        [0.0, -0.0, 1.0, -1.0, 0.5, 2.0**-149, 2.0**-126, 2.0**100, 1 + 2**-23]
    )
    most = 2.0**126
    numbers = st.one_of(special, st.floats(-4, 4, width=32), st.floats(-most, most, width=32))
    z, codebook = (
        torch.from_numpy(data.draw(arrays.arrays(np.float32, (rows, d), elements=numbers)))
        for rows in (n, k)
    )
    assert torch.equal(kernels.nearest(z, codebook), reference.nearest(z, codebook))


def test_reference_is_brute_force():
    z, codebook = normal(50, 6).numpy(), normal(40, 6, seed=1).numpy()
    gap = z[:, None].astype(np.float64) - codebook
    brute = (gap**2).sum(-1).argmin(1)
    assert np.array_equal(reference.nearest(torch.tensor(z), torch.tensor(codebook)), brute)


def test_strides_half_precision_and_gradients(path):
    z, codebook = normal(24, 50).T, normal(2 * 70, 24, seed=1)[::2]
    expected = reference.nearest(z, codebook)
    assert torch.equal(kernels.nearest(z.clone().requires_grad_(), codebook), expected)
    half = z.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = kernels.nearest(half, codebook)
    assert torch.equal(found, reference.nearest(half.float(), codebook))


def test_codes_do_not_depend_on_threads(path):
    z, codebook = normal(1030, 8), normal(100, 8, seed=1)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(kernels.nearest(z, codebook))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_a_row_that_is_not_finite_spoils_no_other(path):
    z, codebook = normal(20, 5), normal(60, 5, seed=1)
    expected = reference.nearest(z, codebook)
    for bad in (torch.nan, torch.inf, -torch.inf):
        broken = z.clone()
        broken[7, 2] = bad
        found = kernels.nearest(broken, codebook)
        assert torch.equal(found.where(torch.arange(20) != 7, expected), expected)
        assert 0 <= found[7] < 60
        codebook_broken = codebook.clone()
        codebook_broken[3, 1] = bad
        found = kernels.nearest(z, codebook_broken)
        assert found.min() >= 0 and found.max() < 60


def test_more_candidates_than_any_list_holds(path):
    codebook = torch.cat([normal(40, 4, seed=1), torch.full((5000, 4), 0.25)])
    z = torch.full((300, 4), 0.25) + 1e-3 * normal(300, 4)
    assert torch.equal(kernels.nearest(z, codebook), reference.nearest(z, codebook))


def test_lower_matrix_precision_changes_no_code(monkeypatch):
    monkeypatch.setenv("QVAE_KERNEL", "torch")
    z, codebook = normal(300, 64), normal(2100, 64, seed=1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = kernels.nearest(z, codebook)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, reference.nearest(z, codebook))


@pytest.mark.parametrize("name", ["gaussian", "tied", "collapsed", "one huge code"])
def test_torch_without_onednn(name, monkeypatch):
    monkeypatch.setattr(tiled, "_has_onednn", lambda: False)
    z, codebook = HARD[name](600, 333, 24)
    assert torch.equal(tiled.nearest(z, codebook), reference.nearest(z, codebook))


@pytest.mark.parametrize("size", [2048, 2500])
def test_torch_in_several_blocks_and_tiles(size, monkeypatch):
    """Blocks, tiles and pieces that are left over: rows and codes divide by none of them."""
    for name, value in (("_ROWS", 48), ("_BLOCK", 1 << 11), ("_PIECE", 1 << 11)):
        monkeypatch.setattr(tiled, name, value)
    for make in HARD["tied"], HARD["one huge code"]:
        z, codebook = make(333, size, 20)
        assert torch.equal(tiled.nearest(z, codebook), reference.nearest(z, codebook))


def test_compiles_into_one_graph():
    search = inspect.unwrap(kernels.nearest)  # the tests' own check of shapes cannot be traced

    def lookup(z, codebook):
        return codebook[search(z * 2, codebook)] + 1

    z, codebook = normal(9, 4), normal(30, 4, seed=1)
    compiled = torch.compile(lookup, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(z, codebook), lookup(z, codebook))
    torch.library.opcheck(torch.ops.qvae.nearest, (z, codebook))


@pytest.mark.parametrize(
    ("z", "codebook", "message"),
    [
        (torch.ones(2, 3), torch.ones(0, 3), "codebook"),
        (torch.ones(2, 0), torch.ones(4, 0), "codebook"),
        (torch.ones(2, 3), torch.ones(4, 2), "z has rows of 3 numbers, the codebook 2"),
        (torch.ones(3), torch.ones(4, 3), r"z of shape \(3,\): must have two axes"),
        (torch.ones(2, 5, 3), torch.ones(4, 3), r"z of shape \(2, 5, 3\): must have two axes"),
        (torch.ones(2, 3), torch.ones(3), r"codebook of shape \(3,\): must have two axes"),
        (torch.ones(2, 3), torch.ones(()), r"codebook of shape \(\): must have two axes"),
    ],
)
def test_shapes_that_have_no_answer(z, codebook, message):
    search = inspect.unwrap(kernels.nearest)  # the tests' own check of shapes would come first
    with pytest.raises(ValueError, match=message):
        search(z, codebook)


@pytest.mark.parametrize("wide", ["z", "codebook", "both"])
def test_float64_on_either_side_is_not_rounded(wide):
    """Two codes that float32 cannot tell apart; the second is nearer, so a tie would be wrong."""
    codebook = torch.tensor([[1.0], [1.0 + 1e-9]], dtype=torch.float64)
    z = torch.tensor([[2.0]], dtype=torch.float64)
    if wide == "z":  # a float64 vector between two codes of float32
        z = torch.tensor([[1.5 + 1e-9]], dtype=torch.float64)
        codebook = torch.tensor([[1.0], [2.0]])
    elif wide == "codebook":
        z = z.float()
    assert kernels.nearest(z, codebook).tolist() == [1]


@pytest.mark.parametrize("name", ["fastest", "Triton"])
def test_a_path_that_cannot_be_taken_is_an_error(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("QVAE_KERNEL", name)
    with pytest.raises(UsageError, match=f"QVAE_KERNEL={name}"):
        kernels.nearest(torch.ones(2, 3), torch.ones(4, 3))
    with pytest.raises(UsageError, match=f"QVAE_KERNEL={name}"):  # where no path has a choice, too
        kernels.nearest(torch.ones(2, 3).double(), torch.ones(4, 3).double())


def test_without_the_library_torch_searches_and_says_why_once(monkeypatch, caplog):
    monkeypatch.delenv("QVAE_KERNEL", raising=False)
    monkeypatch.setattr(native, "engines", tuple)
    monkeypatch.setattr(native, "load", lambda: (None, "the native library was not built"))
    dispatch._say_once.cache_clear()
    assert kernels.describe() == "torch (the native library was not built)"
    for _ in range(2):
        kernels.nearest(torch.ones(2, 3), torch.ones(4, 3))
    assert [record.message for record in caplog.records].count(
        "nearest-code search: torch (the native library was not built)"
    ) == 1
    dispatch._say_once.cache_clear()


def test_a_processor_without_any_engine_is_told_which_it_lacks(monkeypatch):
    monkeypatch.delenv("QVAE_KERNEL", raising=False)
    monkeypatch.setattr(native, "engines", tuple)
    monkeypatch.setattr(native, "load", lambda: (object(), ""))
    assert kernels.describe() == (
        "torch (this processor has none of avx2, avx512, avx512bf16, amx)"
    )


# -- the AMX engine on emulated tiles -----------------------------------------------------------

DRIVER = """
#include "problem.h"
extern "C" int search(const float* z, const float* c, int64_t n, int64_t k, int64_t d,
                      int64_t* codes, const float* centre, float scale) {
  const Problem p = {z, c, n, k, d, codes, centre, scale, true};
  return search_amx(p, 0, n);
}
"""


@pytest.fixture(scope="module")
def emulated_amx(tmp_path_factory):
    """The engine's own source, with tests/tiles_emulated.h in the place of the tiles."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("the AMX engine on emulated tiles: no C++ compiler")
    if "avx512" not in native.engines():
        pytest.skip(f"the AMX engine on emulated tiles: needs AVX-512, not {platform.machine()}")
    folder = tmp_path_factory.mktemp("amx")
    (folder / "driver.cpp").write_text(DRIVER)
    sets = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"]
    places = [f"-I{ROOT / 'native'}", f"-I{ROOT / 'tests'}", "-DQVAE_EMULATE_TILES"]
    sources = [str(ROOT / "native" / "amx.cpp"), str(folder / "driver.cpp")]
    flags = ["-O2", "-ffp-contract=off", "-fPIC", "-shared", "-w", "-std=c++17"]
    out = str(folder / "amx.so")
    subprocess.run([compiler, *flags, *sets, *places, *sources, "-o", out], check=True)
    library = ctypes.CDLL(out)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.search.argtypes = [*[pointer] * 2, *[size] * 3, *[pointer] * 2, ctypes.c_float]

    def search(z, codebook):
        z, codebook = z.contiguous(), codebook.contiguous()
        codes = torch.empty(len(z), dtype=torch.int64)
        centre = codebook.median(0).values
        largest = (codebook - centre).abs().max()
        scale = 2.0 ** -float(largest.log2().floor()) if largest > 0 else 1.0
        pointers = codes.data_ptr(), centre.data_ptr()
        sizes = len(z), len(codebook), z.shape[1]
        assert library.search(z.data_ptr(), codebook.data_ptr(), *sizes, *pointers, scale)
        return codes

    return search


@pytest.mark.parametrize("name", [name for name in HARD if name != "denormal"])
def test_amx_on_emulated_tiles(emulated_amx, name):
    z, codebook = HARD[name](70, 333, 24)
    assert torch.equal(emulated_amx(z, codebook), reference.nearest(z, codebook))


@pytest.mark.parametrize("shape", [(1, 1, 1), (33, 97, 33), (65, 700, 130)], ids=str)
def test_amx_on_emulated_tiles_in_every_shape(emulated_amx, shape):
    n, k, d = shape
    z, codebook = normal(n, d), normal(k, d, seed=1)
    assert torch.equal(emulated_amx(z, codebook), reference.nearest(z, codebook))
