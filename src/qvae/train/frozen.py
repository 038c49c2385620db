"""Keep parts of a model as they are while the others learn."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from qvae.errors import UsageError

__all__ = ["frozen_parts"]


@contextmanager
def frozen_parts(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Give parts of a model no gradients, in eval mode, which stops running statistics too.

    A part keeps every bit, so that tokens of a frozen encoder and quantizer stay what they are.
    On leaving, its parameters may learn again.

    Args:
        model: in training mode already.
        names: of its submodules, such as ``encoder`` or ``decoder.mixer``.

    Raises:
        UsageError: there is no such part.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> with frozen_parts(model, ["0"]):
        ...     [parameter.requires_grad for parameter in model.parameters()]
        [False, False, True, True]
    """
    parts = [_part(model, name) for name in names]
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


def _part(model: nn.Module, name: str) -> nn.Module:
    try:
        found = model.get_submodule(name)
    except AttributeError:
        found = model
    if found is model:
        known = ", ".join(child for child, _ in model.named_children())
        raise UsageError(f"frozen={name!r}: no such part; the model has {known}")
    return found
