"""A word-level text tokenizer, made with ``tokenizers``, that a stock loader reads.

One token a word and one a number: "22:10" is the hour ``22`` and the minute ``:10``. A small model
then spends its layers on what a sentence means instead of on how it is spelled. Text is lowered,
hyphens are spaces; a word that is not listed is ``<|unk|>``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qvae.errors import FormatError, UsageError
from qvae.llm.vocabulary import Vocabulary

__all__ = ["SPECIAL", "WordTokenizer", "import_tokenizers", "text_tokens"]

SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>", "<|unk|>")
"""The first ids of the text."""
_SPACE = "▁"  # what `tokenizers` writes in the place of the space before a word


def import_tokenizers() -> Any:
    """Return the package, or say what to install.

    Raises:
        UsageError: the extra is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise UsageError("text needs the extra llm: pip install 'qvae[llm]'") from None
    return tokenizers


def text_tokens(words: Sequence[str]) -> list[str]:
    """List the tokens of the text in the order of their ids.

    Args:
        words: without spaces; a word that begins with ``:`` or is a comma follows without a space.

    Example:
        >>> text_tokens(["ten", ":10"])[-2:]
        ['▁ten', ':10']
    """
    glued = (":", ",")
    return [*SPECIAL, *(word if word.startswith(glued) else _SPACE + word for word in words)]


class WordTokenizer:
    """Turn sentences into ids and back; has what :mod:`qvae.llm.rows` asks of a tokenizer.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` with the tokens of :data:`SPECIAL`.
    """

    def __init__(self, tokenizer: Any) -> None:
        ids = [tokenizer.token_to_id(token) for token in SPECIAL]
        if None in ids:
            raise FormatError(f"tokenizer: has no {SPECIAL[ids.index(None)]}")
        self.tokenizer = tokenizer
        self.pad_token_id, self.bos_token_id, self.eos_token_id, self.unk_token_id = ids

    @classmethod
    def build(cls, tokens: Sequence[str], vocabulary: Vocabulary) -> "WordTokenizer":
        """Make one of the tokens of :func:`text_tokens` and the image ids of a vocabulary.

        Raises:
            ValueError: the vocabulary has another number of text ids, or puts images first.
        """
        if not vocabulary.is_text_first or len(tokens) != vocabulary.text_size:
            raise ValueError(f"tokens: {len(tokens)} do not fill {vocabulary.text_size} text ids")
        library = import_tokenizers()
        model = library.models.WordLevel(
            {token: i for i, token in enumerate(tokens)}, unk_token=SPECIAL[3]
        )
        found = library.Tokenizer(model)
        found.normalizer = library.normalizers.Sequence(
            [
                library.normalizers.Lowercase(),
                library.normalizers.Replace("-", " "),
                library.normalizers.Replace("’", "'"),
                library.normalizers.Replace(library.Regex(r"\s+"), " "),
                library.normalizers.Strip(),
            ]
        )
        found.pre_tokenizer = library.pre_tokenizers.Sequence(
            [
                library.pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always"),
                library.pre_tokenizers.Split(library.Regex(r":\d\d|,"), behavior="isolated"),
            ]
        )
        found.decoder = library.decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
        special = [
            library.AddedToken(name, special=True, normalized=False)
            for name in [*SPECIAL, *vocabulary.names]
        ]
        found.add_special_tokens(special)
        assert found.get_vocab_size() == vocabulary.size
        return cls(found)

    @classmethod
    def from_file(cls, path: str | Path) -> "WordTokenizer":
        """Read a tokenizer.json.

        Raises:
            FormatError: the file is missing or damaged.
        """
        library = import_tokenizers()
        try:
            return cls(library.Tokenizer.from_str(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise FormatError(f"{path}: {error.strerror}") from None
        except FormatError:
            raise
        except Exception as error:  # the library raises nothing more special
            raise FormatError(f"{path}: not readable as a tokenizer ({error})") from None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Turn text into ids; no id is added at either end."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Turn ids into text."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def to_json(self) -> str:
        """Return the text of a tokenizer.json."""
        text: str = self.tokenizer.to_str(pretty=True)
        return text
