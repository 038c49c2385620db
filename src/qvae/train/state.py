"""All tensors of a model by name, saved and set exactly."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qvae.errors import FormatError

__all__ = ["load_model_state", "model_state"]


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and every buffer, once.

    Buffers that a ``state_dict`` leaves out are in it too: a quantizer may be counting in them
    over several steps.
    """
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def load_model_state(model: nn.Module, tensors: Mapping[str, Tensor], *, source: Path) -> None:
    """Set every parameter and buffer, in place and in the memory layout it has.

    Raises:
        FormatError: a name or a shape that differs, listed.
    """
    own = model_state(model)
    required = set(model.state_dict()) & set(own)
    problems = [f"{name} is missing" for name in sorted(required - set(tensors))]
    problems += [f"{name} is unknown" for name in sorted(set(tensors) - set(own))]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, the model's is {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(tensors))
        if own[name].shape != tensors[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise FormatError(f"{source}: not of this model: {'; '.join(problems[:5])}{more}")
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
