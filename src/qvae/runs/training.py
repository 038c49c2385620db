"""Train a recipe in a run folder."""

import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from qvae import registry
from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.base import Quantizer
from qvae.config import Recipe
from qvae.data.base import DataModule
from qvae.data.tokens import TokenData
from qvae.errors import FormatError, UsageError
from qvae.pretrained import save_model
from qvae.runs.build import build_data, build_model, check_values
from qvae.store import load_folder, read_json
from qvae.tokenizer import Tokenizer
from qvae.train import TrainResult, fit
from qvae.train.settings import changed_leaves

if TYPE_CHECKING:
    from qvae.llm.words import WordTokenizer

__all__ = ["copy_folder", "next_run_folder", "train_recipe"]

_STAGES = ("model", "prior", "llm")


def next_run_folder(name: str, *, root: str | Path = "runs") -> Path:
    """Return ``runs/<name>-<n>`` with the first n that is not taken.

    Example:
        >>> next_run_folder("vae", root="/nowhere").name
        'vae-1'
    """
    n = 1
    while (Path(root) / f"{name}-{n}").exists():
        n += 1
    return Path(root) / f"{name}-{n}"


def train_recipe(
    recipe: Recipe,
    *,
    run: str | Path,
    resume: bool = False,
    init: str | Path | None = None,
    device: str = "auto",
    progress: bool | str = True,
    tell: Callable[[str], None] = lambda _: None,
) -> TrainResult:
    """Train what a recipe says, and leave a run folder that can be used alone.

    The folder ends with ``model/`` and, for a prior or a language model, ``tokenizer/``: a copy of
    the tokenizer whose tokens it learned, its hash compared with the one that the tokens name. A
    language model's ``model/`` is a folder that ``transformers`` loads.

    Args:
        recipe: what to train, on which data.
        run: the folder; made if missing, refused if it holds a run and not ``resume``.
        resume: go on from the newest whole checkpoint; refused for another model, other settings
            or the tokens of another tokenizer.
        init: a model or run folder to take the first weights from; every name must match, and
            what decides the meaning of a quantizer's codes.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        progress: as in :func:`qvae.train.fit`.
        tell: as in :func:`qvae.train.fit`.

    Raises:
        UsageError: an argument breaks its rule, or the folder is in use; nothing is written then.
        DataError: the data cannot be read.
        FormatError: initial weights, checkpoints or tokens are of another model.
        TrainingStopped, Interrupted: as in :func:`qvae.train.fit`.
    """
    check_values(recipe, device=device)
    _check_folders(Path(run), resume, init)
    if recipe.train.get("frozen") and init is None and not (resume and _holds_step(Path(run))):
        raise UsageError(
            f"train.frozen={list(recipe.train['frozen'])}: needs --init DIR, or these parts would "
            "stay as they were drawn"
        )
    data = build_data(recipe)
    model = build_model(recipe, data)
    if not _holds_step(Path(run)):  # what was begun may go on
        _check_sense(model, data)
    if init is not None:
        _load_weights(model, Path(init))
    tokenizer = _tokenizer_folder(data) if recipe.prior or recipe.llm else None
    resolved = recipe.resolved()
    subject: dict[str, Any] = {name: resolved[name] for name in _STAGES if name in resolved}
    if tokenizer is not None:
        subject["tokenizer"] = read_json(tokenizer / "config.json")["hash"]
    export = partial(_export, tokenizer=tokenizer, text=getattr(data, "text", None))
    return fit(
        model,
        data,
        run=run,
        resume=resume,
        recipe=resolved,
        subject=subject,
        export=export,
        progress=progress,
        tell=tell,
        **recipe.train,
        seed=recipe.seed,
        device=device,
    )


def _check_sense(model: nn.Module, data: DataModule) -> None:
    """Refuse what would train and could not mean what was asked for.

    Raises:
        UsageError: a price for a rate that no weight changes.
        DataError: a category that no training sample has.
    """
    data.refuse_unseen()
    if isinstance(model, Autoencoder):
        try:
            model.check_price()
        except ValueError as error:
            raise UsageError(f"model: {error}") from None


