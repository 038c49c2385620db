"""The bridge to language models: image tokens in a text vocabulary, rows, grammar, export.

Nothing here needs ``transformers`` until a function that handles one of its models is called.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Grammar": "qvae.llm.grammar",
    "GrammarProcessor": "qvae.llm.processor",
    "PackedRows": "qvae.llm.packed",
    "Picture": "qvae.llm.rows",
    "Text": "qvae.llm.rows",
    "Vocabulary": "qvae.llm.vocabulary",
    "extend": "qvae.llm.extension",
    "from_row": "qvae.llm.rows",
    "parse": "qvae.llm.rows",
    "to_row": "qvae.llm.rows",
    "write_packed": "qvae.llm.packed",
}

__all__ = sorted(_EXPORTS)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'qvae.llm' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
