"""What a sampler was asked for, and how it answers a prior that has to decide a token.

A prior's loop does not know how tokens are chosen: it hands logits to a :data:`Choose` and gets
digits back. Sampling, in-painting, forcing given tokens and entropy coding are all such functions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from qvae.arguments import check_tensors
from qvae.priors.digits import to_digits
from qvae.priors.sampling import check_sampler, pick, uniforms

__all__ = [
    "Choose",
    "Draw",
    "OnStep",
    "OnTokens",
    "Sampler",
    "draws",
    "fixed_tokens",
    "hand_out",
    "is_within",
    "noise_of",
]

_CHUNK = 256

Choose = Callable[[Tensor, int], Tensor]
"""Given float32 logits ``[B, S]`` and the position in a sample, return the digits ``[B]``."""
OnStep = Callable[[int, int], None]
"""Is told the work done and the work in all, in tokens."""
OnTokens = Callable[[Tensor, Tensor, Tensor], None]
"""Is given sample numbers ``[b]``, their tokens so far ``[b, N]``, and which are decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Settings of a sampler; the arguments are those of ``Prior.sample``.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> Sampler(min_p=2.0)
        Traceback (most recent call last):
        ValueError: min_p=2.0: must be in (0, 1]
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    guidance: float = 1.0

    def __post_init__(self) -> None:
        check_sampler(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            guidance=self.guidance,
        )

    def pick(self, logits: Float[Tensor, "... S"], uniform: Tensor) -> Int[Tensor, "..."]:
        """Choose a digit for each row by its uniform number."""
        return pick(
            logits,
            uniform,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
        )


@dataclass(slots=True, kw_only=True)
class Draw:
    """The draw of some rows: settings, a stream of uniform numbers a row, and fixed digits."""

    sampler: Sampler
    noise: Float[Tensor, "B L"]
    """Uniform numbers; the first N decide the tokens of a prior that decides each once."""
    digits: Int[Tensor, "B N"]
    """What is fixed; anything where nothing is."""
    is_fixed: Bool[Tensor, "B N"]
    found: Int[Tensor, "B N"]
    """The digits so far."""
    is_found: Bool[Tensor, "B N"]
    on_step: OnStep
    """Told after each step how many tokens of a row are decided, and of how many."""
    on_found: Callable[[Tensor, Tensor], None] | None = None
    """Given ``found`` and ``is_found`` after each step."""
    num_decided: int = 0

    def choose(self, logits: Float[Tensor, "B S"], n: int) -> Int[Tensor, " B"]:
        """Return the digits of position n: the fixed one, else a draw."""
        drawn = self.sampler.pick(logits, self.noise[:, n])
        chosen = torch.where(self.is_fixed[:, n], self.digits[:, n], drawn)
        if self.on_found is not None:
            self.found[:, n] = chosen
            self.is_found[:, n] = True
        self.report(self.num_decided + 1)
        return chosen

    def report(self, done: int) -> None:
        """Tell how far this draw is, and what is found."""
        self.num_decided = done
        self.on_step(done, self.is_fixed.shape[1])
        if self.on_found is not None:
            self.on_found(self.found, self.is_found)

    def needed(self) -> list[bool]:
        """Say for each position whether any row still has to be decided there."""
        flags: list[bool] = (~self.is_fixed).any(0).tolist()
        return flags


def draws(
    noise: Float[Tensor, "num L"],
    digits: Int[Tensor, "num N"],
    is_fixed: Bool[Tensor, "num N"],
    *,
    low: Int[Tensor, " N"],
    sampler: Sampler,
    on_step: OnStep | None,
    on_tokens: OnTokens | None,
) -> Iterator[tuple[slice, Draw]]:
    """Cut a draw into chunks of rows, so that memory is bounded; each reports for the whole."""
    starts = range(0, len(noise), _CHUNK)
    for chunk, start in enumerate(starts):
        part = slice(start, min(start + _CHUNK, len(noise)))

        def report(done: int, total: int, chunk: int = chunk) -> None:
            if on_step is not None:
                on_step(chunk * total + done, len(starts) * total)

        def show(found: Tensor, is_found: Tensor, part: slice = part) -> None:
            assert on_tokens is not None
            rows = torch.arange(part.start, part.stop)
            hand_out(on_tokens, rows, torch.where(is_found, found, 0) + low, is_found)

        draw = Draw(
            sampler=sampler,
            noise=noise[part],
            digits=digits[part],
            is_fixed=is_fixed[part],
            found=digits[part].clone(),
            is_found=is_fixed[part].clone(),
            on_step=report,
            on_found=None if on_tokens is None else show,
        )
        yield part, draw


