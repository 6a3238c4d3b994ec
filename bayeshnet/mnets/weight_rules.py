"""What modules do to their own weights, and how the same is done for weights that are passed to them.

Some modules of PyTorch are no functions of inputs and weights: an embedding with ``max_norm`` scales its table in
place, one with ``padding_idx`` never trains a row, old-style weight norm leaves a computed tensor behind, spectral norm
keeps the singular vectors of one weight, and fused transformer kernels, which evaluation without gradients picks by
itself, put zeros at padded places.
"""

# Modules and their hooks are looked at in place.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from bayeshnet.errors import ArgumentError

__all__ = [
    "FunctionalCalls",
    "check_spectral_norm",
    "computed_tensors",
    "fixed_row",
    "functional_calls",
    "needs_functional_calls",
]

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_LEFT_ALIGNED: Any = getattr(torch, "_nested_tensor_from_mask_left_aligned", None)
_FUSED = (nn.MultiheadAttention, nn.TransformerEncoder, nn.TransformerEncoderLayer)


class FunctionalCalls(TorchFunctionMode):
    """Inside this context, modules are functions of their inputs and weights.

    * Embeddings with ``max_norm`` scale the rows that they return instead of their table; gradients are those of that
      function. Gradients are dense (``sparse``) and those of the function (``scale_grad_by_freq``, and for tables that
      are used elsewhere, too, ``padding_idx``).
    * Attention does not use its fused inference kernels, under which outputs at padded places are zeros. They step
      aside for any mode of this kind, which belongs to one thread, while PyTorch's own switch is a global one.

    Example:
        >>> table = torch.full((3, 2), 5.0)
        >>> with FunctionalCalls():
        ...     rows = F.embedding(torch.tensor([1]), table, max_norm=1.0)
        >>> rows.norm().round(decimals=3), table[1]
        (tensor(1.), tensor([5., 5.]))
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See ``TorchFunctionMode``."""
        kwargs = kwargs or {}
        if func is F.embedding:
            return _embedding(*args, **kwargs)
        if func is F.embedding_bag:
            return _embedding_bag(*args, **kwargs)
        if func is _LEFT_ALIGNED:
            return False  # asked before anything else whether padding may be cut off; no rule of vmap knows it
        return func(*args, **kwargs)


