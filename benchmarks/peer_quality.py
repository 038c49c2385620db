"""What a quantizer learns: ours against the peers', each in the same place of the same network.

    pip install --group bench    # vector-quantize-pytorch 1.32.0, diffusers 0.42.1
    apt-get download dataset-fashion-mnist && dpkg -x dataset-fashion-mnist*.deb fashion
    python benchmarks/peer_quality.py fashion/usr/share/datasets/fashion-mnist

Encoder, decoder, first weights, data, order of the data, steps, optimizer and bits are equal
within a pair; only the quantizer differs, each with its own defaults. The likelihood is a Gaussian
of width 0.5 on pixels in 0..1, which is the mean squared error on pixels in -1..1, as the peers'
examples have it; a peer's loss, a mean, is added to that mean. Scores are of the test part: PSNR,
and the share of codes that occur. Interrupted, it goes on. Writes
``benchmarks/results/peer_quality.json``.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.base import Bottleneck, Quantizer
from qvae.config import load_recipe
from qvae.data.images import Images
from qvae.metrics.reconstruction import psnr
from qvae.reports.machine import describe_machine
from qvae.runs.build import build_model
from qvae.store import read_json, write_json
from qvae.train import fit
from qvae.types import Latent

RESULTS = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
SIGMA = 0.5  # of pixels in 0..1: the plain squared error of pixels in -1..1
Call = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


class PeerQuantizer(Bottleneck):
    """A peer's module in the place of ours: its vectors, its integers, its loss."""

    def __init__(self, ours: Quantizer, module: nn.Module, call: Call, num_values: int) -> None:
        super().__init__()
        self.in_dim, self.out_dim = ours.in_dim, ours.out_dim
        self.codebook_sizes, self.nats_per_cell = ours.codebook_sizes, ours.nats_per_cell
        self.module, self.call, self.num_values = module, call, num_values

    def forward(self, z_e: Tensor, mask: Tensor | None = None) -> Latent:
        """Quantise as the peer does, in float32; its state moves inside its own forward."""
        with torch.autocast(z_e.device.type, enabled=False):
            z, codes, loss = self.call(z_e.float().flatten(1, -2))
        codes = codes.view(*z_e.shape[:-1], len(self.codebook_sizes))
        rate = codes[0, ..., 0].numel() * self.nats_per_cell
        return Latent(
            z=z.view(z_e.shape),
            rate=torch.full((len(z_e),), rate, device=z_e.device),
            penalty=(loss * self.num_values / 2).expand(len(z_e)),  # nats: half a sum of squares
            codes=codes,
        )


def vqp_vq() -> tuple[nn.Module, Call]:
    """Moving averages, as in vector-quantize-pytorch's first example."""
    from vector_quantize_pytorch import VectorQuantize

    module = VectorQuantize(dim=64, codebook_size=1024)
    return module, module


def vqp_fsq() -> tuple[nn.Module, Call]:
    """Rounded coordinates; no loss of its own."""
    from vector_quantize_pytorch import FSQ

    module = FSQ(levels=[8, 5, 5, 5])
    return module, lambda z: (*module(z), z.new_zeros(()))


def vqp_lfq() -> tuple[nn.Module, Call]:
    """Signs, with the entropy term at its default weight."""
    from vector_quantize_pytorch import LFQ

    module = LFQ(codebook_size=1024, dim=10)
    return module, module


