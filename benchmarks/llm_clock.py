"""What a language model of clocks can do: draw from sentences, read into sentences, load anywhere.

    python benchmarks/llm_clock.py tune RUN       # writes benchmarks/results/llm_clock_tuning.json
    python benchmarks/llm_clock.py score RUN      # writes benchmarks/results/llm_clock.json
    python benchmarks/llm_clock.py check RUN      # writes benchmarks/results/llm_export.json

``tune``: how well sentences that training had are drawn by each of a few samplers. The best of
them belongs in the recipe before anything is scored.
``score``: every one of the 720 times in the two phrasings that no training sentence used for it,
one picture a sentence, fixed seeds, read by the geometric reader; and fresh styles, read by the
model.
``check`` makes a virtual environment with torch, transformers and safetensors only, loads the
run's folder there, and compares its logits with those of this package.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import venv
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from second_renderer import render_second

from qvae.data.clock_renderer import render_clocks
from qvae.data.clock_sentences import (
    FACES,
    HELD_OUT,
    PHRASINGS,
    face_names,
    parse_sentence,
    phrase,
)
from qvae.data.clock_style import sample_styles
from qvae.data.clock_times import split_of
from qvae.llm.clock_llm import ClockLLM, open_clock_llm
from qvae.llm.folder import load_llm
from qvae.metrics.clock_reader import read_clocks
from qvae.metrics.clock_score import circular_error, score_reading
from qvae.reports.clocks import to_pixels
from qvae.store import write_json
from qvae.train.log import trained_machine, trained_seconds

RESULTS = Path(__file__).parent / "results"
_STYLES = 3_000_003  # of no split of the data
_TUNED_SEED = 99
_TIMES = np.arange(720)

_CLEAN = """
import importlib.metadata, json, sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, ids, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
text = json.load(open(ids + ".json"))
assert tokenizer(text["text"])["input_ids"] == text["ids"], tokenizer(text["text"])
with torch.no_grad():
    save_file({"logits": model(load_file(ids)["ids"]).logits}, out)
