"""Compare quantizers on the user's own data: one network, one budget of bits, several seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from qvae.config import load_recipe
from qvae.errors import Interrupted, QvaeError, UsageError
from qvae.priors.unigram import Unigram
from qvae.reports.compare_table import summarise
from qvae.reports.machine import forget_peak, peak_memory
from qvae.runs.build import check_values
from qvae.runs.loading import Run, open_run, open_run_data
from qvae.runs.scores import evaluate_run
from qvae.runs.tokens import batches_of
from qvae.runs.training import train_recipe
from qvae.store import read_json, write_json
from qvae.train.engine import resolve_device
from qvae.train.log import trained_seconds

__all__ = ["QUANTIZERS", "arguments_for", "compare"]

QUANTIZERS = ("vq", "vq_ema", "vq_cosine", "simvq", "diveq", "ibq", "fsq", "lfq", "bsq")
"""What is compared unless told otherwise."""
_TABLES = ("vq", "vq_ema", "vq_cosine", "simvq", "diveq", "ibq", "gumbel")
_KNOWN = (*_TABLES, "fsq", "lfq", "bsq", "residual", "grouped")
_MOST_BITS = {"ibq": 18, "gumbel": 18}
_FSQ_UNUSED = 30.0  # a nat: tables are revived and signs have an entropy term; so it is fair
_SCORES = ("psnr", "ssim", "nll", "usage", "perplexity", "bits", "entropy_bits")
_FINISHED = "scores.json"


def arguments_for(name: str, *, bits: int, dim: int) -> dict[str, Any]:
    """Return a quantizer's name and arguments for a number of bits a grid cell, exactly.

    Args:
        name: a quantizer that can be given a number of bits.
        bits: of a cell, 1 to 20.
        dim: width of a row, for those with a table, >= 1.

    Raises:
        UsageError: the quantizer is not known here, or cannot have that many bits.

    Example:
        >>> arguments_for("fsq", bits=10, dim=16)
        {'name': 'fsq', 'levels': [8, 8, 8, 2], 'unused_weight': 30.0}
        >>> arguments_for("vq_ema", bits=10, dim=16)
        {'name': 'vq_ema', 'codebook_size': 1024, 'dim': 16}
    """
    if not 1 <= bits <= _MOST_BITS.get(name, 20):
        raise UsageError(f"bits={bits}: must be 1 to {_MOST_BITS.get(name, 20)} for {name}")
    if name in _TABLES:
        return {"name": name, "codebook_size": 2**bits, "dim": dim}
    if name == "fsq":
        rest = [2 ** (bits % 3)] if bits % 3 else []
        levels = [8] * (bits // 3) + rest
        return {"name": name, "levels": levels, "unused_weight": _FSQ_UNUSED}
    if name in ("lfq", "bsq"):
        return {"name": name, "dim": bits}
    if name in ("residual", "grouped"):
        if bits % 2 or (name == "grouped" and dim % 2):
            raise UsageError(f"bits={bits}, dim={dim}: {name} has two halves, so must be even")
        count = "num_quantizers" if name == "residual" else "num_groups"
        width = dim if name == "residual" else dim // 2
        inner = {"name": "vq_ema", "codebook_size": 2 ** (bits // 2), "dim": width}
        return {"name": name, count: 2, "quantizer": inner}
    known = ", ".join(_KNOWN)
    raise UsageError(f"quantizer {name!r}: cannot be given a number of bits; known: {known}")


def compare(
    path: str | Path,
    *,
    recipe: str | Path = "vqvae",
    quantizers: Sequence[str] = QUANTIZERS,
    bits: int = 10,
    dim: int = 16,
    seeds: int = 3,
    overrides: Sequence[tuple[str, Any]] = (),
    device: str = "auto",
    threads: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Train and score every quantizer with every seed, each in a process of its own.

    Everything but the quantizer is the recipe's: network, data, steps, optimizer. Seeds take
    turns, so an early stop leaves whole rounds. Started again, it goes on where it stopped.

    Args:
        path: a folder; a run folder for each is made in it, and ``compare.json``.
        recipe: whose bottleneck is replaced.
        quantizers: names.
        bits: of a grid cell, the same for all.
        dim: width of a row, for quantizers with a table.
        seeds: how many, >= 1; an interval needs 2.
        overrides: dotted keys and values of the recipe, such as ``("data.path", "DIR")``, or of
            one quantizer, such as ``("bsq.gamma", 100.0)``, which may be one of another call.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        threads: CPU threads of torch in each process; None is torch's choice.
        tell: called with a sentence as each training starts.

    Returns:
        ``settings``, ``runs`` (a row a training) and ``summary`` (a row a quantizer: mean and
        half the width of a 95 % confidence interval of each score).

    Raises:
        UsageError: an argument breaks its rule, or the folder holds another comparison.
        Interrupted: the training at hand has saved its state.

    Example:
        >>> compare("runs/compare", quantizers=["vq", "fsq", "vq"])  # before any work starts
        Traceback (most recent call last):
        qvae.errors.UsageError: seeds=3, quantizers=['vq', 'fsq', 'vq']: needs some, each once
    """
    path = Path(path)
    if seeds < 1 or not quantizers or len(set(quantizers)) < len(quantizers):
        raise UsageError(f"seeds={seeds}, quantizers={list(quantizers)}: needs some, each once")
    shared, own = _by_quantizer(overrides)
    for name, told in own.items():
        if told and name not in quantizers:  # of another call, and yet no place for slips
            parts = arguments_for(name, bits=bits, dim=dim)
            load_recipe(recipe, [*shared, ("model.bottleneck", parts), *told])
    jobs = []
    for seed in range(seeds):
        for name in quantizers:
            parts = arguments_for(name, bits=bits, dim=dim)
            changes = [*shared, ("model.bottleneck", parts), *own[name], ("seed", seed)]
            check_values(load_recipe(recipe, changes), device=device)
            jobs.append(
                {
                    "quantizer": name,
                    "seed": seed,
                    "run": str(path / f"{name}-{seed}"),
                    "recipe": str(recipe),
                    "changes": changes,
                    "device": device,
                    "threads": threads,
                }
            )
    settings = {"recipe": str(recipe), "bits_per_cell": bits, "dim": dim}
    settings["overrides"] = {key: str(value) for key, value in overrides}
    _claim(path, settings)
    rows = []
    for number, job in enumerate(jobs, 1):
        tell(f"{number}/{len(jobs)} {job['quantizer']}, seed {job['seed']}")
        rows.append(_finished(job) or _in_a_process(job))
        report = {"settings": settings, "runs": rows, "summary": summarise(rows)}
        write_json(path / "compare.json", report)
    return report


