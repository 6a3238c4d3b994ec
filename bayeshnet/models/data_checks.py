"""Checks of networks, their inputs and their outputs before a likelihood is applied to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.forms import leaves
from bayeshnet.models.output import described

__all__ = [
    "check_input",
    "check_output",
    "check_parameters",
    "check_positive_support",
    "check_rows",
    "nan_error",
]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def nan_error(x: Any, draws: Mapping[str, Tensor], f: Tensor) -> ArgumentError:
    """Return the error that says what makes outputs ``[S, B, ...]`` NaN: inputs, draws or the network.

    Example:
        >>> f = torch.full((2, 3, 1), torch.nan)
        >>> str(nan_error(torch.ones(3, 1), {"weight": torch.full((2, 1), torch.inf)}, f))[:67]
        "guide: gives draws that are NaN or infinite at the sites ['weight']"
    """
    parts = [part for _, part in leaves(x) if isinstance(part, Tensor)]
    bad = [part for part in parts if part.is_floating_point() and not bool(torch.isfinite(part).all())]
    rows = torch.isnan(f).transpose(0, 1).flatten(1).any(1).nonzero().flatten().tolist()
    some = f"{rows[:5]}{' and more' if len(rows) > 5 else ''}"
    if bad:
        count = int((~torch.isfinite(bad[0])).sum())
        return ArgumentError(
            f"x: {count} of {bad[0].numel()} entries are NaN or infinite, so that outputs are NaN (rows {some}); "
            "remove or impute them."
        )
    sites = [name for name, value in draws.items() if not bool(torch.isfinite(value).all())]
    if sites:
        return ArgumentError(
            f"guide: gives draws that are NaN or infinite at the sites {sites}, so that outputs are NaN; a fit that "
            "failed leaves such a guide. Build it anew."
        )
    return ArgumentError(
        f"net: makes NaN (rows {some}) of finite inputs and weights; look for a square root or logarithm of negative "
        "numbers, or a division by 0, in it."
    )


def check_input(x: Any, like: Tensor, *, any_float: bool = False) -> None:
    """Raise unless inputs have values, and the first one is of the weights' dtype if it is of floating point.

    Args:
        x: Inputs, or a tuple or dict of them.
        like: A tensor with the dtype of the weights.
        any_float: Whether other floating-point dtypes are accepted, because they will be converted.

    Raises:
        ArgumentTypeError: If they are not.

    Example:
        >>> check_input(torch.zeros(3, 2), torch.zeros(()))
    """
    if any(isinstance(part, Tensor) and part.is_meta for _, part in leaves(x)):
        raise ArgumentTypeError("x: is on the meta device, it has no values; pass a tensor that has.")
    first = next((part for _, part in leaves(x)), None)
    if any_float:
        return
    if isinstance(first, Tensor) and first.is_floating_point() and first.dtype != like.dtype:
        raise ArgumentTypeError(
            f"x: has dtype {first.dtype}, the network's weights have {like.dtype}; convert one of them, e.g. "
            f"x.to({like.dtype})."
        )


def check_output(f: Any) -> Tensor:
    """Return what a network made for S weight samples if it is one tensor of floating-point numbers ``[S, B, ...]``.

    Raises:
        ArgumentTypeError: If it is none.
        ArgumentError: If it has no rows.

    Example:
        >>> check_output(torch.zeros(4, 3, 1)).shape
        torch.Size([4, 3, 1])
    """
    if not isinstance(f, Tensor):
        raise ArgumentTypeError(
            f"net: returns {described(f)}; a likelihood needs one tensor. Pass BayesianModel(..., output=...), "
            f"{_fix(f)}."
        )
    if not f.is_floating_point():
        raise ArgumentTypeError(
            f"net: returns a tensor of {f.dtype}; a likelihood needs floating-point outputs, means or logits."
        )
    if f.dim() < 2:
        raise ArgumentError("net: returns a single number; a likelihood needs one output per row, [B, ...].")
    return f


def _fix(f: Any) -> str:
    """Which ``output=`` picks a tensor of what a network returned."""
    if isinstance(f, Mapping):
        return f"the key of the output that is observed, such as {next(iter(f), 'logits')!r}, or a function"
    if isinstance(f, tuple | list) and not hasattr(f, "_fields"):
        return "the place of the output that is observed, such as 0, or a function"
    return "the attribute that is observed, or a function from what is returned to one tensor"


def check_rows(x: Any, rows: int, *, some: bool = True) -> None:
    """Raise if a single row is taken for a batch, or there are no rows.

    Args:
        x: The inputs.
        rows: Number of rows that the network makes of them.
        some: Whether at least one is required.

    Raises:
        ArgumentError: In these cases.

    Example:
        >>> check_rows(torch.zeros(7, 3), 7)
    """
    if isinstance(x, Tensor) and x.dim() == 1 and len(x) != rows:
        raise ArgumentError(
            f"x: has shape {tuple(x.shape)}, and the network makes {rows} rows of it; pass a batch [B, ...], for a "
            "single row x.unsqueeze(0)."
        )
    if some and rows == 0:
        raise ArgumentError("x: has no rows; pass at least one observation.")


def check_parameters(net: nn.Module) -> None:
    """Raise unless the parameters can be drawn together from a density: real numbers of one dtype.

    Frozen ones are not drawn, and may be of any dtype. None may be a ``PyroSample``, which has a prior of its own.

    Raises:
        ArgumentTypeError: If they cannot.

    Example:
        >>> check_parameters(nn.Linear(3, 1))
    """
    for name, part in net.named_modules():
        sampled = [str(key) for key in vars(part).get("_pyro_samples", ())]
        if sampled:
            raise ArgumentTypeError(
                f"net: its module {name or type(part).__name__!r} has weights {sampled} that are a PyroSample, which "
                "are drawn one at a time; pass the plain network, nn.Linear in place of PyroModule[nn.Linear], and "
                "the prior as prior=."
            )
    kinds: dict[torch.dtype, str] = {}
    for name, param in net.named_parameters():
        if isinstance(param, nn.parameter.UninitializedParameter):
            return  # lazy ones are refused by name where the network is copied
        if param.is_meta or param.layout != torch.strided:
            kind = "on the meta device" if param.is_meta else f"a tensor of layout {param.layout}"
            raise ArgumentTypeError(
                f"net: its parameter {name!r} is {kind}; build the network with dense parameters on a real device."
            )
        if not param.requires_grad:
            continue  # a constant of the network
        kinds.setdefault(param.dtype, name)
        if param.dtype not in _DTYPES:
            raise ArgumentTypeError(
                f"net: its parameter {name!r} has dtype {param.dtype}; weights are drawn from densities over real "
                "numbers, of 16 bits or more. Keep what is no weight in a buffer, and a complex weight as a real "
                "parameter [..., 2], with torch.view_as_complex in forward."
            )
    if len(kinds) > 1:
        found = ", ".join(f"{name!r} has {dtype}" for dtype, name in kinds.items())
        raise ArgumentTypeError(
            f"net: its parameters have several dtypes ({found}), but all weights are drawn together; convert it, "
            "net.float() or net.double()."
        )


def check_positive_support(prior: torch.distributions.Distribution, argument: str) -> None:
    """Raise unless all values that a prior can give are positive.

    Args:
        prior: The distribution.
        argument: Name of the argument, for the message.

    Raises:
        ArgumentError: If there may be others.

    Example:
        >>> import pyro.distributions as dist
        >>> check_positive_support(dist.Gamma(2.0, 2.0), "scale")
    """
    support: Any = prior.support
    while isinstance(support, constraints.independent) or type(support).__name__ == "MixtureSameFamilyConstraint":
        support = support.base_constraint
    lower = getattr(support, "lower_bound", None)
    positive = support is constraints.positive or (lower is not None and float(lower) >= 0)
    if positive and not getattr(support, "is_discrete", False):
        return
    raise ArgumentError(
        f"{argument}: its prior {prior} is not restricted to positive numbers, or discrete; use dist.Gamma, "
        "dist.HalfNormal, dist.LogNormal, ..."
    )
