"""The facade that users hold: data to integer tokens and back.

Token order: raster over the grid, the K codebooks of a cell innermost. Codebook k's tokens start
at the sum of the earlier codebooks' sizes, so every token says which codebook it is of.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from qvae.autoencoder import Autoencoder
from qvae.bottlenecks.base import Quantizer
from qvae.errors import FormatError
from qvae.eval_mode import eval_mode
from qvae.pretrained import load_model, model_hash, save_model
from qvae.priors.base import to_digits, token_ranges
from qvae.types import DataSpec, cond_width

__all__ = ["Tokenizer"]

_CHUNK_NUMBERS = 2**20


class Tokenizer:
    """Turn data into tokens and tokens into data with a trained quantized autoencoder.

    Works in eval mode without gradient and leaves the model as it found it. Batches go through
    in chunks, so memory is bounded by the result.

    Args:
        model: an autoencoder whose bottleneck is a quantizer.

    Raises:
        ValueError: the model is no autoencoder, or its bottleneck has no codes.

    Example:
        >>> from qvae.autoencoder import build_autoencoder
        >>> parts = {
        ...     "encoder": {"name": "conv"},
        ...     "bottleneck": {"name": "fsq", "levels": [8, 5]},
        ...     "decoder": {"name": "conv"},
        ...     "likelihood": {"name": "gaussian"},
        ... }
        >>> tokenizer = Tokenizer(build_autoencoder(parts, DataSpec(shape=(1, 16, 16))))
        >>> tokens = tokenizer.encode(torch.rand(2, 1, 16, 16))
        >>> tokens.shape == (2, tokenizer.num_tokens), tokenizer.decode(tokens).shape
        (True, torch.Size([2, 1, 16, 16]))
    """

    def __init__(self, model: Autoencoder) -> None:
        if not isinstance(model, Autoencoder) or not isinstance(model.bottleneck, Quantizer):
            part = getattr(model, "bottleneck", model)
            raise ValueError(
                f"model: {type(part).__name__} has no codes; a tokenizer needs an autoencoder"
                " with a quantizer, such as vq or fsq"
            )
        self.model = model
        self.quantizer: Quantizer = model.bottleneck
        self.spec: DataSpec = model.spec
        self.grid = tuple(model.grid)
        self.codebook_sizes = tuple(self.quantizer.codebook_sizes)
        self.vocab_size = sum(self.codebook_sizes)
        self.num_tokens = math.prod(self.grid) * len(self.codebook_sizes)
        self._low, self._high = token_ranges(self.codebook_sizes, self.num_tokens)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return next(self.model.parameters()).device

    @property
    def hash(self) -> str:
        """Hex digest of the weights and the config; tokens of another hash are not ours."""
        return model_hash(self.model)

    @property
    def facts(self) -> dict[str, Any]:
        """What a file of tokens has to say about them."""
        return {
            "grid": list(self.grid),
            "codebook_sizes": list(self.codebook_sizes),
            "vocab_size": self.vocab_size,
            "num_tokens": self.num_tokens,
        }

    def encode(
        self, x: Shaped[Tensor, "..."], cond: Float[Tensor, "..."] | None = None
    ) -> Int[Tensor, "B N"]:
        """Return the tokens of each sample, on the device of ``x``.

        Raises:
            ValueError: ``x`` or ``cond`` of another shape, or a number that is not finite.
        """
        if tuple(x.shape[1:]) != self.spec.shape or not x.is_floating_point():
            raise ValueError(
                f"x: {x.dtype} of shape {tuple(x.shape)}, must be floats of (B, *{self.spec.shape})"
            )
        result = torch.empty((len(x), self.num_tokens), dtype=torch.long, device=x.device)

        def encode_part(part: Tensor, cond: Tensor | None) -> Tensor:
            codes = self.quantizer.encode(self.model.embed(part, cond))
            return codes.flatten(1) + self._low.to(codes.device)

        return self._in_chunks(encode_part, x, cond, result)

    def decode(
        self,
        tokens: Shaped[Tensor, "..."],
        cond: Float[Tensor, "..."] | None = None,
        *,
        num_levels: int | None = None,
    ) -> Float[Tensor, "B *CS"]:
        """Return the mean of ``p(x | tokens)``, on the device of ``tokens``.

        Args:
            tokens: all of them, also where only the first levels are read.
            cond: raw numbers, NaN = not told.
            num_levels: read the first levels of a ``residual`` only, see :meth:`check_levels`.

        Raises:
            ValueError: a token outside its position's codebook, named with position and value;
                another number of tokens; ``cond`` of another shape; no such number of levels.
        """
        num_codes = self.check_levels(num_levels)
        low, high = self._low.to(tokens.device), self._high.to(tokens.device)
        digits = to_digits(tokens, low, high)
        result = torch.empty((len(tokens), *self.spec.shape), device=tokens.device)

        def decode_part(part: Tensor, cond: Tensor | None) -> Tensor:
            codes = part.view(len(part), *self.grid, len(self.codebook_sizes))[..., :num_codes]
            params = self.model.decode(self.quantizer.decode(codes), cond)
            return self.model.likelihood.mean(params.float())

        return self._in_chunks(decode_part, digits, cond, result)

    def check_levels(self, num_levels: int | None) -> int:
        """Return how many codes of a cell the first levels have; None is all levels.

        Raises:
            ValueError: the quantizer has no levels, or not so many.
        """
        if num_levels is None:
            return len(self.codebook_sizes)
        most = self.quantizer.num_levels
        if most is None:
            name = type(self.quantizer).__name__
            raise ValueError(f"num_levels={num_levels}: {name} has none, only residual has levels")
        if not 1 <= num_levels <= most:
            raise ValueError(f"num_levels={num_levels}: must be in 1..{most}")
        return num_levels * len(self.codebook_sizes) // most

    def save_pretrained(
        self, path: str | Path, *, extra: Mapping[str, Any] | None = None, card: str | None = None
    ) -> None:
        """Write config.json, model.safetensors and README.md, see :mod:`qvae.pretrained`.

        Args:
            path: the folder; an old one is replaced whole.
            extra: facts to keep in config.json.
            card: text of README.md; None writes what is known.

        Raises:
            UsageError: the model was built by hand, not from names.
        """
        facts = {**(extra or {}), "tokenizer": self.facts}
        save_model(self.model, path, extra=facts, card=card)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, device: str | torch.device = "cpu"
    ) -> "Tokenizer":
        """Load what :meth:`save_pretrained` or ``save_model`` wrote, strictly.

        Raises:
            FormatError: the folder is damaged or edited, or its model has no codes.
        """
        model = load_model(path, device=device)
        try:
            return cls(cast(Autoencoder, model))  # which it is, or the constructor says no
        except ValueError as error:
            raise FormatError(f"{path}: {error}") from None

    def _in_chunks(
        self,
        compute: Callable[[Tensor, Tensor | None], Tensor],
        rows: Tensor,
        cond: Tensor | None,
        result: Tensor,
    ) -> Tensor:
        if cond is not None:
            shape = (len(rows), cond_width(self.spec.conditions))
            if tuple(cond.shape) != shape:
                raise ValueError(f"cond: shape {tuple(cond.shape)}, must be {shape}")
        size = max(1, min(256, _CHUNK_NUMBERS // self.spec.num_dims))
        with eval_mode(self.model), torch.inference_mode():
            for i in range(0, len(rows), size):
                part = slice(i, i + size)
                told = None if cond is None else cond[part].to(self.device)
                result[part] = compute(rows[part].to(self.device), told)
        return result
