"""Recipe files: find them, read them, lay one over another. Nothing here knows what a key means."""

import re
from pathlib import Path
from typing import Any

from qvae.errors import UsageError
from qvae.registry import did_you_mean
from qvae.yaml_text import parse_yaml

__all__ = [
    "MODEL_KEYS",
    "NESTED",
    "PARTS",
    "find_recipe",
    "merge",
    "read_recipe",
    "recipe_names",
    "spell_out",
]

PARTS = ("encoder", "bottleneck", "decoder", "likelihood")
"""The components of a model section."""
NESTED = ("quantizer",)
"""The names of arguments that are components themselves."""
MODEL_KEYS = (
    *PARTS,
    "beta",
    "beta_start",
    "beta_warmup",
    "capacity",
    "capacity_steps",
    "conditional",
    "edge_weight",
    "free_bits",
    "harmonics",
    "num_samples",
    "swap_prob",
)
"""What may be written without its leading ``model.`` on the command line."""
_RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> list[str]:
    """List the recipes that are shipped in the package."""
    return sorted(path.stem for path in _RECIPES.glob("*.yaml"))


def find_recipe(source: str | Path, beside: Path | None = None) -> Path:
    """Return the file of a recipe's name or path; a path is taken relative to the file ``beside``.

    Raises:
        UsageError: there is no such recipe.
    """
    text = str(source)
    if re.fullmatch(r"[\w-]+", text) and text in recipe_names():
        return _RECIPES / f"{text}.yaml"
    path = Path(text) if beside is None else beside.parent / text
    if path.is_dir() and (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"
    if path.is_file():
        return path
    known = recipe_names()
    hint = did_you_mean(text, known)
    prefix = f"{beside}: extends" if beside else "recipe"
    raise UsageError(f"{prefix} {text!r}: no such recipe or file{hint}; known: {', '.join(known)}")


def read_recipe(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a recipe file and lay it over what it extends.

    Raises:
        UsageError: the file cannot be read, is no mapping, or extends itself.
    """
    if path.resolve() in seen:
        raise UsageError(f"{path}: extends itself, through {' -> '.join(p.stem for p in seen)}")
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{path}: a recipe is a mapping of data, model, train ...")
    raw = spell_out(raw)
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise UsageError(f"{path}: extends={parent!r}: must be one recipe's name or file")
    base = read_recipe(find_recipe(parent, path), (*seen, path.resolve()))
    return merge(base, raw)


def spell_out(raw: dict[Any, Any]) -> dict[Any, Any]:
    """Turn ``bottleneck: fsq`` into ``bottleneck: {name: fsq}``, also inside components."""
    stages = [(raw, key) for key in ("data", "prior", "llm")]
    for section, key in [*stages, *((raw.get("model"), p) for p in PARTS)]:
        if isinstance(section, dict) and key in section:
            section[key] = _spelled_component(section[key])
    return raw


def _spelled_component(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict):
        return value
    return {k: _spelled_component(item) if k in NESTED else item for k, item in value.items()}


def merge(base: Any, top: Any) -> Any:
    """Lay ``top`` over ``base``; another component name replaces the component whole."""
    if not isinstance(base, dict) or not isinstance(top, dict):
        return top
    if "name" in top and top["name"] != base.get("name"):
        return top
    merged = {key: merge(base[key], top[key]) if key in top else base[key] for key in base}
    return merged | {key: value for key, value in top.items() if key not in base}
