"""Recipes: YAML in, every key checked against the constructor that it goes to, all defaults out.

A recipe has these top-level keys::

    extends: vae                   another recipe by name, or a file beside this one
    data:    {name: clocks, ...}   arguments of the data module
    model:   {encoder: {name: conv, ...}, bottleneck: {...}, decoder: {...}, likelihood: {...},
              beta: 1.0, conditional: false}                       stage 1, or
    prior:   {name: transformer, ...}                              stage 2, or
    llm:     {name: llama, ...}    text and tokens at once
    train:   {steps: 1000, ...}    arguments of the training loop
    sample:  {temperature: 1.0, guidance: 1.0}    what `qvae sample` uses unless told otherwise
    seed:    0

There is no config class for a component: its constructor's signature is the schema. Names are
resolved by the registry before anything is parsed, so a recipe can import nothing. An unknown key
is an error, a wrong type is an error, and naming another component drops the old one's arguments.
A component may hold another, ``bottleneck: {name: residual, quantizer: {name: fsq, ...}}``; its
keys are checked and overridden like all others, ``--bottleneck.quantizer.levels``.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qvae import registry
from qvae.errors import UsageError
from qvae.recipe_files import (
    MODEL_KEYS,
    NESTED,
    PARTS,
    find_recipe,
    merge,
    read_recipe,
    spell_out,
)
from qvae.recipe_schema import at, section_schemas
from qvae.registry import did_you_mean
from qvae.schema import REQUIRED, Argument, arguments, check_values
from qvae.yaml_text import dump_yaml

__all__ = ["Recipe", "dump_recipe", "load_recipe", "normalise_key", "recipe_options"]

_TOP = ("data", "model", "prior", "llm", "train", "sample", "seed")
_STAGES = ("model", "prior", "llm")
"""What a recipe trains: one of these sections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A checked recipe, complete with every default.

    Exactly one of ``model`` (stage 1), ``prior`` (stage 2) and ``llm`` is given. Each component
    is ``{"name": ..., **arguments}``.
    """

    name: str
    data: dict[str, Any]
    model: dict[str, Any] | None
    prior: dict[str, Any] | None
    train: dict[str, Any]
    sample: dict[str, Any]
    seed: int
    llm: dict[str, Any] | None = None

    def resolved(self) -> dict[str, Any]:
        """Return plain lists and dicts that, written as YAML, load as the same recipe."""
        return {key: _plain(value) for key in _TOP if (value := getattr(self, key)) is not None}


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML, fully resolved.

    Example:
        >>> recipe = Recipe(name="r", data={"name": "clocks"}, model=None, train={}, sample={},
        ...                 prior={"name": "transformer", "dim": 64}, seed=0)
        >>> print(dump_recipe(recipe).splitlines()[0])
        data:
    """
    return dump_yaml(recipe.resolved())


def load_recipe(
    source: str | Path, overrides: Iterable[tuple[str, Any]] = (), *, is_complete: bool = True
) -> Recipe:
    """Read a recipe, apply what it extends and the overrides, and check every key and value.

    Args:
        source: the name of a shipped recipe, a YAML file, or a run folder.
        overrides: dotted keys and values; ``bottleneck.dim`` is short for
            ``model.bottleneck.dim``. A later one wins, but names are applied first.
        is_complete: whether a required value that is missing is an error; else it is None.

    Raises:
        UsageError: names the file, the dotted key and the rule.

    Example:
        >>> load_recipe("clock_style", [("bottleneck.levels", [8, 5]), ("seed", 3)]).seed
        3
    """
    path = find_recipe(source)
    name = path.absolute().parent.name if path.name == "recipe.yaml" else path.stem
    raw = read_recipe(path)
    pairs = [(normalise_key(key), value) for key, value in overrides]
    for key, value in sorted(pairs, key=lambda pair: _rank(pair[0])):
        _override(raw, key, value)
    changed = frozenset(key for key, _ in pairs)
    checker = _Checker(source=str(source), changed=changed, is_complete=is_complete)
    return checker.recipe(name, raw)


def normalise_key(key: str) -> str:
    """Return the full dotted key of a full or short one.

    Example:
        >>> normalise_key("bottleneck.levels"), normalise_key("train.steps")
        ('model.bottleneck.levels', 'train.steps')
    """
    first = key.split(".")[0]
    if first in _TOP:
        return key
    if first in MODEL_KEYS:
        return f"model.{key}"
    hint = did_you_mean(first, [*_TOP, *MODEL_KEYS])
    raise UsageError(f"--{key}: no recipe has a section {first!r}{hint or '; see RECIPE --help'}")


def recipe_options(recipe: Recipe) -> list[tuple[str, Argument, Any]]:
    """List every dotted key of a recipe with its argument and its present value."""
    values = {key: getattr(recipe, key) for key in _TOP}
    options = []
    for path, schema in section_schemas(values):
        section = at(values, path)
        options += [(f"{path}.{item.name}", item, section[item.name]) for item in schema]
    return options


