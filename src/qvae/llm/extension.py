"""Give a Hugging Face tokenizer and model the image tokens of a tokenizer of ours."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.arguments import check_tensors, check_whole
from qvae.llm.vocabulary import CONFIG_KEY, Vocabulary

__all__ = ["extend", "fit_rows"]


@torch.no_grad()
def extend(
    tokenizer: Any,
    model: Any,
    vocabulary: Vocabulary,
    *,
    codebook: Float[Tensor, "V D"] | None = None,
    multiple: int = 1,
) -> Vocabulary:
    """Add the image ids to a text tokenizer and to the embeddings and head of its model.

    The ids start after the tokenizer's last one. Where the model's vocabulary was padded beyond
    its tokenizer, they take rows of the padding first. No row of an id that the tokenizer knew is
    changed. The vocabulary is kept in ``model.config.qvae``, so ``save_pretrained`` of any trainer
    carries it along and :meth:`Vocabulary.from_pretrained` finds it.

    Args:
        tokenizer: of ``transformers``, fast or slow; changed in place.
        model: its causal language model; changed in place. Tied heads stay tied.
        vocabulary: what to add; ``text_size`` is set by this function.
        codebook: a vector a code, in the tokens' order, such as the rows that a quantizer
            decodes to; new rows then are :func:`fit_rows` of it. None starts each code at the
            mean of the text's rows.
        multiple: pad the model's vocabulary to a multiple of this many rows, >= 1.

    Returns:
        The vocabulary with its place beside the text.

    Raises:
        ValueError: a vocabulary that puts images first, a codebook of another length or not
            finite, a tokenizer that has the tokens already; nothing is changed then. Or a
            tokenizer that did not add them in a row.
    """
    _check(tokenizer, vocabulary, codebook, multiple)
    first = _next_id(tokenizer)
    placed = replace(vocabulary, text_size=first)
    ids = _add_tokens(tokenizer, placed)
    num_rows = model.get_input_embeddings().weight.shape[0]
    if placed.size > num_rows:
        wanted = -(-placed.size // multiple) * multiple
        model.resize_token_embeddings(wanted, mean_resizing=False)
    head = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight]
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    for table in tables:
        _fill(table, ids, placed, codebook)
    bias = getattr(head, "bias", None)
    if bias is not None:
        bias[ids.start :] = bias[: ids.start].float().mean().to(bias.dtype)
    setattr(model.config, CONFIG_KEY, placed.to_json())
    return placed


def _check(tokenizer: Any, vocabulary: Vocabulary, codebook: Tensor | None, multiple: int) -> None:
    if not vocabulary.is_text_first:
        raise ValueError("is_text_first=False: a vocabulary that is there keeps its ids in front")
    check_whole("multiple", multiple, least=1)
    if codebook is not None:
        check_tensors(codebook=codebook)
        if codebook.ndim != 2 or len(codebook) != vocabulary.num_codes or not codebook.shape[1]:
            raise ValueError(
                f"codebook: shape {tuple(codebook.shape)}, needs ({vocabulary.num_codes}, D),"
                " a row for each code"
            )
        if not bool(codebook.isfinite().all()):
            raise ValueError("codebook: holds NaN or Inf, needs finite numbers")
    known = set(tokenizer.get_vocab()) & set(vocabulary.names)
    if known:
        raise ValueError(f"tokenizer: has {min(known)} already; extend it once")


def _next_id(tokenizer: Any) -> int:
    """Return the id after the last; a vocabulary may have holes."""
    return max(max(tokenizer.get_vocab().values(), default=-1) + 1, len(tokenizer))


def _add_tokens(tokenizer: Any, vocabulary: Vocabulary) -> range:
    from transformers import AddedToken

    tokens = [AddedToken(name, normalized=False, special=True) for name in vocabulary.names]
    tokenizer.add_tokens(tokens, special_tokens=True)
    found = tokenizer.convert_tokens_to_ids(vocabulary.names)
    ids = range(vocabulary.first, vocabulary.size)
    if found != list(ids):
        raise ValueError(
            f"tokenizer: gave {vocabulary.names[0]} the id {found[0]}, expected {ids.start} and"
            " the others after it"
        )
    return ids


def _fill(table: Tensor, ids: range, vocabulary: Vocabulary, codebook: Tensor | None) -> None:
    """Set the rows of the image ids; rows before them are only read."""
    text = table[: ids.start].float()
    rows = text.mean(0).expand(len(ids), -1).clone()
    if codebook is not None:
        fitted = fit_rows(codebook.to(table.device), text)
        rows[vocabulary.code_first - ids.start :] = fitted.repeat(vocabulary.repeat, 1)
    table[ids.start : ids.stop] = rows.to(table.dtype)


def fit_rows(codebook: Float[Tensor, "V D"], rows: Float[Tensor, "T H"]) -> Float[Tensor, "V H"]:
    """Map code vectors linearly to where embeddings of words are.

    The affine map ``mean + (c - mean_c) W`` is fitted by moments, since no word goes with a code:
    W turns the codes' principal axes into the leading principal axes of the rows and scales them
    so that the spread along each is that of the rows, up to one factor that makes the codes' mean
    square distance from their mean the rows' own. So codes that were near stay near, and to the
    model they look like words: same mean, same size, and in the directions that it uses most.

    Args:
        codebook: one vector a code.
        rows: embeddings that were trained.

    Example:
        >>> rows = torch.randn(50, 8)
        >>> fitted = fit_rows(torch.randn(20, 3), rows)
        >>> torch.allclose(fitted.mean(0), rows.mean(0), atol=1e-5)
        True
    """
    codes, rows = codebook.float(), rows.float()
    mean = rows.mean(0)
    if len(rows) < 2 or len(codes) < 2:
        return mean.expand(len(codes), -1).clone()
    scores, sizes, _ = torch.linalg.svd(codes - codes.mean(0), full_matrices=False)
    _, spread, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    rank = int((sizes > sizes[0] * 1e-5).sum())  # beyond it the scores are rounding errors
    num = min(rank, len(spread))
    placed = scores[:, :num] * spread[:num] @ axes[:num]
    wanted = (rows - mean).square().sum(1).mean()
    size = placed.square().sum(1).mean().clamp(min=1e-30)
    return mean + placed * (wanted / size).sqrt()
