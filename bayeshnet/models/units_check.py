"""Whether data are in units that the prior of a model is made for."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bayeshnet.deprecation import stacklevel_of_user
from bayeshnet.errors import UnitsWarning
from bayeshnet.models.features import Features
from bayeshnet.models.forms import leaves, mapped
from bayeshnet.models.prior_draws import prior_draws

if TYPE_CHECKING:
    from bayeshnet.models.bayesian_model import BayesianModel

__all__ = ["check_units"]

# Inputs: root mean square of a column beyond which the first layer sees nothing but its size, and largest entry below
# which it sees nothing of the column. Priors are made for 1.
_LARGE, _SMALL = 30.0, 1e-3
# Targets: half of them so many standard deviations of the prior predictive away, or their spread this part of it.
_FAR, _NARROW = 10.0, 1e-2
_DRAWS, _ROWS, _ROWS_OF_INPUTS = 16, 16, 4096
_FIX = "Pass BayesianModel(..., standardize=(x_train, y_train)), or standardise them yourself"


def check_units(model: BayesianModel, x: Any, y: Any, of_rows: Mapping[str, Any] | None = None) -> None:
    """Warn of inputs far from unit scale, and of targets that the prior predictive does not reach.

    It draws from the prior; the caller keeps the random numbers and the mode of the network.

    Args:
        model: The model.
        x: Inputs.
        y: Targets; those that are no real numbers are not looked at.
        of_rows: What else is given of each row, by name.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1))
        >>> check_units(model, torch.randn(20, 2), torch.randn(20))
    """
    with torch.no_grad():
        parts = [part for name, part in leaves(x) if not model.units.takes_any_float(name)]
        parts = [part for part in parts if not isinstance(part, Features)]
        columns = model.columns
        if columns is not None:  # categories have no unit
            parts = [part[:, : len(columns.numeric)] if _is_of(part, columns.width) else part for part in parts]
        messages = [_of_inputs(part) for part in parts]
        messages = [] if _begins_with_norm(model.net) else messages
        messages.append(_of_targets(model, x, y, of_rows or {}))
    for message in messages:
        if message is not None:
            warnings.warn(message, UnitsWarning, stacklevel=stacklevel_of_user())


def _is_of(part: Any, width: int) -> bool:
    return isinstance(part, Tensor) and part.dim() == 2 and part.shape[1] == width


def _begins_with_norm(net: nn.Module) -> bool:
    """Whether the network brings its inputs to unit scale itself."""
    first = next((module for module in net.modules() if not any(True for _ in module.children())), None)
    kinds = nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm  # pyright: ignore[reportPrivateUsage] - torch's common base has no public name
    return isinstance(first, kinds)


def _some(t: Tensor, most: int) -> Tensor:
    if len(t) <= most:
        return t
    return t[torch.linspace(0, len(t) - 1, most, dtype=torch.double).round().long().to(t.device)]


def _some_of(part: Any, rows: int) -> Any:
    return _some(part, _ROWS) if isinstance(part, Tensor) and part.dim() and len(part) == rows else part


# ---------------------------------------------------------------------- inputs


def _of_inputs(part: Any) -> str | None:
    if not isinstance(part, Tensor) or not part.is_floating_point() or part.dim() == 0 or part.numel() == 0:
        return None
    if part.layout != torch.strided or part.is_meta:  # the network says what it takes
        return None
    values = _some(part.detach(), _ROWS_OF_INPUTS).double()
    kept = 1 if values.dim() == 2 or values.dim() >= 4 else None
    columns = values.reshape(1, -1) if kept is None else values.movedim(kept, 0).flatten(1)
    if not bool(torch.isfinite(columns).all()):
        return None
    rms, largest = columns.square().mean(1).sqrt(), columns.abs().amax(1)
    varies = columns.amax(1) > columns.amin(1)
    large, small = rms > _LARGE, varies & (largest < _SMALL)
    if not bool((large | small).any()):
        return None
    worst = int(rms.argmax()) if bool(large.any()) else int(torch.where(small, largest, math.inf).argmin())
    what = "x: has" if kept is None else f"x: {'column' if values.dim() == 2 else 'channel'} {worst} has"
    num = int((large | small).sum())
    others = f" (and {num - 1} more are as far off)" if num > 1 else ""
    return (
        f"{what} mean {float(columns[worst].mean()):.4g} and standard deviation "
        f"{float(columns[worst].std(correction=0)):.3g}{others}, and the prior of the weights is made for inputs of "
        f"about mean 0 and standard deviation 1: the posterior will be poor. {_FIX}."
    )


# ---------------------------------------------------------------------- targets


def _of_targets(model: BayesianModel, x: Any, y: Any, of_rows: Mapping[str, Any]) -> str | None:
    if (
        not isinstance(y, Tensor)
        or not y.is_floating_point()
        or not y.dim()
        or y.layout != torch.strided
        or y.is_meta
        or not model.likelihood.standardizes_targets
    ):
        return None
    rows = len(y)
    if not rows or not bool(torch.isfinite(y).any()):
        return None
    targets = y.detach()
    try:
        some = mapped(x, lambda _, part: _some_of(part, rows))
        given = {name: _some_of(value, rows) for name, value in of_rows.items() if name in model.likelihood.row_data}
        draws = prior_draws(model, _DRAWS)
        _, conditional = model.conditional(some, draws, **given)
        sampled = torch.as_tensor(conditional.sample()).double()
    except Exception:  # whatever is wrong with the model or the data, running it says it better
        return None
    shown = _some(targets, _ROWS).double()
    if sampled.shape[1:] != shown.shape or not bool(torch.isfinite(sampled).all()):
        return None
    low, middle, high = torch.quantile(sampled, torch.tensor([0.1, 0.5, 0.9], dtype=torch.double).to(sampled), dim=0)
    spread = ((high - low) / 2.563).clamp(min=torch.finfo(torch.double).tiny)  # of a Gaussian, its standard deviation
    distance = ((shown - middle).abs() / spread).reshape(len(shown), -1)
    far = distance.nanmedian(0).values
    columns, reach = targets.double().reshape(rows, -1), spread.reshape(len(shown), -1).median(0).values
    typical = middle.reshape(len(shown), -1).median(0).values
    worst = int(far.argmax())
    known = columns[:, worst][torch.isfinite(columns[:, worst])]
    mean, std = float(known.mean()), float(known.std(correction=0))
    if float(far[worst]) > _FAR:
        how = f"half of them or more are {float(far[worst]):.3g} of its standard deviations away"
    else:
        stds = torch.stack([column[torch.isfinite(column)].std(correction=0) for column in columns.unbind(1)])
        narrow = torch.where(stds > 0, stds / reach, math.inf)
        worst = int(narrow.argmin())
        if not float(narrow[worst]) < _NARROW:
            return None
        mean, std = float(columns[:, worst].nanmean()), float(stds[worst])
        how = f"they vary {1.0 / float(narrow[worst]):.3g} times less than it"
    which = "" if columns.shape[1] == 1 else f" in output {worst}"
    given = "the statistics of standardize= are of other data" if model.units.target_scale is not None else _FIX
    return (
        f"y: has mean {mean:.4g} and standard deviation {std:.3g}{which}, and the prior predictive has mean "
        f"{float(typical[worst]):.3g} and standard deviation {float(reach[worst]):.3g}: {how}, the posterior will be "
        f"poor. {given}; prior and noise are then in units of the targets' standard deviation."
    )