def vqp_residual() -> tuple[nn.Module, Call]:
    """Four tables in a row; its loss is one for each of them."""
    from vector_quantize_pytorch import ResidualVQ

    module = ResidualVQ(dim=64, num_quantizers=4, codebook_size=256)

    def call(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, codes, losses = module(z)
        return quantized, codes, losses.sum()

    return module, call


def diffusers_vq() -> tuple[nn.Module, Call]:
    """A table that learns by its gradient."""
    from diffusers.models.autoencoders.vae import VectorQuantizer

    module = VectorQuantizer(1024, 64, beta=0.25, legacy=False)

    def call(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quantized, loss, (_, _, codes) = module(z.transpose(1, 2)[..., None])
        return quantized[..., 0].transpose(1, 2), codes, loss

    return module, call


VQ_EMA = {"name": "vq_ema", "codebook_size": 1024, "dim": 64}
INNER = {"name": "vq_ema", "codebook_size": 256, "dim": 64}
PAIRS: dict[str, tuple[dict[str, Any], str, Callable[[], tuple[nn.Module, Call]]]] = {
    "vq_ema": (VQ_EMA, "vector-quantize-pytorch VectorQuantize", vqp_vq),
    "fsq": ({"name": "fsq", "levels": [8, 5, 5, 5]}, "vector-quantize-pytorch FSQ", vqp_fsq),
    "lfq": ({"name": "lfq", "dim": 10}, "vector-quantize-pytorch LFQ", vqp_lfq),
    "residual": (
        {"name": "residual", "num_quantizers": 4, "quantizer": INNER},
        "vector-quantize-pytorch ResidualVQ",
        vqp_residual,
    ),
    "vq": ({**VQ_EMA, "name": "vq"}, "diffusers VectorQuantizer", diffusers_vq),
}


@torch.no_grad()
def score(model: Autoencoder, data: Images) -> dict[str, float]:
    """Return PSNR and usage on the test part, every batch's codes counted together."""
    model.eval()
    decibels, codes = [], []
    split, device = data.test(), next(model.parameters()).device
    for start in range(0, len(split), 250):
        x = split.batch(np.arange(start, min(start + 250, len(split)))).x.to(device)
        latent = model.encode(x)
        assert latent.codes is not None
        decibels.append(psnr(model.reconstruct(x).clamp(0, 1), x))
        codes.append(latent.codes.flatten(0, -2))
    assert isinstance(model.bottleneck, Quantizer | PeerQuantizer)
    columns = zip(torch.cat(codes).unbind(1), model.bottleneck.codebook_sizes, strict=True)
    used = [column.unique().numel() / size for column, size in columns]
    return {"psnr": torch.cat(decibels).mean().item(), "usage": statistics.mean(used)}


def train(
    name: str, side: str, seed: int, data: Images, args: argparse.Namespace
) -> dict[str, Any]:
    """Train one quantizer with one seed, or read what an earlier call found."""
    run = args.runs / f"{name}-{side}-{seed}"
    if (run / "scores.json").exists():
        found: dict[str, Any] = read_json(run / "scores.json")
        return found
    quantizer, _, make_peer = PAIRS[name]
    changes = [
        *(("model.bottleneck", quantizer), ("seed", seed)),
        *(("model.encoder.hidden", 64), ("model.decoder.hidden", 64)),
        ("model.likelihood", {"name": "gaussian", "sigma": SIGMA}),
    ]
    recipe = load_recipe("vqvae", [("data.path", str(args.data)), *changes])
    model = build_model(recipe, data)
    assert isinstance(model, Autoencoder) and isinstance(model.bottleneck, Quantizer)
    if side == "peer":
        torch.manual_seed(seed)
        num_values = int(np.prod(data.spec.shape))
        model.bottleneck = PeerQuantizer(model.bottleneck, *make_peer(), num_values)
    settings = {**recipe.train, "steps": args.steps, "seed": seed, "device": args.device}
    fit(model, data, run=run, resume=True, progress=False, **settings)
    found = {"quantizer": name, "side": side, "seed": seed, **score(model, data)}
    write_json(run / "scores.json", found)
    return found


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the means over seeds of each pair, and ours minus the peer's."""
    lines = []
    for name, (_, peer, _) in PAIRS.items():
        line: dict[str, Any] = {"ours": name, "peer": peer}
        for key in ("psnr", "usage"):
            means = {
                side: statistics.mean(
                    row[key] for row in rows if (row["quantizer"], row["side"]) == (name, side)
                )
                for side in ("ours", "peer")
            }
            line |= {f"{key}_{side}": value for side, value in means.items()}
            line[f"{key}_difference"] = means["ours"] - means["peer"]
        lines.append(line)
    return lines


def main() -> None:
    """Train every pair with every seed and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with the idx files")
    parser.add_argument("--runs", type=Path, default=Path("runs/peer_quality"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    args = parser.parse_args()
    data, rows = Images(args.data), []
    for seed in args.seeds:
        for name in args.pairs:
            for side in ("ours", "peer"):
                rows.append(train(name, side, seed, data, args))
                sys.stdout.write(f"{rows[-1]}\n")
                sys.stdout.flush()
    if set(args.pairs) != set(PAIRS) or tuple(args.seeds) != SEEDS:
        sys.stdout.write("not all pairs and seeds: no result is written\n")
        return
    peers = ("vector-quantize-pytorch", "diffusers")
    report = {
        "data": "Fashion-MNIST, 60,000 train, 10,000 test",
        "network": "recipe vqvae with hidden 64: 7x7 cells",
        "steps": args.steps,
        "seeds": list(SEEDS),
        "peers": {peer: version(peer) for peer in peers},
        "machine": describe_machine(),
        "pairs": compare(rows),
        "runs": rows,
    }
    write_json(RESULTS / "peer_quality.json", report)
    for line in report["pairs"]:
        sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main()
