"""Keep parts of a model as they are while the others learn."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from qvae.errors import UsageError

__all__ = ["find_parts", "frozen"]


def find_parts(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Look up submodules, such as ``encoder`` or ``decoder.mixer``.

    Raises:
        UsageError: there is no such part.

    Example:
        >>> find_parts(nn.Sequential(nn.Linear(2, 1)), ["0"])
        [Linear(in_features=2, out_features=1, bias=True)]
    """
    parts = dict(model.named_modules())
    for name in names:
        if not name or name not in parts:
            known = ", ".join(child for child, _ in model.named_children())
            raise UsageError(f"frozen={name!r}: no such part; the model has {known}")
    return [parts[name] for name in names]


@contextmanager
def frozen(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Give parts of a model no gradients, in eval mode, which stops running statistics too.

    A part keeps every bit, so that tokens of a frozen encoder and quantizer stay what they are.
    On leaving, its parameters may learn again.

    Args:
        parts: of a model in training mode.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> with frozen(find_parts(model, ["0"])):
        ...     [parameter.requires_grad for parameter in model.parameters()]
        [False, False, True, True]
    """
    stopped = [p for part in parts for p in part.parameters() if p.requires_grad]
    for part in parts:
        part.eval()
    for parameter in stopped:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in stopped:
            parameter.requires_grad_(True)
