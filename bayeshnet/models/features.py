"""Features of a frozen trunk: rows of numbers that know which network has made them."""

# Subclasses of tensors are switched off as PyTorch's documentation says, by a name that begins with an underscore.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError

__all__ = ["Features"]

# What takes, joins, moves or copies rows gives features; everything else gives numbers.
_KEEPS: frozenset[Any] = frozenset(
    {
        Tensor.__getitem__,
        Tensor.clone,
        Tensor.contiguous,
        Tensor.cpu,
        Tensor.cuda,
        Tensor.detach,
        Tensor.expand,
        Tensor.index_select,
        Tensor.narrow,
        Tensor.pin_memory,
        Tensor.split,
        Tensor.to,
        Tensor.unbind,
        torch.cat,
        torch.clone,
        torch.index_select,
        torch.narrow,
        torch.split,
        torch.stack,
        torch.unbind,
    }
)


class Features(Tensor):
    """What a frozen trunk makes of inputs, see :meth:`~bayeshnet.BayesianModel.precompute`.

    A tensor ``[N, ...]`` to stand where the model takes its inputs, in ``fit((features, y))``, the ``example`` of a
    guide and ``predict(model, guide, features)``. Rows are taken, stacked and moved as of any tensor, also by a
    ``DataLoader``; any arithmetic gives plain numbers.

    Attributes:
        trunk: Where the trunk ends, and a fingerprint of it; a model takes no features of another trunk.
        off: Names of dropout layers in the trunk, which were off.

    Example:
        >>> features = Features.of(torch.zeros(5, 3), "2:0123")
        >>> features[:2].trunk, type(features + 1.0).__name__
        ('2:0123', 'Tensor')
    """

    trunk: str
    off: tuple[str, ...]

    @staticmethod
    def of(values: Tensor, trunk: str, off: Sequence[str] = ()) -> Features:
        """Mark a tensor as features of a trunk.

        Args:
            values: The numbers ``[N, ...]``.
            trunk: Where the trunk ends, and its fingerprint.
            off: Names of dropout layers in it.
        """
        made = values.detach().as_subclass(Features)
        made.trunk, made.off = trunk, tuple(off)
        return made

    def plain(self) -> Tensor:
        """The numbers as a plain tensor."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation; features stay features where only rows are taken, joined, moved or copied."""
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
            if func not in _KEEPS:
                return out.as_subclass(Tensor) if type(out) is cls else out
            source = _source(args)
            # Columns that are fewer are refused by the network; as many in another order would not be.
            if _chooses_columns(func, args, kwargs or {}) and out.shape[1:] == source.shape[1:]:
                return out
            if isinstance(out, Tensor):
                return cls.of(out, source.trunk, source.off)
            return type(out)(cls.of(part, source.trunk, source.off) for part in out)

    def __repr__(self, **_: Any) -> str:
        off = f", dropout off: {', '.join(self.off)}" if self.off else ""
        return f"Features({list(self.shape)}, {self.dtype}, of the trunk before {self.trunk}{off})"

    def __iter__(self) -> Any:
        return iter(self.unbind(0))

    def __deepcopy__(self, memo: dict[int, Any]) -> Features:
        memo[id(self)] = made = self.clone()
        return made  # pyright: ignore[reportReturnType]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return Features.of, (self.plain(), self.trunk, self.off)


def _chooses_columns(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation may leave out columns of features, or put them into another order."""
    if func is Tensor.__getitem__:
        index = args[1][1:] if isinstance(args[1], tuple) else ()
        return any(isinstance(part, Tensor) or (part is not Ellipsis and part != slice(None)) for part in index)
    if func in (Tensor.index_select, torch.index_select):
        return (args[1] if len(args) > 1 else kwargs.get("dim")) != 0
    return False


def _source(args: tuple[Any, ...]) -> Features:
    """The features that an operation gets, which are all of one trunk."""
    found: list[Features] = []
    for arg in args:
        parts = arg if isinstance(arg, tuple | list) else arg.values() if isinstance(arg, Mapping) else (arg,)
        found += [part for part in parts if isinstance(part, Features)]
    joined = args[0] if isinstance(args[0], tuple | list) else ()
    if not all(isinstance(part, Features) for part in joined):
        raise ArgumentError("features: are joined with plain numbers; join features, or numbers, features.plain().")
    trunks = {part.trunk for part in found}
    if len(trunks) > 1:
        raise ArgumentError(f"features: are of different trunks, {sorted(trunks)}; compute them with one model.")
    return found[0]
