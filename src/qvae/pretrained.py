"""Save a model as a folder and load it back: names and numbers, nothing that can be run.

    config.json         kind, model (names of the registry and their arguments), what the data or
                        the tokens are, hash, and facts that the caller adds
    model.safetensors   the tensors
    README.md           the card

Loading is strict: the weights' SHA-256, the hash of weights + config, and every tensor's name,
shape and type are checked, and the classes come from the closed registry.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qvae.autoencoder import Autoencoder, build_autoencoder
from qvae.data.conditions import conditions_from_json, conditions_to_json
from qvae.errors import FormatError, UsageError
from qvae.priors.base import Prior, build_prior
from qvae.store import content_hash, load_folder, save_folder
from qvae.types import DataSpec

__all__ = [
    "load_model",
    "model_facts",
    "model_hash",
    "round_weights",
    "save_model",
    "spec_from_json",
    "spec_to_json",
]

_RESERVED = ("kind", "model", "spec", "tokens", "hash", "format_version", "weights_sha256")


def spec_to_json(spec: DataSpec) -> dict[str, Any]:
    """Write a DataSpec as plain JSON values.

    Example:
        >>> spec_to_json(DataSpec(shape=(1, 8, 8), levels=2))
        {'shape': [1, 8, 8], 'conditions': [], 'levels': 2}
    """
    return {
        "shape": list(spec.shape),
        "conditions": conditions_to_json(spec.conditions),
        "levels": spec.levels,
    }


def spec_from_json(value: Any, where: str) -> DataSpec:
    """Read what :func:`spec_to_json` wrote; ``where`` names the file in errors.

    Raises:
        FormatError: another shape, or a number that makes no sense.
    """
    try:
        shape, levels = _sizes(value["shape"]), value["levels"]
        if levels is not None and (type(levels) is not int or levels < 2):
            raise ValueError(f"levels {levels!r}")
        conditions = conditions_from_json(value["conditions"], where)
        return DataSpec(shape=shape, conditions=conditions, levels=levels)
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{where}: spec cannot be read ({error!r})") from None


def model_facts(model: nn.Module) -> dict[str, Any]:
    """Return all that it takes to build the model again, as plain JSON values.

    Raises:
        UsageError: the model was not built from names, so a file cannot say how to build it.
    """
    if not isinstance(model, (Autoencoder, Prior)) or not model.config:
        raise UsageError(
            f"{type(model).__name__}: only a model of build_autoencoder or build_prior can be"
            " saved as a folder; for one built by hand, save its state_dict"
        )
    if isinstance(model, Autoencoder):
        facts = {"kind": "autoencoder", "spec": spec_to_json(model.spec)}
    else:
        tokens = {
            "num_tokens": model.num_tokens,
            "codebook_sizes": list(model.codebook_sizes),
            "conditions": conditions_to_json(model.conditions),
        }
        if len(model.grid) > 1:  # one axis is what its length says
            tokens["grid"] = list(model.grid)
        facts = {"kind": "prior", "tokens": tokens}
    return {**facts, "model": _plain(model.config)}


def model_hash(model: nn.Module) -> str:
    """Hash the weights and how they are used; the same after saving and loading.

    Raises:
        UsageError: as for :func:`model_facts`.
    """
    return content_hash(model.state_dict(), model_facts(model))


def save_model(
    model: nn.Module,
    path: str | Path,
    *,
    extra: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Write a model's folder in one rename; an old folder at ``path`` is replaced whole.

    Args:
        model: made by ``build_autoencoder`` or ``build_prior``.
        path: the folder.
        extra: facts to keep in config.json beside the model's own, such as scores.
        card: text of README.md; None writes what is known.

    Raises:
        UsageError: the model was built by hand, or ``extra`` has a name that is taken.
    """
    facts = model_facts(model)
    taken = sorted(set(extra or {}) & set(_RESERVED))
    if taken:
        raise UsageError(f"extra: the name {taken[0]!r} is taken")
    tensors = model.state_dict()
    config = {**facts, **(extra or {}), "hash": content_hash(tensors, facts)}
    text = card if card is not None else _card(facts, tensors)
    stored = {name: _narrowed(tensor) for name, tensor in tensors.items()}
    save_folder(Path(path), stored, config, files={"README.md": text})


def round_weights(model: nn.Module) -> None:
    """Round every float32 weight to what 16 bits can hold, in place: its folder is half as big.

    The model changes, and so does its hash; score it after, not before.
    """
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.dtype == torch.float32:
                tensor.copy_(tensor.to(torch.float16))


