"""A CUDA device that is not there: tensors that claim it, and are computed by the processor.

Where a real device would refuse (an operand, an index or a generator on another device), this one
does, too. It computes with real numbers, so that code which looks at them runs as well, unlike
under torch's own ``FakeTensorMode``. It also notes what would make a processor wait for the device.
"""

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from qvae.bottlenecks import kept_table, moments

__all__ = ["DEVICE", "PretendCUDA"]

DEVICE = torch.device("meta")

_aten = torch.ops.aten
_MOVES = {"_to_copy", "to"}
_MIXED = {*_MOVES, "copy_"}
"""These may take operands of two devices."""
_WAITS = {
    "item",
    "is_nonzero",
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "equal",
    "bincount",
    "repeat_interleave",
}
"""These make the processor wait: their result, or its shape, is needed there."""
_OWN = {"qvae::stage": kept_table._stage, "qvae::stage_moments": moments._stage}
"""Operators of ours, whose bodies are to be looked into."""


class _Pretender(torch.Tensor):
    """A tensor that claims to be on the device."""

    @staticmethod
    def __new__(cls, inner):
        claim = torch.empty_strided(inner.shape, inner.stride(), dtype=inner.dtype, device=DEVICE)
        return torch.Tensor._make_subclass(cls, claim)

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"pretended {self.inner!r}"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        with PretendCUDA():
            return function(*args, **(kwargs or {}))


class _Made(TorchFunctionMode):
    """What torch does for this device, or for a subclass, before anyone may look."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.Tensor.tolist and isinstance(args[0], _Pretender):
            return args[0].cpu().tolist()
        if function is torch.Tensor.new_tensor and isinstance(args[0], _Pretender):
            return args[0].inner.new_tensor(*args[1:], **kwargs).to(DEVICE)
        is_made = function in (torch.tensor, torch.as_tensor)
        if (
            is_made
            and kwargs.get("device") is not None
            and torch.device(kwargs["device"]) == DEVICE
        ):
            del kwargs["device"]
            return function(*args, **kwargs).to(DEVICE)
        return function(*args, **kwargs)


class PretendCUDA(TorchDispatchMode):
    """While it is entered, ``device="cuda:0"`` is there; ``waits`` lists what waits for it."""

    def __init__(self):
        super().__init__()
        self.waits = []
        self._made = []

    def __enter__(self):
        self._made.append(_Made())
        self._made[-1].__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._made.pop().__exit__(*error)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = function._schema.name
        if name in _OWN:
            with self:
                return _OWN[name]._init_fn(*args, **kwargs)
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        is_here = any(isinstance(tensor, _Pretender) for tensor in tensors)
        target = kwargs.get("device")
        if target is not None:
            kwargs["device"] = torch.device("cpu") if target == DEVICE else target
        is_pretended = is_here if target is None else target == DEVICE
        if is_here and name.removeprefix("aten::") not in _MIXED:
            _check_operands(function, args, tensors)
        if is_pretended and any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise RuntimeError(f"{name}: a generator of the processor for a tensor of {DEVICE}")
        self._note(function, args, is_here=is_here, is_pretended=is_pretended)
        owners = {id(t.inner): t for t in tensors if isinstance(t, _Pretender)}
        inside = tree_map(lambda leaf: leaf.inner if isinstance(leaf, _Pretender) else leaf, args)
        options = {k: tree_map(_inner, value) for k, value in kwargs.items()}
        if options.pop("pin_memory", None):
            raise RuntimeError(f"{name}: pinned memory, without CUDA")
        result = function(*inside, **options)
        if is_here and torch.Tag.inplace_view in function.tags:
            # Such as squeeze_: the claim changes its shape, too.
            with torch._C._DisableTorchDispatch():
                return function(*args, **kwargs)
        if not is_pretended:
            return result

        def claim(leaf):
            if not isinstance(leaf, torch.Tensor):
                return leaf
            return owners.get(id(leaf)) if id(leaf) in owners else _Pretender(leaf)

        if function is _aten.copy_.default and not isinstance(args[0], _Pretender):
            return args[0]
        return tree_map(claim, result)

    def _note(self, function, args, *, is_here, is_pretended):
        name = function._schema.name.removeprefix("aten::")
        is_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        is_copied_back = name in _MOVES and is_here and not is_pretended
        is_copied_back |= name == "copy_" and is_here and not isinstance(args[0], _Pretender)
        if is_here and (name in _WAITS or is_mask or is_copied_back):
            self.waits.append(name)


def _inner(leaf):
    return leaf.inner if isinstance(leaf, _Pretender) else leaf


def _check_operands(function, args, tensors):
    """Refuse a tensor of the processor among those of the device, but for a plain number."""
    is_list = function._schema.name in ("aten::cat", "aten::stack")
    is_index = function._schema.name in ("aten::index", "aten::index_put_")
    for tensor in tensors:
        is_number = tensor.ndim == 0 and not is_list and not is_index
        if not isinstance(tensor, _Pretender) and not is_number:
            raise RuntimeError(
                f"{function}: operands on {DEVICE} and on {tensor.device}, the latter "
                f"{tuple(tensor.shape)}"
            )
