"""Decode one token at a time: our loop against ``generate`` of transformers, the same weights.

    pip install qvae[llm]
    taskset -c 1 python benchmarks/decode.py        # one thread, about a minute on a quiet core

A transformer of 6 layers x 256 with 512 codes writes 256 tokens, greedily, at batch 1 and 16. It is
copied into a stock GPT-2 of transformers, and both are run in float32 and in bfloat16. Checked
first, in float32: the logits of a full pass agree, and so does every token. The variants take
turns; a row is the median over the rounds of the seconds that the process computed, so that what
other processes do on the core counts less. Writes ``benchmarks/results/decode.json``, and with
``--device cuda``, where it is seconds by the clock, ``decode_cuda.json``.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from qvae.priors.hf import to_gpt2
from qvae.priors.transformer import Transformer
from qvae.reports.machine import describe_machine
from qvae.store import write_json
from qvae.train.engine import resolve_device
from qvae.train.log import device_name

RESULTS = Path(__file__).parent / "results"
CODES, TOKENS, BATCHES = 512, 256, (1, 16)


def ours(prior: Transformer, num: int, *, is_bf16: bool) -> Tensor:
    """Write tokens with our loop."""
    with torch.autocast(prior.device.type, torch.bfloat16, enabled=is_bf16):
        return prior.sample(num, temperature=0.0)


def theirs(model: Any, num: int) -> Tensor:
    """Write tokens with the library's loop; the cache is its own default."""
    start = torch.full((num, 1), CODES, device=model.device)
    drawn: Tensor = model.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=TOKENS, do_sample=False
    )
    return drawn[:, 1:]


@torch.no_grad()
def check(prior: Transformer, model: Any) -> dict[str, Any]:
    """Compare tokens and logits in float32."""
    tokens = ours(prior, 2, is_bf16=False)
    words = torch.cat([torch.full((2, 1), CODES, device=tokens.device), tokens[:, :-1]], 1)
    gap = (
        (model(words).logits[..., :CODES] - prior.logits(tokens, tokens.new_zeros(2, 0).float()))
        .abs()
        .max()
    )
    same = torch.equal(tokens, theirs(model, 2))
    if not same or gap > 1e-5:
        sys.exit(f"not the same function: tokens equal {same}, logits differ by {gap:.1e}")
    return {"tokens_equal": same, "largest_logit_difference": float(gap)}


def race(
    runners: dict[str, Callable[[], Tensor]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Return the median seconds of each: the process's own, on a device by the clock."""
    is_cuda = device.type == "cuda"
    clock = time.perf_counter if is_cuda else time.process_time
    wait = torch.cuda.synchronize if is_cuda else lambda: None
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            wait()
            start = clock()
            run()
            wait()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Check, race, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    device = resolve_device(args.device)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prior = Transformer(vocab_size=CODES, num_tokens=TOKENS, num_layers=6, dim=256, num_heads=8)
    prior.to(device).eval()
    model, low = to_gpt2(prior).to(device), to_gpt2(prior).bfloat16().to(device)
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": describe_machine(),
        "rounds": args.rounds,
        "device": device_name(device),
        "threads": 1,
        "float32": check(prior, model),
        "batches": {},
    }
    for num in BATCHES:
        seconds = race(
            {
                "ours, float32": lambda num=num: ours(prior, num, is_bf16=False),
                "ours, bf16": lambda num=num: ours(prior, num, is_bf16=True),
                "transformers, float32": lambda num=num: theirs(model, num),
                "transformers, bf16": lambda num=num: theirs(low, num),
            },
            args.rounds,
            device,
        )
        best = {
            who: min(value for name, value in seconds.items() if name.startswith(who))
            for who in ("ours", "transformers")
        }
        report["batches"][str(num)] = {
            "seconds": {name: round(value, 4) for name, value in seconds.items()},
            "ratio_best_dtype": round(best["transformers"] / best["ours"], 2),
        }
        sys.stdout.write(f"batch {num}: {report['batches'][str(num)]}\n")
    name = "decode" if device.type == "cpu" else f"decode_{device.type}"
    write_json(RESULTS / f"{name}.json", report)


if __name__ == "__main__":
    main()
