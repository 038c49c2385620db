"""``qvae train``: a recipe, its overrides, a run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvae.cli.common import (
    Parser,
    Result,
    add_common,
    check_output,
    note,
    parse,
    precision,
    prepare,
)
from qvae.errors import UsageError

__all__ = ["run_train", "split_overrides"]

_EPILOG = """\
any key of the recipe can be overridden: --train.steps 500 --model.bottleneck.dim 8, or, short,
--bottleneck.dim 8. Naming another component drops the old one's arguments: --bottleneck fsq
--bottleneck.levels '[8,5,5]'. qvae train RECIPE --help lists every key; --print_config prints all.
"""


def run_train(parser: Parser, words: Sequence[str]) -> Result:
    """Train, and report the last evaluation."""
    _add_arguments(parser)
    if list(words) in (["--help"], ["-h"]):  # the static help, without reading any YAML
        return Result(text=parser.format_help().rstrip())
    rest, overrides = split_overrides(words)
    asks_help = [word for word in rest if word in ("-h", "--help")]
    args = parse(parser, [word for word in rest if word not in asks_help])
    if args.recipe is None:
        if asks_help:
            return Result(text=parser.format_help().rstrip())
        parser.error("a RECIPE is required")
    from qvae.config import dump_recipe, load_recipe, recipe_options
    from qvae.schema import options_help

    short, long = _short_options(args), dict(overrides)
    for key, value in short:
        if key in long:
            told = f"{value} and {long[key]}"
            raise UsageError(f"--{key}: told twice, {told}, once by its short option; give one")
    changes = [*overrides, *short]
    is_complete = not (asks_help or args.print_config)
    recipe = load_recipe(args.recipe, changes, is_complete=is_complete)
    if asks_help:
        prog = f"{parser.prog} {args.recipe}"
        return Result(text=options_help(recipe_options(recipe), prog=prog).rstrip())
    if args.print_config:
        return Result(data=recipe.resolved(), text=dump_recipe(recipe).rstrip())
    return _train(recipe, args)


def _train(recipe: Any, args: Any) -> Result:
    prepare(args)
    from qvae.runs.training import next_run_folder, train_recipe

    run = _run_folder(args, lambda: next_run_folder(recipe.name))
    check_output(run)
    result = train_recipe(
        recipe,
        run=run,
        resume=args.resume,
        init=args.init,
        device=args.device,
        tell=note,
    )
    data = {"run": str(result.run), "step": result.step, "metrics": result.metrics}
    scores = " ".join(
        f"{name} {value:.5g}"
        for name, value in result.metrics.items()
        if isinstance(value, float) and not name.startswith("seconds")
    )
    return Result(data=data, text=f"{result.run}: step {result.step} {scores}")


def _run_folder(args: Any, default: Any) -> Path:
    if args.run is not None:
        return Path(args.run)
    if not args.resume:
        return Path(default())
    if (Path(args.recipe) / "recipe.yaml").is_file():
        return Path(args.recipe)
    raise UsageError("--resume: needs --run DIR, or the run folder in the place of RECIPE")


def _add_arguments(parser: Parser) -> None:
    parser.epilog = _EPILOG
    parser.usage = "qvae train RECIPE [options] [--any.key value]"
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a name (qvae list recipe), a file, or a run"
    )
    parser.add_argument("--data", metavar="PATH", help="short for --data.path")
    parser.add_argument(
        "--cond",
        action="append",
        metavar="COLUMN[:KIND]",
        help="short for --data.cond; KIND is category, number, cyclic(12h), vector or text; "
        "may be repeated",
    )
    parser.add_argument("--max-bad", metavar="N", help="short for --data.max_bad")
    parser.add_argument("--run", metavar="DIR", help="run folder (default: runs/<recipe>-<n>)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--init", metavar="DIR", help="start from the weights of this run or model")
    parser.add_argument(
        "--print_config", action="store_true", help="print the resolved recipe and stop"
    )
    add_common(parser, "device", "precision", "threads", "seed")


def _short_options(args: Any) -> list[tuple[str, Any]]:
    """Return the overrides that have an option of their own."""
    found: list[tuple[str, Any]] = []
    if args.data is not None:
        found.append(("data.path", args.data))
    if args.cond is not None:
        found.append(("data.cond", args.cond[0] if len(args.cond) == 1 else args.cond))
    if args.max_bad is not None:
        found.append(("data.max_bad", args.max_bad))
    if args.seed is not None:
        found.append(("seed", args.seed))
    if args.precision is not None:
        found.append(("train.precision", precision(args)))
    return found


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[tuple[str, Any]]]:
    """Part the words into plain options and overrides ``--any.key value``, read as YAML.

    Raises:
        UsageError: an override without a value, or a value that is no YAML.

    Example:
        >>> split_overrides(["vae", "--train.lr", "1e-4", "--bottleneck.dim=8", "--json"])
        (['vae', '--json'], [('train.lr', 0.0001), ('bottleneck.dim', 8)])
    """
    from qvae.recipe_files import MODEL_KEYS
    from qvae.yaml_text import parse_yaml

    rest: list[str] = []
    found: list[tuple[str, Any]] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        key, has_value, value = word.removeprefix("--").partition("=")
        is_key = "." in key or key in (*MODEL_KEYS, "prior")
        if not word.startswith("--") or not is_key:
            rest.append(word)
            continue
        if not has_value:
            if not waiting or waiting[0].startswith("--"):
                raise UsageError(f"--{key}: needs a value")
            value = waiting.pop(0)
        found.append((key, parse_yaml(value, f"--{key}")))
    return rest, found
