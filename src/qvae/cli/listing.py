"""``qvae list``: names from the tables without torch; arguments from a constructor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvae.cli.common import Parser, Result, add_common, parse
from qvae.errors import UsageError
from qvae.registry import COMPONENTS, did_you_mean, kinds_of, resolve

__all__ = ["run_list"]


def run_list(parser: Parser, words: Sequence[str]) -> Result:
    """List everything, one kind, or the arguments of one component."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="KIND|NAME",
        help="recipe, data, encoder, ..., or a component's name; both where a name is shared",
    )
    add_common(parser)
    args = parse(parser, words)
    if not args.words:
        return _names({"recipe": _recipes(), **{k: list(t) for k, t in COMPONENTS.items()}})
    kind, name = _kind_and_name(args.words)
    if name is None:
        return _recipe_lines() if kind == "recipe" else _names({str(kind): list(COMPONENTS[kind])})
    kinds = [kind] if kind is not None else kinds_of(name)
    return _components([(kind, name) for kind in kinds])


def _kind_and_name(words: list[str]) -> tuple[Any, str | None]:
    from qvae.recipe_files import find_recipe

    if len(words) > 2:
        raise UsageError(f"list {' '.join(words)}: takes a kind, a name, or a kind and a name")
    name = words[-1]
    if words[:-1] == ["recipe"] or (name in _recipes() and not kinds_of(name)):
        find_recipe(name)
        raise UsageError(f"list {name!r}: a recipe's keys are listed by qvae train {name} --help")
    if len(words) == 2:
        return words[0], words[1]
    word = words[0].removesuffix("s") if words[0] not in COMPONENTS else words[0]
    if word in COMPONENTS or word == "recipe":
        return word, None
    if kinds_of(words[0]):
        return None, words[0]
    known = sorted({"recipe", *COMPONENTS, *(n for t in COMPONENTS.values() for n in t)})
    hint = did_you_mean(words[0], known) or f"; known: {', '.join(known)}"
    raise UsageError(f"list {words[0]!r}: no such kind or component{hint}")


def _recipes() -> list[str]:
    from qvae.recipe_files import recipe_names

    return recipe_names()


def _recipe_lines() -> Result:
    """Name each recipe with the first line of its comment."""
    from qvae.recipe_files import find_recipe

    summaries = {}
    for name in _recipes():
        first = Path(find_recipe(name)).read_text(encoding="utf-8").split("\n", 1)[0]
        summaries[name] = first.lstrip("# ") if first.startswith("#") else ""
    width = max(map(len, summaries), default=0)
    lines = [f"{name:<{width}}  {text}".rstrip() for name, text in summaries.items()]
    return Result(data={"recipe": summaries}, text="\n".join(lines))


def _names(tables: dict[str, list[str]]) -> Result:
    lines = [f"{kind:<11}{' '.join(names)}" for kind, names in tables.items()]
    return Result(data=tables, text="\n".join(lines))


def _components(pairs: list[tuple[str, str]]) -> Result:
    """Describe components: one line of purpose, then argument, type, default and meaning."""
    import inspect

    from qvae.schema import REQUIRED, arguments

    data, lines = [], []
    for kind, name in pairs:
        component = resolve(kind, name)
        summary = (inspect.getdoc(component) or "").split("\n", 1)[0]
        lines += ["", f"{kind} {name}: {summary}"]
        schema = arguments(component)
        for item in schema:
            value = "required" if item.default is REQUIRED else repr(item.default)
            lines.append(f"  {item.name}: {item.type_text} = {value}")
            lines += [f"      {item.doc}"] if item.doc else []
        rows = [
            {
                "name": item.name,
                "type": item.type_text,
                "is_required": item.default is REQUIRED,
                "default": None if item.default is REQUIRED else item.default,
                "doc": item.doc,
            }
            for item in schema
        ]
        data.append({"kind": kind, "name": name, "summary": summary, "arguments": rows})
    return Result(data={"components": data}, text="\n".join(lines).strip())