def _narrowed(tensor: Tensor) -> Tensor:
    """Return the tensor in 16 bits if not a single value changes by that."""
    if tensor.dtype != torch.float32:
        return tensor
    narrow = tensor.to(torch.float16)
    return narrow if torch.equal(narrow.to(torch.float32), tensor) else tensor


def _widened(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo :func:`_narrowed`."""
    return {
        name: tensor.to(torch.float32)
        if tensor.dtype == torch.float16
        and name in expected
        and expected[name].dtype == torch.float32
        else tensor
        for name, tensor in found.items()
    }


def load_model(path: str | Path, *, device: str | torch.device = "cpu") -> nn.Module:
    """Load a folder of :func:`save_model`, in eval mode.

    Raises:
        FormatError: a file is missing, damaged or edited, names an unknown component, or holds
            other tensors than the model has; each such tensor is named.
    """
    path = Path(path)
    where = str(path / "config.json")
    tensors, config = load_folder(path)
    build = _BUILDERS.get(str(config.get("kind")))
    if build is None:
        known = ", ".join(_BUILDERS)
        raise FormatError(f"{where}: kind={config.get('kind')!r}, this release knows {known}")
    try:
        model = build(config, where)
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        text = str(error) if isinstance(error, ValueError) else repr(error)
        raise FormatError(f"{where}: the model cannot be built ({text})") from None
    tensors = _widened(tensors, model.state_dict())
    _check_tensors(model.state_dict(), tensors, path / "model.safetensors")
    model.load_state_dict(tensors, strict=True)
    if config.get("hash") != model_hash(model):
        raise FormatError(f"{where}: hash is not that of this model; the file was edited")
    return model.to(device).eval()


def _build_autoencoder(config: Mapping[str, Any], where: str) -> nn.Module:
    return build_autoencoder(config["model"], spec_from_json(config["spec"], where))


def _build_prior(config: Mapping[str, Any], where: str) -> nn.Module:
    tokens = config["tokens"]
    sizes = _sizes(tokens["codebook_sizes"])
    (num_tokens,) = _sizes([tokens["num_tokens"]])
    return build_prior(
        config["model"],
        vocab_size=sum(sizes),
        num_tokens=num_tokens,
        conditions=conditions_from_json(tokens["conditions"], where),
        codebook_sizes=sizes,
        grid=_sizes(tokens["grid"]) if "grid" in tokens else None,
    )


_BUILDERS: dict[str, Callable[[Mapping[str, Any], str], nn.Module]] = {
    "autoencoder": _build_autoencoder,
    "prior": _build_prior,
}


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(size) is not int or size < 1 for size in value):
        raise ValueError(f"{value!r} must be a list of integers >= 1")
    return tuple(value)


def _plain(value: Any) -> Any:
    """Turn mappings and tuples into what JSON gives back, so that hashes agree."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UsageError(f"model config: {value!r} is no plain value and cannot be saved")


def _check_tensors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    problems = [f"{name} is missing" for name in missing]
    problems += [f"{name} is not of this model" for name in extra]
    for name in sorted(set(expected) & set(found)):
        ours, theirs = expected[name], found[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            problems.append(
                f"{name} is {theirs.dtype} {tuple(theirs.shape)},"
                f" must be {ours.dtype} {tuple(ours.shape)}"
            )
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise FormatError(f"{path}: {'; '.join(problems[:8])}{more}")


def _card(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Write the card: what it is, how big, how to load it."""
    model = facts["model"]
    part = model["bottleneck"]["name"] if facts["kind"] == "autoencoder" else model["name"]
    known = "spec" if facts["kind"] == "autoencoder" else "tokens"
    lines = [
        "---\nlibrary_name: qvae\ntags:\n- qvae\n" + f"- {part}\n---\n",
        f"# A qvae {facts['kind']}: {part}\n",
        f"{sum(tensor.numel() for tensor in tensors.values()):,} numbers.\n",
        *(f"- {key}: {_describe(value)}" for key, value in facts[known].items()),
        '\n```python\nimport qvae\n\nmodel = qvae.load_model("this/folder")\n```\n',
    ]
    return "\n".join(lines)


def _describe(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return ", ".join(f"{item['name']} ({item['kind']})" for item in value)
    if isinstance(value, list):
        return " x ".join(str(item) for item in value) or "none"
    return str(value)
