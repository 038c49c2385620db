"""An autoencoder as a scikit-learn transformer: codes of a table, as features for other models."""

import math
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load, save
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data
from tqdm import trange

from qvae import autoencoder
from qvae.arguments import is_number, is_whole
from qvae.errors import TrainingStopped
from qvae.train.average import WeightAverage
from qvae.train.engine import running_engine
from qvae.train.optim import build_optimizers
from qvae.train.order import step_indices
from qvae.train.settings import TrainSettings
from qvae.train.step import Stepper
from qvae.types import Batch, DataSpec

__all__ = ["Autoencoder"]

_DTYPES = [np.float64, np.float32]
_BATCH = 4096
_SIGMA = 0.3


class Autoencoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Learn a short code of each row, and rows from codes.

    The graph of this package with one hidden layer to either side, on columns brought to mean 0 and
    deviation 1; what a code does not tell of a column is taken to be .3 of its deviation. It trains
    on the processor, in memory, by the steps of :func:`qvae.fit`. A fitted transformer pickles: its
    weights are safetensors inside.

    Args:
        n_components: width of a code, >= 1; None is half the columns, 1 to 32.
        bottleneck: ``gaussian`` (a VAE; the code is the mean of its posterior) or ``identity``.
        hidden: width of the hidden layers, >= 1; None is twice the columns, 16 to 512.
        beta: weight of the rate, >= 0; a VAE's only.
        steps: optimizer steps of ``fit``, >= 1.
        batch_size: rows in a step, >= 1.
        lr: peak learning rate, > 0.
        warm_start: ``fit`` goes on from the last one; sizes, bottleneck and beta must be as then.
        verbose: show a bar.
        random_state: of weights, order and noise.

    Attributes:
        n_components_: width of a code.
        n_steps_: steps done, by ``fit`` and ``partial_fit`` together.
        loss_: of the last step, nats a row (of the standardised columns).
        model_: the :class:`qvae.Autoencoder`.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> x = load_iris().data
        >>> model = Autoencoder(n_components=2, steps=50, random_state=0).fit(x)
        >>> model.transform(x).shape, model.inverse_transform(model.transform(x)).shape
        ((150, 2), (150, 4))
    """

    n_components: int | None
    bottleneck: str
    hidden: int | None
    beta: float
    steps: int
    batch_size: int
    lr: float
    warm_start: bool
    verbose: bool
    random_state: Any

    @no_type_check  # scikit-learn's rule: a constructor stores anything, and fit refuses it
    def __init__(
        self,
        n_components: int | None = None,
        *,
        bottleneck: str = "gaussian",
        hidden: int | None = None,
        beta: float = 1.0,
        steps: int = 300,
        batch_size: int = 128,
        lr: float = 3e-3,
        warm_start: bool = False,
        verbose: bool = False,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.bottleneck = bottleneck
        self.hidden = hidden
        self.beta = beta
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.warm_start = warm_start
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "Autoencoder":
        """Train on a table; ``y`` is not looked at.

        Raises:
            ValueError: an argument breaks its rule, or the table is empty, constant or not finite.
        """
        goes_on = self.warm_start and hasattr(self, "model_")
        x = validate_data(self, X, dtype=_DTYPES, reset=not goes_on, ensure_min_samples=2)
        self._prepare(x, goes_on=goes_on)
        self._train(x, steps=int(self.steps), decay="cosine")
        return self

    def partial_fit(self, X: Any, y: Any = None) -> "Autoencoder":
        """Train on a piece of a table: one pass over its rows at the full learning rate.

        The first piece settles how columns are scaled.

        Raises:
            ValueError: as for ``fit``, or the piece has other columns than the first.
        """
        is_first = not hasattr(self, "model_")
        x = validate_data(self, X, dtype=_DTYPES, reset=is_first, ensure_min_samples=2)
        self._prepare(x, goes_on=not is_first)
        self._train(x, steps=-(-len(x) // min(self.batch_size, len(x))), decay="none")
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the code of each row."""
        check_is_fitted(self)
        x = validate_data(self, X, dtype=_DTYPES, reset=False)
        scaled = (x.astype(np.float64) - self._mean) / self._scale
        model = self.model_
        return self._apply(lambda part: model.bottleneck.mode(model.embed(part)), scaled, x.dtype)

    def inverse_transform(self, X: Any) -> np.ndarray:
        """Return the row that each code stands for.

        Raises:
            ValueError: codes of another width.
        """
        check_is_fitted(self)
        z = check_array(X, dtype=_DTYPES)
        if z.shape[1] != self.n_components_:
            raise ValueError(f"X has {z.shape[1]} columns: codes have {self.n_components_}")
        model = self.model_
        scaled = self._apply(
            lambda part: model.likelihood.mean(model.decode(part)), z, np.dtype(np.float64)
        )
        return (scaled * self._scale + self._mean).astype(z.dtype)

    def _apply(self, function: Any, rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
        with torch.inference_mode():
            parts = [
                function(torch.from_numpy(rows[start : start + _BATCH].astype(np.float64)))
                for start in range(0, len(rows), _BATCH)
            ]
        return torch.cat(parts).numpy().astype(dtype)

    def _prepare(self, x: Float[np.ndarray, "N F"], *, goes_on: bool) -> None:
        """Check every argument, then start anew or make sure that the model is still that."""
        _check_whole("steps", self.steps)
        _check_whole("batch_size", self.batch_size)
        _check_number("lr", self.lr, is_zero_allowed=False)
        shape = self._shape(x.shape[1])
        if not goes_on:
            self._start(x, shape)
        for name, value in self._built.items():
            if shape[name] != value:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: the model that training goes on from has "
                    f"{value!r}; set it back, or fit anew without warm_start"
                )

    def _shape(self, columns: int) -> dict[str, Any]:
        """Return what the model is built from: arguments with their defaults filled in."""
        if self.bottleneck not in ("gaussian", "identity"):
            raise ValueError(f"bottleneck={self.bottleneck!r}: must be gaussian or identity")
        _check_whole("n_components", self.n_components, can_be_none=True)
        _check_whole("hidden", self.hidden, can_be_none=True)
        _check_number("beta", self.beta, is_zero_allowed=True)
        if self.bottleneck == "identity" and self.beta != 1:
            raise ValueError(f"beta={self.beta}: goes with bottleneck='gaussian'")
        return {
            "bottleneck": self.bottleneck,
            "n_components": int(self.n_components or min(max(columns // 2, 1), 32)),
            "hidden": int(self.hidden or min(max(2 * columns, 16), 512)),
            "beta": float(self.beta),
        }

    def _start(self, x: Float[np.ndarray, "N F"], shape: dict[str, Any]) -> None:
        """Scale by this table, and draw the first weights."""
        self._mean, spread = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
        if not (spread > 0).any():
            raise ValueError("X: every column is constant, so there is nothing to learn")
        self._scale = np.where(spread > 0, spread, 1.0)
        self._built = shape
        self.n_components_ = self._n_features_out = shape["n_components"]
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        network = {"name": "mlp", "hidden": [shape["hidden"]]}
        config = {
            "encoder": {**network, "latent_dim": shape["hidden"]},
            "bottleneck": {"name": self.bottleneck, "dim": self.n_components_},
            "decoder": {**network, "latent_dim": self.n_components_},
            "likelihood": {"name": "gaussian", "sigma": _SIGMA},
            "beta": shape["beta"],
        }
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self._seed)
            self._hold(autoencoder.build_autoencoder(config, DataSpec(shape=(x.shape[1],))))
        self.n_steps_ = 0

    def _hold(self, model: autoencoder.Autoencoder) -> None:
        """Keep a model ready to be asked: a row's code must not depend on the rows beside it.

        In 32 bits the order of a sum does, by the last digit; in 64 it is rounded away.
        """
        self.model_ = model.double().eval()

    def _train(self, x: Float[np.ndarray, "N F"], *, steps: int, decay: Any) -> None:
        table = torch.from_numpy(((x - self._mean) / self._scale).astype(np.float32))
        settings = TrainSettings(
            steps=steps,
            batch_size=min(int(self.batch_size), len(x)),
            lr=float(self.lr),
            decay=decay,
            warmup_steps=None if decay == "cosine" else 0,
            device="cpu",
            precision="float32",
            seed=(self._seed + self.n_steps_) % 2**31,  # else each piece had the same noise
        )
        model = self.model_.float().train()
        with (
            torch.random.fork_rng(devices=[]),
            running_engine(device="cpu", precision="float32") as engine,
        ):
            optimizers = build_optimizers(
                model, settings, device=engine.device, precision=engine.precision
            )
            stepper = Stepper(
                model,
                engine=engine,
                settings=settings,
                optimizers=optimizers,
                average=WeightAverage(model, decay=0.0),
            )
            try:
                for step in trange(steps, disable=not self.verbose, desc="fit", unit="step"):
                    rows = step_indices(
                        seed=settings.seed,
                        step=step,
                        batch_size=settings.batch_size,
                        num_samples=len(table),
                    )
                    result = stepper.run(step, [Batch(x=table[torch.from_numpy(rows)])])
                    if result.is_refused:
                        raise TrainingStopped(f"step {step}: the loss is not finite; lower lr")
            finally:
                stepper.close()
                self._hold(model)
        self.n_steps_ += steps
        self.loss_ = result.values["loss"]

    def __getstate__(self) -> dict[str, Any]:
        """Return plain values; the model as its config and the bytes of a safetensors file."""
        state = dict(super().__getstate__())
        model = state.pop("model_", None)
        if model is not None:
            state["_stored"] = (model.config, save(model.float().state_dict()))
            model.double()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        stored = state.pop("_stored", None)
        super().__setstate__(state)
        if stored is not None:
            config, weights = stored
            model = autoencoder.build_autoencoder(config, DataSpec(shape=(self.n_features_in_,)))
            model.load_state_dict(load(weights))
            self._hold(model)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _check_whole(name: str, value: Any, *, can_be_none: bool = False) -> None:
    is_size = is_whole(value) and value >= 1
    if not is_size and not (can_be_none and value is None):
        rest = ", or None" if can_be_none else ""
        raise ValueError(f"{name}={value!r}: must be a whole number >= 1{rest}")


def _check_number(name: str, value: Any, *, is_zero_allowed: bool) -> None:
    if not (is_number(value) and 0 <= value < math.inf) or (value == 0 and not is_zero_allowed):
        raise ValueError(
            f"{name}={value!r}: must be finite and {'>=' if is_zero_allowed else '>'} 0"
        )
