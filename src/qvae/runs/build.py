"""From a checked recipe to its data and its model."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from qvae import registry
from qvae.autoencoder import build_autoencoder
from qvae.config import Recipe
from qvae.data.base import DataModule
from qvae.data.tokens import TokenData
from qvae.errors import QvaeError, UsageError
from qvae.priors.base import build_prior
from qvae.priors.draw import Sampler
from qvae.priors.independent import IndependentPrior
from qvae.train import TrainSettings

__all__ = ["build_data", "build_model", "check_values"]

T = TypeVar("T")


def check_values(recipe: Recipe, *, device: str = "auto") -> None:
    """Refuse values that the parts refuse, before any data is read or any folder is made.

    Encoder and decoder need the data's shape and are checked by :func:`build_model`.

    Raises:
        UsageError: names the section and the rule.
    """
    _explained("train", lambda: TrainSettings(**recipe.train, seed=recipe.seed, device=device))
    _explained("sample", lambda: Sampler(**recipe.sample))
    for part in ("bottleneck", "likelihood") if recipe.model else ():
        arguments = dict(recipe.model[part])  # type: ignore[index]
        component = registry.resolve(part, arguments.pop("name"))
        _explained(f"model.{part}", partial(component, **arguments))
    name = recipe.prior["name"] if recipe.prior else None
    if name and issubclass(registry.resolve("prior", name), IndependentPrior):
        raise UsageError(
            f"prior.name={name}: no steps teach it anything; qvae sample on the quantizer's own"
            " run counts its codes, and qvae.priors.unigram.fit_unigram those of a folder"
        )


def build_data(recipe: Recipe) -> DataModule:
    """Open the data that a recipe names.

    Raises:
        UsageError: an argument breaks its rule.
        DataError: the data cannot be read.
    """
    arguments = dict(recipe.data)
    component = registry.resolve("data", arguments.pop("name"))
    data: DataModule = _explained("data", lambda: component(**arguments))
    return data


def build_model(recipe: Recipe, data: DataModule) -> nn.Module:
    """Build the autoencoder or the prior of a recipe; its first weights follow from the seed.

    Raises:
        UsageError: an argument breaks its rule, or a prior is given data that are no tokens.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)  # built on the processor
        if recipe.model is not None:
            config = recipe.model
            return _explained("model", lambda: build_autoencoder(config, data.spec))
        if recipe.llm is not None:
            return _build_llm(recipe.llm, data)
        assert recipe.prior is not None
        prior = recipe.prior
        if not isinstance(data, TokenData):
            raise UsageError(
                f"data={recipe.data['name']!r}: a prior is trained on tokens; write them with "
                "qvae encode and give their folder as --data"
            )
        return _explained(
            "prior",
            lambda: build_prior(
                prior,
                vocab_size=data.vocab_size,
                num_tokens=data.num_tokens,
                conditions=data.spec.conditions,
                codebook_sizes=data.codebook_sizes,
                grid=data.grid,
            ),
        )


def _build_llm(config: dict[str, Any], data: DataModule) -> nn.Module:
    """Build a language model over the vocabulary of its rows."""
    vocabulary = getattr(data, "vocabulary", None)
    if vocabulary is None:
        raise UsageError(f"data={type(data).__name__}: a language model is trained on rows of ids")
    arguments = dict(config)
    component = registry.resolve("llm", arguments.pop("name"))
    features = getattr(data, "features", None)
    model: nn.Module = _explained(
        "llm", lambda: component(vocabulary, features=features, **arguments)
    )
    return model


def _explained(section: str, build: Callable[[], T]) -> T:
    """Turn a part's ValueError into a UsageError that names the recipe's section."""
    try:
        return build()
    except QvaeError as error:
        if isinstance(error, UsageError):
            raise UsageError(f"{section}: {error}") from None
        raise
    except ValueError as error:
        raise UsageError(f"{section}: {error}") from error
