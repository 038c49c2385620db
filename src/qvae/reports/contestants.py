"""What the benchmarks run against each other: our search and quantizer, and the peers'.

A peer is imported when it is asked for; ``pip install --group bench`` installs them.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from qvae.bottlenecks.vq_ema import VQEMA
from qvae.kernels import nearest
from qvae.kernels.dispatch import PATHS

__all__ = ["PEERS", "PEER_BYTES", "make_search", "make_step", "on_path", "peer_codes", "why_absent"]

Run = Callable[[], Any]

PEERS = {
    "vector-quantize-pytorch": ("vector_quantize_pytorch", "1.32.0"),
    "pythae": ("pythae.models", "0.1.2"),
    "diffusers": ("diffusers", "0.42.1"),
}
"""Distribution -> module, and the release that the results are of."""

PEER_BYTES = {
    "vector-quantize-pytorch": 24,
    "pythae": 20,
    "diffusers": 4,
    "cdist": 8,
    "product": 4,
}
"""Peak bytes for each pair of a vector and a code, rounded up, to refuse what would not fit."""


@contextmanager
def on_path(name: str) -> Iterator[None]:
    """Force our search onto a path for a while; ``ours`` forces nothing."""
    if name not in PATHS:
        yield
        return
    before = os.environ.get("QVAE_KERNEL")
    os.environ["QVAE_KERNEL"] = name
    try:
        yield
    finally:
        del os.environ["QVAE_KERNEL"]
        if before is not None:
            os.environ["QVAE_KERNEL"] = before


def why_absent(name: str) -> str:
    """Return why a peer cannot take part, or nothing."""
    if name not in PEERS:
        return ""
    module, wanted = PEERS[name]
    try:
        found = version(name)
    except PackageNotFoundError:
        return "not installed"
    if found != wanted:
        return f"release {found} is installed, {wanted} is wanted"
    try:
        import_module(module)
    except ImportError as error:
        return f"cannot be imported: {error}"
    return ""


def make_search(name: str, z: Tensor, codebook: Tensor) -> Run:
    """Return a call that finds the codes of ``z``: ours, a peer's eval, or torch's."""
    size, dim = codebook.shape
    if name in ("product", "product in tiles"):
        return _product(z, codebook, rows=len(z) if name == "product" else 256)
    if name == "cdist":
        return lambda: torch.cdist(z, codebook).argmin(1)
    if name in PEERS:
        module, call = _peer(name, size, dim)
        module.eval()
        return torch.no_grad()(lambda: call(z))
    return lambda: nearest(z, codebook)


@torch.no_grad()
def peer_codes(name: str, z: Tensor, codebook: Tensor) -> Tensor:
    """Return the codes that a peer's own class, in evaluation, gives rows by a codebook."""
    module, call = _peer(name, *codebook.shape)
    tables = {
        "vector-quantize-pytorch": lambda: module.codebook,
        "pythae": lambda: module.embeddings,
        "diffusers": lambda: module.embedding.weight,
    }
    tables[name]().copy_(codebook)
    module.eval()
    return call(z)[2].flatten()


def make_step(name: str, z: Tensor, codebook_size: int) -> Run:
    """Return a call that does a quantizer's part of a training step.

    Forward, the loss's way back to the encoder, and the codebook's update. diffusers has no moving
    averages: its codebook's gradient is computed, the optimizer's step is left out.
    """
    weight = torch.linspace(-1, 1, z.shape[1])
    if name in PEERS:
        module, call = _peer(name, codebook_size, z.shape[1])
        module.train()

        def step() -> None:
            vectors = z.clone().requires_grad_()
            quantized, loss, _ = call(vectors)
            ((quantized * weight).mean() + loss.mean()).backward()

        return step
    ours = VQEMA(codebook_size=codebook_size, dim=z.shape[1]).train()
    ours.is_initialized.fill_(True)  # time a step, not the k-means of the first

    def our_step() -> None:
        vectors = z.clone().requires_grad_()
        out = ours(vectors[None])
        ((out.z * weight).mean() + out.penalty.mean() / len(z)).backward()
        ours.after_step()

    return our_step


def _product(z: Tensor, codebook: Tensor, *, rows: int) -> Run:
    """The matrix product of the same shapes, which is the work that no search gets around."""
    columns = len(codebook) if rows == len(z) else 1024
    out = torch.empty(rows, min(columns, len(codebook)))

    def run() -> None:
        for part in z.split(rows):
            for some in codebook.split(columns):
                torch.mm(part, some.T, out=out[: len(part), : len(some)])

    return run


def _peer(
    name: str, size: int, dim: int
) -> tuple[Any, Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]]:
    """A peer's quantizer with its defaults, and its call: ``[N, D]`` to the same, loss, codes."""
    if name == "pythae":
        from pythae.models.vq_vae.vq_vae_config import VQVAEConfig
        from pythae.models.vq_vae.vq_vae_utils import QuantizerEMA

        config = VQVAEConfig(input_dim=(1, 1, 1), latent_dim=dim, num_embeddings=size, use_ema=True)
        config.embedding_dim = dim
        module: Any = QuantizerEMA(config)

        def call_pythae(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            out = module(z[None, :, None])
            return out.quantized_vector.reshape(dim, -1).T, out.loss, out.quantized_indices

        return module, call_pythae
    if name == "diffusers":
        from diffusers.models.autoencoders.vae import VectorQuantizer

        module = VectorQuantizer(size, dim, beta=0.25, legacy=False)

        def call_diffusers(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            quantized, loss, (_, _, codes) = module(z.T[None, :, :, None])
            return quantized[0, :, :, 0].T, loss, codes

        return module, call_diffusers
    from vector_quantize_pytorch import VectorQuantize

    module = VectorQuantize(dim=dim, codebook_size=size)

    def call_vqp(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, codes, loss = module(z[None])
        return quantized[0], loss, codes

    return module, call_vqp