def _check_folders(run: Path, resume: bool, init: str | Path | None) -> None:
    """Refuse early what :func:`qvae.train.fit` would refuse after the data was read."""
    if init is not None and not Path(init).is_dir():
        raise UsageError(f"init={str(init)!r}: no such folder")
    has_model = (run / "model").exists()
    if not resume and (_holds_step(run) or has_model):
        raise UsageError(
            f"run={str(run)!r} already holds a run; pass --resume to go on or choose another --run"
        )
    if has_model and not _holds_step(run):
        raise UsageError(
            f"run={str(run)!r} holds a model and no checkpoint to go on from; "
            f"start from its weights with --init {run} in another --run"
        )


def _holds_step(run: Path) -> bool:
    return any((run / "state").glob("step_*"))


def _load_weights(model: nn.Module, init: Path) -> None:
    """Take another run's weights; here and not in ``fit``, so that no folder is made in vain."""
    folder = init / "model" if (init / "model").is_dir() else init
    tensors, config = load_folder(folder)
    if isinstance(model, Autoencoder) and config.get("kind") == "autoencoder":
        _check_codes(model.bottleneck, config, folder)
    own = model.state_dict()
    wrong = sorted(
        name
        for name in set(own) | set(tensors)
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape
    )
    if wrong:
        more = f" and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise FormatError(
            f"{folder}: weights of another model; they differ in {', '.join(wrong[:4])}{more}"
        )
    model.load_state_dict(tensors)


def _check_codes(bottleneck: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Refuse weights whose codes mean something else, which names and shapes need not tell."""
    try:
        told = dict(config["model"]["bottleneck"])
        before = registry.resolve("bottleneck", told.pop("name"))(**told)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{folder}: its bottleneck cannot be built ({error!r})") from None
    changed = [
        f"{key} was {was!r} and is now {now!r}"
        for key, (was, now) in changed_leaves(_facts(before), _facts(bottleneck)).items()
    ]
    if changed:
        more = f" and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise FormatError(f"{folder}: weights of another model; {'; '.join(changed[:4])}{more}")


def _facts(bottleneck: nn.Module) -> dict[str, Any]:
    """What the codes of every quantizer in it mean, by its place; nothing where there is none."""
    return {
        f"bottleneck.{name}".rstrip("."): quantizer.code_facts
        for name, quantizer in bottleneck.named_modules()
        if isinstance(quantizer, Quantizer)
    }


def _tokenizer_folder(data: DataModule) -> Path:
    """Return the tokenizer beside the tokens, after comparing its hash with theirs."""
    tokens = getattr(data, "tokens", data)
    assert isinstance(tokens, TokenData)
    folder = tokens.path / "tokenizer"
    if not folder.is_dir():
        raise FormatError(f"{folder}: no such folder; tokens from qvae encode have one")
    found = Tokenizer.from_pretrained(folder).hash
    if found != tokens.tokenizer_hash:
        raise FormatError(
            f"{folder}: tokenizer {found[:12]} is not {tokens.tokenizer_hash[:12]}, whose tokens "
            "these are; encode the data again"
        )
    return folder


def _export(
    model: nn.Module, path: Path, *, tokenizer: Path | None, text: "WordTokenizer | None"
) -> None:
    """Write ``model/`` and, before it, the tokenizer: whoever sees the model can decode."""
    if tokenizer is not None:
        copy_folder(tokenizer, path.parent / "tokenizer")
    if text is None:
        learned = {} if tokenizer is None else read_json(tokenizer / "config.json")
        save_model(model, path, extra={"tokenizer_hash": learned["hash"]} if learned else None)
        return
    from qvae.llm.folder import save_llm
    from qvae.llm.llama import Llama

    assert isinstance(model, Llama)
    save_llm(model, text, path)


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder whole or not at all; one that is there is replaced."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(temporary, target)
