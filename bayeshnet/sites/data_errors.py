"""What is wrong with data on which a model cannot be run: calls that it does not take, numbers that are not finite."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetError
from bayeshnet.models.capabilities import has_bounded_density, latents_of

__all__ = ["call_error", "errors_of_data", "nan_data_error", "non_finite_places", "refuse_nan_data"]


@contextlib.contextmanager
def errors_of_data(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], argument: str) -> Generator[None]:
    """Say what is wrong with the data where the model cannot be run on them within a ``with`` block.

    Args:
        model: The model.
        args: The positional arguments it is called with.
        kwargs: The keyword arguments.
        argument: Name of the argument that they come from.

    Raises:
        ArgumentTypeError: If the model does not take these arguments.
        ArgumentError: If Pyro's validation fails, and they hold NaN or infinite values.

    Example:
        >>> with errors_of_data(lambda x: x, (1,), {}, "data"):
        ...     pass
    """
    try:
        yield
    except BayeshnetError:
        raise
    except TypeError as error:
        if (wrong_call := call_error(model, args, kwargs, argument)) is None:
            raise
        raise wrong_call from error
    except ValueError as error:  # Pyro's validation of a distribution's parameters, or of what is observed
        if (better := nan_data_error(args, kwargs, error, argument)) is None:
            raise
        raise better from error


def call_error(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], argument: str) -> ArgumentTypeError | None:
    """Return a better error where a model was called with arguments that it does not take; None if it takes them.

    Args:
        model: The model.
        args: Positional arguments.
        kwargs: Keyword arguments.
        argument: Name of the argument that they come from.

    Example:
        >>> print(call_error(lambda x: x, (1, 2), {}, "data"))
        data: are no arguments of the model, which takes (x) (too many positional arguments); pass those that it is ...
    """
    if isinstance(model, nn.Module) and not isinstance(model, PyroModule) and latents_of(model) is None:
        wrap = " A network becomes a model by BayesianModel(net, likelihood=...)."
    else:
        wrap = ""
    called = model.forward if isinstance(model, nn.Module) else model
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as reason:
        return ArgumentTypeError(
            f"{argument}: are no arguments of the model, which takes {signature} ({reason}); pass those that it is "
            f"called with.{wrap}"
        )
    return None


def nan_data_error(
    args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception, argument: str = "example"
) -> ArgumentError | None:
    """Return a better error where Pyro's validation has failed on NaN or infinite data; None if the data are finite.

    Args:
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.
        error: What Pyro has raised.
        argument: Name of the argument that they come from.

    Example:
        >>> print(nan_data_error((torch.tensor([math.nan]),), {}, ValueError("loc is bad")))
        example: the model fails, from NaN in example[0] (1 of 1 entries) in row 0. Remove or impute these values; ...
    """
    where = _places_of_arguments(args, kwargs, argument)
    return ArgumentError(f"{_nan_message('the model fails', where, argument)} Pyro says: {error}") if where else None


def refuse_nan_data(model: Any, trace: Trace, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise if the log-density of an observed site is not finite because the data are not.

    A model may mask NaN data if its distribution does not validate them; then the log-density is finite.

    Args:
        model: The model.
        trace: Its trace, with the observed sites.
        args: The positional arguments it was traced with.
        kwargs: The keyword arguments it was traced with.

    Raises:
        ArgumentError: Naming the site, and the argument or observed values that are NaN or infinite.

    Example:
        >>> import pyro.distributions as dist
        >>> model = lambda y: pyro.sample("obs", dist.Normal(0.0, 1.0), obs=y)
        >>> y = torch.tensor(2.0)
        >>> refuse_nan_data(model, pyro.poutine.trace(model).get_trace(y), (y,), {})
    """
    in_arguments = _places_of_arguments(args, kwargs)
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, site in nodes.items():
        if site["type"] != "sample" or not site["is_observed"] or site_is_subsample(site):
            continue
        in_values = list(_places(f"the values observed at {name!r}", site["value"]))
        if not in_arguments and not in_values:
            continue  # what is wrong with a density at one draw from the prior may be right at others
        log_prob = _masked_log_prob(site)
        # A density of 0 at a draw from the prior is no error, unless the data are what it comes from: those of a
        # network, or the value itself. Other arguments may be infinite on purpose, bounds for instance.
        by_infinity = has_bounded_density(model) or any(place.startswith("inf") for place in in_values)
        if bool(log_prob.isnan().any()) or (by_infinity and bool(log_prob.isinf().any())):
            found = "NaN" if bool(log_prob.isnan().any()) else "infinite"
            what = f"the log-probability of the observed site {name!r} is {found}"
            targets = bool(in_values) and hasattr(model, "missing")
            raise ArgumentError(_nan_message(what, in_arguments or in_values, targets=targets))


