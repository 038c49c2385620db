"""Decode a Llama one id a step with a cache: greedy text, and images by their codes.

Prompts of one length go together, so no row is padded and a row's result does not depend on the
others. The table of rows is written out once. What the grammar forbids is never drawn: text ends
at ``begin`` or at the last token, and an image is its codes and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from qvae.arguments import check_whole
from qvae.errors import FormatError, UsageError
from qvae.llm.grammar import Grammar, flat_ids
from qvae.llm.layers import LlamaBlock, Rotation, rms_norm, rotate, rotation
from qvae.llm.llama import MAX_LENGTH, Llama
from qvae.llm.vocabulary import Vocabulary
from qvae.priors.draw import OnStep, OnTokens, hand_out
from qvae.priors.sampling import check_sampler, pick, uniforms

__all__ = ["complete_text", "draw_codes"]

_CHUNK = 256


class _Cache:
    """Keys and values of one batch, grown as positions are seen."""

    def __init__(self, decoder: "_Decoder", num: int, length: int) -> None:
        model = decoder.model
        shape = (2, num * model.num_heads, length, model.dim // model.num_heads)
        self.layers = [decoder.embedding.new_empty(shape) for _ in model.layers]
        self.length = 0


class _Decoder:
    """A model with its tables written out."""

    def __init__(self, model: Llama, *, max_length: int) -> None:
        self.model = model
        self.embedding, self.head = model.embedding.rows(), model.head.rows()
        self.angles = rotation(
            0,
            max_length,
            head_dim=model.dim // model.num_heads,
            theta=model.rope_theta,
            device=self.embedding.device,
            dtype=self.embedding.dtype,
        )

    def step(self, ids: Int[Tensor, "B T"], cache: _Cache) -> Tensor:
        """Take ids in, and return what the head reads after the last one, ``[B, D]``."""
        x = F.embedding(ids, self.embedding)
        start, stop = cache.length, cache.length + ids.shape[1]
        part = slice(start, stop)
        angles = Rotation(self.angles.cos[part], self.angles.sin[part])
        seen = torch.arange(stop, device=ids.device)
        hidden = seen > torch.arange(start, stop, device=ids.device)[:, None]
        mask = x.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf)
        for layer, cached in zip(self.model.layers, cache.layers, strict=True):
            assert isinstance(layer, LlamaBlock)
            x = x + self._attention(layer, rms_norm(x), cached, angles, mask)
            gate, up = layer.gate_up(rms_norm(x)).chunk(2, dim=-1)
            x = x + layer.down(F.silu(gate) * up)
        cache.length = stop
        return rms_norm(x[:, -1])

    def _attention(
        self, layer: LlamaBlock, x: Tensor, cached: Tensor, angles: Rotation, mask: Tensor
    ) -> Tensor:
        batch, length, dim = x.shape
        heads, head_dim = layer.num_heads, dim // layer.num_heads
        qkv = layer.qkv(x).view(batch, length, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
        turned = rotate(qkv[:2].reshape(2, batch * heads, length, head_dim), angles)
        stop = mask.shape[1]
        cached[0, :, stop - length : stop] = turned[1]
        cached[1, :, stop - length : stop] = qkv[2].reshape(batch * heads, length, head_dim)
        keys, values = cached[:, :, :stop]
        scores = torch.baddbmm(mask, turned[0], keys.transpose(1, 2), alpha=head_dim**-0.5)
        mixed = torch.bmm(scores.softmax(-1), values).view(batch, heads, length, head_dim)
        return layer.attention_out(mixed.transpose(1, 2).reshape(batch, length, dim))


@torch.inference_mode()
def complete_text(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Sequence[int],
    max_new: int,
    on_step: OnStep | None = None,
    on_tokens: OnTokens | None = None,
) -> list[list[int]]:
    """Continue each prompt greedily with text, up to and including one of the ``stop`` ids.

    Args:
        model: in eval mode.
        prompts: ids, of any lengths; each ends in text or with a whole image.
        stop: ids that end a continuation, such as ``begin`` and the last token.
        max_new: ids at most; >= 1.
        on_step: called with (work done, work in all), in ids.
        on_tokens: called after each id with (numbers of prompts ``[b]``, the new ids so far
            ``[b, max_new]``, which of these are there ``[b, max_new]``).

    Returns:
        The new ids of each prompt.

    Raises:
        UsageError: a prompt that is empty, ungrammatical or longer than the context.
        ValueError: no such number of ids.
    """
    words = model.vocabulary
    check_whole("max_new", max_new, least=1)
    prompts = [_prompt(words, prompt, num_more=max_new) for prompt in prompts]
    allowed = torch.zeros(words.size, dtype=torch.bool)
    allowed[words.text_first : words.text_first + words.text_size] = True
    allowed[words.begin] = True
    ends = torch.tensor(list(stop))
    report = _Report(len(prompts) * max_new, on_step, on_tokens)

    def run(indices: list[int], part: list[list[int]]) -> list[list[int]]:
        decoder = _Decoder(model, max_length=len(part[0]) + max_new)
        cache = _Cache(decoder, len(part), len(part[0]) + max_new)
        ids, found = torch.tensor(part), torch.full((len(part), max_new), -1)
        is_done = torch.zeros(len(part), dtype=torch.bool)
        for n in range(max_new):
            logits = F.linear(decoder.step(ids, cache), decoder.head)
            best = logits.masked_fill(~allowed, -torch.inf).argmax(-1)
            found[:, n] = torch.where(is_done, -1, best)
            is_done |= torch.isin(best, ends)
            is_last = bool(is_done.all())
            work = max_new - n if is_last else 1  # what ends early was all there was to do
            report(indices, found.clamp(min=0), found >= 0, len(part) * work)
            if is_last:
                break
            ids = best[:, None]
        return [[i for i in row if i >= 0] for row in found.tolist()]

    return _by_length(prompts, run)


@torch.inference_mode()
def draw_codes(
    model: Llama,
    prompts: Sequence[Sequence[int]],
    *,
    null: Sequence[int] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    guidance: float = 1.0,
    seed: int = 0,
    on_step: OnStep | None = None,
    on_tokens: OnTokens | None = None,
) -> Int[np.ndarray, "B N"]:
    """Draw the tokens of one image after each prompt.

    Args:
        model: in eval mode.
        prompts: ids, of any lengths, each of which ends with ``begin``.
        null: the prompt that says nothing, for guidance; needed if ``guidance`` is not 1.
        temperature: divides the logits; >= 0, and 0 takes the most probable code.
        top_k: keep the k most probable codes.
        top_p: keep the fewest codes that hold this probability.
        min_p: keep the codes at least this times as probable as the most probable one.
        guidance: g in ``null + g * (told - null)`` of the logits; "Classifier-Free Diffusion
            Guidance", arXiv:2207.12598.
        seed: image i depends on its prompt and (seed, i) alone.
        on_step: called with (work done, work in all), in tokens of images.
        on_tokens: as in :meth:`qvae.priors.base.Prior.sample`.

    Raises:
        UsageError: a prompt that does not end with ``begin``, is ungrammatical before it or longer
            than the context; or guidance without ``null``.
        ValueError: a setting of the sampler out of range.

    Example:
        >>> from qvae.llm.vocabulary import Vocabulary
        >>> words = Vocabulary(codebook_sizes=(8,), grid=(2,), tokenizer_hash="", text_size=9)
        >>> model = Llama(words, features=torch.zeros(9, 3), num_layers=1, dim=8, num_heads=2,
        ...               hidden_dim=8).eval()
        >>> draw_codes(model, [[1, 2, words.begin], [words.begin]]).shape
        (2, 2)
    """
    filters: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
    }
    check_sampler(**filters, guidance=guidance)
    words = model.vocabulary
    if guidance != 1 and null is None:
        raise UsageError(f"guidance={guidance}: needs the prompt that says nothing")
    prompts = [_image_prompt(words, prompt) for prompt in prompts]
    nothing = None if null is None else _image_prompt(words, null)
    draw = _Drawer(
        model=model,
        null=nothing if guidance != 1 else None,
        guidance=guidance,
        noise=torch.from_numpy(uniforms(len(prompts), words.num_tokens, seed)),
        filters=filters,
        report=_Report(len(prompts) * words.num_tokens, on_step, on_tokens),
    )
    found = _by_length(prompts, draw)
    return np.array(found, dtype=np.int64).reshape(-1, words.num_tokens)


def _prompt(words: Vocabulary, prompt: Any, *, num_more: int) -> list[int]:
    """Return the ids of a list, an array or a tensor.

    Raises:
        UsageError: no ids, images that are not whole, or no room for more.
    """
    try:
        list(Grammar(words).spans(prompt))
    except FormatError as error:
        raise UsageError(f"prompt: {error}") from None
    if len(prompt) + num_more > MAX_LENGTH:
        raise UsageError(
            f"prompt of {len(prompt)} ids: must leave room for {num_more} more in a context of "
            f"{MAX_LENGTH}"
        )
    ids: list[int] = flat_ids(prompt).tolist()
    return ids


def _image_prompt(words: Vocabulary, prompt: Any) -> list[int]:
    """Return the ids of a prompt that asks for an image; as :func:`_prompt`."""
    try:
        ids: list[int] = flat_ids(prompt).tolist()
    except FormatError as error:
        raise UsageError(f"prompt: {error}") from None
    if ids[-1:] != [words.begin]:
        raise UsageError(f"prompt: ends with {ids[-1:]}, must end with {words.begin}")
    return [*_prompt(words, ids[:-1], num_more=1 + words.num_tokens), words.begin]


class _Report:
    """Tell a caller how far the rows of all parts are, and what was decided in this one."""

    def __init__(self, total: int, on_step: OnStep | None, on_tokens: OnTokens | None) -> None:
        self.done, self.total = 0, total
        self.on_step, self.on_tokens = on_step, on_tokens

    def __call__(self, rows: list[int], tokens: Tensor, is_decided: Tensor, work: int) -> None:
        self.done += work
        if self.on_step is not None:
            self.on_step(self.done, self.total)
        if self.on_tokens is not None:
            hand_out(self.on_tokens, torch.tensor(rows), tokens, is_decided)


@dataclass(frozen=True, kw_only=True)
class _Drawer:
    """Draw the tokens of one image after prompts of one length."""

    model: Llama
    null: list[int] | None
    guidance: float
    noise: Tensor
    filters: dict[str, Any]
    report: _Report

    def __call__(self, indices: list[int], part: list[list[int]]) -> list[list[int]]:
        words = self.model.vocabulary
        low, high = words.span
        places = {place: n for n, place in enumerate(words.code_places.tolist())}
        shift = torch.as_tensor(words.code_shift)
        tokens = (torch.from_numpy(low)[words.code_places] - shift).repeat(len(part), 1)
        is_decided = torch.zeros_like(tokens, dtype=torch.bool)
        noise = self.noise[indices]
        streams = [torch.tensor(part)]
        if self.null is not None:
            streams.append(torch.tensor([self.null] * len(part)))
        longest = max(stream.shape[1] for stream in streams) + words.span_length
        decoder = _Decoder(self.model, max_length=longest)
        caches = [_Cache(decoder, len(part), longest) for _ in streams]
        for place in range(1, words.span_length - 1):
            hidden = [decoder.step(s, c) for s, c in zip(streams, caches, strict=True)]
            ids = torch.full((len(part),), int(low[place]))
            if place in places:
                n = places[place]
                head = decoder.head[low[place] : high[place]]
                told, *rest = [F.linear(state, head) for state in hidden]
                logits = rest[0] + self.guidance * (told - rest[0]) if rest else told
                ids = ids + pick(logits, noise[:, n], **self.filters)
                tokens[:, n], is_decided[:, n] = ids - shift[n], True
                self.report(indices, tokens, is_decided, len(part))
            streams = [ids[:, None]] * len(streams)
        rows: list[list[int]] = tokens.tolist()
        return rows


def _by_length(
    prompts: Sequence[Sequence[int]],
    run: Callable[[list[int], list[list[int]]], list[list[int]]],
) -> list[list[int]]:
    """Run prompts in groups of one length, and return the results in the order of the prompts."""
    groups: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        if not len(prompt):
            raise UsageError(f"prompt {index}: is empty")
        groups.setdefault(len(prompt), []).append(index)
    found: dict[int, list[int]] = {}
    for indices in groups.values():
        for start in range(0, len(indices), _CHUNK):
            part = indices[start : start + _CHUNK]
            rows = run(part, [list(prompts[i]) for i in part])
            found |= zip(part, rows, strict=True)
    return [found[index] for index in range(len(prompts))]