def _by_quantizer(
    overrides: Sequence[tuple[str, Any]],
) -> tuple[list[tuple[str, Any]], dict[str, list[tuple[str, Any]]]]:
    """Tell what is set for all from what is set for one, whose keys begin with its name."""
    shared: list[tuple[str, Any]] = []
    own: dict[str, list[tuple[str, Any]]] = {name: [] for name in _KNOWN}
    for key, value in overrides:
        name, _, argument = key.partition(".")
        if name in own:
            own[name].append((f"model.bottleneck.{argument}", value))
        else:
            shared.append((key, value))
    return shared, own


def _claim(path: Path, settings: Mapping[str, Any]) -> None:
    """Make the folder this comparison's, or refuse it."""
    file = path / "compare.json"
    if file.is_file():
        if read_json(file).get("settings") == settings:
            return
        raise UsageError(f"{path}: holds a comparison with other settings; choose another folder")
    if path.exists() and any(path.iterdir()):
        raise UsageError(f"{path}: holds files that are no comparison; choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    write_json(file, {"settings": settings})


def _finished(job: Mapping[str, Any]) -> dict[str, Any] | None:
    file = Path(job["run"]) / _FINISHED
    row: dict[str, Any] | None = read_json(file) if file.is_file() else None
    return row


def _in_a_process(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train and score in a new process, so that its peak of memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        row = pool.submit(_train_and_score, dict(job)).result()
    if "interrupted" in row:
        raise Interrupted(row["interrupted"])
    return row


def _train_and_score(job: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"quantizer": job["quantizer"], "seed": job["seed"]}
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    folder = Path(job["run"])
    try:
        recipe = load_recipe(job["recipe"], job["changes"])
        device = resolve_device(job["device"])
        forget_peak(device)
        train_recipe(recipe, run=folder, resume=True, device=job["device"])
        row["peak_mb"] = peak_memory(device) / 1e6
        run = open_run(folder, device=device)
        data = open_run_data(run)
        scores = evaluate_run(run, data)
        row |= {name: scores[name]["value"] for name in _SCORES if name in scores}
        row |= {"unigram_bits": _unigram_bits(run, data), "steps": recipe.train["steps"]}
        row["seconds"] = trained_seconds(folder)
    except Interrupted as stop:
        return {"interrupted": stop.args[0]}
    except QvaeError as error:  # one that diverges must not take the others with it
        return row | {"error": str(error)}
    write_json(folder / _FINISHED, row)
    return row


def _unigram_bits(run: Run, data: Any) -> float:
    """Price test tokens by how often each occurs in training: bits a sample."""
    tokenizer = run.require_tokenizer()
    prior = Unigram(
        vocab_size=tokenizer.vocab_size,
        num_tokens=tokenizer.num_tokens,
        conditions=tokenizer.spec.conditions,
        codebook_sizes=tokenizer.codebook_sizes,
        is_per_position=False,
    ).to(tokenizer.device)
    for batch in batches_of(data.train(), label="count codes"):
        prior.count(tokenizer.encode(batch.x, batch.cond).to(tokenizer.device))
    nats, num = 0.0, 0
    for batch in batches_of(data.test(), label="price codes"):
        tokens = tokenizer.encode(batch.x, batch.cond).to(tokenizer.device)
        nats += prior.nll(tokens, None).double().sum().item()
        num += len(tokens)
    return nats / num / math.log(2)
