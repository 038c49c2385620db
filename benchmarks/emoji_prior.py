"""Emoji, 64x64 in colour: a tokenizer, a prior told the category, and what its samples are worth.

    npm pack emoji-datasource-google && tar xzf emoji-datasource-google-*.tgz
    python benchmarks/emoji.py package -o emoji.npz
    python benchmarks/emoji_prior.py emoji.npz

Few pictures, so the prior drops out. Reported as in ``benchmarks/priors.py``: bits a token beside
the unigram's, whether a linear classifier knows the category of samples, and how they vary. Writes
``benchmarks/results/emoji.json`` and ``emoji_samples.png`` (a row a category); started again after
an interruption it goes on.
"""

import argparse
import sys
from pathlib import Path

from by_class import A_CLASS, samples_by_class

from qvae.config import load_recipe
from qvae.reports.sheets import save_frames, sheet
from qvae.runs.loading import open_run, open_run_data
from qvae.runs.scores import evaluate_run
from qvae.runs.tokens import encode_data
from qvae.runs.training import train_recipe
from qvae.store import read_json, write_json
from qvae.train.log import trained_seconds

RESULTS = Path(__file__).parent / "results"
VQVAE = [("model.encoder.downsample", 8), ("model.decoder.downsample", 8), ("train.steps", 3000)]
# Dropout and few steps: after some hundred the prior knows these few pictures by heart.
PRIOR = [("prior.dropout", 0.3), ("train.steps", 300), ("train.eval_every", 50)]
SHOWN = 12


def train(runs: Path, data: Path) -> None:
    """Train what is missing: tokenizer, tokens, prior."""
    told = [("data.path", str(data)), ("data.cond", "label")]
    train_recipe(load_recipe("vqvae", [*told, *VQVAE]), run=runs / "vqvae", resume=True)
    if not (runs / "tokens").exists():
        run = open_run(runs / "vqvae")
        encode_data(run.require_tokenizer(), open_run_data(run), runs / "tokens")
    recipe = load_recipe("token_prior", [("data.path", str(runs / "tokens")), *PRIOR])
    train_recipe(recipe, run=runs / "prior", resume=True)


def main() -> None:
    """Train what is missing, score, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="as benchmarks/emoji.py writes it")
    parser.add_argument("--runs", type=Path, default=Path("runs/emoji"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    train(args.runs, args.data)
    first, run = open_run(args.runs / "vqvae"), open_run(args.runs / "prior")
    data = open_run_data(first)
    categories = data.spec.conditions[0].categories
    scores, drawn = samples_by_class(run, first, data, len(categories))
    report = {
        "data": "emoji-datasource-google 16.0.0, families of variants kept together",
        "pictures": {part: len(getattr(data, part)()) for part in ("train", "valid", "test")},
        "categories": list(categories),
        "changes": {"vqvae": dict(VQVAE), "token_prior": dict(PRIOR)},
        "tokenizer": evaluate_run(first, data),
        "tokens": evaluate_run(run, open_run_data(run)),
        "samples": scores,
        "seconds": {name: trained_seconds(args.runs / name) for name in ("vqvae", "prior")},
        "machine": read_json(args.runs / "vqvae" / "env.json"),
    }
    sys.stdout.write(f"{report}\n")
    write_json(args.results / "emoji.json", report)
    shown = drawn.unflatten(0, (len(categories), A_CLASS))[:, :SHOWN]
    save_frames([sheet(shown)], args.results / "emoji_samples.png")


if __name__ == "__main__":
    main()
