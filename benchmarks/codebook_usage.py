"""Whether large codebooks stay in use, on crops of real colour pictures that were never trained on.

    python benchmarks/clipart.py FOLDER -o many.npz --test 16384       # see there for the FOLDER
    python benchmarks/codebook_usage.py many.npz --runs DIR            # 16,384 codes
    python benchmarks/clipart.py FOLDER -o most.npz --test 65536
    python benchmarks/codebook_usage.py most.npz --runs DIR --bits 16 --steps 3000

``qvae compare`` on crops of 64x64, one code for 8x8 pixels, one seed: network, data, order, steps,
optimizer and bits are equal, only the quantizer differs. Some get other weights than by default
(``AIDS``), the same at both sizes. The test part has 64 tokens a code; usage is the share of codes
that occur among them. Started again it goes on, so quantizers may also be trained at once, each in
a process with ``--quantizers NAME`` and the same ``--runs``; a last call without it makes the
table. ``--set train.batch_size=32 bsq.gamma=20`` changes budget, network or a quantizer. Writes
``benchmarks/results/codebook_usage_BITS.json``, which names all of it and the machine.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from qvae.data.images import Images
from qvae.reports.compare import compare
from qvae.reports.compare_table import table
from qvae.reports.machine import describe_machine
from qvae.store import write_json
from qvae.yaml_text import parse_yaml

RESULTS = Path(__file__).parent / "results"
QUANTIZERS = ("fsq", "bsq", "lfq", "vq_ema", "simvq", "vq", "ibq")
HEAVY = ("ibq",)  # it scores every token against every code: not for 65,536 of them
NETWORK = {
    f"model.{side}.{key}": value
    for side in ("encoder", "decoder")
    for key, value in {"hidden": 64, "residual": 64, "num_blocks": 4, "downsample": 8}.items()
}
TRAIN = {"train.batch_size": 16, "train.optimizer": "muon", "train.lr": 0.003}
AIDS = {
    "fsq.unused_weight": 0.5,
    "fsq.evenness": "coverage",
    "bsq.gamma": 300.0,
    "lfq.gamma": 300.0,
    "lfq.temperature": 0.3,
    "simvq.commitment_weight": 1.0,
}


def main() -> None:
    """Train one after the other, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the crops of benchmarks/clipart.py")
    parser.add_argument("--runs", type=Path, default=Path("runs/codebook_usage"))
    parser.add_argument("--bits", type=int, default=14)
    parser.add_argument("--steps", type=int, default=4_000)
    parser.add_argument("--quantizers", nargs="+", help="default: all, above 14 bits without ibq")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="of recipe or quantizer"
    )
    args = parser.parse_args()
    changes: dict[str, Any] = NETWORK | TRAIN | AIDS | {"train.steps": args.steps}
    for word in args.set:
        key, _, value = word.partition("=")
        changes[key] = parse_yaml(value, where=key)
    everyone = [name for name in QUANTIZERS if args.bits <= 14 or name not in HEAVY]
    data = Images(args.data)
    tokens = len(data.test()) * (data.spec.shape[1] // changes["model.encoder.downsample"]) ** 2
    if tokens != 64 * 2**args.bits:
        sys.exit(
            f"{args.data}: {tokens} tokens to test, must be 64 for each of {2**args.bits} codes"
        )
    report = compare(
        args.runs / str(args.bits),
        quantizers=args.quantizers or everyone,
        bits=args.bits,
        seeds=1,
        overrides=[("data.path", str(args.data)), *changes.items()],
        device=args.device,
        threads=args.threads,
        tell=lambda line: sys.stdout.write(f"{line}\n") and sys.stdout.flush(),
    )
    sys.stdout.write(table(report["summary"]) + "\n")
    if args.quantizers and set(args.quantizers) != set(everyone):
        sys.stdout.write("not all quantizers: no result is written\n")
        return
    del report["settings"]["overrides"]["data.path"]
    report |= {
        "data": "openclipart-png: random crops of 64x64, flat ones left out",
        "crops": {part: len(getattr(data, part)()) for part in ("train", "valid", "test")},
        "test_tokens": tokens,
        "machine": describe_machine(),
    }
    write_json(RESULTS / f"codebook_usage_{args.bits}.json", report)


if __name__ == "__main__":
    main()
