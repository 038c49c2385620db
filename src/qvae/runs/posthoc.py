"""Turn the run of a trained VAE into one that makes tokens, without training."""

from pathlib import Path

import torch

from qvae.autoencoder import Autoencoder, build_autoencoder
from qvae.bottlenecks.gaussian import Gaussian
from qvae.bottlenecks.posthoc import PostHoc, fit_posthoc
from qvae.config import dump_recipe, load_recipe
from qvae.data.base import DataModule
from qvae.errors import UsageError
from qvae.objectives import RatePrice
from qvae.pretrained import save_model
from qvae.runs.loading import Run
from qvae.runs.tokens import batches_of
from qvae.tokenizer import Tokenizer

__all__ = ["quantize_model", "quantize_run"]

_FOR_TRAINING = {"num_samples": 1, **vars(RatePrice())}
"""What a model of fixed rate has no use for, and what says nothing in its place."""


@torch.no_grad()
def quantize_model(
    model: Autoencoder, data: DataModule, *, bits: float, samples: int = 4096
) -> Tokenizer:
    """Put a :class:`~qvae.bottlenecks.posthoc.PostHoc` in the place of a trained Gaussian.

    Encoder, decoder and the model itself stay as they are.

    Args:
        model: built by ``build_autoencoder``, with a ``gaussian`` bottleneck.
        data: its training split is what the values are fitted to.
        bits: most bits of a grid cell, >= 1.
        samples: how many training samples to look at, >= 1.

    Raises:
        UsageError: the bottleneck is no Gaussian, or the model was built by hand.
        ValueError: ``bits`` below 1.
    """
    if not isinstance(model.bottleneck, Gaussian):
        name = type(model.bottleneck).__name__
        raise UsageError(f"bottleneck {name}: must be gaussian; others have codes or no spread")
    if model.config is None:
        raise UsageError("model: was built by hand; only one of build_autoencoder can be quantized")
    device = next(model.parameters()).device
    means, log_vars = [], []
    model.eval()
    for batch in batches_of(data.train(), label="fit", most=samples):
        batch = batch.to(device)
        mean, log_var = model.bottleneck.posterior(model.embed(batch.x, batch.cond))
        means.append(mean.flatten(0, -2))
        log_vars.append(log_var.flatten(0, -2))
    fitted = fit_posthoc(torch.cat(means), torch.cat(log_vars), bits=bits)
    config = {key: value for key, value in model.config.items() if key not in _FOR_TRAINING}
    config["bottleneck"] = _config(fitted)
    quantized = build_autoencoder(config, model.spec).to(device)
    state = {f"bottleneck.{name}": tensor for name, tensor in fitted.state_dict().items()}
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith("bottleneck.")}
    quantized.load_state_dict({**kept, **state})
    return Tokenizer(quantized.eval())


def quantize_run(
    run: Run, data: DataModule, path: str | Path, *, bits: float, samples: int = 4096
) -> Tokenizer:
    """Write a run folder whose model is that of a run, with codes.

    The new folder is a run like any other: ``encode``, ``eval``, ``decode`` and ``sample`` take it.

    Args:
        run: of a VAE.
        data: as for :func:`quantize_model`.
        path: a new folder.
        bits: as for :func:`quantize_model`.
        samples: as for :func:`quantize_model`.

    Raises:
        UsageError: the folder is there already, the run has no recipe, or as above.
    """
    path = Path(path)
    if path.exists() and any(path.iterdir()):
        raise UsageError(f"{path}: is not empty; choose another folder")
    if run.recipe is None:
        raise UsageError(f"{run.path}: has no recipe.yaml, so the new run could not have one")
    if not isinstance(run.model, Autoencoder):
        raise UsageError(f"{run.path}: is the run of a prior; quantize that of a VAE")
    tokenizer = quantize_model(run.model, data, bits=bits, samples=samples)
    assert tokenizer.model.config is not None
    own = run.recipe.model or {}
    changes = [(f"model.{key}", plain) for key, plain in _FOR_TRAINING.items() if key in own]
    changes.append(("model.bottleneck", tokenizer.model.config["bottleneck"]))
    recipe = load_recipe(run.path / "recipe.yaml", changes)
    path.mkdir(parents=True, exist_ok=True)
    (path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    save_model(tokenizer.model, path / "model", extra={"quantized_from": str(run.path.name)})
    return tokenizer


def _config(fitted: PostHoc) -> dict[str, object]:
    return {"name": "posthoc", "dim": fitted.out_dim, "levels": list(fitted.levels)}
