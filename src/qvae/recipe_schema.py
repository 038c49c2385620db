"""What each section of a recipe may hold: the schemas of its components, also of those inside."""

from collections.abc import Mapping
from typing import Any

from qvae import registry
from qvae.recipe_files import PARTS
from qvae.schema import RUNTIME, Argument, arguments

__all__ = ["SECTIONS", "at", "section_schemas"]

SECTIONS = {
    "model": "qvae.autoencoder:Autoencoder",
    "train": "qvae.train.settings:TrainSettings",
    "sample": "qvae.priors.base:Prior.sample",
}
"""The signatures behind the sections that are no component."""
_NOT_IN_RECIPE = {
    "train": frozenset({"seed", "device"}),
    "sample": frozenset(
        {"num", "cond", "seed", "generator", "known", "keep", "lengths", "on_step", "on_tokens"}
    ),
}
_MODEL_EXTRA = [
    Argument(name="conditional", annotation=bool, default=False, doc="use the data's conditions."),
    Argument(
        name="harmonics",
        annotation=int,
        default=8,
        doc="of a cyclic condition, multiples of its angle.",
    ),
]


def at(values: Mapping[str, Any], path: str) -> Any:
    """Return what stands at a dotted path.

    Example:
        >>> at({"model": {"beta": 1.0}}, "model.beta")
        1.0
    """
    for part in path.split("."):
        values = values[part]
    return values


def section_schemas(values: Mapping[str, Any]) -> list[tuple[str, list[Argument]]]:
    """List the dotted path and the schema of each section of a recipe that holds arguments.

    A component inside a component comes before it, and is no argument of the outer schema.
    """
    paths = ["data"] if values["data"] else []
    if values["model"] is not None:
        paths += [f"model.{part}" for part in PARTS]
    paths += [stage for stage in ("prior", "llm") if values[stage] is not None]
    found = []
    for path in paths:
        found += _component_schemas(values, path, path.removeprefix("model."))
    for section, target in SECTIONS.items():
        if values[section] is not None:
            skip = RUNTIME | _NOT_IN_RECIPE.get(section, frozenset())
            schema = arguments(registry.import_attribute(target), skip=skip)
            found.append((section, schema + (_MODEL_EXTRA if section == "model" else [])))
    return found


def _component_schemas(
    values: Mapping[str, Any], path: str, kind: str
) -> list[tuple[str, list[Argument]]]:
    section = at(values, path)
    schema = arguments(registry.resolve(kind, section["name"]))
    inner: list[tuple[str, list[Argument]]] = []
    for item in schema:
        if item.kind is not None and item.name in section:
            inner += _component_schemas(values, f"{path}.{item.name}", item.kind)
    return [*inner, (path, [item for item in schema if item.kind is None])]
