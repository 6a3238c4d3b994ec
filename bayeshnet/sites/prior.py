"""Centre and spread of the prior of a model's latents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import TransformedDistribution

from bayeshnet.errors import BayeshnetError, BayeshnetWarning
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.sites.kept_state import KeptBuffers
from bayeshnet.sites.latents import LatentSite, latent_nodes, nodes_of
from bayeshnet.sites.one_thread import one_thread

__all__ = ["PriorStart", "prior_start"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PriorStart:
    """Centre and spread of the prior in unconstrained coordinates.

    Attributes:
        loc: Centre ``[D]``.
        scale: Spread ``[D]``, positive.
        gaussian: Where the prior is a Normal with known location and scale ``[D]``, as for network weights.

    Example:
        >>> start = PriorStart(torch.zeros(2), torch.ones(2), torch.tensor([True, False]))
        >>> start.loc + start.scale
        tensor([1., 1.])
    """

    loc: Tensor
    scale: Tensor
    gaussian: Tensor


def prior_start(
    model: Callable[..., Any],
    sites: Sequence[LatentSite],
    prototype: Tensor,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    num_draws: int = 48,
) -> PriorStart:
    """Find the centre and spread of each latent coordinate under the prior.

    Exact for Normal priors that do not depend on other latents; for those that do by the parameters they have in prior
    draws of the others; median and interquartile range of prior draws elsewhere; the prototype's value and 1 where the
    prior cannot be drawn from.

    Args:
        model: The Pyro model.
        sites: Its latent sites.
        prototype: A feasible unconstrained point ``[D]``.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
        num_draws: Number of prior draws, if not all priors are plain Normals.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from bayeshnet.sites.latents import latent_sites
        >>> model = lambda: pyro.sample("z", dist.Normal(2.0, 0.5))
        >>> prior_start(model, latent_sites(poutine.trace(model).get_trace()), torch.zeros(1), (), {})
        PriorStart(loc=tensor([2.]), scale=tensor([0.5000]), gaussian=tensor([True]))
    """
    loc, scale = prototype.clone(), torch.ones_like(prototype)
    gaussian = torch.zeros_like(prototype, dtype=torch.bool)
    try:
        with one_thread("AutoHypernet"), torch.no_grad():
            traces, draw = _first_traces(model, args, kwargs)
            known = [_constant_normal(traces, site) for site in sites]
            if any(moments is None for moments in known):
                traces.extend(draw() for _ in range(num_draws - 2))
        parts: list[tuple[Tensor, Tensor, bool]] = []
        for site, moments in zip(sites, known, strict=True):
            parts.append((*_empirical(traces, site), False) if moments is None else (*moments, True))
        loc = torch.cat([part[0] for part in parts]).to(prototype)
        scale = torch.cat([part[1] for part in parts]).to(prototype)
        gaussian = torch.cat([torch.full(part[0].shape, part[2]) for part in parts]).to(prototype.device)
    except (BayeshnetError, BayeshnetWarning):  # the model's own words; a warning is raised where it is an error
        raise
    except Exception as error:  # drawing from an improper or fragile prior may fail in any way
        _LOGGER.debug("the prior cannot be drawn from: %s", error)
    usable = torch.isfinite(loc) & torch.isfinite(scale) & (scale > 0)
    return PriorStart(
        torch.where(usable, loc, prototype), torch.where(usable, scale, torch.ones_like(scale)), gaussian & usable
    )


def _first_traces(
    model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[list[Trace], Callable[[], Trace]]:
    """Trace the model twice; return the traces, and what makes more of them.

    A network is not run for them if running it changes nothing: neither the random numbers to come, as dropout does in
    training mode (these are compared on the CPU alone), nor buffers, as batch norm does.
    """

    def whole() -> Trace:
        return poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)

    own_program = not isinstance(model, BayesianModel) or type(model).forward is not BayesianModel.forward
    if own_program or any(buffer.device.type != "cpu" for buffer in cast("BayesianModel", model).buffers()):
        return [whole(), whole()], whole
    network_model = cast("BayesianModel", model)

    def latents() -> Trace:
        return poutine.block(poutine.trace(network_model.sample_latents).get_trace)()

    start, buffers = torch.get_rng_state(), KeptBuffers(network_model)
    buffers.keep()
    first = whole()
    end = torch.get_rng_state()
    torch.set_rng_state(start)
    # Hooks, handlers and methods of a derived class may add latents, or change their priors.
    alike = _same_latents(first, latents()) and torch.equal(torch.get_rng_state(), end) and not buffers.changed()
    torch.set_rng_state(end)
    draw = latents if alike else whole
    return [first, draw()], draw


def _same_latents(one: Trace, other: Trace) -> bool:
    """Return whether two traces have the same latents with the same values."""
    first, second = latent_nodes(one), latent_nodes(other)
    return first.keys() == second.keys() and all(
        torch.equal(site["value"], second[name]["value"]) for name, site in first.items()
    )


def _constant_normal(traces: Sequence[Trace], site: LatentSite) -> tuple[Tensor, Tensor] | None:
    """Return location and scale of a Normal prior that is the same in every run; None for any other."""
    first, second = (_normal(trace, site) for trace in traces[:2])
    if first is None or second is None or not all(map(torch.equal, first, second)):
        return None
    return first


def _normal(trace: Trace, site: LatentSite) -> tuple[Tensor, Tensor] | None:
    """Location and scale ``[n]`` of a site that is Normal in unconstrained coordinates; None for any other."""
    fn = nodes_of(trace)[site.name]["fn"]
    while not isinstance(fn, torch.distributions.Normal):
        if isinstance(fn, TransformedDistribution) and not isinstance(fn, torch.distributions.LogNormal):
            return None  # its base is Normal in other coordinates than the unconstrained ones
        fn = getattr(fn, "base_dist", None)
        if fn is None:
            return None
    return fn.loc.expand(site.shape).reshape(-1), fn.scale.expand(site.shape).reshape(-1)


def _empirical(traces: Sequence[Trace], site: LatentSite) -> tuple[Tensor, Tensor]:
    """Centre and spread of a site by draws of the prior.

    A Normal whose location or scale depend on other latents is no draw but its parameters: latents that are alike,
    such as the intercepts of groups with a common scale, then get one spread, which draws of each would not give. The
    scale is the upper quartile of what the others make it, which is finite where its mean square is not.
    """
    parameters = [found for found in (_normal(trace, site) for trace in traces) if found is not None]
    if len(parameters) == len(traces):
        centre, spread = _middle(torch.stack([loc for loc, _ in parameters]))
        scale = torch.quantile(torch.stack([scale for _, scale in parameters]), 0.75, dim=0)
        return centre, torch.hypot(scale, spread).clamp(1e-3, 1e3)
    values = [nodes_of(trace)[site.name]["value"] for trace in traces]
    centre, spread = _middle(torch.stack([site.unconstrain(value).reshape(-1) for value in values]))
    return centre, spread.clamp(1e-3, 1e3)


def _middle(draws: Tensor) -> tuple[Tensor, Tensor]:
    """The median of draws ``[S, n]``, and their interquartile range in units of a Gaussian's standard deviation."""
    quartiles = torch.quantile(draws, torch.tensor([0.25, 0.5, 0.75], dtype=draws.dtype, device=draws.device), dim=0)
    return quartiles[1], (quartiles[2] - quartiles[0]) / 1.349
