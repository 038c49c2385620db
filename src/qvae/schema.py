"""A constructor's signature as a schema: what a recipe may set, of which type, and what it means.

There is no config class for a component. The signature gives names, types and defaults, the
docstring's ``Args`` section gives the help, and jsonargparse checks and converts the values.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from qvae.errors import UsageError
from qvae.registry import Nested, did_you_mean

__all__ = ["REQUIRED", "RUNTIME", "Argument", "arguments", "check_values", "options_help"]

REQUIRED: Any = inspect.Parameter.empty
"""The default of an argument that has none."""

RUNTIME = frozenset(
    (
        "self",
        "shape",
        "grid",
        "cond_dim",
        "turns",
        "in_dim",
        "spec",
        "conditions",
        "vocab_size",
        "num_tokens",
        "codebook_sizes",
    )
)
"""Arguments that follow from the data or from the other parts, so no recipe sets them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Argument:
    """One argument of a component, as a recipe may set it."""

    name: str
    annotation: Any
    default: Any
    """:data:`REQUIRED` when the recipe must give it."""
    doc: str
    kind: str | None = None
    """The registry's kind, when the argument is a component itself."""

    @property
    def type_text(self) -> str:
        """The type as a person writes it."""
        return f"a {self.kind}" if self.kind else _type_text(self.annotation)


def _type_text(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is NoneType or annotation is None:
        return "null"
    if origin in (Union, UnionType):
        return " | ".join(_type_text(part) for part in inner)
    if origin is Literal:
        return " | ".join(repr(value) for value in inner)
    name = getattr(origin or annotation, "__name__", str(annotation))
    parts = ["..." if part is Ellipsis else _type_text(part) for part in inner]
    return f"{name}[{', '.join(parts)}]" if parts else name


def arguments(component: Callable[..., Any], *, skip: frozenset[str] = RUNTIME) -> list[Argument]:
    """List the arguments that a recipe may set: those of a plain type, less ``skip``.

    The signature is the schema and the docstring's ``Args`` section its help. An argument whose
    type is not plain data (a function, a module, a tensor) is never open to a recipe.

    Args:
        component: a class or a function.
        skip: names given at run time.

    Example:
        >>> def scale(x, *, factor: float = 2.0): "Scale.\\n\\n    Args:\\n        factor: > 0.\\n"
        >>> [(a.name, a.type_text, a.default, a.doc) for a in arguments(scale)]
        [('factor', 'float', 2.0, '> 0.')]
    """
    function = component.__init__ if isinstance(component, type) else component
    hints = get_type_hints(function, include_extras=True)
    docs = _argument_docs(inspect.getdoc(component) or "")
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue  # a class without a constructor of its own has nn.Module's
        if name in skip or name not in hints:
            continue
        annotation, kind = _nested(hints[name])
        if not _is_plain(annotation):
            continue
        found.append(
            Argument(
                name=name,
                annotation=annotation,
                default=REQUIRED if parameter.default is parameter.empty else parameter.default,
                doc=docs.get(name, ""),
                kind=kind,
            )
        )
    return found


def _nested(annotation: Any) -> tuple[Any, str | None]:
    """Part a type from the mark that says its values are components."""
    if get_origin(annotation) is not Annotated:
        return annotation, None
    plain, *marks = get_args(annotation)
    return plain, next((mark.kind for mark in marks if isinstance(mark, Nested)), None)


def _is_plain(annotation: Any) -> bool:
    if get_origin(annotation) is Literal:
        return True
    inner = get_args(annotation)
    if inner:
        origin = get_origin(annotation)
        return origin in _PLAIN_ORIGINS and all(_is_plain(a) for a in inner if a is not Ellipsis)
    return annotation in _PLAIN_TYPES


_PLAIN_TYPES = (int, float, bool, str, NoneType, Path, Any, dict, list, tuple)
_PLAIN_ORIGINS = (Union, UnionType, list, tuple, dict, Sequence, Mapping, Iterable)


def _argument_docs(docstring: str) -> dict[str, str]:
    """Read the ``Args`` section of a Google docstring: name -> one line of text."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)*)", docstring, re.MULTILINE)
    docs: dict[str, str] = {}
    name = ""
    for line in section.group(1).splitlines() if section else []:
        start = re.match(r" {4}\*{0,2}(\w+)(?: \([^)]*\))?:\s*(.*)", line)
        if start:
            name = start.group(1)
            docs[name] = start.group(2)
        elif name and line.strip():
            docs[name] = f"{docs[name]} {line.strip()}".strip()
    return docs


def check_values(
    schema: Sequence[Argument],
    values: Mapping[str, Any],
    *,
    where: Callable[[str], str],
    also: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the values, converted to their types, with every default filled in.

    Args:
        schema: what may be set.
        values: what is set.
        where: the file and dotted path of a key, for the error.
        also: keys that are checked elsewhere, for the hint.

    Raises:
        UsageError: a key that is unknown or missing, or a value of another type.

    Example:
        >>> def scale(x, *, factor: float = 2.0, name: str = "a"): "Scale."
        >>> check_values(arguments(scale), {"factor": 3}, where=str)
        {'factor': 3.0, 'name': 'a'}
    """
    known = [argument.name for argument in schema]
    for key in values:
        if key not in known:
            choices = [*also, *known]
            hint = did_you_mean(str(key), choices) or f"; known: {', '.join(choices) or 'none'}"
            raise UsageError(f"{where(key)}: unknown key{hint}")
    checked = {}
    for argument in schema:
        key = argument.name
        if key in values:
            checked[key] = _checked(argument, values[key], where)
        elif argument.default is REQUIRED:
            raise UsageError(f"{where(key)}: is required, {_with_doc(argument)}")
        else:
            checked[key] = argument.default
    return checked


def _with_doc(argument: Argument) -> str:
    return f"{argument.type_text}: {argument.doc}" if argument.doc else argument.type_text


def _checked(argument: Argument, value: Any, where: Callable[[str], str]) -> Any:
    if value == argument.default and type(value) is type(argument.default):
        return value
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=argument.annotation)
    try:
        # jsonargparse takes None for "not given", whatever the type.
        if value is None and not _takes_none(argument.annotation):
            raise ArgumentError(None, "null")
        return parser.parse_object({"value": value}).value
    except ArgumentError:
        raise UsageError(
            f"{where(argument.name)}={value!r}: expected {argument.type_text}"
        ) from None


def _takes_none(annotation: Any) -> bool:
    return annotation is Any or NoneType in get_args(annotation) or None in get_args(annotation)


def options_help(options: Iterable[tuple[str, Argument, Any]], *, prog: str) -> str:
    """Return the help of dotted options: type, present value and documentation of each.

    Args:
        options: dotted key, argument, present value.
        prog: the words before the options.
    """
    parser = ArgumentParser(prog=prog, usage=f"{prog} [--any.key value]", add_help=False)
    groups: dict[str, Any] = {}
    for key, argument, value in options:
        section = key.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section or "recipe")
        is_missing = value is None and argument.default is REQUIRED
        text = f"{'required: ' if is_missing else ''}{argument.doc}".replace("%", "%%")
        groups[section].add_argument(
            f"--{key}", type=argument.annotation, default=value, help=text, metavar="VALUE"
        )
    # jsonargparse offers `--key+` to append to a list; our overrides have no such form.
    return re.sub(r", --[\w.]+\+ VALUE", "", parser.format_help())
