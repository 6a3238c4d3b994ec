"""What a guide was built from, without the data: shapes and dtypes, and arguments of the same form."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bayeshnet.errors import CheckpointError
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.features import Features

__all__ = ["example_shapes", "stand_in"]

_ROWS = 2
_LARGEST = 2**28  # numbers of a tensor


def example_shapes(model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the arguments of a model by name: shapes and dtypes of tensors, and no numbers of them.

    Example:
        >>> example_shapes(lambda x, y=None: None, (torch.zeros(3, 2),), {})
        {'x': {'shape': [3, 2], 'dtype': 'float32'}}
    """
    bound = inspect.signature(getattr(model, "forward", model)).bind(*args, **kwargs)
    return {name: _shapes(value) for name, value in bound.arguments.items() if value is not None}


def _shapes(value: Any) -> Any:
    if isinstance(value, Features):
        return {**_shapes(value.plain()), "features": value.trunk.partition(":")[0]}
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        return [_shapes(part) for part in value]
    if isinstance(value, Mapping):
        return {"by_name": {str(name): _shapes(part) for name, part in value.items()}}
    return value if value is None or isinstance(value, bool | int | float | str) else {"class": type(value).__name__}


@torch.no_grad()
def stand_in(model: BayesianModel, shapes: Mapping[str, Any], like: Tensor) -> dict[str, Any]:
    """Make arguments that a guide can be built from, of the shapes of those that it was built from.

    Inputs, and what else is given with each row, are 1 everywhere, integers 0, or 1 if the network fails on 0 (as on
    sequences of that length). Targets are drawn from the model for weights that are all 0, so that they are possible
    whatever the likelihood is.

    Args:
        model: The model.
        shapes: What :func:`example_shapes` returned; anything may be in it.
        like: A parameter of the network, for dtype and device: a guide may have been converted after it was built.

    Raises:
        CheckpointError: If the shapes are not such.
    """
    if "x" not in shapes or "y" not in shapes:
        raise CheckpointError("guide: the file does not say what it was built from; build it, and use load.")
    draws: dict[str, Tensor] = {
        name: torch.zeros(1, *fn.event_shape, dtype=like.dtype, device=like.device)
        for name, fn in model.weight_priors().items()
    }
    draws.update({f"likelihood.{name}": fn.sample((1,)) for name, fn in model.likelihood.priors().items()})
    made, conditional = _evaluated(model, shapes, like, draws, 0)
    _, dtype = _checked("y", shapes["y"])
    dtype = like.dtype if dtype.is_floating_point else dtype
    return {**made, "y": conditional.sample()[0].to(dtype)}


def _evaluated(
    model: BayesianModel, shapes: Mapping[str, Any], like: Tensor, draws: Mapping[str, Tensor], whole: int
) -> tuple[dict[str, Any], Any]:
    """The arguments without targets, and the distribution of these."""
    made = {name: _made(name, part, like, whole) for name, part in shapes.items() if name != "y"}
    layer = shapes["x"].get("features") if isinstance(shapes["x"], dict) else None
    if isinstance(layer, str) and isinstance(made["x"], Tensor):
        made["x"] = Features.of(made["x"], model.trunk_before(layer))
    of_rows = {name: value for name, value in made.items() if name not in ("x", "weight")}
    try:
        return made, model.conditional(made["x"], draws, **of_rows)[1]
    except Exception:  # whatever a network makes of numbers that are not its data
        if whole:
            raise
    return _evaluated(model, shapes, like, draws, 1)


def _made(name: str, part: Any, like: Tensor, whole: int) -> Any:
    if isinstance(part, list):
        return tuple(_made(name, inner, like, whole) for inner in part)
    if isinstance(part, dict) and isinstance(part.get("by_name"), dict):
        return {str(key): _made(name, inner, like, whole) for key, inner in part["by_name"].items()}
    if not isinstance(part, dict):
        return part
    shape, dtype = _checked(name, part)
    if shape:
        shape = (min(shape[0], _ROWS), *shape[1:])
    if dtype.is_floating_point:
        return torch.ones(shape, dtype=like.dtype, device=like.device)
    return torch.full(shape, whole, dtype=dtype, device=like.device)


def _checked(name: str, part: Any) -> tuple[tuple[int, ...], torch.dtype]:
    found = part if isinstance(part, dict) else {}
    shape, dtype = found.get("shape"), getattr(torch, str(found.get("dtype")), None)
    if (
        not isinstance(shape, list)
        or not all(type(size) is int and 0 <= size < 2**40 for size in shape)
        or not isinstance(dtype, torch.dtype)
        or _ROWS * math.prod(shape[1:]) > _LARGEST
    ):
        raise CheckpointError(
            f"guide: was built from {name} = {str(part)[:60]}, for which there is no stand-in; build it, and use load."
        )
    return tuple(shape), dtype
