"""A VQ-VAE training step with our quantizer and with pythae's, in the same network.

    pip install --no-deps pythae==0.1.2 && pip install --group bench
    python benchmarks/vqvae_step.py

32x32x3 pictures, batch 128, hidden 128 and 256, K=512, D=64. The variants take turns in one run;
the result is the median of the rounds and its ratio to pythae's quantizer in eager float32. Writes
``benchmarks/results/vqvae_step.json``, and with ``--device cuda`` ``vqvae_step_cuda.json``. "bf16"
is bfloat16 autocast with channels-last networks.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvae.autoencoder import Autoencoder, build_autoencoder
from qvae.bottlenecks.base import Quantizer
from qvae.reports.machine import describe_machine
from qvae.store import write_json
from qvae.train.engine import resolve_device
from qvae.train.log import device_name
from qvae.types import Batch, DataSpec, Latent

RESULTS = Path(__file__).parent / "results"
BATCH = 128


class Pythae(Quantizer):
    """pythae's EMA quantizer behind our contract, so that everything around it is the same."""

    def __init__(self, *, codebook_size: int, dim: int) -> None:
        super().__init__()
        from pythae.models.vq_vae.vq_vae_config import VQVAEConfig
        from pythae.models.vq_vae.vq_vae_utils import QuantizerEMA

        self.in_dim = self.out_dim = dim
        self.codebook_sizes = (codebook_size,)
        config = VQVAEConfig(
            input_dim=(3, 32, 32), latent_dim=dim, num_embeddings=codebook_size, use_ema=True
        )
        config.embedding_dim = dim
        self.theirs = QuantizerEMA(config)

    def forward(self, z_e: Tensor, mask: Tensor | None = None) -> Latent:
        out = self.theirs(z_e)
        return Latent(
            z=out.quantized_vector.permute(0, 2, 3, 1),
            rate=z_e.new_full((len(z_e),), 64 * self.nats_per_cell),
            penalty=out.loss.expand(len(z_e)),
            codes=out.quantized_indices.movedim(1, -1),
        )

    def encode(self, z_e: Tensor) -> Tensor:
        return self.theirs(z_e).quantized_indices.movedim(1, -1)

    def decode(self, codes: Tensor) -> Tensor:
        return self.theirs.embeddings[codes[..., 0]]


def build(hidden: int, *, is_ours: bool, is_bf16: bool, device: torch.device) -> Callable[[], None]:
    """Return a function that makes one training step."""
    torch.manual_seed(0)
    network = {"hidden": hidden, "residual": 32, "num_blocks": 2, "downsample": 4}
    model: Autoencoder = build_autoencoder(
        {
            "encoder": {"name": "conv", **network},
            "bottleneck": {"name": "vq_ema", "codebook_size": 512, "dim": 64},
            "decoder": {"name": "conv", **network},
            "likelihood": {"name": "gaussian", "sigma": 0.1},
        },
        DataSpec(shape=(3, 32, 32), levels=256),
    )
    if not is_ours:
        model.bottleneck = Pythae(codebook_size=512, dim=64)
    model.to(device)
    x = torch.rand(BATCH, 3, 32, 32).to(device)
    if is_bf16:
        model, x = _channels_last(model), x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    batch = Batch(x=x)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            loss = model(batch).total
        loss.backward()
        optimizer.step()
        model.after_step()

    return step


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _channels_last(model: nn.Module) -> Any:
    return model.to(memory_format=torch.channels_last)


VARIANTS = {
    "pythae, float32": {"is_ours": False, "is_bf16": False},
    "ours, float32": {"is_ours": True, "is_bf16": False},
    "pythae, bf16": {"is_ours": False, "is_bf16": True},
    "ours, bf16": {"is_ours": True, "is_bf16": True},
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    device = resolve_device(args.device)
    torch.set_num_threads(args.threads)
    report: dict[str, Any] = {
        "what": "one training step, median of interleaved rounds",
        "batch": BATCH,
        "threads": args.threads,
        "rounds": args.rounds,
        "device": device_name(device),
        "machine": {key: describe_machine()[key] for key in ("cpu", "flags")},
        "torch": torch.__version__.split("+")[0],
        "hidden": {},
    }
    for hidden in (128, 256):
        steps = {
            name: build(hidden, **variant, device=device) for name, variant in VARIANTS.items()
        }
        for step in steps.values():
            step()
            step()
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(args.rounds):
            for name, step in steps.items():
                wait_for(device)
                start = time.perf_counter()
                step()
                wait_for(device)
                times[name].append(time.perf_counter() - start)
        medians = {name: statistics.median(values) for name, values in times.items()}
        report["hidden"][str(hidden)] = {
            "milliseconds": {name: round(1e3 * value, 1) for name, value in medians.items()},
            "against pythae float32": round(medians["pythae, float32"] / medians["ours, bf16"], 2),
            "at equal bf16": round(medians["pythae, bf16"] / medians["ours, bf16"], 2),
            "at equal float32": round(medians["pythae, float32"] / medians["ours, float32"], 2),
        }
        sys.stdout.write(f"hidden {hidden}: {report['hidden'][str(hidden)]}\n")
    name = "vqvae_step" if device.type == "cpu" else f"vqvae_step_{device.type}"
    write_json(RESULTS / f"{name}.json", report)


if __name__ == "__main__":
    main()
