"""Rows of sentences and clocks, made when they are asked for from the tokens of clocks."""

import random
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from qvae.data.base import DataModule, Split, checked_indices
from qvae.data.clock_sentences import face_names, say, train_phrasings
from qvae.data.clocks import TIME, clocks_of
from qvae.data.tokens import TokenData, TokenSplit
from qvae.errors import DataError
from qvae.llm.clock_text import SIGN, clock_tokens, note, number_features
from qvae.llm.rows import IGNORED, Picture, Text, to_row
from qvae.llm.vocabulary import Vocabulary
from qvae.llm.words import WordTokenizer
from qvae.train.order import noise_seed
from qvae.types import Batch, DataSpec

__all__ = ["ClockRows", "pad_rows"]

_ROUNDS = 64  # rows a clock in an epoch, each with a sentence of its own
_ALL_TIMES = range(720)


def pad_rows(rows: list[dict[str, list[int]]], *, pad: int) -> Int[Tensor, "B 2 T"]:
    """Stack ids and labels, padded on the right to the longest row.

    Example:
        >>> pad_rows([{"input_ids": [1, 5], "labels": [-100, 5]}], pad=0).tolist()
        [[[1, 5], [-100, 5]]]
    """
    length = max(len(row["input_ids"]) for row in rows)
    stacked = torch.full((len(rows), 2, length), IGNORED)
    stacked[:, 0] = pad
    for row, target in zip(rows, stacked, strict=True):
        for column, name in enumerate(("input_ids", "labels")):
            target[column, : len(row[name])] = torch.tensor(row[name])
    return stacked


