"""Predictions of any Pyro model, by the distributions of its sites given draws of the latents."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Size, Tensor
from torch.distributions import Independent

from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.evaluation._conditional import mean_or_none
from bayeshnet.evaluation._seeds import base_seed, seeded
from bayeshnet.evaluation._sources import check_source
from bayeshnet.evaluation.prediction import Prediction
from bayeshnet.guides.base import with_model
from bayeshnet.sites.arguments import call_arguments
from bayeshnet.sites.latents import nodes_of
from bayeshnet.sites.modes import evaluating
from bayeshnet.sites.one_thread import one_thread

__all__ = ["predict_sites"]


def predict_sites(
    model: Any,
    guide: Any,
    data: Any,
    num_samples: int,
    *,
    sites: Sequence[str],
    parallel: bool,
    generator: torch.Generator | None,
) -> dict[str, Prediction]:
    """A prediction for each of some sites of a Pyro model; see :func:`~bayeshnet.predict`.

    Raises:
        ArgumentError: If there is no such site, or draws do not fit the model.
        ArgumentTypeError: If an argument is of another type.
        UsageError: If the model cannot be vectorised, or a distribution cannot be put together from single ones.

    Example:
        >>> def model(n):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", n):
        ...         pyro.sample("obs", dist.Normal(mu, 2.0))
        >>> draws = {"mu": torch.tensor([-1.0, 1.0])}
        >>> found = predict_sites(model, draws, (3,), 1, sites=["obs"], parallel=True, generator=None)
        >>> found["obs"].epistemic, found["obs"].aleatoric
        (tensor([1., 1., 1.]), tensor([2., 2., 2.]))
    """
    if not callable(model):
        raise ArgumentTypeError(f"model: is {kind_of(model)}; pass a Pyro model, a callable.")
    if isinstance(sites, str) or not isinstance(sites, Sequence) or not sites:
        raise ArgumentTypeError(f"sites: is {sites!r}; pass names of sites in a tuple or list, such as ('obs',).")
    check_source(model, guide)
    if isinstance(guide, list | tuple):
        raise ArgumentTypeError("guide: is a list; with sites pass a guide, or draws by site in a dict.")
    require_count("num_samples", num_samples)
    args, kwargs = call_arguments(data, "x", model)
    seeds = contextlib.nullcontext() if generator is None else seeded(base_seed(generator), 0)
    with one_thread("predict"), evaluating(model), seeds:
        given = _draws(model, guide, args, kwargs, num_samples, parallel)
        num = len(next(iter(given.values())))
        single = nodes_of(_trace(model, {name: value[0] for name, value in given.items()}, args, kwargs))
        unknown = [name for name in sites if single.get(name, {}).get("type") != "sample"]
        if unknown:
            beside = {name: site for name, site in single.items() if site["type"] == "sample" and name not in given}
            there = [name for name, site in beside.items() if not site_is_subsample(site)]
            raise ArgumentError(f"sites: {unknown} are not in the model; it has {there} beside the draws given.")
        shapes = {name: Size(_fn_of(single[name], single[name], 0).batch_shape) for name in sites}
        found = _together(model, given, single, sites, args, kwargs) if parallel else None
        if found is None:
            values = [{name: value[s] for name, value in given.items()} for s in range(num)]
            traces = [nodes_of(_trace(model, value, args, kwargs)) for value in values]
            found = {name: [_fn_of(trace[name], single[name], 0) for trace in traces] for name in sites}
        fns = {name: _rebuilt(name, found[name], Size((num, *shapes[name]))) for name in sites}
        return {name: _prediction(fn) for name, fn in fns.items()}


def _prediction(fn: Any) -> Prediction:
    samples = fn.sample()
    mean = mean_or_none(fn)
    return Prediction(samples if mean is None else mean, samples, fn)


def _draws(
    model: Any, guide: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], num_samples: int, parallel: bool
) -> dict[str, Tensor]:
    """Draws ``[S, ...]`` of the model's latents."""
    given: Any = guide.get_samples() if hasattr(guide, "get_samples") else guide
    if not isinstance(given, Mapping):
        with with_model(guide, model), torch.no_grad():
            own = getattr(guide, "sample_posterior", None)
            made = Predictive(guide, num_samples=num_samples, parallel=parallel)
            given = made(*args, **kwargs) if own is None else own(num_samples)
    given = cast("Mapping[str, Any]", given)
    bad = [name for name, value in given.items() if not isinstance(value, Tensor) or not value.dim()]
    if bad or not given:
        raise ArgumentTypeError(f"guide: gives no tensors of draws [S, ...] for {bad or 'any site'}.")
    numbers = {name: len(value) for name, value in given.items()}
    if len(set(numbers.values())) > 1:
        raise ArgumentError(f"guide: gives different numbers of draws, {numbers}; pass as many of each site.")
    latents = nodes_of(poutine.trace(model).get_trace(*args, **kwargs))
    found: dict[str, Tensor] = {}
    for name, value in given.items():
        site = latents.get(name)
        if site is None or site["type"] != "sample":
            continue  # auxiliary, or a parameter
        shape = site["value"].shape
        if value[0].numel() != shape.numel() or value[0].shape[value[0].dim() - len(shape) :] != shape:
            raise ArgumentError(
                f"guide: its draws of {name!r} have shape {tuple(value.shape)}; pass {['S', *shape]}, of several "
                "chains those of get_samples() without group_by_chain."
            )
        found[name] = value.reshape((len(value), *shape))
    if not found:
        raise ArgumentError(f"guide: gives draws of {list(given)}, none of which is a site of the model.")
    return found


