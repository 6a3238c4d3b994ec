"""Why the evaluation of a network failed: what its inputs have to do with it.

Nothing here runs while all is well. A call that failed is looked at afterwards: where it stopped (the traceback knows
the layer and what that was given), and what is wrong with the inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetError

__all__ = ["KINDS", "input_error"]

KINDS = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, AttributeError)
"""The classes of errors that torch raises for inputs that do not fit."""

# Words by which torch says that two dtypes do not go together.
_OF_DTYPES = (
    "dtype",
    "scalar type",
    "data type",
    "must have the same type",
    "should be the same",
    "not implemented for",
)


def input_error(net: Any, weights: Any, x: Any, error: BaseException) -> ArgumentError | ArgumentTypeError | None:
    """Return a better error if the inputs of a network caused one of torch, else None.

    Args:
        net: The network.
        weights: Its weights: a tensor, or a list or dict of them.
        x: Its inputs: a tensor, a tuple of arguments, or a dict of keyword arguments.
        error: The error raised. For errors of this package and for lack of memory there is no better one.

    Example:
        >>> layer, x = nn.Linear(3, 1), torch.zeros(8, 5)
        >>> try:
        ...     layer(x)
        ... except RuntimeError as error:
        ...     print(input_error(layer, list(layer.parameters()), x, error))
        x: has shape [8, 5]; the network's Linear takes 3 columns, not 5. Pass inputs of the shape it was built for.
    """
    if isinstance(error, BayeshnetError | torch.OutOfMemoryError):
        return None
    parts = list(x.values()) if isinstance(x, Mapping) else list(x) if isinstance(x, tuple) else [x]
    for part in parts:
        if isinstance(part, Tensor) and (part.layout != torch.strided or part.is_meta):
            kind = "is on the meta device" if part.is_meta else f"is a tensor of layout {part.layout}"
            advice = "pass a tensor that has values" if part.is_meta else "pass a dense one, x.to_dense()"
            return ArgumentTypeError(f"x: {kind}, and the network fails on it; {advice}.")
        if isinstance(part, Tensor) and part.is_inference() and "nference tensor" in str(error):
            return ArgumentTypeError(
                "x: was made under torch.inference_mode(), and nothing can be trained on it; pass x.clone()."
            )
    wrong_call = _signature_error(net, x, error)
    if wrong_call is not None:
        return wrong_call
    if "more than 1 value per channel" in str(error):  # torch's batch norm in training mode
        return ArgumentError(
            f"x: has {_sizes(parts)}, a single value per channel where a batch norm of the network takes its "
            "statistics from the batch; pass at least two rows, DataLoader(..., drop_last=True), or use nn.GroupNorm "
            "or nn.LayerNorm."
        )
    dtype = _dtype_of(weights)
    failed = _failed_layer(net, error)
    better = None if failed is None else _layer_error(*failed, parts, x, dtype)
    return better if better is not None else _dtype_error(parts, dtype, error)


# ---------------------------------------------------------------------- the call


def _signature_error(net: Any, x: Any, error: BaseException) -> ArgumentError | ArgumentTypeError | None:
    """The inputs as arguments of ``forward``: too many, too few, or of other names."""
    if not isinstance(error, TypeError) or not isinstance(x, tuple | Mapping | Tensor):
        return None
    module = _users(net)
    try:
        signature = inspect.signature(module.forward)
    except (AttributeError, TypeError, ValueError):
        return None
    args, kwargs = ((), dict(x)) if isinstance(x, Mapping) else (x if isinstance(x, tuple) else (x,), {})
    try:
        signature.bind(*args, **kwargs)
    except TypeError as reason:
        given = f"a dict with the keys {list(x)}" if isinstance(x, Mapping) else f"a tuple of {len(args)}"
        given = "one tensor" if isinstance(x, Tensor) else given
        return ArgumentTypeError(
            f"x: is {given}, taken for the arguments of the network, but {type(module).__name__}.forward takes "
            f"{signature} ({reason}). Pass its inputs alone, without targets; one tensor for one argument, a tuple "
            "or a dict for several."
        )
    return None


def _users(net: Any) -> Any:
    """The network of the user, without what the package has put around it."""
    net = getattr(net, "built_around", net)
    return getattr(net, "module", net) if type(net).__name__ == "ModuleMainNet" else net


def _sizes(parts: Sequence[Any]) -> str:
    tensors = [part for part in parts if isinstance(part, Tensor) and part.dim()]
    return f"{len(tensors[0])} row{'s' * (len(tensors[0]) != 1)}" if tensors else "a shape"


def _dtype_of(weights: Any) -> torch.dtype | None:
    parts = weights.values() if isinstance(weights, Mapping) else weights
    parts = [parts] if isinstance(parts, Tensor) or not isinstance(parts, Iterable) else parts
    return next((part.dtype for part in parts if isinstance(part, Tensor)), None)


def _dtype_error(parts: Sequence[Any], dtype: torch.dtype | None, error: BaseException) -> ArgumentTypeError | None:
    """Inputs of another dtype than the weights, where torch complains of dtypes and the layer is not known."""
    others = [part.dtype for part in parts if isinstance(part, Tensor) and part.dtype != dtype]
    if dtype is None or not others or not any(words in str(error) for words in _OF_DTYPES):
        return None
    return ArgumentTypeError(
        f"x: has dtype {others[0]}, the network's weights have {dtype}, and the network fails on that ({error}); where "
        f"it takes numbers convert them, x.to({dtype})."
    )


def _failed_layer(net: Any, error: BaseException) -> tuple[str, nn.Module, Any] | None:
    """The innermost module that was running, if it is a layer of torch: its name, itself, and its first argument."""
    found: tuple[nn.Module, Any] | None = None
    trace = error.__traceback__
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module) and frame.f_code.co_name == "forward":
            of_torch = str(frame.f_globals.get("__name__", "")).startswith("torch.nn.modules.")
            leaf = of_torch and "input" in frame.f_locals and not isinstance(module, nn.Sequential)
            found = (module, frame.f_locals["input"]) if leaf else None
    if found is None or not isinstance(net, nn.Module):
        return None
    root = _users(net)
    names = {id(module): name for name, module in root.named_modules()}
    return names.get(id(found[0]), ""), *found


# ---------------------------------------------------------------------- the layer


def _layer_error(
    name: str, layer: nn.Module, given: Any, parts: Sequence[Any], x: Any, dtype: torch.dtype | None
) -> ArgumentError | ArgumentTypeError | None:
    kind = f"{type(layer).__name__} {name!r}" if name else type(layer).__name__
    if not isinstance(given, Tensor):
        what = f"x: is {kind_of(given)}; the network's {kind} takes a tensor, torch.as_tensor(x) of numbers."
        return ArgumentTypeError(what) if any(type(given) is type(part) for part in parts) else None  # or a copy of it
    tensors = [part for part in parts if isinstance(part, Tensor)]
    shape = f"x: has shape {list(x.shape)}; " if isinstance(x, Tensor) else "x: "
    if isinstance(layer, nn.Embedding):
        return _embedding_error(kind, layer, given)
    if dtype is not None and given.dtype != dtype:
        what = f"x: has dtype {given.dtype}, the network's {kind} takes {dtype}; convert it, x.to({dtype})."
        ours = any(part.dtype == given.dtype for part in tensors)  # else it was made inside of the network
        return ArgumentTypeError(what) if ours else None
    if tensors and all(part.dim() and not len(part) for part in tensors):
        return ArgumentError("x: has no rows, and the network fails on that; pass at least one.")
    wanted = _wanted(layer, given)
    if wanted is None:
        return None
    if any(_long_dims(given) == _long_dims(part) for part in tensors):  # layers of torch add dimensions of size 1
        what = f"the network's {kind} takes {wanted}. Pass inputs of the shape it was built for."
    else:
        what = (
            f"the network's {kind} then gets a tensor {list(given.shape)}, and takes {wanted}. Either x has another "
            "size than the network was built for, or its layers do not fit each other."
        )
    return ArgumentError(shape + what)


def _long_dims(tensor: Tensor) -> list[int]:
    return [size for size in tensor.shape if size != 1]


def _embedding_error(kind: str, layer: nn.Embedding, given: Tensor) -> ArgumentError | ArgumentTypeError | None:
    last = layer.num_embeddings - 1
    if given.dtype not in (torch.int64, torch.int32):
        return ArgumentTypeError(
            f"x: has dtype {given.dtype}, the network's {kind} looks up whole numbers 0..{last}; convert it, x.long()."
        )
    if given.numel() and not (int(given.min()) >= 0 and int(given.max()) <= last):
        return ArgumentError(
            f"x: holds the numbers {int(given.min())}..{int(given.max())}, the network's {kind} looks up 0..{last}."
        )
    return None


def _wanted(layer: nn.Module, given: Tensor) -> str | None:
    """Return what a layer accepts, None if that is what it was given."""
    if isinstance(layer, nn.Linear):
        return _columns(given, layer.in_features, "columns")
    if isinstance(layer, nn.RNNBase):
        return _columns(given, layer.input_size, "columns")
    if isinstance(layer, nn.LayerNorm):
        size = tuple(layer.normalized_shape)
        return None if tuple(given.shape[-len(size) :]) == size else f"a last part of shape {list(size)}"
    if isinstance(layer, nn.modules.conv._ConvNd):  # pyright: ignore[reportPrivateUsage] - torch's common base has no public name
        spatial = len(layer.kernel_size)
        if given.dim() != spatial + 2:
            return f"a batch [B, {layer.in_channels}, ...] of {spatial + 2} dimensions, not {given.dim()}"
        if given.shape[1] != layer.in_channels:
            return f"{layer.in_channels} channels in the second dimension, not {given.shape[1]}"
        small = any(size < kernel for size, kernel in zip(given.shape[2:], layer.kernel_size, strict=True))
        return (
            f"inputs no smaller than its kernel {list(layer.kernel_size)}, not {list(given.shape[2:])}"
            if small
            else None
        )
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):  # pyright: ignore[reportPrivateUsage] - the same
        channels = given.shape[1] if given.dim() > 1 else 0
        return None if channels == layer.num_features else f"{layer.num_features} channels, not {channels}"
    return None


def _columns(given: Tensor, size: int, what: str) -> str | None:
    if given.dim() == 0:
        return f"a batch [B, {size}], not a single number"
    return None if given.shape[-1] == size else f"{size} {what}, not {given.shape[-1]}"
