"""Every path of the nearest-code search gives the answer of float64, on data made to be hard."""

import ctypes
import inspect
import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qvae import kernels
from qvae.errors import UsageError
from qvae.kernels import dispatch, native, reference, tiled
from qvae.kernels.band import place_codes

ROOT = Path(__file__).resolve().parents[1]
IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
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


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(n, k, d):
    mix = normal(d, d, seed=3) * torch.logspace(0, -3, d)
    return normal(n, d) @ mix, normal(k, d, seed=1) @ mix


def tied(n, k, d):
    z, codebook = normal(n, d), normal(k, d, seed=1)
    codebook[k // 2 :] = codebook[: k - k // 2].clone()
    return z, codebook[torch.randperm(k, generator=torch.Generator().manual_seed(2))]


def huge(n, k, d):
    z, codebook = normal(n, d), normal(k, d, seed=1)
    codebook[k // 3] *= 1e4
    return z, codebook


def far_apart(n, k, d):
    z, codebook = normal(n, d), normal(k, d, seed=1)
    return z * torch.logspace(-20, 18, n)[:, None], codebook


HARD = {
    "gaussian": lambda n, k, d: (normal(n, d), normal(k, d, seed=1)),
    "correlated": correlated,
    "tied": tied,
    "integers": lambda n, k, d: (normal(n, d).round(), normal(k, d, seed=1).round()),
    "small": lambda n, k, d: (normal(n, d), (torch.rand(k, d) * 2 - 1) / k),
    "collapsed": lambda n, k, d: (normal(n, d), 1 + 1e-6 * normal(k, d, seed=1)),
    "identical": lambda n, k, d: (normal(n, d), torch.ones(k, d)),
    "offset": lambda n, k, d: (normal(n, d) + 1000, normal(k, d, seed=1) + 1000),
    "offset codes": lambda n, k, d: (normal(n, d), normal(k, d, seed=1) + 1000),
    "one huge code": huge,
    "denormal": lambda n, k, d: (normal(n, d) * 1e-40, normal(k, d, seed=1) * 1e-40),
    "tiny": lambda n, k, d: (normal(n, d) * 1e-25, normal(k, d, seed=1) * 1e-25),
    "enormous": lambda n, k, d: (normal(n, d) * 1e37, normal(k, d, seed=1) * 1e37),
    "every magnitude": far_apart,
    "rows are codes": lambda n, k, d: (normal(k, d, seed=1)[:n], normal(k, d, seed=1)),
    "permuted ones": lambda n, k, d: (torch.zeros(n, d), shuffled(k, d)),
}


def shuffled(k, d):
    """Codes of one norm in exact arithmetic: float64 sums of them differ by the order alone."""
    base = normal(d)
    generator = torch.Generator().manual_seed(1)
    return torch.stack([base[torch.randperm(d, generator=generator)] for _ in range(k)])


@pytest.mark.parametrize("name", HARD)
def test_hard_data(path, name):
    z, codebook = HARD[name](96, 333, 24)
    assert torch.equal(kernels.nearest(z, codebook), reference.nearest(z, codebook))


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


# -- triton ------------------------------------------------------------------------------------


@pytest.mark.skipif(IS_INTERPRETED, reason="this is the interpreted run")
def test_triton_in_its_interpreter():
    """Triton reads TRITON_INTERPRET when it is imported, so its tests get their own process."""
    if find_spec("triton") is None:
        pytest.skip("triton's path is NOT tested here: triton has no build for this machine")
    # NumPy warns of an overflow where a GPU makes an infinity and goes on.
    ignored = ["-W", "ignore:overflow encountered:RuntimeWarning"]
    command = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "[triton", *ignored]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout[-4000:]
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
