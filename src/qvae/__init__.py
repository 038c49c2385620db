"""QVAE: from your data to tokens to new data.

The names below are loaded when they are first used, so ``import qvae`` imports no torch.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Autoencoder": "qvae.autoencoder",
    "Batch": "qvae.types",
    "DataSpec": "qvae.types",
    "Latent": "qvae.types",
    "Loss": "qvae.types",
    "Tokenizer": "qvae.tokenizer",
    "draw_clocks": "qvae.clock",
    "fit": "qvae.train",
    "load_model": "qvae.pretrained",
    "save_model": "qvae.pretrained",
}

__all__ = ["__version__", *sorted(_EXPORTS)]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name == "__version__":  # importlib.metadata is slow to import
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("qvae")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+unknown"
    if name not in _EXPORTS:
        raise AttributeError(f"module 'qvae' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