def _masked_log_prob(site: Mapping[str, Any]) -> Tensor:
    """Return the log-density of a site, 0 where it is masked, NaN if the distribution refuses its value."""
    mask = site["mask"]
    if mask is False:
        return torch.zeros(())
    try:
        with pyro.validation_enabled(False):
            log_prob = site["fn"].log_prob(site["value"])
    except BayeshnetError:
        raise
    except ValueError:  # of a distribution with validate_args=True
        return torch.tensor(math.nan)
    return torch.where(mask, log_prob, torch.zeros_like(log_prob)) if isinstance(mask, Tensor) else log_prob


def non_finite_places(args: Sequence[Any], kwargs: Mapping[str, Any], argument: str = "data") -> str:
    """Return where the tensors among the arguments are NaN or infinite, for messages; empty if nowhere.

    Example:
        >>> non_finite_places((torch.tensor([1.0, math.inf]),), {})
        'inf in data[0] (1 of 2 entries) in row 1'
    """
    return ", ".join(_places_of_arguments(args, kwargs, argument))


def _places_of_arguments(args: Sequence[Any], kwargs: Mapping[str, Any], argument: str = "example") -> list[str]:
    items = [*enumerate(args), *kwargs.items()]
    return [place for key, value in items for place in _places(f"{argument}[{key!r}]", value)]


def _places(name: str, value: Any) -> Iterator[str]:
    """Find tensors that are not finite, in tuples, lists and dicts too: ``NaN in x[0] (1 of 8 entries)``."""
    if isinstance(value, Mapping | tuple | list):
        parts: Any = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            yield from _places(f"{name}[{key!r}]", part)
    elif isinstance(value, Tensor) and value.is_floating_point():
        for kind, bad in (("NaN", torch.isnan(value)), ("inf", torch.isinf(value))):
            count = int(bad.sum())
            if count:
                yield f"{kind} in {name} ({count} of {value.numel()} entries){_rows(bad)}"


def _rows(bad: Tensor, most: int = 5) -> str:
    """Name the first rows in which something is bad."""
    if bad.dim() == 0:
        return ""
    rows: list[int] = (
        bad.flatten(1).any(1).nonzero().flatten().tolist() if bad.dim() > 1 else bad.nonzero().flatten().tolist()
    )
    listed = ", ".join(map(str, rows[:most])) + (", ..." if len(rows) > most else "")
    return f" in row{'s' * (len(rows) > 1)} {listed}"


def _nan_message(what: str, where: Sequence[str], argument: str = "example", *, targets: bool = False) -> str:
    """What is not finite and what to do; ``targets`` says that they are those of a model that can leave gaps out."""
    fix = (
        "or, for gaps in the targets, pass BayesianModel(..., missing='ignore'), which leaves out those that are NaN."
        if targets
        else "or mask them in the model and fill the gaps: pyro.poutine.mask(mask=known) around "
        "pyro.sample(..., obs=torch.where(known, y, 0.0))."
    )
    return f"{argument}: {what}, from {', '.join(where)}. Remove or impute these values; {fix}"