def _embedding(
    input: Tensor,  # noqa: A002 - PyTorch's name
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    del padding_idx, scale_grad_by_freq, sparse  # they change gradients only
    rows = F.embedding(input, weight)
    return rows if max_norm is None else _renormalised(rows, max_norm, norm_type)


def _embedding_bag(
    input: Tensor,  # noqa: A002 - PyTorch's name
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    del scale_grad_by_freq, sparse
    if max_norm is not None:
        weight = _renormalised(weight, max_norm, norm_type)
    return F.embedding_bag(
        input,
        weight,
        offsets,
        mode=mode,
        per_sample_weights=per_sample_weights,
        include_last_offset=include_last_offset,
        padding_idx=padding_idx,
    )


def _renormalised(rows: Tensor, max_norm: float, norm_type: float) -> Tensor:
    """Rows ``[..., d]``, those longer than ``max_norm`` scaled down to it, as PyTorch does it in place."""
    norm = torch.linalg.vector_norm(rows, norm_type, dim=-1, keepdim=True)
    return torch.where(norm > max_norm, rows * (max_norm / (norm.clamp_min(max_norm) + 1e-7)), rows)


def needs_functional_calls(module: nn.Module) -> bool:
    """Return whether the module has parts that behave otherwise under :class:`FunctionalCalls`.

    Example:
        >>> needs_functional_calls(nn.Embedding(3, 2)), needs_functional_calls(nn.Linear(3, 2))
        (True, False)
    """
    return any(isinstance(part, (*_EMBEDDINGS, *_FUSED)) for part in module.modules())


def functional_calls(needed: bool) -> AbstractContextManager[Any]:
    """:class:`FunctionalCalls`, or nothing where it is not needed: it costs a microsecond for each operation.

    Example:
        >>> with functional_calls(True) as mode:
        ...     type(mode).__name__
        'FunctionalCalls'
    """
    return FunctionalCalls() if needed else nullcontext()


# ---------------------------------------------------------------------- rules about one parameter


def fixed_row(name: str, places: Sequence[tuple[nn.Module, str]]) -> int | None:
    """Return the row of a parameter that is no weight: padding of an embedding that nothing else uses.

    Args:
        name: The parameter's name.
        places: The modules that have it, with the key there.

    Raises:
        ArgumentError: If it is the table of an embedding with ``max_norm`` that something else uses, too.

    Example:
        >>> fixed_row("weight", [(nn.Embedding(3, 2, padding_idx=0), "weight")])
        0
    """
    owners = list({id(module): module for module, _ in places}.values())
    tables = [m for m, key in places if isinstance(m, _EMBEDDINGS) and key.startswith("weight")]
    tables = list({id(module): module for module in tables}.values())
    if len(owners) > 1 and any(module.max_norm is not None for module in tables):
        raise ArgumentError(
            f"module: {name!r} is the table of an embedding with max_norm, and another module uses it, too. What that "
            "one sees would depend on which rows were looked up before; build the embedding with max_norm=None."
        )
    rows = {module.padding_idx for module in tables}
    return rows.pop() if len(tables) == len(owners) and len(rows) == 1 else None


def check_spectral_norm(module: nn.Module, drawn: Collection[nn.Parameter | None]) -> None:
    """Raise if a weight that is passed to the network has PyTorch's spectral norm.

    It divides by ``u^T W v`` with vectors that follow one weight over many calls. For any other weight, such as a draw
    from a posterior, that is not the largest singular value, but some number that may be near 0.

    Args:
        module: The network.
        drawn: Its parameters that are weights; spectral norm of the others, frozen ones, is right.

    Raises:
        ArgumentError: If there is such a weight.

    Example:
        >>> check_spectral_norm(nn.Linear(3, 2), [])
    """
    ids = {id(param) for param in drawn}
    for path, part in module.named_modules():
        for name, originals in _spectral_norms(part):
            if any(id(param) in ids for param in originals):
                full = f"{path}.{name}" if path else name
                raise ArgumentError(
                    f"module: {full!r} has PyTorch's spectral norm, whose power iteration belongs to one weight, so "
                    "that weights which are drawn or passed would be divided by another number than their norm; use "
                    "weight norm or an orthogonal parametrisation (torch.nn.utils.parametrizations), or one of "
                    "your own that computes the norm, such as W / torch.linalg.matrix_norm(W, 2). Frozen weights "
                    "(requires_grad=False) may have it."
                )


def _spectral_norms(part: nn.Module) -> Iterator[tuple[str, list[nn.Parameter | None]]]:
    """Name and original parameters of each tensor of a module that has a spectral norm by power iteration."""
    for hook in part._forward_pre_hooks.values():
        if isinstance(hook, SpectralNorm):
            yield hook.name, [part._parameters.get(f"{hook.name}_orig")]
    if parametrize.is_parametrized(part):
        parametrised: Any = part.parametrizations
        for name, steps in parametrised.items():
            # Of a vector it computes the norm, and keeps nothing.
            if any(isinstance(step, parametrizations._SpectralNorm) and hasattr(step, "_u") for step in steps):
                yield name, list(steps.parameters())


def computed_tensors(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str]]:
    """Modules and names of the tensors that old-style weight norm, spectral norm and pruning make anew in each call.

    Example:
        >>> from torch.nn.utils import prune
        >>> layer = prune.random_unstructured(nn.Linear(3, 2), "weight", amount=1)
        >>> [name for _, name in computed_tensors(layer.modules())]
        ['weight']
    """
    found: list[tuple[nn.Module, str]] = []
    for module in modules:
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm | SpectralNorm):
                found.append((module, hook.name))
            elif isinstance(hook, BasePruningMethod):
                found.append((module, hook._tensor_name))
    return found