class ClockRows(DataModule):
    """Sentences and clocks in both directions.

    - *draw*: ``SENTENCE =`` is the prompt; the model goes on with the time and the clock.
    - *read*: a clock, the time, ``=`` and a sentence. All of it is learned: a clock that nothing
      stands before is also what guidance needs.
    - *words*: sentences and times without a clock, several in a row, for all 720 times; which
      times have no picture in the training tokens does not matter to language.

    A sentence never says a time in one of the two ways that are held out for it.

    Args:
        path: a folder of ``qvae encode`` on a run of the data ``clocks``.
        clock_seed: the ``seed`` of that data, which tells the faces' colours.
        draw_share: share of rows that draw, in [0, 1].
        words_share: share of rows without a clock, in [0, 1]; the rest read.
        harmonics: of the numbers' features, see ``number_features``; 0 is none.
        repeat: blocks of ids of the codes, see ``Vocabulary``; 0 is one a cell.
        has_rows: whether a marker stands between the rows of the grid.
        seed: of the sentences.

    Raises:
        ValueError: shares that sum to more than one.
        DataError: the tokens are not of clocks, or of clocks of another seed.
        FormatError: the folder is damaged.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        clock_seed: int = 0,
        draw_share: float = 0.5,
        words_share: float = 0.08,
        harmonics: int = 8,
        repeat: int = 0,
        has_rows: bool = False,
        seed: int = 0,
    ) -> None:
        if min(draw_share, words_share) < 0 or draw_share + words_share > 1:
            raise ValueError(
                f"draw_share={draw_share}, words_share={words_share}: must be shares that sum to"
                " at most 1"
            )
        self.tokens = TokenData(path)
        if self.tokens.spec.conditions != (TIME,):
            raise DataError(f"{path}: tokens of something else than clocks with their time")
        self.path = Path(path)
        self.shares = (draw_share, words_share)
        self.seed, self.clock_seed = seed, clock_seed
        texts = clock_tokens()
        self.vocabulary = Vocabulary(
            codebook_sizes=self.tokens.codebook_sizes,
            grid=self.tokens.grid,
            tokenizer_hash=self.tokens.tokenizer_hash,
            text_size=len(texts),
            repeat=repeat or int(np.prod(self.tokens.grid)),
            has_rows=has_rows,
        )
        self.text = WordTokenizer.build(texts, self.vocabulary)
        self.features: Float[Tensor, "T F"] = number_features(harmonics)
        self.spec = DataSpec(shape=(2, 2 * self.vocabulary.span_length), levels=len(texts))

    def train(self) -> Split:
        """Return 64 rows a training clock."""
        return _RowSplit(self, "train", rounds=_ROUNDS)

    def valid(self) -> Split:
        """Return a row a validation clock."""
        return _RowSplit(self, "valid", rounds=1)

    def test(self) -> Split:
        """Return a row a test clock."""
        return _RowSplit(self, "test", rounds=1)

    def read(self, path: str | Path) -> Int[Tensor, "2 T"]:
        """Read ids and labels from an .npy file."""
        return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.int64))

    def write(self, x: Int[Tensor, "2 T"], path: str | Path) -> None:
        """Write ids and labels as an .npy file."""
        with open(path, "wb") as file:
            np.save(file, x.numpy(), allow_pickle=False)


class _RowSplit(Split):
    """Row i shows clock ``i % n`` with sentences that are a function of (seed, split, i)."""

    def __init__(self, data: ClockRows, name: str, *, rounds: int) -> None:
        self._data, self._name, self._rounds = data, name, rounds
        self._split: TokenSplit = getattr(data.tokens, name)()
        self._minutes, styles = clocks_of(name, len(self._split), seed=data.clock_seed)
        told = self._split.batch(np.arange(len(self._split))).cond
        hours = self._minutes.astype(np.float32) / 60
        if told is None or not np.allclose(told[:, 0].numpy(), hours, atol=1e-4):
            raise DataError(
                f"{data.path}: {name} is not of the clocks of seed {data.clock_seed}; give theirs"
                " as data.clock_seed"
            )
        self._faces = face_names(styles.face)

    def __len__(self) -> int:
        return len(self._split) * self._rounds

    def batch(self, indices: np.ndarray) -> Batch:
        """Return rows ``[B, 2, T]``, padded to the longest of them."""
        ids = checked_indices(indices, len(self))
        clocks = ids % len(self._split)
        tokens = self._split.batch(clocks).x.numpy()
        rows = [
            self._row(int(index), int(clock), codes)
            for index, clock, codes in zip(ids, clocks, tokens, strict=True)
        ]
        stacked = pad_rows(rows, pad=self._data.text.pad_token_id)
        return Batch(x=stacked, ids=torch.from_numpy(ids))

    def _row(self, index: int, clock: int, codes: np.ndarray) -> dict[str, list[int]]:
        data = self._data
        rng = random.Random(noise_seed(data.seed, self._name, index))
        draw_share, words_share = data.shares
        kind = rng.random()
        if kind >= 1 - words_share:
            return self._words(rng)
        minutes = int(self._minutes[clock])
        sentence = say(minutes, train_phrasings(minutes), rng, face=self._faces[clock])
        parts: list[Text | Picture]
        if kind < draw_share:
            parts = [Text(f"{sentence} {SIGN}", True), Text(note(minutes)), Picture(codes)]
        else:
            parts = [Picture(codes), Text(f"{note(minutes)} {SIGN} {sentence}")]
        return to_row(parts, data.vocabulary, data.text)

    def _words(self, rng: random.Random) -> dict[str, list[int]]:
        """Fill a row with sentences and times, one direction or the other."""
        data = self._data
        found: dict[str, list[int]] = {"input_ids": [], "labels": []}
        while len(found["input_ids"]) < data.vocabulary.span_length:
            minutes = rng.choice(_ALL_TIMES)
            sentence = say(minutes, train_phrasings(minutes), rng)
            is_drawn = rng.random() < 0.5
            if is_drawn:
                parts = [Text(f"{sentence} {SIGN}", True), Text(note(minutes))]
            else:
                parts = [Text(f"{note(minutes)} {SIGN}", True), Text(sentence)]
            row = to_row(parts, data.vocabulary, data.text)
            if is_drawn:  # a clock may follow, so the end is nothing to learn
                row["labels"][-1] = IGNORED
            for name, values in found.items():
                values += row[name]
        return found
