"""Open a run folder: its model, its tokenizer, its recipe and its data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.base import Quantizer
from qvae.config import Recipe, load_recipe
from qvae.data.base import DataModule
from qvae.data.conditions import condition_row
from qvae.data.tokens import TokenData
from qvae.errors import DataError, FormatError, UsageError
from qvae.pretrained import load_model
from qvae.priors.base import Prior
from qvae.runs.build import build_data
from qvae.store import read_json
from qvae.tokenizer import Tokenizer
from qvae.types import Condition

__all__ = ["Run", "open_run", "open_run_data", "told_row"]

_NEVER_HIDDEN = (
    "; training an autoencoder hides no condition, so unless its data lacked values, "
    "this model never saw that input"
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run folder (or a model folder) holds, in eval mode on a device."""

    path: Path
    model: Autoencoder | Prior
    tokenizer: Tokenizer | None
    """A prior's, or the model itself where its bottleneck has codes."""
    recipe: Recipe | None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What the columns of ``cond`` mean to the model."""
        if isinstance(self.model, Prior):
            return self.model.conditions
        return self.model.spec.conditions

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        if isinstance(self.model, Prior):
            return self.model.device
        return next(self.model.parameters()).device

    def require_tokenizer(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
            UsageError: the model has no codes.
        """
        if self.tokenizer is None:
            raise UsageError(
                f"{self.path}: its bottleneck has no codes; tokens need a quantizer, such as fsq"
            )
        return self.tokenizer


def open_run(path: str | Path, *, device: str | torch.device = "cpu") -> Run:
    """Load the model of a run folder, of a model folder, or of a tokenizer folder.

    Raises:
        FormatError: there is no model, or it is damaged, or a prior's tokenizer is missing or
            is another than the one whose tokens it learned.
    """
    path = Path(path)
    folder = path / "model" if (path / "model").is_dir() else path
    if not (folder / "config.json").is_file():
        is_unfinished = (path / "state").is_dir()
        reason = "its training has not ended; go on with --resume" if is_unfinished else ""
        raise FormatError(f"{path}: holds no model; {reason or 'give the folder of a run'}")
    if "model_type" in read_json(folder / "config.json"):
        raise UsageError(f"{path}: is a language model; see qvae llm --help")
    model = load_model(folder, device=device)
    has_recipe = (path / "recipe.yaml").is_file()
    run = Run(
        path=path,
        model=model,  # type: ignore[arg-type]  # load_model builds these two only
        tokenizer=None,
        recipe=load_recipe(path / "recipe.yaml") if has_recipe else None,
    )
    if isinstance(model, Autoencoder):
        is_quantized = isinstance(model.bottleneck, Quantizer)
        return replace(run, tokenizer=Tokenizer(model) if is_quantized else None)
    tokenizer = Tokenizer.from_pretrained(path / "tokenizer", device=device)
    if tokenizer.codebook_sizes != model.codebook_sizes or tokenizer.num_tokens != model.num_tokens:
        raise FormatError(f"{path / 'tokenizer'}: its tokens are not those of the prior beside it")
    learned = read_json(folder / "config.json").get("tokenizer_hash", tokenizer.hash)
    if learned != tokenizer.hash:
        raise FormatError(
            f"{path / 'tokenizer'}: is {tokenizer.hash[:12]}, the prior beside it learned tokens of"
            f" {str(learned)[:12]}"
        )
    return replace(run, tokenizer=tokenizer)


def open_run_data(run: Run, data: str | Path | None = None) -> DataModule:
    """Open the data that a run was trained on, or other data in its place.

    Columns are read with the model's own conditions, so that a name means the same number.

    Raises:
        UsageError: the run has no recipe.
        DataError: the data cannot be read, or its samples have another shape.
        FormatError: tokens of another tokenizer.
    """
    if run.recipe is None:
        raise UsageError(f"{run.path}: has no recipe.yaml, so which data it takes is not known")
    own = run.recipe.data.get("path")
    if data is None and own is not None and not Path(own).exists():
        raise DataError(
            f"{own}: no such file or folder here; {run.path} was trained on it, so go to where it "
            "was or name the data"
        )
    overrides = [("data.path", str(data))] if data is not None else []
    module = build_data(load_recipe(run.path / "recipe.yaml", overrides))
    if isinstance(module, TokenData):
        if run.tokenizer is not None and module.tokenizer_hash != run.tokenizer.hash:
            raise FormatError(
                f"{module.path}: tokens of tokenizer {module.tokenizer_hash[:12]}, this run's is"
                f" {run.tokenizer.hash[:12]}"
            )
        return module
    use_conditions = getattr(module, "use_conditions", None)
    if use_conditions is not None:
        use_conditions(run.conditions)
    if isinstance(run.model, Autoencoder) and module.spec.shape != run.model.spec.shape:
        raise DataError(
            f"{run.recipe.data['name'] if data is None else data}: samples have the shape "
            f"{module.spec.shape}, the model takes {run.model.spec.shape}"
        )
    return module


def told_row(
    run: Run, cond: Mapping[str, str], *, tell: Callable[[str], None] = lambda _: None
) -> Float[Tensor, " M"] | None:
    """Turn what is told, as text, into raw numbers; None where the run has no conditions.

    ``tell`` hears what is left untold. A prior learns that by hiding conditions; training an
    autoencoder hides none, so it may be an input that the decoder never saw.

    Args:
        run: whose conditions.
        cond: such as ``{"time": "4:20"}``; what is not named is NaN, "not told".
        tell: called with a sentence about what is not told, and about unknown words.

    Raises:
        UsageError: an unknown condition or value, or a model that hears none.
    """
    listens = isinstance(run.model, Prior) or run.model.conditioner is not None
    if cond and not listens:
        raise UsageError(
            f"{run.path}: this model hears no conditions, so {next(iter(cond))} cannot be told; "
            "train it with model.conditional true, or take the run of its prior"
        )
    row = torch.from_numpy(condition_row(run.conditions, cond, tell=tell))
    untold = [item.name for item in run.conditions if item.name not in cond]
    if untold and listens:
        is_new = "" if isinstance(run.model, Prior) else _NEVER_HIDDEN
        tell(f"not told: {', '.join(untold)}{is_new}")
    return row.to(run.device) if run.conditions else None
