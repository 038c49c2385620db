"""The cross-entropy of a head, in chunks."""

import pytest
import torch

from qvae.priors.cross_entropy import linear_cross_entropy


@pytest.mark.parametrize("is_bf16", [False, True])
def test_cross_entropy_in_chunks_is_the_cross_entropy(is_bf16, monkeypatch):
    monkeypatch.setattr("qvae.priors.cross_entropy._CHUNK_NUMBERS", 64)  # chunks of 3 rows
    torch.manual_seed(0)
    x, weight = torch.randn(10, 5, requires_grad=True), torch.randn(20, 5, requires_grad=True)
    targets, share = torch.randint(20, (10,)), torch.rand(10)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        nll, is_best = linear_cross_entropy(x, weight, targets)
        logits = torch.nn.functional.linear(x, weight).float()
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(nll, expected)
    assert torch.equal(is_best, logits.argmax(1) == targets) and nll.dtype == torch.float32
    found = torch.autograd.grad((nll * share).sum(), (x, weight))
    wanted = torch.autograd.grad((expected * share).sum(), (x, weight))
    close = {"rtol": 0.02, "atol": 0.02} if is_bf16 else {}
    torch.testing.assert_close(found, wanted, **close)
