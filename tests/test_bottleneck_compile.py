"""Every quantizer compiles into one graph, and then does what it does without.

The tests' own check of shapes cannot be traced, so these run in a process of their own without it.
"""

import copy
import math
import os
import subprocess
import sys

import pytest
import torch

from cases import QUANTIZERS
from test_bottleneck_laws import started

IS_UNTYPED = os.environ.get("QVAE_TEST_UNTYPED") == "1"
untyped = pytest.mark.skipif(not IS_UNTYPED, reason="runs in a process without checks of shapes")
TRACED = ["gumbel", "simvq", "lfq"]
"""Also through autograd's tracing, which is slower: those that stage both ways, and the one that
draws, since torch's `eager` backend repeats a checkpoint with other random numbers."""
# torch makes an instance of each autograd function while it traces, and warns of it.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated")


@pytest.mark.skipif(IS_UNTYPED, reason="this is the process without checks of shapes")
def test_compilation_in_a_process_without_checks_of_shapes():
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "--tb=short", __file__]
    environment = {**os.environ, "QVAE_TEST_UNTYPED": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
    assert f"{2 * len(QUANTIZERS) + 2} passed" in run.stdout.splitlines()[-1]


def step(quantizer, forward, z_e, mask):
    """One step of training: what comes out, the gradient, and the state after it."""
    torch.manual_seed(3)
    z_e = z_e.clone().requires_grad_()
    latent = forward(z_e, mask)
    (latent.z.square().sum() + latent.penalty.sum() + latent.rate.sum()).backward()
    quantizer.after_step()
    return {
        "z": latent.z.detach(),
        "codes": latent.codes,
        "rate": latent.rate.detach(),
        "penalty": latent.penalty.detach(),
        "gradient": z_e.grad,
        **latent.metrics,
        **quantizer.state_dict(),
    }


@untyped
@pytest.mark.parametrize("name", QUANTIZERS)
def test_evaluation_is_one_graph(name):
    quantizer = started(name).eval()
    z_e = torch.randn(4, 5, quantizer.in_dim)
    expected = quantizer(z_e)
    torch.compiler.reset()

    def forward(z):
        return quantizer(z), quantizer.decode(quantizer.encode(z))

    forward = torch.compile(forward, fullgraph=True, backend="eager")
    latent, decoded = forward(z_e)
    assert torch.equal(latent.z, expected.z) and torch.equal(latent.codes, expected.codes)
    assert torch.equal(latent.rate, expected.rate) and torch.equal(decoded, expected.z)
    torch.testing.assert_close(latent.penalty, expected.penalty)
    with pytest.raises(RuntimeError, match="must be finite"):
        forward(torch.where(torch.rand_like(z_e) < 0.5, math.nan, z_e))


@untyped
@pytest.mark.parametrize(
    ("name", "backend"),
    [(name, "aot_eager" if name in TRACED else "eager") for name in QUANTIZERS],
)
def test_a_masked_training_step_is_one_graph_and_counts_the_same(name, backend):
    quantizer = started(name)
    compiled = copy.deepcopy(quantizer)
    z_e = torch.randn(16, 5, quantizer.in_dim)
    mask = torch.rand(16, 5) < 0.7
    expected = step(quantizer, quantizer, z_e, mask)
    torch.compiler.reset()
    forward = torch.compile(compiled, fullgraph=True, backend=backend)
    found = step(compiled, forward, z_e, mask)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=f"{key} differs")
    assert torch.equal(found["codes"], expected["codes"])


@untyped
@pytest.mark.parametrize("name", ["simvq", "lfq"])
def test_a_compiled_forward_that_is_computed_again_counts_once(name):
    from torch.utils.checkpoint import checkpoint

    once = started(name)
    twice = copy.deepcopy(once)
    z_e = torch.randn(16, 5, once.in_dim, requires_grad=True)
    once(z_e).z.sum().backward()
    forward = torch.compile(twice, fullgraph=True, backend="aot_eager")
    checkpoint(lambda z: forward(z).z, z_e, use_reentrant=False).sum().backward()
    for buffer, other in zip(once.buffers(), twice.buffers(), strict=True):
        torch.testing.assert_close(other, buffer)
