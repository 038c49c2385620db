"""Which parameter gets which optimizer, and how their state is named on disk."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from qvae.errors import FormatError
from qvae.train.adamw import step_fused
from qvae.train.muon import Muon
from qvae.train.settings import TrainSettings

__all__ = ["ADAMW_NAMES", "Optimizers", "ParameterGroups", "build_optimizers", "group_parameters"]

ADAMW_NAMES = ("*embed*", "*head*", "*codebook*", "*position*", "*table*")
"""Names that Muon leaves to AdamW, whatever their shape."""
_MATRIX_MODULES = (nn.Linear, nn.modules.conv._ConvNd)
_NOT_DECAYED = ("*embed*", "*codebook*", "*position*", "*table*")


@dataclass(frozen=True, kw_only=True)
class ParameterGroups:
    """Parameter names, by what is done to them."""

    muon: list[str] = field(default_factory=list)
    decayed: list[str] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)


def group_parameters(model: nn.Module) -> ParameterGroups:
    """Sort the trainable parameters of a model.

    ``muon``: weights of linear layers and (ungrouped) convolutions whose name matches none of
    :data:`ADAMW_NAMES`. A parameter with an attribute ``use_muon`` (bool) decides for itself.
    ``decayed``: other matrices. ``plain``, which gets no weight decay: biases, norms, anything
    with fewer than two dimensions, embeddings, codebooks, position tables, and parameters with
    ``use_weight_decay = False``.

    Example:
        >>> group_parameters(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))).muon
        ['0.weight']
    """
    owners = {
        id(parameter): module
        for module in model.modules()
        for parameter in module.parameters(recurse=False)
    }
    groups = ParameterGroups()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = owners[id(parameter)]
        if _wants_muon(name, parameter, owner):
            groups.muon.append(name)
        elif _wants_decay(name, parameter, owner):
            groups.decayed.append(name)
        else:
            groups.plain.append(name)
    return groups


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _wants_muon(name: str, parameter: nn.Parameter, owner: nn.Module) -> bool:
    if parameter.ndim < 2:
        return False
    asked = getattr(parameter, "use_muon", None)
    if asked is not None:
        return bool(asked)
    is_matrix = isinstance(owner, _MATRIX_MODULES) and getattr(owner, "groups", 1) == 1
    is_thin = min(parameter.shape[0], parameter[0].numel()) < 2
    return is_matrix and not is_thin and not _matches(name, ADAMW_NAMES)


def _wants_decay(name: str, parameter: nn.Parameter, owner: nn.Module) -> bool:
    if parameter.ndim < 2 or isinstance(owner, nn.Embedding) or _matches(name, _NOT_DECAYED):
        return False
    return bool(getattr(parameter, "use_weight_decay", True))


class Optimizers:
    """The optimizers of a run as one: one step, one learning rate, one named state.

    Args:
        optimizers: each over parameters of its own.
        names: parameter -> its name in the model.
    """

    def __init__(self, optimizers: Sequence[Optimizer], names: Mapping[Tensor, str]) -> None:
        self.optimizers = list(optimizers)
        self._names = dict(names)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._names:
            parameter.grad = None

    def step(self, lr: float) -> None:
        """Update every parameter that has a gradient."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            if isinstance(optimizer, AdamW):
                step_fused(optimizer)
            else:
                optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Return the state under names ``parameter/key``."""
        return {
            f"{self._names[parameter]}/{key}": value
            for optimizer in self.optimizers
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the state, exactly, in the memory layout of the parameters.

        Raises:
            FormatError: a name that is no parameter of this model.
        """
        parameters = {name: parameter for parameter, name in self._names.items()}
        owners = {
            parameter: optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for full_name, value in tensors.items():
            name, _, key = full_name.rpartition("/")
            parameter = parameters.get(name)
            if parameter is None:
                raise FormatError(f"optimizer state {full_name!r}: no such parameter in the model")
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            elif parameter.device.type != "cpu" and owners[parameter].defaults.get("fused"):
                value = value.to(parameter.device)
            owners[parameter].state[parameter][key] = value.detach()


def build_optimizers(
    model: nn.Module, settings: TrainSettings, *, device: torch.device, precision: str
) -> Optimizers:
    """Build the optimizer that the settings name.

    Raises:
        ValueError: a model without trainable parameters.
    """
    parameters = dict(model.named_parameters())
    groups = group_parameters(model)
    muon = [parameters[name] for name in groups.muon]
    if settings.optimizer != "muon":
        muon, decayed = [], [parameters[name] for name in (*groups.muon, *groups.decayed)]
    else:
        decayed = [parameters[name] for name in groups.decayed]
    plain = [parameters[name] for name in groups.plain]
    if not settings.weight_decay:  # one group is one call a step
        decayed, plain = decayed + plain, []
    if not muon + decayed + plain:
        raise ValueError("model: has no parameter that requires a gradient")
    found: list[Optimizer] = []
    if decayed or plain:
        found.append(
            AdamW(
                [
                    {"params": decayed, "weight_decay": settings.weight_decay},
                    {"params": plain, "weight_decay": 0.0},
                ],
                lr=settings.lr,
                betas=settings.betas,
                fused=device.type in ("cpu", "cuda"),
            )
        )
    if muon:
        found.append(
            Muon(
                muon,
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
            )
        )
    return Optimizers(found, {parameter: name for name, parameter in parameters.items()})