def _rank(key: str) -> int:
    """Order overrides: a name before its arguments, an outer component before an inner one."""
    parts = key.removesuffix(".name").split(".")
    is_part = len(parts) == 2 and parts[0] == "model" and parts[1] in PARTS
    is_name = key.endswith(".name") or parts in (["data"], ["prior"], ["llm"]) or is_part
    return len(parts) if is_name or parts[-1] in NESTED else 1000


def _override(raw: dict[str, Any], key: str, value: Any) -> None:
    parts = key.split(".")
    if parts[0] in _STAGES and parts[0] not in raw:
        other = next((stage for stage in _STAGES if stage in raw), "model")
        raise UsageError(f"--{key}: this recipe trains a {other}, it has no {parts[0]} section")
    change: Any = value
    for part in reversed(parts):
        change = {part: change}
    merged = merge(raw, spell_out(change))
    raw.clear()
    raw.update(merged)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else deepcopy(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Checker:
    """Checks one recipe; knows what to call a key in an error."""

    source: str
    changed: frozenset[str]
    """Dotted keys given on the command line."""
    is_complete: bool

    def where(self, key: str) -> str:
        if key in self.changed:
            return f"--{key}"
        short = " (--data PATH)" if key == "data.path" else ""
        return f"{self.source}: {key}{short}"

    def recipe(self, name: str, raw: dict[str, Any]) -> Recipe:
        for key in raw:
            if key not in _TOP:
                hint = did_you_mean(str(key), list(_TOP)) or f"; known: {', '.join(_TOP)}"
                raise UsageError(f"{self.where(key)}: unknown key{hint}")
        values = {key: raw.get(key) for key in _TOP}
        stages = [stage for stage in _STAGES if values[stage] is not None]
        if len(stages) != 1:
            found = " and ".join(stages) or "none"
            raise UsageError(f"{self.source}: needs one of {', '.join(_STAGES)}, has {found}")
        if values["prior"] is not None and isinstance(values["data"] or {}, dict):
            values["data"] = {"name": "tokens", **(values["data"] or {})}
        sections: dict[str, Any] = {
            key: self._mapping(key, values[key]) for key in _TOP if key != "seed"
        }
        model = sections["model"]
        if model is not None:
            model.update({part: self._mapping(f"model.{part}", model.get(part)) for part in PARTS})
            self._fill_nested("model.bottleneck", "bottleneck", model["bottleneck"])
        schemas = section_schemas(sections)
        for path, schema in schemas:
            inner = [other.rpartition(".") for other, _ in schemas]
            self._check(sections, path, schema, [name for outer, _, name in inner if outer == path])
        return Recipe(name=name, seed=self._seed(raw.get("seed", 0)), **sections)

    def _mapping(self, path: str, value: Any) -> dict[str, Any] | None:
        if path in _STAGES and value is None:
            return None
        if path in ("train", "sample", "model"):
            value = value or {}
        else:
            return self._component(path, path.removeprefix("model."), value)
        if not isinstance(value, dict):
            raise UsageError(f"{self.where(path)}={value!r}: must be a mapping")
        return dict(value)

    def _component(self, path: str, kind: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or "name" not in value:
            known = ", ".join(registry.names(kind))
            raise UsageError(f"{self.where(path)}: needs a name, one of {known}")
        try:
            registry.resolve(kind, value["name"])
        except UsageError as error:
            key = path if path in self.changed else f"{path}.name"
            raise UsageError(f"{self.where(key)}: {error}") from None
        return dict(value)

    def _fill_nested(self, path: str, kind: str, section: dict[str, Any]) -> None:
        """Put in the components that a component holds, the default where none is named."""
        for item in arguments(registry.resolve(kind, section["name"])):
            if item.kind is None:
                continue
            inner = f"{path}.{item.name}"
            value = section.get(item.name, {})
            if isinstance(value, dict) and "name" not in value and item.default is not REQUIRED:
                value = merge(dict(item.default), value)
            section[item.name] = self._component(inner, item.kind, value)
            self._fill_nested(inner, item.kind, section[item.name])

    def _check(
        self, values: dict[str, Any], path: str, schema: list[Argument], parts: list[str]
    ) -> None:
        """Check a section's own keys; ``parts`` are components in it, checked on their own."""
        section = at(values, path)
        fixed = {key: section[key] for key in ("name", *parts) if key in section}
        given = {key: value for key, value in section.items() if key not in fixed}
        if not self.is_complete:
            required = [a.name for a in schema if a.default is REQUIRED and a.name not in given]
            schema = [item for item in schema if item.name not in required]
            fixed |= dict.fromkeys(required)

        def where(key: str) -> str:
            return self.where(f"{path}.{key}")

        checked = check_values(schema, given, where=where, also=parts)
        section.clear()
        section.update(fixed | checked)

    def _seed(self, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UsageError(f"{self.where('seed')}={value!r}: must be a whole number >= 0")
        return value
