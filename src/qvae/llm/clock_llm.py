"""A trained language model of clocks: sentence to picture, picture to sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from qvae.config import load_recipe
from qvae.errors import FormatError, UsageError
from qvae.llm.clock_text import SIGN
from qvae.llm.decoding import complete_text, draw_codes
from qvae.llm.folder import load_llm
from qvae.llm.llama import Llama
from qvae.llm.rows import encode_text
from qvae.llm.words import SPECIAL, WordTokenizer
from qvae.priors.draw import OnStep, OnTokens
from qvae.tokenizer import Tokenizer

__all__ = ["ClockLLM", "open_clock_llm"]

_MAX_PROMPT = 64
_MAX_NOTE = 8
_MAX_ANSWER = 40


@dataclass(frozen=True, kw_only=True)
class ClockLLM:
    """What a run of ``llm_clock`` holds, open."""

    model: Llama
    text: WordTokenizer
    tokenizer: Tokenizer
    sampler: Mapping[str, Any] = field(default_factory=dict)
    """What draws are made with unless told otherwise: the recipe's ``sample`` section."""

    def draw(
        self,
        sentences: Sequence[str],
        *,
        seed: int = 0,
        on_step: OnStep | None = None,
        on_tokens: OnTokens | None = None,
        **settings: Any,
    ) -> tuple[Float[Tensor, "B C H W"], list[str]]:
        """Draw a picture of each sentence; picture i depends on its sentence and (seed, i) alone.

        The model first writes the time that it understood, then the codes of the picture.

        Args:
            sentences: such as "a quarter to four, on a green face".
            seed: of the draws, >= 0.
            on_step: called with (work done, work in all), in tokens of the pictures.
            on_tokens: called with the tokens so far, see :func:`~qvae.llm.decoding.draw_codes`.
            **settings: temperature, top_k, top_p, min_p, guidance.

        Returns:
            The pictures, and what time the model wrote for itself.

        Raises:
            UsageError: a word that the model does not know, a sentence that is too long, or what is
                no list of sentences.
        """
        if isinstance(sentences, str) or not all(isinstance(s, str) for s in sentences):
            raise UsageError(f"sentences={sentences!r}: must be a list of strings")
        begin, end = self.model.vocabulary.begin, self.text.eos_token_id
        prompts = [self._prompt(sentence) for sentence in sentences]
        notes = complete_text(self.model, prompts, stop=[begin, end], max_new=_MAX_NOTE)
        told = [[i for i in note if i not in (begin, end)] for note in notes]
        asked = [[*prompt, *note, begin] for prompt, note in zip(prompts, told, strict=True)]
        options = {**self.sampler, **settings}
        null = [self.text.bos_token_id, begin]
        hooks: dict[str, Any] = {"on_step": on_step, "on_tokens": on_tokens}
        tokens = draw_codes(self.model, asked, null=null, seed=seed, **hooks, **options)
        return self.tokenizer.decode(torch.from_numpy(tokens)), [self.text.decode(n) for n in told]

    def read(self, x: Float[Tensor, "B C H W"]) -> list[str]:
        """Say what pictures show: ``TIME = SENTENCE`` each."""
        ids = self.model.vocabulary.to_ids(self.tokenizer.encode(x).numpy())
        prompts = [[self.text.bos_token_id, *row] for row in ids.tolist()]
        stop = [self.text.eos_token_id]
        answers = complete_text(self.model, prompts, stop=stop, max_new=_MAX_ANSWER)
        return [self.text.decode(ids, skip_special_tokens=True) for ids in answers]

    def _prompt(self, sentence: str) -> list[int]:
        text = f"{sentence} {SIGN}"
        try:
            ids = encode_text(text, self.model.vocabulary, self.text)
        except ValueError as error:
            raise UsageError(str(error)) from None
        special = set(self.text.encode(" ".join((*SPECIAL, SIGN))))
        for word in sentence.split():
            if special & set(self.text.encode(word)):
                raise UsageError(
                    f"{sentence!r}: {word!r} is no word of this model; see docs/llm.md"
                )
        if not sentence.strip() or len(ids) > _MAX_PROMPT:
            raise UsageError(
                f"sentence of {len(ids) - 1} tokens: must have 1 to {_MAX_PROMPT - 1}, "
                "the context that was trained"
            )
        return [self.text.bos_token_id, *ids]


def open_clock_llm(path: str | Path) -> ClockLLM:
    """Open a run of ``llm_clock``.

    Raises:
        FormatError: no language model is there, or the image tokenizer beside it is another than
            the one whose tokens it learned.
    """
    path = Path(path)
    if not (path / "model" / "config.json").is_file():
        raise FormatError(f"{path}: holds no language model; give the run of qvae train llm_clock")
    model, text = load_llm(path / "model")
    tokenizer = Tokenizer.from_pretrained(path / "tokenizer")
    model.vocabulary.check_tokenizer(tokenizer)
    recipe = path / "recipe.yaml"
    sampler = load_recipe(recipe).sample if recipe.is_file() else {}
    return ClockLLM(model=model, text=text, tokenizer=tokenizer, sampler=sampler)