def _trace(model: Any, values: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Trace:
    return poutine.trace(poutine.condition(model, data=dict(values))).get_trace(*args, **kwargs)


def _together(
    model: Any,
    draws: Mapping[str, Tensor],
    single: Mapping[str, Any],
    sites: Sequence[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, list[Any]]:
    """The distribution of each site for all draws in one call of the model, in a plate outside of its own."""
    frames = [frame for site in single.values() for frame in site.get("cond_indep_stack", ())]
    nesting = max((-frame.dim for frame in frames if frame.vectorized), default=0)
    num = len(next(iter(draws.values())))
    values: dict[str, Tensor] = {}
    for name, value in draws.items():
        batch = len(single[name]["fn"].batch_shape)
        values[name] = value.reshape((num, *[1] * (nesting - batch), *value.shape[1:]))
    vectorised = pyro.plate("_draws", num, dim=-1 - nesting)(model)
    try:
        nodes = nodes_of(_trace(vectorised, values, args, kwargs))
    except Exception as error:
        what = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise UsageError(
            f"model: cannot be run for all draws at once ({what}); "
            "pass parallel=False, or write it for leading batch dimensions, x[..., 0] in place of x[0]."
        ) from error
    found = {name: [_fn_of(nodes[name], single[name], num)] for name in sites}
    for name in sites:
        if single[name]["infer"].get("_deterministic"):
            continue
        batch, alone = found[name][0].batch_shape, single[name]["fn"].batch_shape
        if batch != (num, *[1] * (nesting - len(alone)), *alone):
            raise UsageError(
                f"model: gives {name!r} the batch shape {tuple(batch)} for {num} draws at once, and {tuple(alone)} for "
                "one; pass parallel=False, or write it for leading batch dimensions, of which each draw has one more."
            )
    return found


def _fn_of(site: Mapping[str, Any], single: Mapping[str, Any], num: int) -> Any:
    """The distribution of a site; that of a deterministic one is a point, of as many dimensions as one draw has."""
    if not site["infer"].get("_deterministic"):
        return site["fn"]
    shape = single["value"].shape
    value = site["value"].reshape((num, *shape)) if num else site["value"]
    return dist.Delta(value, event_dim=len(shape))


def _rebuilt(name: str, fns: list[Any], batch: Size) -> Any:
    """One distribution of a given batch shape: from one for each draw, or from one that has size 1 for other plates."""
    if isinstance(fns[0], dist.MaskedDistribution):  # a mask is about what is observed
        return _rebuilt(name, [each.base_dist for each in fns], batch)
    fn = fns[0]
    if len(fns) == 1 and fn.batch_shape == batch:
        return fn
    if isinstance(fn, Independent):
        num = fn.reinterpreted_batch_ndims
        inner = Size((*batch, *fn.event_shape[:num]))
        return _rebuilt(name, [each.base_dist for each in fns], inner).to_event(num)
    if isinstance(fn, dist.Delta):
        v = _stacked([each.v for each in fns], [each.batch_shape for each in fns], batch, fn.event_dim)
        return dist.Delta(v, event_dim=fn.event_dim)
    constraints = cast("Mapping[str, Any]", fn.arg_constraints)
    names = [param for param in constraints if param in vars(fn)] or list(constraints)
    if not names:
        raise UsageError(
            f"sites: the distribution of {name!r}, {type(fn).__name__}, cannot be put together for all draws; put the "
            "site into the model's plates, and use parallel=True."
        )
    batches = [each.batch_shape for each in fns]
    params = {
        param: _stacked([getattr(each, param) for each in fns], batches, batch, constraints[param].event_dim)
        for param in names
    }
    return type(fn)(**params)


def _stacked(values: list[Any], batches: list[Size], batch: Size, event_dim: int) -> Tensor:
    full: list[Tensor] = []
    for value, own in zip(values, batches, strict=True):
        tensor = torch.as_tensor(value)
        full.append(tensor.expand((*own, *tensor.shape[tensor.dim() - event_dim :])))
    event = full[0].shape[full[0].dim() - event_dim :]
    return (torch.stack(full) if len(full) > 1 else full[0]).reshape((*batch, *event))
