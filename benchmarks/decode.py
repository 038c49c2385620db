"""Decode one token at a time: our loop against ``generate`` of transformers, the same weights.

    pip install qvae[llm]
    taskset -c 1 python benchmarks/decode.py        # one thread, about a minute on a quiet core

A transformer of 6 layers x 256 with 512 codes writes 256 tokens, greedily, at batch 1 and 16. It is
copied into a stock GPT-2 of transformers, and both are run in float32 and in bfloat16. Checked
first, in float32: the logits of a full pass agree, and so does every token. The variants take
turns; a row is the median over the rounds of the seconds that the process computed, so that what
other processes do on the core counts less. Writes ``benchmarks/results/decode.json``.
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

RESULTS = Path(__file__).parent / "results"
CODES, TOKENS, BATCHES = 512, 256, (1, 16)


def ours(prior: Transformer, num: int, *, is_bf16: bool) -> Tensor:
    """Write tokens with our loop."""
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        return prior.sample(num, temperature=0.0)


def theirs(model: Any, num: int) -> Tensor:
    """Write tokens with the library's loop; the cache is its own default."""
    start = torch.full((num, 1), CODES)
    drawn: Tensor = model.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=TOKENS, do_sample=False
    )
    return drawn[:, 1:]


@torch.no_grad()
def check(prior: Transformer, model: Any) -> dict[str, Any]:
    """Compare tokens and logits in float32."""
    tokens = ours(prior, 2, is_bf16=False)
    words = torch.cat([torch.full((2, 1), CODES), tokens[:, :-1]], 1)
    gap = (model(words).logits[..., :CODES] - prior.logits(tokens, torch.zeros(2, 0))).abs().max()
    same = torch.equal(tokens, theirs(model, 2))
    if not same or gap > 1e-5:
        sys.exit(f"not the same function: tokens equal {same}, logits differ by {gap:.1e}")
    return {"tokens_equal": same, "largest_logit_difference": float(gap)}


def race(runners: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """Check, race, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    prior = Transformer(vocab_size=CODES, num_tokens=TOKENS, num_layers=6, dim=256, num_heads=8)
    prior.eval()
    model, low = to_gpt2(prior), to_gpt2(prior).bfloat16()
    report: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": describe_machine(),
        "rounds": args.rounds,
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
    write_json(RESULTS / "decode.json", report)


if __name__ == "__main__":
    main()