assert "qvae" not in sys.modules
names = ("torch", "transformers", "safetensors")
print(json.dumps({
    "loaded_as": [type(model).__name__, type(tokenizer).__name__],
    "versions": {name: importlib.metadata.version(name) for name in names},
}))
"""


def requests() -> tuple[np.ndarray, list[str]]:
    """Every time twice, in its held-out phrasings; the second one names a face."""
    names, rng = list(PHRASINGS), random.Random(1440)
    minutes, sentences = [], []
    for second in (False, True):
        for minute in _TIMES.tolist():
            text = phrase(minute, names[HELD_OUT[minute, int(second)]])
            clause = f", on a {rng.choice(FACES)} face" if second else ""
            minutes.append(minute)
            sentences.append(text + clause)
    return np.array(minutes), sentences


def trained_requests(num: int) -> tuple[np.ndarray, list[str]]:
    """Times at random in phrasings that training had for them: to choose a sampler by."""
    names, rng = list(PHRASINGS), random.Random(720)
    minutes = np.array([rng.choice(_TIMES[split_of(_TIMES) == "train"]) for _ in range(num)])
    sentences = []
    for minute in minutes.tolist():
        known = [name for name in range(len(names)) if name not in HELD_OUT[minute]]
        sentences.append(phrase(minute, names[rng.choice(known)]))
    return minutes, sentences


def about(llm: ClockLLM, run: Path) -> dict[str, Any]:
    """Say which run this is: a tuning and a score of one run agree in all of it."""
    return {
        "parameters": sum(p.numel() for p in llm.model.parameters()),
        "training_seconds": trained_seconds(run),
        "machine": trained_machine(run),
    }


def tune(
    run: Path, *, num: int, temperatures: list[float], guidances: list[float], output: Path
) -> None:
    """Write how well trained sentences are drawn by each sampler, and which draws them best."""
    llm = open_clock_llm(run)
    minutes, sentences = trained_requests(num)
    tried = []
    for temperature, guidance in product(temperatures, guidances):
        settings = {"temperature": temperature, "guidance": guidance}
        pictures, _ = llm.draw(sentences, seed=_TUNED_SEED, **settings)
        row = score_reading(read_clocks(to_pixels(pictures)), minutes, split_of(minutes))["all"]
        shares = {name: row[name] for name in ("dial_right", "within_1", "gross")}
        tried.append({**settings, **shares})
        sys.stdout.write(f"{tried[-1]}\n")
        sys.stdout.flush()
    best = max(tried, key=lambda found: (found["within_1"], -found["gross"]))
    report = {
        **about(llm, run),
        "tuned_on": f"{num} sentences that training had",
        "seed": _TUNED_SEED,
        "best": {name: best[name] for name in ("temperature", "guidance")},
        "tried": tried,
    }
    write_json(output, report)


def score_drawing(llm: ClockLLM, *, seed: int, **settings: Any) -> dict[str, Any]:
    """Draw a picture for each request, and read it by geometry."""
    minutes, sentences = requests()
    pictures, notes = llm.draw(sentences, seed=seed, **settings)
    reading = read_clocks(to_pixels(pictures))
    understood = [parse_sentence(note) for note in notes]
    right = [
        found is not None and found[0] == m for found, m in zip(understood, minutes, strict=True)
    ]
    faces = [parse_sentence(sentence)[1] for sentence in sentences]  # type: ignore[index]
    drawn = face_names(reading.face)
    asked = [(face, name) for face, name in zip(faces, drawn, strict=True) if face is not None]
    return {
        "requests": len(minutes),
        "splits": score_reading(reading, minutes, split_of(minutes)),
        "note_right": float(np.mean(right)),
        "face_right": float(np.mean([name.endswith(face) for face, name in asked])),
    }


def score_answers(answers: list[str], minutes: np.ndarray) -> dict[str, Any]:
    """Compare the times that sentences say with the true ones, a row a split."""
    splits = split_of(minutes)
    said = [parse_sentence(answer.partition(" = ")[2]) for answer in answers]
    notes = [parse_sentence(answer.partition(" = ")[0]) for answer in answers]
    times = np.array([np.nan if found is None else found[0] for found in said], dtype=float)
    error = np.nan_to_num(circular_error(times, minutes, period=720), nan=360)
    rows = {str(name): splits == name for name in np.unique(splits)}
    rows |= {"off_block": splits != "block", "all": np.ones(len(minutes), bool)}
    found = {
        name: {
            "n": int(chosen.sum()),
            "exact": float((error[chosen] == 0).mean()),
            "within_1": float((error[chosen] <= 1).mean()),
            "gross": float((error[chosen] > 20).mean()),
        }
        for name, chosen in rows.items()
    }
    agree = [
        a is not None and b is not None and a[0] == b[0] for a, b in zip(said, notes, strict=True)
    ]
    return {"splits": found, "grammatical": float(np.mean([s is not None for s in said]))} | {
        "sentence_agrees_with_time": float(np.mean(agree))
    }


def read_pictures(llm: ClockLLM, pictures: np.ndarray) -> list[str]:
    """Let the model say what uint8 pictures show."""
    x = torch.from_numpy(pictures.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    return [answer for part in x.split(240) for answer in llm.read(part)]


def score(run: Path, *, seed: int, output: Path, styles: int, **settings: Any) -> None:
    """Score a run and write the results."""
    llm, start = open_clock_llm(run), time.monotonic()
    minutes = np.tile(_TIMES, styles)
    fresh = render_clocks(minutes, sample_styles(len(minutes), seed=_STYLES))
    second = render_second(minutes, seed=seed)
    used = {**llm.sampler, **settings}
    report = {
        **about(llm, run),
        "sampler": used,
        "seed": seed,
        "drawing": score_drawing(llm, seed=seed, **settings),
        "reading": score_answers(read_pictures(llm, fresh), minutes),
        "reading_second_renderer": score_answers(read_pictures(llm, second), minutes),
        "seconds": round(time.monotonic() - start, 1),
    }
    write_json(output, report)
    drawn = report["drawing"]
    lines = [f"drawing  notes right {drawn['note_right']:.1%}, faces {drawn['face_right']:.1%}"]
    for name, row in drawn["splits"].items():
        lines.append(
            f"  {name:<10} dial {row['dial_right']:.1%}  within 1 {row['within_1']:.1%}"
            f"  no floor {row['within_1_no_floor']:.1%}  gross {row['gross']:.1%}"
        )
    for title in ("reading", "reading_second_renderer"):
        lines.append(title)
        for name, row in report[title]["splits"].items():
            lines.append(
                f"  {name:<10} exact {row['exact']:.1%}  within 1 {row['within_1']:.1%}"
                f"  gross {row['gross']:.1%}"
            )
    sys.stdout.write("\n".join(lines) + "\n")


def check(run: Path, *, python: Path | None, output: Path) -> None:
    """Load the folder without this package, in an environment that lacks it, and write logits' gap.

    Args:
        run: of the language model.
        python: of an environment that is there; None makes one of the three packages.
        output: the result.
    """
    is_fresh = python is None
    model, text = load_llm(run / "model")
    ids = torch.randint(0, model.vocabulary.size, (4, 90), generator=torch.manual_seed(0))
    with torch.no_grad():
        ours = model.logits(ids)
    with tempfile.TemporaryDirectory() as folder:
        if python is None:
            venv.create(Path(folder) / "venv", with_pip=True)
            python = Path(folder) / "venv" / "bin" / "python"
            needs = ["torch", "transformers", "safetensors"]
            constraints = Path(__file__).parents[1] / "constraints.txt"
            command = [python, "-m", "pip", "install", "-q", "-c", constraints, *needs]
            subprocess.run(command, check=True)
        from safetensors.torch import load_file, save_file

        inputs, outputs = Path(folder) / "ids.safetensors", Path(folder) / "logits.safetensors"
        save_file({"ids": ids}, inputs)
        sentence = f"a quarter to four, on a green face = 3:45{model.vocabulary.names[0]}"
        known = {"text": sentence, "ids": text.encode(sentence)}
        inputs.with_suffix(".safetensors.json").write_text(json.dumps(known))
        words = [python, "-I", "-c", _CLEAN, run.absolute() / "model", inputs, outputs]
        done = subprocess.run(words, check=True, cwd=folder, capture_output=True, text=True)
        theirs = load_file(outputs)["logits"]
    worst = (ours - theirs).abs().max().item()
    report = {"environment": "fresh" if is_fresh else "given", **json.loads(done.stdout)}
    report |= {"largest_logit_difference": worst, "training_seconds": trained_seconds(run)}
    sys.stdout.write(f"{report}\n")
    if worst > 1e-4:
        sys.exit("the exported folder computes something else")
    write_json(output, report)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    scorer = commands.add_parser("score")
    scorer.add_argument("run", type=Path)
    scorer.add_argument("--seed", type=int, default=0)
    scorer.add_argument("--styles", type=int, default=4, help="fresh styles a time, to read")
    scorer.add_argument("--temperature", type=float)
    scorer.add_argument("--guidance", type=float)
    scorer.add_argument("--threads", type=int)
    scorer.add_argument("-o", type=Path, default=RESULTS / "llm_clock.json")
    tuner = commands.add_parser("tune")
    tuner.add_argument("run", type=Path)
    tuner.add_argument("--num", type=int, default=720)
    tuner.add_argument("--temperatures", type=float, nargs="+", default=[0.6, 0.7, 0.8])
    tuner.add_argument("--guidances", type=float, nargs="+", default=[1.5, 2.0, 3.0])
    tuner.add_argument("--threads", type=int)
    tuner.add_argument("-o", type=Path, default=RESULTS / "llm_clock_tuning.json")
    checker = commands.add_parser("check")
    checker.add_argument("run", type=Path)
    checker.add_argument("--python", type=Path, help="of an environment that is there already")
    checker.add_argument("-o", type=Path, default=RESULTS / "llm_export.json")
    args = parser.parse_args()
    if args.command == "check":
        check(args.run, python=args.python, output=args.o)
        return
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.command == "tune":
        grid = {"temperatures": args.temperatures, "guidances": args.guidances}
        tune(args.run, num=args.num, output=args.o, **grid)
        return
    names = ("temperature", "guidance")
    settings = {name: value for name in names if (value := getattr(args, name)) is not None}
    score(args.run, seed=args.seed, output=args.o, styles=args.styles, **settings)


if __name__ == "__main__":
    main()