def hand_out(
    on_tokens: OnTokens,
    rows: Int[Tensor, " b"],
    tokens: Int[Tensor, "b N"],
    is_decided: Bool[Tensor, "b N"],
) -> None:
    """Give a caller copies to keep, outside the inference mode that a loop may run in."""
    with torch.inference_mode(False), torch.no_grad():
        on_tokens(rows.clone(), tokens.clone(), is_decided.clone())


def noise_of(
    num: int,
    length: int,
    seed: int | Sequence[int],
    generator: torch.Generator | None,
    device: torch.device,
) -> Float[Tensor, "num length"]:
    """Return each row's stream of uniform numbers, see :func:`qvae.priors.sampling.uniforms`.

    Raises:
        ValueError: no generator, or no seeds.
    """
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise ValueError(f"generator={generator!r}: must be a torch.Generator")
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    # float64 decides draws; one kind of device has none.
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.from_numpy(uniforms(num, length, seed)).to(dtype).to(device)


def fixed_tokens(
    num: int,
    low: Int[Tensor, " N"],
    high: Int[Tensor, " N"],
    *,
    known: Shaped[Tensor, "..."] | None,
    keep: Shaped[Tensor, "..."] | None,
    lengths: Shaped[Tensor, "..."] | None,
) -> tuple[Int[Tensor, "num N"], Bool[Tensor, "num N"]]:
    """Return the digits that are fixed, and where: ``known`` where ``keep``, 0 after the length.

    Raises:
        ValueError: one of known and keep without the other, another shape, a kept token out of
            its codebook, or a length that is not in 1..N.
    """
    size = len(low)
    digits = torch.zeros(num, size, dtype=torch.long, device=low.device)
    is_fixed = torch.zeros(num, size, dtype=torch.bool, device=low.device)
    if (known is None) != (keep is None):
        raise ValueError("known and keep: one without the other says nothing; give both")
    if known is not None and keep is not None:
        check_tensors(known=known, keep=keep)
        is_whole = not (known.is_floating_point() or known.dtype == torch.bool)
        if not is_whole or keep.dtype != torch.bool:
            raise ValueError(
                f"known of {known.dtype} and keep of {keep.dtype}: must be integers and booleans"
            )
        tokens = _rows(known, num, size, "known").to(low.device)
        is_fixed = _rows(keep, num, size, "keep").to(low.device).clone()
        digits = to_digits(torch.where(is_fixed, tokens.long(), low), low, high)
    if lengths is not None:
        is_padding = ~is_within(lengths, num, size).to(low.device)
        digits = digits.masked_fill(is_padding, 0)
        is_fixed = is_fixed | is_padding
    return digits, is_fixed


def is_within(lengths: Shaped[Tensor, "..."], num: int, size: int) -> Bool[Tensor, "num N"]:
    """Say which positions are part of a sample, given how many tokens each has.

    Raises:
        ValueError: not ``num`` integers in 1..size.

    Example:
        >>> is_within(torch.tensor([1, 3]), 2, 3).tolist()
        [[True, False, False], [True, True, True]]
    """
    check_tensors(lengths=lengths)
    values = lengths.detach().cpu()
    is_whole = not (values.is_floating_point() or values.dtype == torch.bool)
    is_bad = not is_whole or values.shape != (num,)
    if is_bad or bool(((values < 1) | (values > size)).any()):
        raise ValueError(
            f"lengths={np.asarray(values).tolist()}: needs {num} integers in 1..{size}"
        )
    return torch.arange(size) < values[:, None]


def _rows(values: Tensor, num: int, size: int, name: str) -> Tensor:
    rows = values[None] if values.ndim == 1 else values
    if rows.ndim != 2 or rows.shape[1] != size or rows.shape[0] not in (1, num):
        raise ValueError(f"{name} of shape {tuple(values.shape)}: needs [{num}, {size}]")
    return rows.expand(num, size)
